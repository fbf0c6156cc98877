"""A registry in a temporary folder, and processes that push into it."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from lora_registry.registry import Registry
from lora_registry.store.store import Store

WORKER = Path(__file__).with_name("push_worker.py")


@pytest.fixture
def registry(tmp_path: Path) -> Registry:
    """A registry that does not exist yet."""
    return Registry.open(tmp_path / "registry")


@pytest.fixture
def store(registry: Registry) -> Store:
    """The parts of ``registry``, made."""
    store = Store(registry.root)
    store.prepare()
    return store


@pytest.fixture
def start_worker() -> Callable[..., subprocess.Popen[str]]:
    """A function that runs ``push_worker.py`` with arguments in another process."""

    def start(*arguments: object) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, WORKER, *map(str, arguments)],
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    return start
