"""An adapter beside the weights computes what PEFT computes, and comes off without a trace."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import onnx_models
import peft_adapters
import pytest
import tiny_models
import torch
from exported_models import make
from onnx_models import tensor_of
from peft import LoraConfig
from peft.tuners.lora.layer import LoraLayer

from lora_registry.adapter import Adapter, Kind, Target, Tensor
from lora_registry.errors import ConflictError, InvalidInputError, UnsupportedError, UsageError
from lora_registry.runtime.adapted import Adapted

JOBS: dict[str, tuple[str, dict[str, Any]]] = {
    "linear": ("llama-untied", {"target_modules": ["q_proj", "down_proj"], "r": 4, "lora_alpha": 12}),
    "rslora": ("bert-sequence", {"target_modules": ["query", "dense"], "r": 4, "use_rslora": True}),
    "fan-in-fan-out": ("gpt2", {"target_modules": ["c_attn", "c_fc"], "r": 3, "fan_in_fan_out": True}),
    "embedding": ("bert", {"target_modules": ["word_embeddings", "value"], "r": 5}),
    "dora-linear": ("llama-untied", {"target_modules": ["v_proj", "gate_proj"], "r": 4, "use_dora": True}),
    "dora-bias": ("bert", {"target_modules": ["query", "output.dense"], "r": 4, "use_dora": True}),
    "dora-fan": ("gpt2", {"target_modules": ["c_fc"], "r": 4, "use_dora": True, "fan_in_fan_out": True}),
    "dora-embedding": ("bert", {"target_modules": ["word_embeddings"], "r": 4, "use_dora": True}),
    "shared-keys": ("deberta-sequence", {"target_modules": ["query_proj", "key_proj"], "r": 4}),
    "conv": ("cnn", {"target_modules": ["stem", "pointwise", "along", "head"], "r": 4}),
    "dora-conv": ("cnn", {"target_modules": ["stem", "pointwise"], "r": 4, "use_dora": True}),
    "grouped-conv": ("cnn", {"target_modules": ["grouped"], "r": 4}),
    "modules-to-save": ("bert-sequence", {"target_modules": ["query"], "modules_to_save": ["classifier"]}),
}


def output(module: Any, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
    with torch.no_grad():
        result = module(**inputs)
    return result if isinstance(result, torch.Tensor) else result[0]


def worst(got: torch.Tensor, wanted: torch.Tensor) -> float:
    return float(((got - wanted).abs().max() / wanted.abs().max()).detach())


@pytest.mark.parametrize("job", sorted(JOBS))
def test_same_as_peft_unmerged(job: str, tmp_path: Path) -> None:
    """Each kind gives the output of PEFT's own unmerged model, and the base's again when it is taken off."""
    family, options = JOBS[job]
    wrapped = peft_adapters.make_peft_adapter(make(family), LoraConfig(**options), tmp_path)
    adapter = onnx_models.adapter_of(wrapped)
    if job == "grouped-conv":
        adapter = Adapter(targets=tuple(replace(target, groups=2) for target in adapter))
    inputs = tiny_models.inputs(make(family))
    wanted = output(wrapped, inputs)
    module = make(family)
    plain = output(module, inputs)
    assert worst(wanted, plain) > 1e-3
    with Adapted(module, adapter) as adapted:
        assert worst(output(module, inputs), wanted) < 1e-5
        assert adapted.unused == ()
    assert torch.equal(output(module, inputs), plain)


def test_grouped_factors_of_peft_are_grouped(tmp_path: Path) -> None:
    """The factors of the test above are what the format says of groups: A sees all channels, B is grouped."""
    options = LoraConfig(**JOBS["grouped-conv"][1])
    wrapped = peft_adapters.make_peft_adapter(tiny_models.cnn(), options, tmp_path)
    (layer,) = (module for module in wrapped.modules() if isinstance(module, LoraLayer))
    assert tuple(layer.lora_A["default"].weight.shape) == (4, 12, 3, 2)
    assert tuple(layer.lora_B["default"].weight.shape) == (16, 2, 1, 1)


def factors(name: str, shape: tuple[int, int], *, kind: Kind, layout: tuple[str, str], rank: int = 3) -> Target:
    """A linear or embedding target with random factors for a tensor of ``shape``."""
    generator = torch.Generator().manual_seed(3)
    width = dict(zip(layout, shape, strict=True))
    A, B = (torch.randn(size, generator=generator) for size in ((rank, width["in"]), (width["out"], rank)))
    tensors = {"A": tensor_of(A), "B": tensor_of(B)}
    return Target(name=name, kind=kind, layout=layout, shape=shape, tensors=tensors, scale=0.3)


def head_target() -> Target:
    return factors("lm_head.weight", (99, 48), kind=Kind.LINEAR, layout=("out", "in"))


def test_a_tie_is_cut_by_default() -> None:
    """A target on the head of a tied model changes the logits and not the embeddings."""
    module = make("llama-tied")
    inputs = tiny_models.inputs(module)
    before = module.model.embed_tokens(inputs["input_ids"])
    hidden = output(module.model, inputs)
    target = head_target()
    A, B = (torch.frombuffer(bytearray(target.tensors[role].data), dtype=torch.float32) for role in "AB")
    weight = module.lm_head.weight + 0.3 * B.reshape(99, 3) @ A.reshape(3, 48)
    with Adapted(module, Adapter(targets=(target,))):
        assert torch.equal(module.model.embed_tokens(inputs["input_ids"]), before)
        assert worst(output(module, inputs), hidden @ weight.T) < 1e-5


def test_a_tie_may_be_kept() -> None:
    """With ``both`` the other use of the tensor changes alike: the model is that with one merged tensor."""
    inputs = tiny_models.inputs(make("llama-tied"))
    merged = make("llama-tied")
    target = head_target()
    A, B = (torch.frombuffer(bytearray(target.tensors[role].data), dtype=torch.float32) for role in "AB")
    with torch.no_grad():
        merged.lm_head.weight += 0.3 * B.reshape(99, 3) @ A.reshape(3, 48)
    module = make("llama-tied")
    with Adapted(module, Adapter(targets=(target,)), tied="both"):
        assert worst(output(module, inputs), output(merged, inputs)) < 1e-5
    assert module.lm_head.weight is module.model.embed_tokens.weight


def test_a_tie_may_be_refused() -> None:
    """With ``error`` a target on a tied tensor is refused, and so is a policy that does not exist."""
    adapter = Adapter(targets=(head_target(),))
    with pytest.raises(ConflictError, match=r"lm_head\.weight is tied to model\.embed_tokens\.weight"):
        Adapted(make("llama-tied"), adapter, tied="error")
    with pytest.raises(UsageError, match="no policy 'maybe'"):
        Adapted(make("llama-tied"), adapter, tied="maybe")


def test_rows_of_tokens_change_both_uses_of_a_tied_tensor() -> None:
    """New rows are new for the input and for the output, as PEFT has them (P-008)."""
    inputs = tiny_models.inputs(make("llama-tied"))
    rows = sorted({int(inputs["input_ids"][0, 0]), int(inputs["input_ids"][0, 1])})
    value = torch.linspace(-1, 1, len(rows) * 48).reshape(len(rows), 48)
    wanted = make("llama-tied")
    with torch.no_grad():
        wanted.model.embed_tokens.weight[rows] = value
    target = Target(
        name="model.embed_tokens.weight",
        kind=Kind.TOKENS,
        layout=("in", "out"),
        shape=(99, 48),
        tensors={"value": Tensor("F32", (len(rows), 48), value.numpy().tobytes())},
        rows=tuple(rows),
    )
    module = make("llama-tied")
    plain = output(module, inputs)
    with Adapted(module, Adapter(targets=(target,))):
        assert worst(output(module, inputs), output(wanted, inputs)) < 1e-5
    assert worst(output(module, inputs), plain) == 0
    assert worst(output(wanted, inputs), plain) > 1e-2


def test_both_ends_of_a_tie_cannot_share_both_changes() -> None:
    """An adapter that changes each use of one tensor contradicts ``both``."""
    rows = factors("model.embed_tokens.weight", (99, 48), kind=Kind.EMBEDDING, layout=("in", "out"))
    with pytest.raises(UnsupportedError, match="one tensor"):
        Adapted(make("llama-tied"), Adapter(targets=(head_target(), rows)), tied="both")


class Experts(torch.nn.Module):
    """Three experts as one parameter, each applied to every row."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.weight = torch.nn.Parameter(torch.randn(3, 5, 4))
        self.bias = torch.nn.Parameter(torch.randn(5))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.einsum("ni,eoi->neo", x, self.weight) + self.bias


@pytest.mark.parametrize("layout", [("expert", "out", "in"), ("expert", "in", "out")])
def test_experts(layout: tuple[str, ...]) -> None:
    """Each expert takes its own factors, whichever way round the base stores it."""
    module = Experts()
    plain = module.weight.detach().clone()
    if layout[1] == "in":
        module.weight = torch.nn.Parameter(plain.transpose(1, 2).contiguous())
        module.forward = lambda x: torch.einsum("ni,eio->neo", x, module.weight) + module.bias
    A, B = torch.randn(3, 2, 4), torch.randn(3, 5, 2)
    tensors = {"A": tensor_of(A), "B": tensor_of(B)}
    target = Target(
        name="weight", kind=Kind.EXPERTS, layout=layout, shape=tuple(module.weight.shape), tensors=tensors, scale=0.5
    )
    x = torch.randn(6, 4)
    wanted = torch.stack([x @ (plain[e] + 0.5 * B[e] @ A[e]).T for e in range(3)], dim=1) + module.bias
    with Adapted(module, Adapter(targets=(target,))):
        assert worst(module(x), wanted) < 1e-6


def test_bias_and_full_and_tokens() -> None:
    """The kinds without factors: a scaled delta, a new tensor, new rows; a value under factors stands in for W."""
    module = torch.nn.Sequential(torch.nn.Embedding(7, 4), torch.nn.Linear(4, 3), torch.nn.LayerNorm(3))
    delta, norm, rows, value = torch.randn(3), torch.randn(3), torch.randn(2, 4), torch.randn(3, 4)
    factored = factors("1.weight", (3, 4), kind=Kind.LINEAR, layout=("out", "in"), rank=2)
    A = torch.frombuffer(bytearray(factored.tensors["A"].data), dtype=torch.float32).reshape(2, 4)
    B = torch.frombuffer(bytearray(factored.tensors["B"].data), dtype=torch.float32).reshape(3, 2)
    adapter = Adapter(
        targets=(
            Target(
                name="1.bias", kind=Kind.BIAS, layout=("out",), shape=(3,), tensors={"delta": tensor_of(delta)}, scale=2
            ),
            Target(name="2.weight", kind=Kind.FULL, layout=(), shape=(3,), tensors={"value": tensor_of(norm)}),
            Target(
                name="0.weight",
                kind=Kind.TOKENS,
                layout=("in", "out"),
                shape=None,
                tensors={"value": tensor_of(rows)},
                rows=(2, 5),
            ),
            replace(factored, tensors={**factored.tensors, "value": tensor_of(value)}),
        )
    )
    table = module[0].weight.detach().clone()
    table[[2, 5]] = rows
    ids = torch.arange(7)
    inner = table[ids] @ (value + 0.3 * B @ A).T + module[1].bias + 2 * delta
    wanted = torch.nn.functional.layer_norm(inner, (3,), norm, module[2].bias)
    plain = module(ids)
    with Adapted(module, adapter):
        assert worst(module(ids), wanted) < 1e-6
    assert torch.equal(module(ids), plain)


def test_one_prefix_may_differ() -> None:
    """Names of a larger model fit a bare one, and the other way round; a mixture fits nothing."""
    shape = (48, 48)
    inner = factors("encoder.layer.0.attention.self.query.weight", shape, kind=Kind.LINEAR, layout=("out", "in"))
    outer = replace(inner, name=f"bert.{inner.name}")
    for family, target in (("bert", outer), ("bert-sequence", inner)):
        module = make(family)
        inputs = tiny_models.inputs(module)
        plain = output(module, inputs)
        with Adapted(module, Adapter(targets=(target,))):
            assert worst(output(module, inputs), plain) > 1e-3
    with pytest.raises(InvalidInputError, match="no tensor"):
        Adapted(make("bert"), Adapter(targets=(inner, outer)))


@pytest.mark.parametrize(
    ("name", "shape", "message"),
    [
        ("model.layers.9.self_attn.q_proj.weight", (64, 48), "the model has no tensor"),
        ("model.layers.0.self_attn.q_proj.weight", (48, 48), r"\[48, 48\] in the adapter's base and \[64, 48\]"),
    ],
)
def test_what_does_not_fit_is_refused(name: str, shape: tuple[int, int], message: str) -> None:
    """A target without a tensor, or with one of another shape, is an error; the model stays as it is."""
    module = make("llama-untied")
    inputs = tiny_models.inputs(module)
    plain = output(module, inputs)
    good = factors("model.layers.0.self_attn.k_proj.weight", (32, 48), kind=Kind.LINEAR, layout=("out", "in"))
    bad = factors(name, shape, kind=Kind.LINEAR, layout=("out", "in"))
    with pytest.raises(InvalidInputError, match=message):
        Adapted(module, Adapter(targets=(good, bad)))
    assert torch.equal(output(module, inputs), plain)


def test_transposed_convolutions_are_refused() -> None:
    """A transposed convolution stores its channels the other way round; square ones would pass unseen."""
    module = torch.nn.Sequential(torch.nn.ConvTranspose2d(4, 4, 3))
    target = Target(
        name="0.weight",
        kind=Kind.CONV,
        layout=("out", "in", "k", "k"),
        shape=(4, 4, 3, 3),
        tensors={"A": tensor_of(torch.randn(2, 4, 3, 3)), "B": tensor_of(torch.randn(4, 2, 1, 1))},
    )
    with pytest.raises(UnsupportedError, match="transposed convolution"):
        Adapted(module, Adapter(targets=(target,)))


@pytest.mark.parametrize("mode", ["zeros", "reflect", "circular"])
def test_a_convolution_keeps_its_padding_stride_and_dilation(mode: str) -> None:
    """The share of the factors is that of the kernel W + s·B·A, whatever the convolution does at the edges."""
    torch.manual_seed(0)
    module = torch.nn.Sequential(
        torch.nn.Conv2d(3, 6, (3, 2), stride=(1, 2), padding=(2, 1), dilation=2, padding_mode=mode)
    )
    A, B = torch.randn(2, 3, 3, 2), torch.randn(6, 2, 1, 1)
    target = Target(
        name="0.weight",
        kind=Kind.CONV,
        layout=("out", "in", "k", "k"),
        shape=(6, 3, 3, 2),
        tensors={"A": tensor_of(A), "B": tensor_of(B)},
        scale=0.7,
    )
    x = torch.randn(2, 3, 9, 9)
    with torch.no_grad(), Adapted(module, Adapter(targets=(target,))):
        got = module(x)
    with torch.no_grad():
        module[0].weight += 0.7 * torch.einsum("or,rikl->oikl", B[:, :, 0, 0], A)
        assert worst(got, module(x)) < 1e-5


def test_a_module_that_never_runs_is_told() -> None:
    """``unused`` names the targets whose module the model passed by."""
    module = torch.nn.MultiheadAttention(4, 2, batch_first=True)
    module.spare = torch.nn.Linear(4, 4)
    target = factors("spare.weight", (4, 4), kind=Kind.LINEAR, layout=("out", "in"))
    with Adapted(module, Adapter(targets=(target,))) as adapted:
        module(torch.ones(1, 2, 4), torch.ones(1, 2, 4), torch.ones(1, 2, 4))
        assert adapted.unused == ("spare.weight",)


def test_weights_that_a_parent_reads_are_replaced() -> None:
    """The output projection of a MultiheadAttention never runs; its weight is read, so the weight must change."""
    torch.manual_seed(0)
    module = torch.nn.MultiheadAttention(4, 2, batch_first=True)
    target = factors("out_proj.weight", (4, 4), kind=Kind.LINEAR, layout=("out", "in"))
    x = torch.randn(1, 3, 4)
    plain = module(x, x, x)[0]
    with Adapted(module, Adapter(targets=(target,))) as adapted:
        assert worst(module(x, x, x)[0], plain) > 1e-3
        assert adapted.unused == ()
