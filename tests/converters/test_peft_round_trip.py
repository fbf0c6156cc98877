"""PEFT to native to PEFT: the same tensors bit for bit, and a config that PEFT loads to the same scaling."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from loreg_converters.peft import converter
from peft import PeftModel
from safetensors.numpy import load_file

from lora_registry.adapter import Adapter, Kind, Target, Tensor
from lora_registry.convert.report import Outcome
from lora_registry.errors import ConflictError, UnsupportedError
from lora_registry.format.reader import read_adapter
from lora_registry.format.writer import write_adapter
from lora_registry.testing import ConverterContract

Adapt = Callable[..., tuple[PeftModel, Path]]
WEIGHTS, CONFIG = "adapter_model.safetensors", "adapter_config.json"


def through_native(folder: Path, tmp_path: Path) -> Path:
    """PEFT to a native file on disk and back to PEFT."""
    native, out = tmp_path / "a.loreg.safetensors", tmp_path / "again"
    write_adapter(converter.read(folder)[0], native)
    converter.write(read_adapter(native), out)
    return out


def scalings(wrapped: PeftModel) -> dict[str, float]:
    """PEFT's scaling by module path."""
    modules = wrapped.base_model.model.named_modules()
    return {path: module.scaling["default"] for path, module in modules if hasattr(module, "scaling")}


def test_tensors_come_back_bit_for_bit_and_the_config_as_it_was(case: tuple[PeftModel, Path], tmp_path: Path) -> None:
    """The same keys with the same bytes, and the same config but for what only training used."""
    _, folder = case
    again = through_native(folder, tmp_path)
    before, after = load_file(folder / WEIGHTS), load_file(again / WEIGHTS)
    training = {key for key in before if "velora" in key or "monteclora" in key}
    assert before.keys() - training == after.keys()
    for key, array in after.items():
        assert array.dtype == before[key].dtype
        assert array.tobytes() == before[key].tobytes(), key
    was, now = (json.loads((place / CONFIG).read_text()) for place in (folder, again))
    dropped = {name for name in ("velora_config", "monteclora_config") if was[name]}
    assert now == {key: value for key, value in was.items() if key not in dropped}


def test_peft_loads_it_to_the_same_scaling_and_outputs(
    case: tuple[PeftModel, Path],
    tmp_path: Path,
    reloaded: Callable[[PeftModel, Path], PeftModel],
    inputs: Callable[[PeftModel], torch.Tensor],
) -> None:
    """PEFT, given the written folder, has the same scaling everywhere and computes the same outputs."""
    wrapped, folder = case
    again = reloaded(wrapped, through_native(folder, tmp_path))
    assert scalings(again) == scalings(wrapped)
    x = inputs(wrapped)
    with torch.no_grad():
        torch.testing.assert_close(again(x), wrapped(x), rtol=0, atol=0)


def test_config_made_from_the_targets_means_the_same(
    case: tuple[PeftModel, Path],
    tmp_path: Path,
    reloaded: Callable[[PeftModel, Path], PeftModel],
    inputs: Callable[[PeftModel], torch.Tensor],
) -> None:
    """A config made from the targets alone makes PEFT compute the same outputs, up to rounding."""
    wrapped, folder = case
    adapter, _ = converter.read(folder)
    report = converter.write(replace(adapter, origin={}), tmp_path / "made")
    assert any(entry.subject == CONFIG and entry.outcome is Outcome.DERIVED for entry in report.entries)
    again = reloaded(wrapped, tmp_path / "made")
    assert scalings(again) == scalings(wrapped)
    x = inputs(wrapped)
    with torch.no_grad():
        torch.testing.assert_close(again(x), wrapped(x), rtol=1e-5, atol=1e-5)


def test_written_files_are_deterministic(saved: Path, tmp_path: Path) -> None:
    """Two writes give the same bytes, sorted keys, and the metadata that PEFT writes."""
    adapter, _ = converter.read(saved)
    for name in ("one", "two"):
        converter.write(adapter, tmp_path / name)
    for file in (WEIGHTS, CONFIG):
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "two" / file).read_bytes()
    text = (tmp_path / "one" / CONFIG).read_text()
    assert text == json.dumps(json.loads(text), indent=2, sort_keys=True)
    assert b'"__metadata__":{"format":"pt"}' in (tmp_path / "one" / WEIGHTS).read_bytes()


def test_what_peft_has_no_place_for_is_reported(saved: Path, tmp_path: Path) -> None:
    """Title, license and fingerprints are losses, by name (P-032)."""
    adapter, _ = converter.read(saved)
    titled = replace(adapter, info={"title": "x"}, base=replace(adapter.base, license="MIT"))
    report = converter.write(titled, tmp_path / "out")
    assert [entry.subject for entry in report.losses] == ["info", "base license"]


def test_changed_scale_or_targets_change_the_config(
    adapt: Adapt, tmp_path: Path, reloaded: Callable[[PeftModel, Path], PeftModel]
) -> None:
    """Where the original config no longer says the truth, it is changed there and nowhere else."""
    wrapped, folder = adapt("MLP", target_modules=["lin0", "lin1"], task_type="FEATURE_EXTRACTION")
    adapter, _ = converter.read(folder)
    first, second = adapter.targets
    converter.write(replace(adapter, targets=(replace(first, scale=-0.1), second)), tmp_path / "scaled")
    assert scalings(reloaded(wrapped, tmp_path / "scaled")) == {"lin0": -0.1, "lin1": 1.5}
    now = json.loads((tmp_path / "scaled" / CONFIG).read_text())
    assert now["task_type"] == "FEATURE_EXTRACTION"
    assert now["target_modules"] == json.loads((folder / CONFIG).read_text())["target_modules"]


class TestPeftContract(ConverterContract):
    """PEFT keeps the contract of all converters."""

    converter = converter

    @pytest.fixture
    def sample(self, adapt: Adapt) -> Path:
        """One of each kind."""
        return adapt("Mixed", target_modules=["wte", "lin", "mha", "conv2", "grouped"], bias="lora_only")[1]


def linear(name: str, rank: int = 2, **fields: object) -> Target:
    """A target on a weight of [5, 3]."""
    tensors = {"A": Tensor("F32", (rank, 3), bytes(12 * rank)), "B": Tensor("F32", (5, rank), bytes(20 * rank))}
    plain = Target(name=name, kind=Kind.LINEAR, layout=("out", "in"), shape=(5, 3), tensors=tensors)
    return replace(plain, **fields)  # type: ignore[arg-type]


def experts(name: str, **fields: object) -> Target:
    """A target on two experts of [5, 3]."""
    tensors = {"A": Tensor("F32", (2, 1, 3), bytes(24)), "B": Tensor("F32", (2, 5, 1), bytes(40))}
    plain = Target(name=name, kind=Kind.EXPERTS, layout=("expert", "out", "in"), shape=(2, 5, 3), tensors=tensors)
    return replace(plain, **fields)  # type: ignore[arg-type]


BIAS = Target(
    name="a.bias", kind=Kind.BIAS, layout=("out",), shape=(5,), tensors={"delta": Tensor("F32", (5,), bytes(20))}
)
TOKENS = Target(
    name="e.weight",
    kind=Kind.TOKENS,
    layout=("in", "out"),
    shape=None,
    tensors={"value": Tensor("F32", (1, 4), bytes(16))},
    rows=(3,),
)
BARE = Target(name="v.cls", kind=Kind.FULL, layout=(), shape=(2,), tensors={"value": Tensor("F32", (2,), bytes(8))})
MAGNITUDE = {**linear("x.weight").tensors, "magnitude": Tensor("F32", (5,), bytes(20))}

REFUSED = {
    "no low-rank target": ((TOKENS,), "at least one target with factors"),
    "bias without factors": ((linear("b.weight"), BIAS), "a.bias.* without low-rank factors"),
    "bias with another scale": ((linear("a.weight", scale=2.0), BIAS), "scales a bias of B by the scale of a"),
    "bias on some modules": ((linear("a.weight"), linear("b.weight"), BIAS), "b.* has no bias of B and others have"),
    "bare parameter": ((linear("a.weight"), BARE), "v.cls.* bare parameter"),
    "magnitude on some": (
        (linear("a.weight", tensors=MAGNITUDE), linear("b.weight")),
        "b.* has no magnitude and others have",
    ),
    "magnitude and bias": ((linear("a.weight", tensors=MAGNITUDE), BIAS), "no bias of B beside magnitudes"),
    "magnitude beside experts": (
        (linear("a.weight", tensors=MAGNITUDE), experts("m.w")),
        "no parameters beside modules with a magnitude",
    ),
    "unknown registration order": ((experts("m.w1"), experts("m.w2")), "w1, w2 in the order of registration"),
    "module and parameter": ((linear("m.weight"), experts("m.w")), "weight and its parameters at once"),
    "transposed parameter": ((linear("m.w", layout=("in", "out"), shape=(3, 5)), linear("a.weight")), "m.w"),
    "no module": ((linear("weight"),), "no module around it"),
    "inexact scale": ((linear("a.weight", rank=7, scale=3.711311591400948),), "float64"),
    "attention with two scales": (
        (linear("m.in_proj_weight"), linear("m.out_proj.weight", scale=3.0)),
        "one rank and scale for all of m",
    ),
    "square experts": (
        (
            experts(
                "m.w",
                shape=(2, 3, 3),
                tensors={"A": Tensor("F32", (2, 1, 3), bytes(24)), "B": Tensor("F32", (2, 3, 1), bytes(24))},
            ),
        ),
        "square",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_peft_cannot_hold_is_refused_by_name(name: str, tmp_path: Path) -> None:
    """Each refusal names the target and the reason, and leaves nothing behind (P-032)."""
    targets, reason = REFUSED[name]
    with pytest.raises(UnsupportedError, match=reason):
        converter.write(Adapter(targets=targets), tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_existing_folder_is_not_touched(saved: Path) -> None:
    """Writing over a folder is a conflict."""
    adapter, _ = converter.read(saved)
    with pytest.raises(ConflictError):
        converter.write(adapter, saved)


def test_rank_one_change_is_exact_for_any_layout(tmp_path: Path) -> None:
    """A Conv1D named as in GPT-2 is written with fan_in_fan_out and read back in the same layout."""
    targets = (
        linear("h.0.attn.c_attn.weight", layout=("in", "out"), shape=(3, 5)),
        linear("lm_head.weight"),
    )
    converter.write(Adapter(targets=targets), tmp_path / "out")
    again, _ = converter.read(tmp_path / "out")
    assert [target.layout for target in again] == [("in", "out"), ("out", "in")]
    assert json.loads((tmp_path / "out" / CONFIG).read_text())["fan_in_fan_out"] is True
    assert np.prod(again.targets[0].shape) == 15
