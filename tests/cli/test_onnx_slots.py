"""``loreg onnx slots`` and ``stack``: what they print, what they write, and how they refuse."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx_models
import onnxruntime
import pytest
import switchable_models as switchable
from click.testing import CliRunner
from onnx import helper

from lora_registry.adapter import Adapter, Kind
from lora_registry.cli import main
from lora_registry.format.writer import write_adapter
from lora_registry.onnx.slots.manifest import IDS

W = np.random.default_rng(0).standard_normal((6, 4)).astype(np.float32)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """base.onnx, and two adapters of other ranks."""
    node = helper.make_node("MatMul", ["x", "layer.weight"], ["y"], name="op")
    shape = ("batch", "sequence", 6)
    onnx_models.graph(
        [node], {"layer.weight": W}, inputs={"x": shape}, output_shape=(*shape[:2], 4), path=tmp_path / "base.onnx"
    )
    for seed, rank in ((1, 2), (2, 3)):
        target = switchable.low_rank("layer.weight", Kind.LINEAR, ("in", "out"), (6, 4), rank=rank, seed=seed)
        write_adapter(Adapter(targets=(target,)), tmp_path / f"{seed}.loreg.safetensors")
    return tmp_path


def invoke(*arguments: str | Path) -> tuple[int, str, str]:
    """Exit code and both outputs."""
    result = CliRunner().invoke(main, ["onnx", *map(str, arguments)])
    return result.exit_code, result.stdout, result.stderr


def test_slots(folder: Path) -> None:
    """Slots are listed with their axes; the same as JSON; a second run refuses to write over the first."""
    out = folder / "s.onnx"
    code, text, _ = invoke("slots", folder / "base.onnx", "-o", out, "--targets", "layer.*")
    assert code == 0
    assert "layer.weight\tlinear\t6 → 4\tF32\top" in text
    assert f"wrote {out}: switchable, 1 slot" in text
    assert invoke("slots", folder / "base.onnx", "-o", out, "--targets", "layer.*")[0] == 4
    adapter = folder / "1.loreg.safetensors"
    code, text, _ = invoke("slots", folder / "base.onnx", "-o", out, "--adapter", adapter, "--overwrite", "--json")
    assert code == 0
    told = json.loads(text)
    assert told["slots"]["layer.weight"]["shape"] == [6, 4]
    assert told["batched"] is False


def test_slots_need_targets(folder: Path) -> None:
    """Neither adapter nor pattern is a usage error, a pattern without a match is not found; nothing is written."""
    out = folder / "s.onnx"
    assert invoke("slots", folder / "base.onnx", "-o", out)[0] == 2
    assert invoke("slots", folder / "base.onnx", "-o", out, "--targets", "nothing")[0] == 3
    assert not out.exists()


def test_stack_runs_under_onnxruntime_itself(folder: Path) -> None:
    """W-011: ONNX Runtime loads the stack as an adapter, and the numbers that were printed choose."""
    model, out = folder / "b.onnx", folder / "both.onnx_adapter"
    sources = [folder / "1.loreg.safetensors", folder / "2.loreg.safetensors"]
    assert invoke("slots", folder / "base.onnx", "-o", model, "--targets", "*", "--batched")[0] == 0
    code, text, _ = invoke("stack", *sources, "--model", model, "-o", out)
    assert code == 0
    assert [line.split("\t") for line in text.splitlines()[1:3]] == [["1", str(sources[0])], ["2", str(sources[1])]]
    adapter, options = onnxruntime.LoraAdapter(), onnxruntime.RunOptions()
    adapter.Load(str(out))
    options.add_active_adapter(adapter)
    x = np.random.default_rng(0).standard_normal((3, 5, 6)).astype(np.float32)
    (y,) = switchable.open_cpu(model).run(None, {"x": x, IDS: np.array([2, 0, 1])}, options)
    for row, (seed, rank) in enumerate([(2, 3), (0, 0), (1, 2)]):
        change = np.zeros((4, 6))
        if rank:
            target = switchable.low_rank("layer.weight", Kind.LINEAR, ("in", "out"), (6, 4), rank=rank, seed=seed)
            change = switchable.change(target)
        np.testing.assert_allclose(y[row], x[row] @ (W + change.T), rtol=1e-4, atol=1e-4)
    assert invoke("stack", *sources, "--model", folder / "base.onnx", "-o", folder / "no.onnx_adapter")[0] == 8
