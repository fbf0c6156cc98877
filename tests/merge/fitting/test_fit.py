"""Does the adapter belong on the base? Asked before anything is written."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from peft import LoraConfig
from safetensors.numpy import load_file, save_file

from lora_registry.adapter import Adapter, Kind, Target, Tensor
from lora_registry.errors import InvalidInputError, UnsupportedError
from lora_registry.merge.bases.base import open_base
from lora_registry.merge.checkpoint import merge_checkpoint
from lora_registry.merge.fitting.fit import fit
from lora_registry.merge.options import MergeOptions
from lora_registry.ops.arrays import from_array
from lora_registry.ops.fingerprint import fingerprint


def linear(name: str, out: int, inner: int, rank: int = 2) -> Target:
    """A linear target of ones."""
    factors = {"A": from_array(np.ones((rank, inner), np.float32)), "B": from_array(np.ones((out, rank), np.float32))}
    return Target(name=name, kind=Kind.LINEAR, layout=("out", "in"), shape=(out, inner), tensors=factors)


def full(name: str, value: np.ndarray) -> Target:
    """A target that replaces a tensor."""
    return Target(name=name, kind=Kind.FULL, layout=(), shape=value.shape, tensors={"value": from_array(value)})


def base_of(folder: Path, **tensors: np.ndarray) -> Path:
    """A checkpoint of one file; double underscores stand for dots."""
    path = folder / "base.safetensors"
    save_file({name.replace("__", "."): tensor for name, tensor in tensors.items()}, path)
    return path


def rules(adapter: Adapter, path: Path, **options: bool) -> list[str]:
    return sorted({finding.rule for finding in fit(adapter, open_base(path), **options).findings})


def test_fingerprints_prove_the_base(peft_merge, tiny_dir: Callable[[str], Path], tmp_path: Path) -> None:
    """Equal fingerprints: exact; other weights: same-shapes, which require_exact refuses; none: not proved."""
    adapter, _ = peft_merge("llama-untied", LoraConfig(r=2, target_modules=["q_proj"]))
    base = open_base(tiny_dir("llama-untied"))
    known = adapter.with_fingerprints({target.name: fingerprint(base.array(target.name)) for target in adapter})
    other = adapter.with_fingerprints({target.name: fingerprint(np.zeros(2)) for target in adapter})
    assert [fit(each, base).verdict for each in (known, other, adapter)] == ["exact", "same-shapes", "same-shapes"]
    assert {finding.rule for finding in fit(other, base).findings} == {"M-004"}
    merge_checkpoint(known, base.path, tmp_path / "out", MergeOptions(require_exact=True))
    for each, message in ((other, "other weights"), (adapter, "no target carries a fingerprint")):
        with pytest.raises(InvalidInputError, match=message):
            merge_checkpoint(each, base.path, tmp_path / "refused", MergeOptions(require_exact=True))
    assert not (tmp_path / "refused").exists()


def test_a_half_precision_base_has_the_fingerprint_of_its_float32_copy() -> None:
    """Widening loses nothing, so the fingerprint of a bfloat16 checkpoint is that of the exported float32."""
    half = torch.randn(5, 3).bfloat16()
    from lora_registry.adapter import Tensor
    from lora_registry.ops.arrays import to_array

    tensor = Tensor("BF16", (5, 3), half.view(torch.uint8).numpy().tobytes())
    assert fingerprint(to_array(tensor)) == fingerprint(half.float().numpy())
    assert fingerprint(half.float().numpy()) != fingerprint(half.float().numpy().T)


def test_the_wrong_base_is_refused_with_every_reason(peft_merge, tiny_dir, tmp_path: Path) -> None:
    """All targets are listed, each with the closest name; nothing is written."""
    adapter, _ = peft_merge("llama-untied", LoraConfig(r=2, target_modules=["q_proj", "v_proj"]))
    with pytest.raises(InvalidInputError, match="no such tensor") as caught:
        merge_checkpoint(adapter, tiny_dir("gpt2"), tmp_path / "out")
    assert {finding.place for finding in caught.value.findings} == {target.name for target in adapter}
    assert not (tmp_path / "out").exists()


def test_close_names_are_suggested(tmp_path: Path) -> None:
    """A misspelt target is answered with the name that was meant."""
    path = base_of(tmp_path, layers__0__q_proj__weight=np.zeros((4, 3), np.float32))
    found = fit(Adapter(targets=(linear("layers.0.q_prj.weight", 4, 3),)), open_base(path)).findings
    assert "did you mean layers.0.q_proj.weight" in found[0].message


@pytest.mark.parametrize("prefix", ["add", "drop"])
def test_one_prefix_may_differ(prefix: str, tmp_path: Path) -> None:
    """Adapters of a bare encoder fit the model around it, and the other way round; the receipt says so (P-013)."""
    inner, outer = "encoder.q.weight", "bert.encoder.q.weight"
    stored, wanted = (outer, inner) if prefix == "add" else (inner, outer)
    path = base_of(tmp_path, **{stored.replace(".", "__"): np.zeros((4, 3), np.float32)})
    receipt = merge_checkpoint(Adapter(targets=(linear(wanted, 4, 3),)), path, tmp_path / "out.safetensors")
    assert np.array_equal(load_file(tmp_path / "out.safetensors")[stored], np.full((4, 3), 2.0))
    assert any("'bert.'" in note for note in receipt.notes)


def test_two_targets_for_one_tensor_are_refused(tmp_path: Path) -> None:
    """With and without the prefix, two names can mean one tensor; the sum of both is not what anybody asked for."""
    path = base_of(tmp_path, q__weight=np.zeros((4, 3), np.float32), k__weight=np.zeros((4, 3), np.float32))
    targets = tuple(linear(name, 4, 3) for name in ("m.q.weight", "m.k.weight", "q.weight"))
    assert "M-007" in rules(Adapter(targets=targets), path)


def test_a_transposed_base_is_noticed_unless_square(tmp_path: Path) -> None:
    """Another axis order than the target declares is refused and named."""
    path = base_of(tmp_path, w=np.zeros((3, 4), np.float32))
    found = fit(Adapter(targets=(linear("w", 4, 3),)), open_base(path)).findings
    assert [finding.rule for finding in found] == ["M-002"]
    assert "transposed" in found[0].message


def test_another_vocabulary_is_refused(tmp_path: Path) -> None:
    """A head of another size needs other embeddings and another configuration."""
    path = base_of(tmp_path, lm_head__weight=np.zeros((10, 3), np.float32))
    with pytest.raises(InvalidInputError, match="--allow-growth takes it as a vocabulary that has grown"):
        merge_checkpoint(
            Adapter(targets=(full("lm_head.weight", np.zeros((12, 3), np.float32)),)), path, tmp_path / "o.safetensors"
        )


def test_quantized_bases_are_refused_by_name(tmp_path: Path) -> None:
    """bitsandbytes packs the weight under its name; GPTQ under another. Both are refused as unsupported."""
    packed = base_of(tmp_path, q__weight=np.zeros((6, 1), np.uint8), q__weight__absmax=np.zeros(3, np.float32))
    adapter = Adapter(targets=(linear("q.weight", 4, 3),))
    with pytest.raises(UnsupportedError, match="quantized, as U8"):
        merge_checkpoint(adapter, packed, tmp_path / "out.safetensors")
    gptq = base_of(tmp_path, q__qweight=np.zeros((6, 1), np.int32), q__scales=np.zeros(3, np.float32))
    with pytest.raises(UnsupportedError, match="quantized"):
        merge_checkpoint(adapter, gptq, tmp_path / "out.safetensors")
    assert not (tmp_path / "out.safetensors").exists()


def test_new_tensors_need_a_word(tmp_path: Path) -> None:
    """A classifier that the base lacks is added only with allow_new; the rest of the file keeps its bytes."""
    path = base_of(tmp_path, q__weight=np.zeros((4, 3), np.float32))
    classifier = np.arange(6, dtype=np.float32).reshape(2, 3)
    adapter = Adapter(targets=(linear("q.weight", 4, 3), full("classifier.weight", classifier)))
    with pytest.raises(InvalidInputError, match="new tensors were not allowed"):
        merge_checkpoint(adapter, path, tmp_path / "out.safetensors")
    receipt = merge_checkpoint(adapter, path, tmp_path / "out.safetensors", MergeOptions(allow_new=True))
    merged = load_file(tmp_path / "out.safetensors")
    assert np.array_equal(merged["classifier.weight"], classifier)
    assert np.array_equal(merged["q.weight"], np.full((4, 3), 2.0))
    assert {record.name: record.fidelity is None for record in receipt.tensors} == {
        "q.weight": False,
        "classifier.weight": True,
    }


def test_broken_factors_are_refused(tmp_path: Path) -> None:
    """A result that is not finite on a finite base stops the merge, and nothing is left."""
    path = base_of(tmp_path, w=np.zeros((4, 3), np.float32))
    target = replace(linear("w", 4, 3), scale=1e38)
    broken = replace(target, tensors={**target.tensors, "A": from_array(np.full((2, 3), 1e9, np.float32))})
    with pytest.raises(InvalidInputError, match="beyond the range of F32"):
        merge_checkpoint(Adapter(targets=(broken,)), path, tmp_path / "out.safetensors")
    assert [path.name for path in tmp_path.iterdir()] == ["base.safetensors"]


@pytest.mark.parametrize("name", ["w", "new"])
def test_broken_values_are_refused(name: str, tmp_path: Path) -> None:
    """A value that replaces or adds a tensor is looked at too."""
    path = base_of(tmp_path, w=np.zeros((4, 3), np.float32))
    adapter = Adapter(targets=(full(name, np.full((4, 3), np.nan, np.float32)),))
    with pytest.raises(InvalidInputError, match="not finite at element 0"):
        merge_checkpoint(adapter, path, tmp_path / "out.safetensors", MergeOptions(allow_new=True))
    assert [path.name for path in tmp_path.iterdir()] == ["base.safetensors"]


def test_float16_overflow_is_refused(tmp_path: Path) -> None:
    """What float16 cannot hold is not written as infinity."""
    path = base_of(tmp_path, w=np.zeros((4, 3), np.float16))
    adapter = Adapter(targets=(replace(linear("w", 4, 3), scale=1e5),))
    with pytest.raises(InvalidInputError, match="beyond the range of F16"):
        merge_checkpoint(adapter, path, tmp_path / "out.safetensors")
    merge_checkpoint(adapter, path, tmp_path / "wide.safetensors", MergeOptions(dtype="F32"))
    assert load_file(tmp_path / "wide.safetensors")["w"].max() == pytest.approx(2e5)


def test_a_bias_that_the_base_lacks_is_not_taken_for_a_weight(tiny_dir: Callable[[str], Path]) -> None:
    """lora_bias on a layer without a bias: nothing else is suggested, since nothing else is meant."""
    delta = {"delta": Tensor("F32", (4,), bytes(16))}
    name = "model.layers.0.self_attn.q_proj.bias"
    target = Target(name=name, kind=Kind.BIAS, layout=("out",), shape=(4,), tensors=delta, scale=1.0)
    (finding,) = fit(Adapter(targets=(target,)), open_base(tiny_dir("llama-tied"))).findings
    assert str(finding).endswith("the base has no such tensor")
