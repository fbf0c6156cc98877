"""The matrix of models, exporters and adapters: equal to PEFT, or refused by name; no cell is silently wrong."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import onnx
import onnx_matrix
import pytest
from onnx_matrix import EXPORTERS, METHODS, SUBJECTS

Graphs = Callable[[str, str], Path]

REFUSED = {("CNN, BatchNorm", "optimized"), ("CNN, BatchNorm", "torchscript")}
"""Exports whose optimizer folded a normalization into the kernel: nothing can be added to that (O-008)."""

CELLS = [
    pytest.param(name, exporter, id=f"{name}-{title}".replace(" ", "-").replace(",", ""))
    for name in SUBJECTS
    for title, exporter in EXPORTERS.items()
    if onnx_matrix.exists(name, exporter)
]


@pytest.fixture(scope="session")
def graphs(tmp_path_factory: pytest.TempPathFactory) -> Graphs:
    """A function from a model and an exporter to the base, exported once."""
    root, made = tmp_path_factory.mktemp("graphs"), dict[tuple[str, str], Path]()

    def exported(name: str, exporter: str) -> Path:
        if (name, exporter) not in made:
            made[name, exporter] = onnx_matrix.export(name, exporter, root / f"{len(made)}.onnx")
        return made[name, exporter]

    return exported


@pytest.mark.parametrize(("name", "exporter"), CELLS)
def test_merged_equals_peft_or_is_refused(name: str, exporter: str, graphs: Graphs, tmp_path: Path) -> None:
    """Every kind of adapter on one export: valid files within 1e-5 of PEFT, or findings and no file."""
    graph = graphs(name, exporter)
    for number, method in enumerate(METHODS):
        folder = tmp_path / str(number)
        folder.mkdir()
        cell = onnx_matrix.measure(name, exporter, method, graph, folder)
        if cell is None:
            continue
        assert cell.holds, f"{method}: {cell}, moved {cell.moved}"
        assert bool(cell.refusal) == ((name, exporter) in REFUSED), f"{method}: {cell}"
        assert (folder / "merged.onnx").exists() == (not cell.refusal)
        if not cell.refusal and exporter != "genai":  # onnx does not know the operators of that one
            onnx.checker.check_model(str(folder / "merged.onnx"), full_check=True)
