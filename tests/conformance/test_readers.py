"""The readers in spec/readers share no code with loreg and give the expected answer to every vector."""

from __future__ import annotations

import ast
import re
import shutil
import sys
from pathlib import Path

import pytest

from lora_registry.conformance.claim import Report, examine
from lora_registry.conformance.program import Program
from lora_registry.conformance.vectors import load

SPEC = Path(__file__).parents[2] / "spec"
READERS = SPEC / "readers"
ONE_FILE = READERS / "python" / "loreg_reader.py"
CLASSES = {"reader", "validator", "writer", "editor", "merger", "prover"}


def report(*command: str) -> Report:
    with Program(command) as program:
        return examine(program, load(SPEC / "vectors"))


def claimed(found: Report) -> set[str]:
    assert found.holds, found.failures[:3]
    return {claim.class_name for claim in found.claims}


@pytest.mark.slow
def test_the_python_reader_claims_every_class() -> None:
    """Every vector of all six classes is answered as the text says."""
    assert claimed(report(sys.executable, str(ONE_FILE))) == CLASSES


@pytest.mark.slow
def test_the_one_file_alone_reads_and_validates(tmp_path: Path) -> None:
    """Copied to an empty folder it claims reader and validator, and both hold."""
    shutil.copy(ONE_FILE, tmp_path)
    assert claimed(report(sys.executable, str(tmp_path / ONE_FILE.name))) == {"reader", "validator"}


@pytest.mark.slow
def test_the_javascript_reader_claims_every_class() -> None:
    """Every vector of all six classes is answered as the text says."""
    node = shutil.which("node")
    if node is None:
        pytest.skip("there is no node, which runs spec/readers/js")
    assert claimed(report(node, str(READERS / "js" / "cli.mjs"))) == CLASSES


def test_the_one_file_is_short() -> None:
    """It has fewer than 300 lines."""
    assert len(ONE_FILE.read_text(encoding="utf-8").splitlines()) < 300


@pytest.mark.parametrize("path", sorted((READERS / "python").glob("*.py")), ids=lambda path: path.name)
def test_the_python_reader_imports_the_standard_library_only(path: Path) -> None:
    """Besides it there are its own modules, and for the one file not even those."""
    own = set() if path == ONE_FILE else {module.stem for module in path.parent.glob("*.py")}
    imported = set[str]()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            imported |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            imported.add((node.module or "").partition(".")[0])
    assert imported <= sys.stdlib_module_names | own


@pytest.mark.parametrize("path", sorted((READERS / "js").glob("*.mjs")), ids=lambda path: path.name)
def test_the_javascript_reader_imports_its_own_modules_only(path: Path) -> None:
    """Besides them there is what Node brings along."""
    text = path.read_text(encoding="utf-8")
    imported = re.findall(r'^(?:import|export)\b[^;]*?\bfrom\s+"([^"]+)"', text, re.MULTILINE)
    imported += re.findall(r'\bimport\s*\(?\s*"([^"]+)"\)?;', text)
    assert all(re.fullmatch(r"\./[a-z0-9]+\.mjs|node:[a-z/_]+", name) for name in imported), imported
