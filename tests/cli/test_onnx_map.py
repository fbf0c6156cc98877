"""``loreg onnx map``: where the tensors of a checkpoint are in a graph, and by what that is known."""

from __future__ import annotations

import json
from pathlib import Path

import genai_model
import numpy as np
import pytest
from click.testing import CliRunner, Result
from onnx import helper
from onnx_models import graph
from peft import LoraConfig
from peft_adapters import make_peft_adapter

from lora_registry.cli import main
from lora_registry.errors import EXIT_FINDINGS, InvalidInputError, NotFoundError, UsageError


def mapped(model: Path, *options: str) -> Result:
    return CliRunner().invoke(main, ["onnx", "map", str(model), *options])


def told(model: Path, *options: str) -> dict:
    return json.loads(mapped(model, *options, "--json").stdout)


@pytest.mark.parametrize("options", [(), ("--base", str(genai_model.BASE))], ids=["names", "base"])
def test_every_matrix_of_the_checkpoint_is_found_once(options: tuple[str, ...]) -> None:
    """Without an adapter: all of them, packed ones part by part, each under the checkpoint's name."""
    answer = told(genai_model.MODEL, *options)
    wanted = {name for name, tensor in genai_model.torch_model().state_dict().items() if tensor.dim() > 1}
    assert set(answer["targets"]) == wanted
    assert answer["findings"] == []
    (keys,) = answer["targets"]["model.layers.1.self_attn.k_proj.weight"]["initializers"]
    assert keys["name"] == "model.layers.1.attn.qkv_proj.MatMul.weight"
    assert keys["slice"] == {"axis": 1, "start": 64, "run": 32}
    assert keys["transposed"]
    assert all(("value-match" in each["rules"]) == bool(options) for each in answer["targets"].values())


def test_the_table_shows_parts_and_readers() -> None:
    """One line an initializer, with the columns that are meant."""
    result = mapped(genai_model.MODEL, "--targets", "*.0.self_attn.v_proj.weight")
    assert result.exit_code == 0
    line = next(line for line in result.output.splitlines() if "v_proj" in line)
    assert line.split("\t")[1:] == [
        "builder",
        "model.layers.0.attn.qkv_proj.MatMul.weight[:, 96:128]",
        "transposed",
        "/model/layers.0/attn/qkv_proj/MatMul",
    ]
    assert result.output.endswith("1 of 1 target found\n")


def test_what_is_not_found_says_why_and_ends_with_one(tmp_path: Path) -> None:
    """An adapter of another model: exit 1, and a finding for each target."""
    model = genai_model.torch_model()
    make_peft_adapter(model, LoraConfig(r=2, target_modules=["q_proj"]), tmp_path / "adapter")
    weights = {"model.layers.0.self_attn.q_proj.weight": np.zeros((64, 16), np.float32)}
    nodes = [helper.make_node("Gemm", ["x", *weights], ["y"], transB=1)]
    graph(nodes, weights, inputs={"x": ["n", 16]}, path=tmp_path / "half.onnx")
    result = mapped(tmp_path / "half.onnx", "--adapter", str(tmp_path / "adapter"))
    assert result.exit_code == EXIT_FINDINGS
    assert "1 of 2 targets found" in result.output
    assert "O-001  model.layers.1.self_attn.q_proj.weight" in result.output


def test_requests_that_mean_nothing_are_refused(tmp_path: Path) -> None:
    """Two ways to say what to look for, nothing that could be found, no model."""
    both = mapped(genai_model.MODEL, "--adapter", str(genai_model.BASE), "--targets", "*")
    assert both.exit_code == UsageError.exit_code
    assert mapped(genai_model.MODEL, "--targets", "nothing").exit_code == NotFoundError.exit_code
    (tmp_path / "no.onnx").write_bytes(b"\xff\xff")
    assert mapped(tmp_path / "no.onnx").exit_code == InvalidInputError.exit_code
