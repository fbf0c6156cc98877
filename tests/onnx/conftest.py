"""Exports that several tests of this folder share."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import onnx_models
import pytest
import tiny_models

Exports = Callable[[str, str], Path]


@pytest.fixture(scope="session")
def exports(tmp_path_factory: pytest.TempPathFactory) -> Exports:
    """A function from a tiny model's name and an exporter to an ONNX file, made once; never write to it."""
    root = tmp_path_factory.mktemp("onnx")

    def exported(name: str, how: str) -> Path:
        path = root / f"{name}.{how}.onnx"
        return path if path.exists() else onnx_models.export(tiny_models.MODELS[name](), how, path)

    return exported
