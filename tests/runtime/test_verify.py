"""Verification holds for what PEFT itself merged, and for nothing else."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import onnx_ir as ir
import onnx_models
import peft_adapters
import pytest
import torch
from exported_models import Exported, make
from onnx_models import tensor_of
from peft import LoraConfig

from lora_registry.adapter import Adapter, Kind, Target
from lora_registry.errors import InconclusiveError, InvalidInputError, UnsupportedError, UsageError
from lora_registry.onnx.manifest import KEY
from lora_registry.runtime.export import export_model
from lora_registry.runtime.verify import CACHED, TOLERANCES, verify

Get = Callable[[str], Exported]

JOBS: dict[str, tuple[str, dict[str, Any]]] = {
    "decoder": ("llama-tied", {"target_modules": ["q_proj", "down_proj"], "r": 4, "lora_alpha": 12}),
    "decoder-conv1d": ("gpt2", {"target_modules": ["c_attn", "c_proj"], "r": 4, "fan_in_fan_out": True}),
    "encoder": ("bert", {"target_modules": ["query", "word_embeddings"], "r": 4, "use_dora": True}),
    "classifier": ("bert-token", {"target_modules": ["value"], "r": 4, "modules_to_save": ["classifier"]}),
}


@dataclass(frozen=True)
class Merged:
    """An adapter, and the base with it merged by PEFT, as a folder and as an ONNX file."""

    adapter: Adapter
    folder: Path
    path: Path


@pytest.fixture(scope="module")
def merged(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Merged]:
    """Gives what PEFT makes of a job; made when first asked for."""
    made: dict[str, Merged] = {}

    def get(job: str) -> Merged:
        if job not in made:
            family, options = JOBS[job]
            root = tmp_path_factory.mktemp(job)
            wrapped = peft_adapters.make_peft_adapter(make(family), LoraConfig(**options), root / "adapter")
            adapter = onnx_models.adapter_of(wrapped)
            peft_adapters.merged_model(wrapped).save_pretrained(root / "merged")
            export_model(root / "merged", root / "merged.onnx")
            made[job] = Merged(adapter, root / "merged", root / "merged.onnx")
        return made[job]

    return get


@pytest.mark.slow
@pytest.mark.parametrize("job", sorted(JOBS))
def test_holds_for_peft_merges(exported: Get, merged: Callable[[str], Merged], job: str) -> None:
    """A model that PEFT merged and loreg exported is base + adapter, well inside the tolerance."""
    made = merged(job)
    report = verify(made.path, exported(JOBS[job][0]).folder, made.adapter)
    assert report.holds
    assert report.provider == "CPUExecutionProvider"
    assert report.dtype == "F32"
    assert all(output.max_rel < 1e-5 < 1e-2 < (output.effect or 0) for output in report.outputs), report.lines()
    assert (CACHED in {output.output for output in report.outputs}) == job.startswith("decoder")


@pytest.mark.slow
@pytest.mark.parametrize("job", sorted(JOBS))
def test_does_not_hold_for_the_base(exported: Get, merged: Callable[[str], Merged], job: str) -> None:
    """The plain base is not base + adapter: what a silently failed merge writes is found out."""
    base = exported(JOBS[job][0])
    report = verify(base.path, base.folder, merged(job).adapter)
    assert not report.holds
    assert report.lines()[-1].startswith("does not hold")
    worst = max(report.outputs, key=lambda output: output.max_rel)
    assert worst.max_rel == pytest.approx(worst.effect, rel=1e-3)


def test_folders_are_compared_too(exported: Get, merged: Callable[[str], Merged]) -> None:
    """A merged Hugging Face folder is verified as an ONNX file is, without ONNX Runtime."""
    made = merged("decoder")
    base = exported("llama-tied").folder
    report = verify(made.folder, base, made.adapter)
    assert report.holds
    assert report.provider == "torch"
    assert not verify(base, base, made.adapter).holds


def test_a_slightly_wrong_scale_does_not_hold(exported: Get, merged: Callable[[str], Merged]) -> None:
    """One target whose scale is one percent off is found out."""
    made = merged("decoder")
    first, *others = made.adapter.targets
    wrong = Adapter(targets=(replace(first, scale=first.scale * 1.01), *others))
    assert not verify(made.path, exported("llama-tied").folder, wrong).holds


def test_an_export_is_verified_without_an_adapter(exported: Get) -> None:
    """With no adapter the file is compared with the base itself."""
    made = exported("gpt2")
    report = verify(made.path, made.folder, None, samples=2)
    assert report.holds
    assert all(output.effect is None for output in report.outputs)


def test_an_adapter_without_effect_proves_nothing(exported: Get, merged: Callable[[str], Merged]) -> None:
    """Where the adapter changes nothing, agreement with the base is no evidence, and is not called any."""
    base = exported("llama-tied")
    targets = tuple(replace(target, scale=1e-9) for target in merged("decoder").adapter)
    with pytest.raises(InconclusiveError, match="cannot see"):
        verify(base.path, base.folder, Adapter(targets=targets))


def test_values_that_are_not_finite_prove_nothing(exported: Get, merged: Callable[[str], Merged]) -> None:
    """An adapter that drives the reference out of its range has no outputs to compare with."""
    base = exported("llama-tied")
    targets = tuple(replace(target, scale=1e38) for target in merged("decoder").adapter)
    with pytest.raises(InconclusiveError, match="not finite"):
        verify(base.path, base.folder, Adapter(targets=targets))


def test_changed_rows_are_looked_at(exported: Get) -> None:
    """Inputs hold the tokens whose rows an adapter replaces, or it would seem to change nothing."""
    base = exported("bert")
    rows = Target(
        name="embeddings.word_embeddings.weight",
        kind=Kind.TOKENS,
        layout=("in", "out"),
        shape=(103, 48),
        tensors={"value": tensor_of(torch.randn(1, 48))},
        rows=(77,),
    )
    report = verify(base.path, base.folder, Adapter(targets=(rows,)), samples=1)
    assert not report.holds
    assert all(output.effect is not None and output.effect > 1e-2 for output in report.outputs)


def test_the_same_seed_gives_the_same_report(exported: Get, merged: Callable[[str], Merged]) -> None:
    """Reports repeat; another seed draws other inputs."""
    made = merged("classifier")
    base = exported("bert-token").folder
    first, again, other = (verify(made.path, base, made.adapter, seed=seed) for seed in (3, 3, 4))
    assert first == again
    assert first.outputs != other.outputs


def test_the_report_as_json_and_as_lines(exported: Get, merged: Callable[[str], Merged]) -> None:
    """A report is plain JSON for programs and a line an output with a verdict for people."""
    made = merged("decoder")
    report = verify(made.path, exported("llama-tied").folder, made.adapter, samples=3)
    document = json.loads(json.dumps(report.to_json(), allow_nan=False))
    assert document["holds"] is True
    assert document["tolerance"] == TOLERANCES["F32"]
    assert [output["output"] for output in document["outputs"]] == ["logits", CACHED]
    assert all(output["argmax"] == 1.0 for output in document["outputs"])
    assert report.lines()[-1] == "holds: tolerance 1e-04 relative (3 samples, F32, CPUExecutionProvider)"


def test_half_precision_has_its_own_tolerance(exported: Get, merged: Callable[[str], Merged], tmp_path: Path) -> None:
    """The tolerance follows the element type that the manifest states, or the weights where there is no manifest."""
    made = merged("decoder")
    out = tmp_path / "half.onnx"
    export_model(made.folder, out, dtype="float16")
    base = exported("llama-tied").folder
    report = verify(out, base, made.adapter)
    assert report.holds
    assert (report.dtype, report.tolerance) == ("F16", TOLERANCES["F16"])
    assert not verify(out, base, made.adapter, tolerance=1e-7).holds
    model = ir.load(out)
    del model.metadata_props[KEY]
    ir.save(model, tmp_path / "bare.onnx")
    assert verify(tmp_path / "bare.onnx", base, made.adapter).dtype == "F16"


def test_bad_requests_are_named(exported: Get, merged: Callable[[str], Merged]) -> None:
    """No samples, no tolerance, an adapter of another model, an output nobody knows: each one its own error."""
    base, other = exported("llama-tied"), exported("bert")
    adapter = merged("decoder").adapter
    with pytest.raises(UsageError, match="at least one sample"):
        verify(base.path, base.folder, adapter, samples=0)
    with pytest.raises(UsageError, match="tolerance above 0"):
        verify(base.path, base.folder, adapter, tolerance=0)
    with pytest.raises(InvalidInputError, match="the model has no tensor"):
        verify(other.path, other.folder, adapter)
    with pytest.raises(UnsupportedError):
        verify(other.path, base.folder, adapter)
