"""Fitting and pinning work on ONNX bases as on checkpoints, and agree with them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import tiny_models
from golden_vectors import write_checkpoint
from loreg_converters.peft import converter
from peft import LoraConfig
from peft_adapters import make_peft_adapter
from quantized_merges import lora

from lora_registry.adapter import Adapter
from lora_registry.errors import InvalidInputError, UnsupportedError
from lora_registry.merge.fitting.against import hold_against
from lora_registry.merge.fitting.fit import Verdict
from lora_registry.merge.fitting.pin import pin
from lora_registry.runtime.export import export_model


@pytest.fixture(scope="module")
def adapter(tmp_path_factory: pytest.TempPathFactory) -> Adapter:
    folder = tmp_path_factory.mktemp("against") / "peft"
    make_peft_adapter(tiny_models.llama(), LoraConfig(r=2, target_modules=["q_proj", "lm_head"]), folder)
    return converter.read(folder)[0]


@pytest.fixture(scope="module")
def onnx(tiny_dir: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("against") / "base.onnx"
    export_model(tiny_dir("llama-tied"), path)
    return path


def test_a_pin_from_onnx_is_that_from_the_checkpoint(
    adapter: Adapter, onnx: Path, tiny_dir: Callable[[str], Path]
) -> None:
    """Fingerprints do not depend on the container; a tied head has those of the embedding."""
    from_onnx = pin(adapter, onnx)
    from_checkpoint = pin(adapter, tiny_dir("llama-tied"))
    assert [target.fingerprint for target in from_onnx] == [target.fingerprint for target in from_checkpoint]
    assert all(target.fingerprint is not None for target in from_onnx)
    assert hold_against(from_onnx, onnx)[0].verdict is Verdict.EXACT
    assert hold_against(from_onnx, tiny_dir("llama-tied"))[0].verdict is Verdict.EXACT


def test_a_pin_is_not_moved_in_silence(
    adapter: Adapter, onnx: Path, tiny_dir: Callable[[str], Path], tmp_path: Path
) -> None:
    """An adapter that is pinned to other weights is refused, in either container."""
    pinned = pin(adapter, onnx)
    with pytest.raises(InvalidInputError, match="M-004"):
        pin(pinned, tiny_dir("llama-untied"))


def test_what_an_onnx_model_lacks_is_a_finding(onnx: Path, tmp_path: Path) -> None:
    """Targets that no initializer holds are listed, and a pin refuses."""
    folder = tmp_path / "peft"
    make_peft_adapter(tiny_models.gpt2(), LoraConfig(r=2, target_modules=["c_attn"], fan_in_fan_out=True), folder)
    other = converter.read(folder)[0]
    fits, base = hold_against(other, onnx)
    assert fits.verdict is Verdict.DOES_NOT_FIT
    assert base is None
    assert {finding.rule for finding in fits.findings} == {"O-001"}
    with pytest.raises(InvalidInputError, match="O-001"):
        pin(other, onnx)


def test_a_quantized_base_fits_and_has_no_fingerprints(tmp_path: Path) -> None:
    """Names and shapes are those that its weights have unquantized; a pin is to the base that it came from."""
    adapter = lora("m.weight", write_checkpoint(tmp_path / "base", "awq").shape)
    fits, _ = hold_against(adapter, tmp_path / "base")
    assert fits.verdict is Verdict.SAME_SHAPES
    assert "M-009" in {finding.rule for finding in fits.findings}
    with pytest.raises(UnsupportedError, match=r"is quantized \(awq .*fingerprints are those of unquantized weights"):
        pin(adapter, tmp_path / "base")
