"""The same promises on an NVIDIA GPU; each test skips with the reason where CUDA does not run."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import onnx_models
import peft_adapters
import pytest
from exported_models import ENCODERS, Exported, make
from peft import LoraConfig

from lora_registry.errors import MachineError
from lora_registry.runtime import ort
from lora_registry.runtime.doctor import Status, examine
from lora_registry.runtime.export import export_model
from lora_registry.runtime.generate import generate
from lora_registry.runtime.verify import verify

pytestmark = pytest.mark.cuda

Get = Callable[[str], Exported]
PROMPT = [5, 9, 33, 2, 7, 60]


@pytest.fixture(autouse=True)
def _cuda() -> None:
    try:
        ort.prove(ort.PROVIDERS["cuda"])
    except MachineError as error:
        pytest.skip(str(error))


@pytest.mark.parametrize("family", [*ENCODERS, "llama-tied", "gpt2"])
def test_float32_parity(exported: Get, family: str) -> None:
    """Every family holds on CUDA within the tolerance of float32: no TF32, nothing heavy left to the CPU."""
    made = exported(family)
    report = verify(made.path, made.folder, None, provider="cuda")
    assert report.holds, report.lines()
    assert report.provider == "CUDAExecutionProvider"


def test_a_merge_holds_and_the_base_does_not(exported: Get, tmp_path: Path) -> None:
    """On CUDA too, what PEFT merged is base + adapter, and the plain base is not."""
    base = exported("llama-tied")
    options = LoraConfig(target_modules=["q_proj", "down_proj"], r=4)
    wrapped = peft_adapters.make_peft_adapter(make("llama-tied"), options, tmp_path / "adapter")
    adapter = onnx_models.adapter_of(wrapped)
    peft_adapters.merged_model(wrapped).save_pretrained(tmp_path / "merged")
    export_model(tmp_path / "merged", tmp_path / "merged.onnx")
    assert verify(tmp_path / "merged.onnx", base.folder, adapter, provider="cuda").holds
    assert not verify(base.path, base.folder, adapter, provider="cuda").holds


def test_half_precision(exported: Get, tmp_path: Path) -> None:
    """A float16 export holds within the tolerance of float16."""
    made = exported("llama-tied")
    export_model(made.folder, tmp_path / "half.onnx", dtype="float16")
    assert verify(tmp_path / "half.onnx", made.folder, None, provider="cuda").holds


@pytest.mark.parametrize("family", ["llama-tied", "gpt2"])
def test_decoding_gives_the_tokens_of_the_cpu(exported: Get, family: str) -> None:
    """Greedy decoding with a cache gives the same tokens on both."""
    path = exported(family).path
    cpu, cuda = (generate(ort.open_session(path, provider=name), PROMPT, max_new_tokens=20) for name in ("cpu", "cuda"))
    assert cpu == cuda


def test_the_doctor_agrees() -> None:
    """Where CUDA runs, the doctor says so and finds its libraries."""
    checks = {check.name: check for check in examine()}
    assert checks["CUDAExecutionProvider"].status is Status.OK
    assert checks["CUDA"].status is checks["cuDNN"].status is Status.OK
