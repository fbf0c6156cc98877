"""Fixtures that every test may use, and the rule that nothing is skipped where it counts.

The builders behind the fixtures are plain functions: ``tiny_models``, ``peft_adapters`` (tests/models is on the path).
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable, Generator
from pathlib import Path

import pytest

FOLDERS = Callable[[str], Path]


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """With CI=true a skipped test is a failed one, unless it waits for a GPU: green must mean that it ran."""
    report = yield
    if item.get_closest_marker("cuda") is None and not hasattr(report, "wasxfail"):
        _fail_skipped(report)
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report() -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    """The same for files that skip as a whole."""
    report = yield
    _fail_skipped(report)
    return report


def _fail_skipped(report: pytest.TestReport | pytest.CollectReport) -> None:
    if report.skipped and os.environ.get("CI") == "true":
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
        report.outcome = "failed"
        report.longrepr = f"skipped where CI=true: {reason}"


@pytest.fixture(scope="session")
def smollm2_dir() -> Path:
    """SmolLM2-135M-Instruct as a Hugging Face folder, float32, tied embeddings; never write into it."""
    import prepare

    return prepare.prepare(prepare.SMOLLM2)


@pytest.fixture(scope="session")
def minilm_dir() -> Path:
    """all-MiniLM-L6-v2 as a Hugging Face folder; never write into it."""
    import prepare

    return prepare.prepare(prepare.MINILM)


@pytest.fixture(scope="session")
def smollm2_onnx(smollm2_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """SmolLM2 as ONNX, exported once a run (most of a minute); never write into it."""
    return _exported_once(smollm2_dir, tmp_path_factory)


@pytest.fixture(scope="session")
def minilm_onnx(minilm_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """MiniLM as ONNX, exported once a run; never write into it."""
    return _exported_once(minilm_dir, tmp_path_factory)


def _exported_once(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Export into a folder that all pytest-xdist workers of a run share; the first one does it."""
    from lora_registry.runtime.export import export_model

    own = tmp_path_factory.getbasetemp()
    shared = (own.parent if "PYTEST_XDIST_WORKER" in os.environ else own) / "exported"
    shared.mkdir(exist_ok=True)
    out = shared / f"{model.name}.onnx"
    with open(shared / f"{model.name}.lock", "w", encoding="utf-8") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not out.exists():
            export_model(model, out)
    return out


@pytest.fixture(scope="session")
def tiny_dir(tmp_path_factory: pytest.TempPathFactory) -> FOLDERS:
    """A function from a name in ``tiny_models.MODELS`` to that model's folder; never write into it."""
    import tiny_models

    root = tmp_path_factory.mktemp("tiny")

    def folder(name: str) -> Path:
        path = root / name
        return path if path.exists() else tiny_models.save(tiny_models.MODELS[name](), path)

    return folder
