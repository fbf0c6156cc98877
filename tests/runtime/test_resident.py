"""Merging into tensors that torch holds: the same numbers as a merge into files, all of them or none."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import peft_adapters
import pytest
import tiny_models
import torch
from device_targets import TARGETS
from loreg_converters.peft import converter
from peft import LoraConfig

from lora_registry.adapter import Adapter, Kind, Target
from lora_registry.device import block
from lora_registry.errors import ConflictError, InvalidInputError, MachineError, UnsupportedError
from lora_registry.merge.bases.base import open_base
from lora_registry.merge.checkpoint import merge_checkpoint
from lora_registry.ops.arrays import from_array, round_to
from lora_registry.ops.change import merged
from lora_registry.ops.fidelity import measure
from lora_registry.runtime import resident
from lora_registry.runtime.resident import merge_resident

RARE = 1e-4
NAMES = {torch.bfloat16: "BF16", torch.float16: "F16", torch.float32: "F32"}


def weight(target: Target, dtype: torch.dtype) -> torch.Tensor:
    """W for ``target``."""
    values = np.random.default_rng(3).normal(size=target.shape or (700, 64)).astype(np.float32)
    return torch.from_numpy(values).to(dtype)


def ordered(tensor: torch.Tensor) -> torch.Tensor:
    """Floats as integers that count ulps."""
    bits = tensor.contiguous().view({2: torch.int16, 4: torch.int32}[tensor.element_size()]).long()
    largest = (1 << (8 * tensor.element_size() - 1)) - 1
    return torch.where(bits < 0, -(bits & largest), bits)


@pytest.fixture(autouse=True)
def _short_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that a small tensor takes several."""
    monkeypatch.setattr(resident, "ELEMENTS", 9000)


@pytest.mark.parametrize("dtype", list(NAMES), ids=NAMES.get)
@pytest.mark.parametrize("name", list(TARGETS))
def test_every_kind_in_place_and_beside(name: str, dtype: torch.dtype) -> None:
    """The formula's result, rounded once; the figures are those of numpy; weights stay unless they are to change."""
    target, before = TARGETS[name], weight(TARGETS[name], dtype)
    weights = {"w": before.clone()}
    beside = merge_resident(Adapter(targets=(target,)), weights)
    assert torch.equal(weights["w"], before)
    made = merge_resident(Adapter(targets=(target,)), weights, in_place=True)
    assert made.tensors["w"] is weights["w"]
    assert torch.equal(beside.tensors["w"], weights["w"])
    exact = before.double().numpy()
    if target.kind is not Kind.FULL and dtype != torch.float32:
        exact = exact.astype(np.float32)  # the type of the computation
    wanted = merged(target, exact)
    rounded = torch.from_numpy(round_to(wanted, NAMES[dtype]).view(f"i{before.element_size()}").copy()).view(dtype)
    off = (ordered(weights["w"]) - ordered(rounded)).abs()
    assert off.max() <= 1
    assert off.count_nonzero() <= RARE * off.numel() + 1
    if target.kind is Kind.FULL:
        assert not made.fidelity
        return
    figures = measure(exact, wanted.astype(exact.dtype), round_to(wanted, NAMES[dtype]))
    assert made.fidelity["w"].cosine == pytest.approx(figures.cosine, abs=1e-5)
    assert made.fidelity["w"].relative_error == pytest.approx(figures.relative_error, rel=1e-3, abs=1e-7)
    assert made.fidelity == beside.fidelity


def test_a_model_of_transformers_as_a_merge_into_its_files(tiny_dir: Callable[[str], Path], tmp_path: Path) -> None:
    """Names with a prefix too; the module computes with the merged weights."""
    module = tiny_models.MODELS["llama-untied"]()
    folder = tmp_path / "adapter"
    config = LoraConfig(r=4, target_modules=["q_proj", "down_proj", "embed_tokens"])
    peft_adapters.make_peft_adapter(tiny_models.MODELS["llama-untied"](), config, folder)
    adapter, _ = converter.read(folder)
    merge_checkpoint(adapter, tiny_dir("llama-untied"), tmp_path / "merged")
    files = open_base(tmp_path / "merged")
    done = merge_resident(adapter, module, in_place=True)
    assert set(done.tensors) == set(done.fidelity) == {target.name for target in adapter}
    for name, parameter in module.named_parameters():
        assert np.allclose(parameter.detach().numpy(), files.array(name), rtol=1e-6, atol=1e-7)
        assert parameter.requires_grad


class Tied(torch.nn.Module):  # type: ignore[misc]
    """An embedding and a head that share their values."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = torch.nn.Embedding(700, 64)
        self.head = torch.nn.Linear(64, 700, bias=False)
        self.head.weight = self.embed.weight


def embedding(name: str) -> Adapter:
    """An adapter of the embedding."""
    return Adapter(targets=(replace(TARGETS["embedding"], name=name),))


@pytest.mark.parametrize("form", ["module", "state dict"])
def test_tied_weights_change_together_or_apart(form: str) -> None:
    """As asked, in place and beside; rows of tokens always change both."""
    for tied, alike in (("untie", False), ("both", True)):
        module = Tied()
        weights = module if form == "module" else dict(module.state_dict(keep_vars=True))
        before = module.embed.weight.detach().clone()
        beside = merge_resident(embedding("embed.weight"), weights, tied=tied)  # type: ignore[arg-type]
        assert set(beside.tensors) == ({"embed.weight", "head.weight"} if alike else {"embed.weight"})
        done = merge_resident(embedding("embed.weight"), weights, in_place=True, tied=tied)  # type: ignore[arg-type]
        now = dict(module.named_parameters(remove_duplicate=False)) if isinstance(weights, Tied) else weights
        assert torch.equal(now["embed.weight"], beside.tensors["embed.weight"])
        assert torch.equal(now["embed.weight"], done.tensors["embed.weight"])
        assert torch.equal(now["head.weight"], beside.tensors["embed.weight"] if alike else before)
        assert not torch.equal(now["embed.weight"], before)
        if form == "module":
            assert isinstance(module.embed.weight, torch.nn.Parameter)
    with pytest.raises(ConflictError, match="tied to head"):
        merge_resident(embedding("embed.weight"), Tied(), tied="error")
    rows = Adapter(targets=(replace(TARGETS["tokens"], name="embed.weight"),))
    assert set(merge_resident(rows, Tied()).tensors) == {"embed.weight", "head.weight"}
    each = Adapter(
        targets=(
            replace(TARGETS["embedding"], name="embed.weight"),
            replace(
                TARGETS["full"],
                name="head.weight",
                shape=(700, 64),
                tensors={"value": from_array(np.zeros((700, 64), np.float32))},
            ),
        )
    )
    with pytest.raises(UnsupportedError, match="are one tensor, and the adapter changes each"):
        merge_resident(each, Tied(), tied="both")


def test_all_or_nothing() -> None:
    """A target that breaks the last weight leaves the first one as it was."""
    good, bad = TARGETS["linear"], TARGETS["dora"]
    factors = {**bad.tensors, "A": from_array(np.full((8, 200), np.inf, np.float32))}
    adapter = Adapter(targets=(replace(good, name="a"), replace(bad, name="b", tensors=factors)))
    weights = {"a": weight(good, torch.bfloat16), "b": weight(bad, torch.bfloat16)}
    before = {name: tensor.clone() for name, tensor in weights.items()}
    with pytest.raises(InvalidInputError, match="b: the merged weight is not finite at element 0 although the base is"):
        merge_resident(adapter, weights, in_place=True)
    assert all(torch.equal(weights[name], before[name]) for name in weights)
    far = replace(good, tensors={**good.tensors, "B": from_array(np.full((300, 8), 1e5, np.float32))})
    with pytest.raises(InvalidInputError, match="beyond the range of F16"):
        merge_resident(Adapter(targets=(far,)), {"w": weight(good, torch.float16)}, in_place=True)


def test_weights_that_are_broken_already_stay_so() -> None:
    """An infinity of the base is not the adapter's fault."""
    tensor = weight(TARGETS["linear"], torch.bfloat16)
    tensor[3, 4] = torch.inf
    done = merge_resident(Adapter(targets=(TARGETS["linear"],)), {"w": tensor})
    assert done.tensors["w"].isinf().sum() == 1


def test_weights_in_another_order_in_memory() -> None:
    """A transposed view is merged by its shape, in place."""
    tensor = weight(TARGETS["linear"], torch.bfloat16)
    wanted = merge_resident(Adapter(targets=(TARGETS["linear"],)), {"w": tensor}).tensors["w"]
    turned = tensor.T.contiguous().T
    assert not turned.is_contiguous()
    merge_resident(Adapter(targets=(TARGETS["linear"],)), {"w": turned}, in_place=True)
    assert torch.equal(turned, wanted)


def test_what_does_not_fit_is_refused_by_name() -> None:
    """As by a merge into files."""
    adapter = Adapter(targets=(TARGETS["linear"],))
    for weights, error, said in (
        ({"v": torch.zeros(300, 200)}, InvalidInputError, "w: the base has no such tensor"),
        ({"w": torch.zeros(200, 300)}, InvalidInputError, "stores it transposed"),
        ({"w": torch.zeros(300, 200, dtype=torch.int8)}, UnsupportedError, "quantized, as I8"),
    ):
        with pytest.raises(error, match=said):
            merge_resident(adapter, weights, in_place=True)


def test_a_device_that_fails_while_it_writes_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    """Weights of which some are merged are worse than none."""
    calls = []
    make = block.make_run

    def fails(*arguments: object) -> None:
        calls.append(arguments)
        if len(calls) > 8:
            raise torch.AcceleratorError("CUDA error: unspecified launch failure")
        make(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(resident, "make_run", fails)
    with pytest.raises(MachineError, match=r"^cpu failed: CUDA error: unspecified.*load them anew$"):
        merge_resident(
            Adapter(targets=(TARGETS["linear"],)), {"w": weight(TARGETS["linear"], torch.bfloat16)}, in_place=True
        )


def test_a_device_that_fails_after_it_was_asked_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    """A GPU tells of a failure when somebody waits for it; nobody else would until the weights are used."""

    def fails(device: torch.device) -> None:
        raise torch.AcceleratorError(f"CUDA error: unspecified launch failure on {device}")

    monkeypatch.setattr(resident, "settle", fails)
    weights = {"w": weight(TARGETS["linear"], torch.bfloat16)}
    merge_resident(Adapter(targets=(TARGETS["linear"],)), weights)
    with pytest.raises(MachineError, match=r"^cpu failed: CUDA error: unspecified.*load them anew$"):
        merge_resident(Adapter(targets=(TARGETS["linear"],)), weights, in_place=True)


def test_precision_is_what_it_was() -> None:
    """TF32 is off while something is computed, and on again afterwards where it was on."""
    from lora_registry.device.precision import full_precision

    matmul = torch.backends.cuda.matmul
    before = matmul.fp32_precision
    try:
        for set_it in (
            lambda: torch.set_float32_matmul_precision("medium"),
            lambda: setattr(matmul, "fp32_precision", "tf32"),
        ):
            torch.set_float32_matmul_precision("highest")
            set_it()
            with full_precision():
                assert matmul.fp32_precision == "ieee"
                assert not matmul.allow_tf32
            assert matmul.fp32_precision == "tf32"
    finally:
        torch.set_float32_matmul_precision("highest")
        matmul.fp32_precision = before
