"""The wheel that users install: what is in it, and that it runs without the checkout."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from configparser import ConfigParser
from pathlib import Path

import pytest

from lora_registry import __version__

CHECKOUT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(out), str(CHECKOUT)]
    subprocess.run(command, check=True, capture_output=True, text=True)
    (built,) = out.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that holds the wheel's content as pip installs it, and nothing else."""
    target = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(target), str(wheel)]
    subprocess.run(command, check=True, capture_output=True, text=True)
    return target


def run_installed(installed: Path, code: str) -> str:
    """Run ``code`` with the installed wheel ahead of everything else, far from the checkout."""
    prelude = f"import sys; sys.path.insert(0, {str(installed)!r})\n"
    result = subprocess.run(
        [sys.executable, "-c", prelude + code], check=False, capture_output=True, text=True, cwd=installed
    )
    assert result.returncode == 0, result.stderr
    return result.stdout


def test_the_wheel_installs_two_packages_and_no_generic_name(wheel: Path) -> None:
    """No ``converters``, ``spec``, ``tests`` or ``examples`` lands beside everybody else's packages."""
    with zipfile.ZipFile(wheel) as archive:
        top = {name.partition("/")[0] for name in archive.namelist()}
    assert top == {"lora_registry", "loreg_converters", f"loreg-{__version__}.dist-info"}


def test_the_wheel_carries_its_type_information_and_its_license(wheel: Path) -> None:
    """``py.typed`` in both packages, and the text of the license."""
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    assert {"lora_registry/py.typed", "loreg_converters/py.typed"} <= names
    assert f"loreg-{__version__}.dist-info/licenses/LICENSE" in names


def test_every_module_of_the_checkout_is_in_the_wheel(wheel: Path) -> None:
    """A module that git has and the wheel lacks would break only for users."""
    roots = {"lora_registry": CHECKOUT, "loreg_converters": CHECKOUT / "converters"}
    ours = {str(path.relative_to(root)) for name, root in roots.items() for path in (root / name).rglob("*.py")}
    with zipfile.ZipFile(wheel) as archive:
        assert ours <= set(archive.namelist())


def test_the_wheel_declares_the_command_and_its_own_converters(wheel: Path) -> None:
    """Built-in converters come in by the same door as other people's."""
    with zipfile.ZipFile(wheel) as archive:
        entries = ConfigParser()
        entries.read_string(archive.read(f"loreg-{__version__}.dist-info/entry_points.txt").decode())
    assert entries["console_scripts"]["loreg"] == "lora_registry.cli:main"
    assert entries["loreg.converters"]["peft"] == "loreg_converters.peft:converter"


def test_neither_onnxruntime_wheel_is_a_hard_dependency(wheel: Path) -> None:
    """They overwrite each other, so only extras may bring one; torch is for those who export."""
    with zipfile.ZipFile(wheel) as archive:
        lines = archive.read(f"loreg-{__version__}.dist-info/METADATA").decode().splitlines()
    hard = [line for line in lines if line.startswith("Requires-Dist:") and "extra ==" not in line]
    assert hard
    assert not [line for line in hard if "onnx" in line or "torch" in line or "transformers" in line]


def test_the_installed_command_shows_its_help(installed: Path) -> None:
    """``loreg --help`` runs from the wheel, outside the checkout."""
    code = "sys.argv = ['loreg', '--help']\nfrom lora_registry.cli import main\nmain()"
    shown = run_installed(installed, code)
    assert "Usage: loreg" in shown
    assert "push" in shown


def test_the_installed_entry_point_loads_the_peft_converter(installed: Path) -> None:
    """The entry point in the wheel's metadata names an object that is there."""
    code = (
        "import importlib.metadata as m\n"
        f"(distribution,) = m.distributions(name='loreg', path=[{str(installed)!r}])\n"
        "(entry,) = [e for e in distribution.entry_points if e.group == 'loreg.converters' and e.name == 'peft']\n"
        "loaded = entry.load()\n"
        "print(loaded.name, sys.modules['loreg_converters'].__file__)"
    )
    name, file = run_installed(installed, code).split()
    assert name == "peft"
    assert Path(file).is_relative_to(installed)


def test_the_wheel_carries_every_test_vector(wheel: Path) -> None:
    """``loreg conformance`` asks about the same files as the checkout; what makes them stays behind."""
    vectors = CHECKOUT / "spec" / "vectors"
    made = {
        path.relative_to(vectors).as_posix() for path in vectors.rglob("*") if path.suffix in (".json", ".safetensors")
    }
    prefix = "lora_registry/conformance/vectors/"
    with zipfile.ZipFile(wheel) as archive:
        carried = {name.removeprefix(prefix) for name in archive.namelist() if name.startswith(prefix)}
    assert len(made) > 100
    assert carried == made


def test_the_installed_command_asks_itself_about_its_own_vectors(installed: Path) -> None:
    """``loreg conformance`` from the wheel: program and vectors are those installed, and the claim holds."""
    code = (
        "import os; os.environ['PYTHONPATH'] = sys.path[0]\n"
        "from lora_registry.conformance import vectors\n"
        "print(vectors.find())\n"
        "sys.argv = ['loreg', 'conformance', '--class', 'validator']\n"
        "from lora_registry.cli import main\n"
        "main()"
    )
    folder, name, claim = run_installed(installed, code).splitlines()
    assert Path(folder).is_relative_to(installed)
    assert name == f"loreg {__version__}"
    assert claim.startswith("Validator 1.0, vectors ")
