"""Prints, and writes to ``results/onnx-matrix.md``, what becomes of every model, exporter and adapter.

``python benchmarks/onnx_matrix.py``; five minutes on two cores, most of which are the exporters'.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests" / "models"))

import onnx_matrix  # noqa: E402

HEAD = """# Merged into ONNX, against PEFT

Largest difference between the output of the merged ONNX model and that of PEFT's unmerged model, relative to the
largest output, in float32 on ONNX Runtime's CPU provider. Below 1e-5 is equal. `refused` names the findings of
`spec/merging.md`, section 2; nothing is written then. `-`: there is no such combination. Made by
`python benchmarks/onnx_matrix.py`; `tests/onnx/test_matrix.py` holds it.

"""


def main() -> None:
    """Go through all of it."""
    lines = [f"| model | exporter | {' | '.join(onnx_matrix.METHODS)} |", "|---" * (2 + len(onnx_matrix.METHODS)) + "|"]
    merged = refused = wrong = 0
    for name in sys.argv[1:] or onnx_matrix.SUBJECTS:
        for title, exporter in onnx_matrix.EXPORTERS.items():
            if not onnx_matrix.exists(name, exporter):
                continue
            shown = []
            with tempfile.TemporaryDirectory() as folder:
                graph = onnx_matrix.export(name, exporter, Path(folder) / "base.onnx")
                for number, method in enumerate(onnx_matrix.METHODS):
                    place = Path(folder) / str(number)
                    place.mkdir()
                    cell = onnx_matrix.measure(name, exporter, method, graph, place)
                    shown.append("-" if cell is None else str(cell) if cell.holds else f"**{cell}**")
                    merged += cell is not None and cell.holds and cell.error is not None
                    refused += cell is not None and cell.error is None
                    wrong += cell is not None and not cell.holds
            lines.append(f"| {name} | {title} | {' | '.join(shown)} |")
            print(lines[-1], flush=True)
    total = f"\n{merged} merged and equal, {refused} refused, {wrong} wrong.\n"
    print(total)
    (ROOT / "benchmarks" / "results" / "onnx-matrix.md").write_text(HEAD + "\n".join(lines) + "\n" + total)


if __name__ == "__main__":
    main()
