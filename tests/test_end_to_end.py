"""The main job: a PEFT adapter goes in, merged models come out that equal PEFT's own merge.

Every job of ``tests/models/peft_jobs.py`` goes PEFT folder → registry → pull → merge, into a checkpoint and into an
ONNX file, and both are held against ``merge_and_unload``: weights to 1e-5 relative in float32, then outputs.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import tiny_models
import torch
from parity import TOLERANCE, first_output, onnx_output, onnx_weights, relative_error, worst
from peft import LoraConfig, PeftModel
from peft_adapters import arrays, make_peft_adapter, merged_model
from peft_jobs import JOBS, Job
from safetensors.numpy import load_file
from transformers import AutoModelForCausalLM

from lora_registry.adapter import Adapter
from lora_registry.convert.discover import converter, detect
from lora_registry.errors import UnsupportedError
from lora_registry.merge.checkpoint import merge_checkpoint
from lora_registry.merge.onnx.model import merge_onnx
from lora_registry.merge.options import MergeOptions
from lora_registry.registry import Registry
from lora_registry.runtime.export import export_model, export_module


@dataclass(frozen=True, slots=True)
class Done:
    """A job after its adapter went through the registry.

    Attributes:
        job: what was asked for.
        base: folder of the base model.
        base_onnx: the base as ONNX.
        peft: folder that PEFT saved the adapter to.
        registry: the registry that holds the adapter as ``job:1``.
        pulled: the adapter as the registry gives it back.
        inputs: what the models are asked, by name.
        weights: name in the base to what PEFT's merge makes of it.
        outputs: first output of PEFT's merged model.
    """

    job: Job
    base: Path
    base_onnx: Path
    peft: Path
    registry: Registry
    pulled: Adapter
    inputs: dict[str, np.ndarray]
    weights: dict[str, np.ndarray]
    outputs: np.ndarray


@pytest.fixture(scope="module")
def base_onnx(tiny_dir: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """A function from the name of a tiny model to its ONNX file, exported once."""
    root = tmp_path_factory.mktemp("onnx")

    @cache
    def exported(name: str) -> Path:
        out = root / f"{name}.onnx"
        if name != "cnn":
            export_model(tiny_dir(name), out)
            return out
        model = tiny_models.cnn()
        free = ({0: torch.export.Dim("batch")},)
        image = tiny_models.inputs(model)["image"]
        export_module(model, [image], out, input_names=["image"], output_names=["scores"], dynamic_shapes=free)
        return out

    return exported


@pytest.fixture(scope="module", params=JOBS, ids=str)
def done(
    request: pytest.FixtureRequest,
    tiny_dir: Callable[[str], Path],
    base_onnx: Callable[[str], Path],
    tmp_path_factory: pytest.TempPathFactory,
) -> Done:
    job = JOBS[request.param]
    root = tmp_path_factory.mktemp(request.param)
    model = tiny_models.MODELS[job.model]()
    inputs = tiny_models.inputs(model)
    wrapped = make_peft_adapter(model, job.config(), root / "peft")
    merged = merged_model(wrapped)
    registry = Registry.open(root / "registry")
    adapter, _ = detect(root / "peft").read(root / "peft")
    registry.push(adapter, "job:1")
    return Done(
        job=job,
        base=tiny_dir(job.model),
        base_onnx=base_onnx(job.model),
        peft=root / "peft",
        registry=registry,
        pulled=registry.load("job:1"),
        inputs={name: tensor.numpy() for name, tensor in inputs.items()},
        weights=arrays(merged),
        outputs=first_output(merged, inputs),
    )


def test_the_adapter_changes_the_base_visibly(done: Done) -> None:
    """Equality with PEFT's merge means something only if the merge differs from the base, target by target."""
    before = load_file(done.base / "model.safetensors")
    for target in done.pulled:
        assert relative_error(before[target.name], done.weights[target.name]) > 100 * TOLERANCE, target.name


def test_the_registry_gives_back_what_went_in(done: Done) -> None:
    """Every target, scale and byte of the folder that PEFT wrote."""
    pushed, _ = detect(done.peft).read(done.peft)
    assert [target.name for target in done.pulled] == [target.name for target in pushed]
    for ours, theirs in zip(done.pulled, pushed, strict=True):
        assert (ours.kind, ours.layout, ours.scale, ours.rows) == (
            theirs.kind,
            theirs.layout,
            theirs.scale,
            theirs.rows,
        )
        assert {role: bytes(tensor.data) for role, tensor in ours.tensors.items()} == {
            role: bytes(tensor.data) for role, tensor in theirs.tensors.items()
        }


def test_a_merged_checkpoint_equals_peft(done: Done, tmp_path: Path) -> None:
    """Each tensor of the merged folder is what ``merge_and_unload`` makes of it, and none is missing."""
    merge_checkpoint(done.pulled, done.base, tmp_path / "merged", MergeOptions(tied=done.job.tied))
    merged = load_file(tmp_path / "merged" / "model.safetensors")
    assert merged.keys() >= load_file(done.base / "model.safetensors").keys()
    error, name = worst(merged, done.weights)
    assert error <= TOLERANCE, name


def test_a_merged_onnx_model_equals_peft(done: Done, tmp_path: Path) -> None:
    """The same in the ONNX file: its initializers, and what ONNX Runtime computes with them."""
    merge_onnx(done.pulled, done.base_onnx, tmp_path / "merged.onnx", tied=done.job.tied)
    merged = onnx_weights(tmp_path / "merged.onnx")
    assert merged.keys() >= {target.name for target in done.pulled}
    error, name = worst(merged, done.weights)
    assert error <= TOLERANCE, name
    assert relative_error(onnx_output(tmp_path / "merged.onnx", done.inputs), done.outputs) <= TOLERANCE


def test_peft_loads_what_comes_back_from_the_registry(done: Done, tmp_path: Path) -> None:
    """Pulled as PEFT again, the adapter does in PEFT what it did before."""
    converter("peft").write(done.pulled, tmp_path / "peft")
    model = PeftModel.from_pretrained(tiny_models.MODELS[done.job.model](), tmp_path / "peft")
    error, name = worst(arrays(merged_model(model)), done.weights)
    assert error == 0, name


def test_a_grouped_convolution_is_refused_as_peft_refuses_it(tiny_dir: Callable[[str], Path], tmp_path: Path) -> None:
    """PEFT's factors connect every output with every input, which a grouped kernel cannot hold: nothing is written."""
    config = LoraConfig(r=4, lora_alpha=10, target_modules=["grouped"])
    wrapped = make_peft_adapter(tiny_models.cnn(), config, tmp_path / "peft")
    with pytest.raises(NotImplementedError, match="groups"):
        merged_model(wrapped)
    adapter, _ = detect(tmp_path / "peft").read(tmp_path / "peft")
    with pytest.raises(UnsupportedError, match=r"grouped\.weight: a grouped conv"):
        merge_checkpoint(adapter, tiny_dir("cnn"), tmp_path / "merged")
    assert [path.name for path in tmp_path.iterdir()] == ["peft"]


def test_untying_does_what_the_unmerged_adapter_does(tiny_dir: Callable[[str], Path], tmp_path: Path) -> None:
    """Unmerged, an adapter on a tied input embedding leaves the output embedding alone; so does ``untie``."""
    wrapped = make_peft_adapter(tiny_models.llama(), LoraConfig(target_modules=["embed_tokens"]), tmp_path / "peft")
    inputs = tiny_models.inputs(tiny_models.llama())
    wanted = first_output(wrapped, inputs)
    adapter, _ = detect(tmp_path / "peft").read(tmp_path / "peft")
    merge_checkpoint(adapter, tiny_dir("llama-tied"), tmp_path / "merged", MergeOptions(tied="untie"))
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    assert relative_error(first_output(tiny_models.llama(), inputs), wanted) > 100 * TOLERANCE
    assert relative_error(first_output(merged, inputs), wanted) <= TOLERANCE
