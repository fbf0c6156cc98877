"""Adapters at run time: merged at load, pooled, or one a row; the same outputs as PEFT's, and nothing in silence."""

from __future__ import annotations

import gc
import threading
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_models
import peft_adapters
import pytest
import switchable_models as switchable
import tiny_models
import torch
from exported_models import Exported
from loreg_converters.onnx_adapter import converter
from peft import LoraConfig

from lora_registry.adapter import Adapter, Tensor
from lora_registry.errors import (
    ConflictError,
    IntegrityError,
    InvalidInputError,
    MachineError,
    NotFoundError,
    UnsupportedError,
    UsageError,
)
from lora_registry.merge.onnx.model import merge_onnx
from lora_registry.onnx.slots.insert import add_slots
from lora_registry.runtime import ort
from lora_registry.runtime.adapter_pool import AdapterPool
from lora_registry.runtime.batched import BatchedModel
from lora_registry.runtime.generate import generate
from lora_registry.runtime.session import session, weighted_sum

Get = Callable[[str], Exported]
PROMPT = [5, 9, 33, 2, 7]
JOBS = {
    "one": (["q_proj", "down_proj", "embed_tokens"], 4),
    "two": (["v_proj", "down_proj"], 7),
    "three": (["k_proj"], 2),
}
CLOSE = 1e-5


@dataclass(frozen=True)
class Scene:
    """A tiny decoder, three adapters of other targets and ranks, and what PEFT computes with each."""

    base: Path
    model: Path
    batched: Path
    folders: dict[str, Path]
    adapters: dict[str, Adapter]
    logits: dict[str | None, np.ndarray]
    tokens: dict[str | None, list[int]]
    inputs: dict[str, np.ndarray]


def torch_tokens(module: Any, count: int = 12) -> list[int]:
    """Greedy decoding in torch, without a cache."""
    ids = list(PROMPT)
    for _ in range(count):
        with torch.no_grad():
            ids.append(int(module(input_ids=torch.tensor([ids]), use_cache=False).logits[0, -1].argmax()))
    return ids[len(PROMPT) :]


@pytest.fixture(scope="module")
def scene(exported: Get, tmp_path_factory: pytest.TempPathFactory) -> Scene:
    """Made once; never to be written into."""
    base, folder = exported("llama-tied"), tmp_path_factory.mktemp("switchable")
    ids = np.random.default_rng(1).integers(3, 90, size=(3, 6))
    adapters, folders = {}, {}
    logits: dict[str | None, np.ndarray] = {}
    tokens: dict[str | None, list[int]] = {}
    for number, (name, (targets, rank)) in enumerate(JOBS.items()):
        options = LoraConfig(r=rank, lora_alpha=8, target_modules=targets, use_rslora=name == "two")
        module = tiny_models.llama(tied=True)
        wrapped = peft_adapters.make_peft_adapter(module, options, folder / name, seed=number)
        adapters[name], folders[name] = onnx_models.adapter_of(wrapped), folder / name
        with torch.no_grad():
            logits[name] = wrapped(input_ids=torch.tensor(ids)).logits.numpy()
        tokens[name] = torch_tokens(wrapped)
    module = tiny_models.llama(tied=True)
    with torch.no_grad():
        logits[None] = module(input_ids=torch.tensor(ids)).logits.numpy()
    tokens[None] = torch_tokens(module)
    model, batched = folder / "switchable.onnx", folder / "batched.onnx"
    add_slots(base.path, model, adapters=list(adapters.values()))
    add_slots(base.path, batched, adapters=list(adapters.values()), batched=True)
    inputs = switchable.feeds(switchable.open_cpu(base.path), batch=3, sequence=6, past_sequence=0) | {"input_ids": ids}
    return Scene(base.path, model, batched, folders, adapters, logits, tokens, inputs)


def logits_of(outputs: dict[str, Any]) -> np.ndarray:
    return outputs["logits"]


@pytest.fixture
def pool(scene: Scene) -> AdapterPool:
    """A pool of the three."""
    made = AdapterPool(scene.model, threads=1)
    for name, adapter in scene.adapters.items():
        made.add(name, adapter)
    return made


# Merged at load


@pytest.mark.parametrize("name", JOBS)
@pytest.mark.parametrize("external", [False, True])
def test_one_adapter_gives_the_bits_of_a_merged_file(scene: Scene, tmp_path: Path, name: str, external: bool) -> None:
    """Merged at load or into a file, tied tensors taken apart or not, external data or not: the same bits."""
    base = scene.base
    if external:
        base = tmp_path / "base.onnx"
        onnx.save(onnx.load(scene.base), base, save_as_external_data=True, location="base.data", size_threshold=0)
    before = {path.name: path.read_bytes() for path in base.parent.iterdir() if path.is_file()}
    merge_onnx(scene.adapters[name], base, tmp_path / "merged.onnx")
    merged = ort.run(ort.open_session(tmp_path / "merged.onnx", threads=1), scene.inputs)
    loaded = ort.run(session(base, {scene.folders[name]: 1.0}, threads=1), scene.inputs)
    assert switchable.same_bits(list(loaded.values()), list(merged.values()))
    assert switchable.relative(loaded["logits"], scene.logits[name]) < CLOSE
    assert all((base.parent / file).read_bytes() == content for file, content in before.items())


def test_weights_add_up(scene: Scene, tmp_path: Path) -> None:
    """W + 0.7·ΔW₁ + 0.3·ΔW₂, as one adapter with both changes has it; and as the pool computes a part of it."""
    one, two = scene.adapters["one"], scene.adapters["two"]
    both = session(scene.base, [(one, 0.7), (two, 0.3)], threads=1)
    whole = weighted_sum([(one, 0.7), (two, 0.3)])
    assert whole is not None
    made = tmp_path / "s.onnx"
    add_slots(scene.base, made, adapters=[whole])
    pool = AdapterPool(made, threads=1)
    pool.add("both", whole)
    wanted = pool.run(scene.inputs, "both")["logits"]
    assert switchable.relative(ort.run(both, scene.inputs)["logits"], wanted) < CLOSE


def test_the_session_keeps_what_it_borrows(scene: Scene) -> None:
    """ONNX Runtime borrows the values; nothing that the caller lets go of changes the outputs."""
    opened = session(scene.base, [(scene.adapters["one"], 1.0)], threads=1)
    gc.collect()
    filler = [np.full((64, 48), 7.0, np.float32) for _ in range(200)]
    assert switchable.relative(ort.run(opened, scene.inputs)["logits"], scene.logits["one"]) < CLOSE
    del filler


def test_no_adapter_is_the_base(scene: Scene) -> None:
    """Without adapters the session is the base's, bit for bit."""
    plain = switchable.open_cpu(scene.base).run(None, scene.inputs)
    assert switchable.same_bits(list(ort.run(session(scene.base), scene.inputs).values()), plain)


def test_what_has_no_weight(scene: Scene) -> None:
    """DoRA is merged at load with weight 1, and with another weight refused by name, as is a weight that is none."""
    target = scene.adapters["three"].targets[0]
    magnitude = Tensor("F32", (target.shape[0],), np.ones(target.shape[0], np.float32).tobytes())
    dora = Adapter(targets=(replace(target, tensors={**target.tensors, "magnitude": magnitude}),))
    assert ort.run(session(scene.base, [(dora, 1.0)]), scene.inputs)["logits"].shape == scene.logits[None].shape
    with pytest.raises(UnsupportedError, match="has no weight but 1"):
        session(scene.base, [(dora, 0.5)])
    with pytest.raises(UsageError, match="no finite number"):
        session(scene.base, [(scene.adapters["one"], float("nan"))])


# A pool


def test_switching(scene: Scene, pool: AdapterPool) -> None:
    """Each request has the adapter that it names, and none is the base, bit for bit, before and after."""
    plain = switchable.open_cpu(scene.base).run(None, scene.inputs)
    for name in (None, "one", "two", None, "three", "one", None):
        outputs = pool.run(scene.inputs, name)
        assert switchable.relative(outputs["logits"], scene.logits[name]) < CLOSE
        if name is None:
            np.testing.assert_allclose(outputs["logits"], plain[0], rtol=1e-5, atol=1e-5)


def test_any_form_of_an_adapter(scene: Scene, pool: AdapterPool, tmp_path: Path) -> None:
    """A PEFT folder, an .onnx_adapter file and an open adapter are the same in a pool."""
    file = tmp_path / "one.onnx_adapter"
    converter.for_model(scene.model).write(scene.adapters["one"], file)
    pool.add("file", file)
    pool.add("folder", scene.folders["one"])
    wanted = pool.run(scene.inputs, "one")["logits"]
    for name in ("file", "folder"):
        np.testing.assert_array_equal(pool.run(scene.inputs, name)["logits"], wanted)


def test_scale(scene: Scene, pool: AdapterPool) -> None:
    """W-003: a request scales its adapter; 0 is the base."""
    whole = replace(scene.adapters["three"], targets=tuple(
        replace(target, scale=target.scale / 2) for target in scene.adapters["three"]
    ))  # fmt: skip
    pool.add("half", whole)
    halved = pool.run(scene.inputs, "three", scale=0.5)["logits"]
    assert switchable.relative(halved, pool.run(scene.inputs, "half")["logits"]) < CLOSE
    assert switchable.relative(pool.run(scene.inputs, "three", scale=0)["logits"], scene.logits[None]) < CLOSE
    for unusable in (float("inf"), float("nan"), 1e39):
        with pytest.raises(UsageError, match="no finite number"):
            pool.run(scene.inputs, "three", scale=unusable)


def test_several_at_once_have_no_slot_in_common(scene: Scene, pool: AdapterPool) -> None:
    """Two that change other tensors are on together; two with a slot in common are refused, not one of them lost."""
    together = pool.run(scene.inputs, ["two", "three"])["logits"]
    both = session(scene.base, [(scene.adapters["two"], 1.0), (scene.adapters["three"], 1.0)])
    assert switchable.relative(together, ort.run(both, scene.inputs)["logits"]) < CLOSE
    with pytest.raises(ConflictError, match=r"'one' and 'two' both fill .*down_proj"):
        pool.run(scene.inputs, ["one", "two"])


def test_names_and_slots_are_the_pools(scene: Scene, pool: AdapterPool) -> None:
    """Unknown names, names that are taken and slots that a request fills by itself are refused."""
    with pytest.raises(NotFoundError, match="no adapter 'four'; it has one, three, two"):
        pool.run(scene.inputs, "four")
    with pytest.raises(ConflictError, match="the pool has an adapter 'one'"):
        pool.add("one", scene.adapters["two"])
    with pytest.raises(UsageError, match="'adapter_scale' is a slot"):
        pool.run({**scene.inputs, "adapter_scale": np.array(1, np.float32)}, "one")
    pool.remove("one")
    assert pool.names == ("two", "three")
    with pytest.raises(NotFoundError):
        pool.remove("one")


def test_what_does_not_fit_is_not_kept(scene: Scene, pool: AdapterPool, tmp_path: Path) -> None:
    """W-005, W-006, W-007: an adapter for another model, a changed file and a stranger are refused, and not listed."""
    path = tmp_path / "one.onnx_adapter"
    converter.for_model(scene.model).write(scene.adapters["one"], path)
    content = bytearray(path.read_bytes())
    content[-4] ^= 1
    (tmp_path / "changed.onnx_adapter").write_bytes(bytes(content))
    stranger = Adapter(targets=(replace(scene.adapters["one"].targets[0], name="elsewhere.weight"),))
    other = tmp_path / "other.onnx"
    add_slots(scene.base, other, adapters=[scene.adapters["one"]])
    converter.for_model(other).write(scene.adapters["one"], tmp_path / "other.onnx_adapter")
    for source, error in (
        (tmp_path / "changed.onnx_adapter", IntegrityError),
        (tmp_path / "other.onnx_adapter", InvalidInputError),
        (stranger, InvalidInputError),
    ):
        with pytest.raises(error):
            pool.add("new", source)
    assert pool.names == tuple(JOBS)


def test_memory_is_bounded(scene: Scene) -> None:
    """Those that were used least recently make room, and come back when they are asked for."""
    sizes = {}
    for name, adapter in scene.adapters.items():
        alone = AdapterPool(scene.model, threads=1)
        alone.add(name, adapter)
        sizes[name] = alone.nbytes
    capacity = sum(sizes.values()) - 1
    pool = AdapterPool(scene.model, threads=1, capacity=capacity)
    for name, adapter in scene.adapters.items():
        pool.add(name, adapter)
    assert pool.nbytes <= capacity
    assert pool.resident == ("two", "three")
    for name in ("one", "two", "three", "one"):
        assert switchable.relative(pool.run(scene.inputs, name)["logits"], scene.logits[name]) < CLOSE
        assert pool.resident[-1] == name
        assert pool.nbytes <= capacity
    assert pool.names == tuple(JOBS)
    with pytest.raises(UsageError, match=r"takes .* bytes, the pool keeps 8"):
        AdapterPool(scene.model, threads=1, capacity=8).add("one", scene.adapters["one"])


def test_io_binding(scene: Scene, pool: AdapterPool) -> None:
    """A bound run has the adapter that was bound, again after another, and the base after none."""
    binding = pool.session.io_binding()
    for name in ("one", None, "two", "one"):
        pool.bind(binding, name)
        for each, array in scene.inputs.items():
            binding.bind_cpu_input(each, array)
        binding.bind_output("logits")
        gc.collect()
        pool.session.run_with_iobinding(binding)
        assert switchable.relative(binding.copy_outputs_to_cpu()[0], scene.logits[name]) < CLOSE
        binding.clear_binding_outputs()


def test_threads(scene: Scene) -> None:
    """Many threads with other adapters each, in a pool that has no room for all: every answer is the right one."""
    pool = AdapterPool(scene.model, threads=1, capacity=15_000)
    for name, adapter in scene.adapters.items():
        pool.add(name, adapter)
    wrong: list[str] = []

    def work(names: list[str | None]) -> None:
        for name in names:
            got = pool.run(scene.inputs, name, outputs=["logits"])["logits"]
            if switchable.relative(got, scene.logits[name]) >= CLOSE:
                wrong.append(str(name))

    orders = [["one", "two", None, "three"] * 5, ["three", "one", "two"] * 6, [None, "two", "one"] * 6]
    threads = [threading.Thread(target=work, args=(order,)) for order in orders * 2]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
    assert pool.nbytes <= 15_000


def test_pools_are_of_switchable_models(scene: Scene) -> None:
    """A plain model, a batched one, and a batched model's opposite are told apart."""
    with pytest.raises(UnsupportedError, match="has no slots; `loreg onnx slots`"):
        AdapterPool(scene.base)
    with pytest.raises(UnsupportedError, match="is batched"):
        AdapterPool(scene.batched)
    with pytest.raises(UnsupportedError, match="takes one adapter for a whole run"):
        BatchedModel(scene.model)


def test_a_provider_that_does_not_run_is_no_pool(scene: Scene) -> None:
    """Asked for a provider that does not run here there is no session, merged or pooled."""
    try:
        ort.prove(ort.PROVIDERS["cuda"])
    except MachineError:
        for opening in (
            lambda: AdapterPool(scene.model, provider="cuda"),
            lambda: BatchedModel(scene.batched, provider="cuda"),
            lambda: session(scene.base, [(scene.adapters["one"], 1.0)], provider="cuda"),
        ):
            with pytest.raises(MachineError):
                opening()
    else:
        pytest.skip("CUDA runs here")


# A row each


def test_each_row_has_its_own_adapter(scene: Scene) -> None:
    """W-011: one run, three rows, three adapters; the row of the base is the base's, bit for bit."""
    model = BatchedModel(scene.batched, threads=1)
    plain = model.run(scene.inputs, [None])["logits"]
    assert switchable.relative(plain, scene.logits[None]) < CLOSE
    model.load(scene.adapters)
    assert model.names == tuple(JOBS)
    for chosen in (["two", None, "one"], ["three", "three", "two"], [None, "one", None]):
        got = model.run(scene.inputs, chosen)["logits"]
        for row, name in enumerate(chosen):
            assert switchable.relative(got[row], scene.logits[name][row]) < CLOSE
            if name is None:
                np.testing.assert_array_equal(got[row], plain[row])


def test_rows_and_adapters_have_to_match(scene: Scene) -> None:
    """Unknown names, another number of rows, and no row at all are refused."""
    model = BatchedModel(scene.batched, threads=1)
    with pytest.raises(NotFoundError, match="no adapter 'one' is loaded; there is none"):
        model.run(scene.inputs, ["one"])
    model.load(scene.adapters)
    with pytest.raises(InvalidInputError, match="Expand"):
        model.run(scene.inputs, ["one", "two"])
    with pytest.raises(UsageError, match="no adapter for any row"):
        model.run(scene.inputs, [])
    with pytest.raises(UsageError, match="'adapter_ids' is a slot"):
        model.run({**scene.inputs, "adapter_ids": np.array([1])}, ["one"])


# All of them


@pytest.mark.parametrize("name", [None, *JOBS])
def test_greedy_text_is_pefts(scene: Scene, pool: AdapterPool, tmp_path: Path, name: str | None) -> None:
    """Token for token: merged into a file, merged at load, switched, and one row of a batch."""
    wanted = scene.tokens[name]
    chosen = [] if name is None else [(scene.adapters[name], 1.0)]
    assert generate(session(scene.base, chosen, threads=1), PROMPT, max_new_tokens=len(wanted)) == wanted
    assert generate(pool.using(name), PROMPT, max_new_tokens=len(wanted)) == wanted
    if name is not None:
        merge_onnx(scene.adapters[name], scene.base, tmp_path / "merged.onnx")
        merged = ort.open_session(tmp_path / "merged.onnx", threads=1)
        assert generate(merged, PROMPT, max_new_tokens=len(wanted)) == wanted
    model = BatchedModel(scene.batched, threads=1)
    model.load(scene.adapters)
    assert generate(model.using([name]), PROMPT, max_new_tokens=len(wanted)) == wanted
