"""Adapters at run time on an NVIDIA GPU; each test skips with the reason where CUDA does not run."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx_models
import peft_adapters
import pytest
import switchable_models as switchable
import tiny_models
from exported_models import Exported
from peft import LoraConfig

from lora_registry.adapter import Adapter
from lora_registry.errors import MachineError
from lora_registry.onnx.slots.insert import add_slots
from lora_registry.runtime import ort
from lora_registry.runtime.adapter_pool import AdapterPool
from lora_registry.runtime.batched import BatchedModel
from lora_registry.runtime.session import session

pytestmark = pytest.mark.cuda

Get = Callable[[str], Exported]
CLOSE = 1e-4


@pytest.fixture(autouse=True)
def _cuda() -> None:
    try:
        ort.prove(ort.PROVIDERS["cuda"])
    except MachineError as error:
        pytest.skip(str(error))


@pytest.fixture
def adapters(tmp_path: Path) -> dict[str, Adapter]:
    """Two of other targets and ranks."""
    made = {}
    for number, (name, targets) in enumerate({"one": ["q_proj", "embed_tokens"], "two": ["down_proj"]}.items()):
        options = LoraConfig(r=3 + number, lora_alpha=8, target_modules=targets)
        wrapped = peft_adapters.make_peft_adapter(tiny_models.llama(tied=True), options, tmp_path / name, seed=number)
        made[name] = onnx_models.adapter_of(wrapped)
    return made


def inputs_of(path: Path) -> dict[str, np.ndarray]:
    return switchable.feeds(switchable.open_cpu(path), batch=2, sequence=6, past_sequence=0)


def test_nothing_active_is_the_base(exported: Get, adapters: dict[str, Adapter], tmp_path: Path) -> None:
    """W-002 on CUDA: products over an axis of length 0 are zeros there too, single and batched."""
    base = exported("llama-tied").path
    inputs = inputs_of(base)
    wanted = ort.run(ort.open_session(base, provider="cuda"), inputs)
    for batched in (False, True):
        made = tmp_path / f"{batched}.onnx"
        add_slots(base, made, adapters=list(adapters.values()), batched=batched)
        got = ort.run(ort.open_session(made, provider="cuda"), inputs)
        assert switchable.same_bits(list(got.values()), list(wanted.values()))


def test_the_pool_agrees_with_the_cpu(exported: Get, adapters: dict[str, Adapter], tmp_path: Path) -> None:
    """Factors that were uploaded once switch from request to request, also where everything is bound."""
    base, made = exported("llama-tied").path, tmp_path / "s.onnx"
    add_slots(base, made, adapters=list(adapters.values()))
    inputs = inputs_of(base)
    cpu, cuda = AdapterPool(made), AdapterPool(made, provider="cuda")
    for pool in (cpu, cuda):
        for name, adapter in adapters.items():
            pool.add(name, adapter)
    assert all(value.device_name() == "cuda" for value in cuda.feeds("one").values())
    binding = cuda.session.io_binding()
    for name in ("one", None, "two", "one"):
        wanted = cpu.run(inputs, name)["logits"]
        assert switchable.relative(cuda.run(inputs, name)["logits"], wanted) < CLOSE
        cuda.bind(binding, name)
        for each, array in inputs.items():
            binding.bind_ortvalue_input(each, ort.value_of(array, provider="cuda"))
        binding.bind_output("logits")
        cuda.session.run_with_iobinding(binding)
        assert switchable.relative(binding.copy_outputs_to_cpu()[0], wanted) < CLOSE
        binding.clear_binding_outputs()


def test_rows_and_merges_agree_with_the_cpu(exported: Get, adapters: dict[str, Adapter], tmp_path: Path) -> None:
    """W-011 on CUDA, and adapters merged at load there."""
    base, made = exported("llama-tied").path, tmp_path / "b.onnx"
    add_slots(base, made, adapters=list(adapters.values()), batched=True)
    inputs = inputs_of(base)
    outputs = []
    for provider in ("cpu", "cuda"):
        model = BatchedModel(made, provider=provider)
        model.load(adapters)
        outputs.append(model.run(inputs, ["two", "one"])["logits"])
    assert switchable.relative(outputs[1], outputs[0]) < CLOSE
    for adapter in adapters.values():
        on_cpu, on_cuda = (
            ort.run(session(base, [(adapter, 1.0)], provider=provider), inputs)["logits"]
            for provider in ("cpu", "cuda")
        )
        assert switchable.relative(on_cuda, on_cpu) < CLOSE
