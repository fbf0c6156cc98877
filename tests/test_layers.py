"""The architecture, checked: who imports whom, and what it costs to ask for help."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).parents[1]

HEAVY = {"ml_dtypes", "numpy", "onnx", "onnx_ir", "onnxruntime", "peft", "rich", "sqlalchemy", "torch", "transformers"}

REPORT = """
import sys
from importlib import metadata

asked = []
metadata.entry_points = lambda **what: asked.append(what)
sys.argv = ["loreg", *{arguments!r}]
try:
    {run}
except SystemExit as stop:
    assert not stop.code, stop.code
print(*sorted({{name.partition(".")[0] for name in sys.modules}}), sep="\\n")
print("entry points:", len(asked))
"""


def modules_after(run: str, *arguments: str) -> list[str]:
    """The top-level modules that a fresh interpreter holds after ``run``, and how often it looked for entry points."""
    code = REPORT.format(run=run, arguments=list(arguments))
    result = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    return result.stdout.splitlines()


def test_imports_point_down_the_layers() -> None:
    """import-linter finds no import that runs up, and nothing foreign in the format layer."""
    command = Path(sys.executable).with_name("lint-imports")
    result = subprocess.run([command, "--no-cache"], cwd=CHECKOUT, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout
    assert "0 broken" in result.stdout


@pytest.mark.parametrize(
    "arguments", [("--help",), ("--version",), ("merge", "--help"), ("push", "--help")], ids=" ".join
)
def test_asking_for_help_loads_nothing_heavy(arguments: tuple[str, ...]) -> None:
    """No array, database, graph or terminal library, and no plugin: help is there at once."""
    loaded = modules_after("from lora_registry.cli import main; main()", *arguments)
    assert not HEAVY & set(loaded)
    assert "loreg_converters" not in loaded
    assert loaded[-1] == "entry points: 0"


def test_the_format_layer_needs_only_the_standard_library() -> None:
    """Reading and writing native files can be vendored into a trainer as one folder."""
    modules = sorted((CHECKOUT / "lora_registry" / "format").glob("*.py"))
    imports = ", ".join(f"lora_registry.format.{path.stem}" for path in modules if path.stem != "__init__")
    loaded = set(modules_after(f"import {imports}")) - {"lora_registry", "entry points: 0"}
    # A virtual environment may start with names from .pth files; what Python itself starts with is not ours.
    foreign = loaded - sys.stdlib_module_names - set(modules_after("pass"))
    assert not foreign


def test_no_module_is_longer_than_five_hundred_lines() -> None:
    """Small modules, one noun each (CONTRIBUTING.md)."""
    files = [path for root in ("lora_registry", "converters") for path in (CHECKOUT / root).rglob("*.py")]
    too_long = {path.name: lines for path in files if (lines := len(path.read_text("utf-8").splitlines())) > 500}
    assert files
    assert not too_long


PACKAGES = [
    f"lora_registry/{name}"
    for name in (
        "algebra",
        "audit",
        "conformance",
        "device",
        "format",
        "lpatch",
        "merge",
        "merge/bases",
        "merge/fitting",
        "merge/proof",
        "merge/undo",
        "merge/onnx",
        "onnx",
        "onnx/slots",
        "onnx/quantized",
        "ops",
        "quantized",
        "quantized/encoding",
        "runtime",
        "store",
    )
]


@pytest.mark.parametrize("package", [*PACKAGES, "converters/loreg_converters/_peft"])
def test_the_table_of_a_package_names_its_modules(package: str) -> None:
    """Whoever opens a folder finds every module of it in ``__init__``, and nothing that went."""
    folder = CHECKOUT / package
    named = re.findall(r"^:mod:`~\.(\w+)`", (folder / "__init__.py").read_text("utf-8"), re.MULTILINE)
    inside = {path.stem for path in folder.glob("*.py")} | {path.parent.name for path in folder.glob("*/__init__.py")}
    assert sorted(named) == sorted(inside - {"__init__"})
