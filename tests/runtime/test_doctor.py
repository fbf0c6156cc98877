"""The doctor tells what is there, what runs, and how to mend the rest."""

from __future__ import annotations

import re
import sys
import tomllib
from importlib import metadata
from pathlib import Path

import onnxruntime
import pytest

from lora_registry import __version__
from lora_registry.runtime import doctor
from lora_registry.runtime.doctor import Check, Status, examine


def by_name(checks: list[Check]) -> dict[str, Check]:
    return {check.name: check for check in checks}


@pytest.fixture
def versions(monkeypatch: pytest.MonkeyPatch) -> dict[str, str | None]:
    """Versions that override those of the installed packages; None for missing."""
    told: dict[str, str | None] = {}
    real = metadata.version

    def version(name: str) -> str:
        found = told.get(name, "")
        if found is None:
            raise metadata.PackageNotFoundError(name)
        return found or real(name)

    monkeypatch.setattr(doctor.metadata, "version", version)
    return told


def test_a_sound_machine(tmp_path: Path) -> None:
    """Here everything is installed: no problem, real versions, and the CPU provider runs."""
    checks = by_name(examine(tmp_path))
    assert [check for check in checks.values() if check.status is Status.PROBLEM] == []
    assert checks["loreg"].detail == __version__
    assert checks["python"].detail.startswith(f"{sys.version_info.major}.{sys.version_info.minor}.")
    assert checks["torch"].detail == metadata.version("torch")
    assert checks["CPUExecutionProvider"] == Check("CPUExecutionProvider", Status.OK, "runs")
    assert onnxruntime.__version__ in checks["onnxruntime"].detail
    assert str(tmp_path) in checks["disk"].detail


def test_every_dependency_is_looked_at(tmp_path: Path) -> None:
    """What ``pip install loreg`` brings is what the doctor asks for, package by package."""
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]
    names = {re.split(r"[^\w-]", line)[0] for line in project["dependencies"]}
    assert "sqlalchemy" in names
    assert names <= by_name(examine(tmp_path)).keys()


def test_missing_packages_come_with_their_line(versions: dict[str, str | None], tmp_path: Path) -> None:
    """An optional package that is missing is a warning, a required one a problem; both say what to type."""
    versions |= {"torch": None, "click": None}
    checks = by_name(examine(tmp_path))
    assert checks["torch"] == Check("torch", Status.WARNING, "missing", "pip install 'loreg[export]'")
    assert checks["click"].status is Status.PROBLEM
    assert "pip install" in checks["click"].remedy


def test_no_wheel_of_onnxruntime(versions: dict[str, str | None], tmp_path: Path) -> None:
    """Without either wheel there is one warning, and no provider is tried."""
    versions |= {"onnxruntime": None, "onnxruntime-gpu": None}
    checks = by_name(examine(tmp_path))
    assert checks["onnxruntime"].status is Status.WARNING
    assert "loreg[gpu]" in checks["onnxruntime"].remedy
    assert "CPUExecutionProvider" not in checks


def test_two_wheels_of_onnxruntime(versions: dict[str, str | None], tmp_path: Path) -> None:
    """Both wheels together are a problem: whichever came last has overwritten the other."""
    versions |= {"onnxruntime": "1.32.0", "onnxruntime-gpu": "1.31.1"}
    check = by_name(examine(tmp_path))["onnxruntime"]
    assert check.status is Status.PROBLEM
    assert check.detail == "onnxruntime 1.32.0, onnxruntime-gpu 1.31.1: they overwrite each other's files"
    assert check.remedy.startswith("pip uninstall -y onnxruntime onnxruntime-gpu && ")


def test_the_empty_shell_of_onnxruntime(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """What is left when one of two wheels is removed is recognized, and the line reinstalls."""
    monkeypatch.delattr(onnxruntime, "InferenceSession")
    check = by_name(examine(tmp_path))["onnxruntime"]
    assert check.status is Status.PROBLEM
    assert "empty folder" in check.detail
    assert "pip" in check.remedy


def test_a_listed_provider_that_does_not_run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A provider that is listed and falls back is told apart from one that runs; with a GPU it is a problem."""
    if "CUDAExecutionProvider" in onnxruntime.get_available_providers():
        pytest.skip("this wheel has the provider")
    listed = ["CUDAExecutionProvider", "CPUExecutionProvider"]
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: listed)
    for driver, status in ((False, Status.WARNING), (True, Status.PROBLEM)):
        monkeypatch.setattr("lora_registry.runtime.cuda_libraries.has_driver", lambda driver=driver: driver)
        checks = by_name(examine(tmp_path))
        assert checks["CUDAExecutionProvider"].status is status
        assert "does not run on this machine" in checks["CUDAExecutionProvider"].detail
        assert checks["CPUExecutionProvider"].status is Status.OK


@pytest.mark.parametrize(("version", "mode"), [((3, 40, 1), "rollback journal"), ((3, 51, 3), "write-ahead log")])
def test_the_journal_follows_the_version(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, version: tuple[int, int, int], mode: str
) -> None:
    """SQLite before the fix of the WAL-reset bug gets the rollback journal, and the reason is told."""
    monkeypatch.setattr("sqlite3.sqlite_version_info", version)
    monkeypatch.setattr("lora_registry.store.database.file_system", lambda _: "ext4")
    detail = by_name(examine(tmp_path))["sqlite"].detail
    assert mode in detail
    assert ("can lose data" in detail) == (mode == "rollback journal")


def test_little_disk_is_a_warning(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A registry folder with little room left is told, also where it does not exist yet."""
    monkeypatch.setattr(doctor, "LITTLE_DISK", 1 << 60)
    check = by_name(examine(tmp_path / "not" / "yet"))["disk"]
    assert check.status is Status.WARNING
    assert "loreg gc" in check.remedy


def test_checks_are_plain_json(tmp_path: Path) -> None:
    """Every check is four strings."""
    for check in examine(tmp_path):
        document = check.to_json()
        assert list(document) == ["name", "status", "detail", "remedy"]
        assert all(type(value) is str for value in document.values())


def test_the_home_comes_from_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Without a folder the doctor looks where loreg would keep its registry."""
    monkeypatch.setenv("LOREG_HOME", str(tmp_path / "there"))
    assert str(tmp_path / "there") in by_name(examine())["disk"].detail
