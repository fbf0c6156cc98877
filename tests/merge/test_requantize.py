"""Merges whose output is quantized as the base is: only what changes gets other bytes, and what is lost is told."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import gguf
import numpy as np
import pytest
from click.testing import CliRunner
from gguf import GGMLQuantizationType as Ggml
from gguf_files import model as write_gguf
from golden_vectors import NAMES, vector, write_checkpoint

from lora_registry.adapter import Adapter, Kind, Target, Tensor
from lora_registry.cli import main
from lora_registry.errors import IntegrityError, InvalidInputError, LoregError, UnsupportedError, UsageError
from lora_registry.format.container import encode_tensors, open_container
from lora_registry.format.writer import write_adapter
from lora_registry.merge import requantize
from lora_registry.merge.bases.quantized import open_view
from lora_registry.merge.checkpoint import merge_checkpoint, prepare
from lora_registry.merge.journal import Journal
from lora_registry.merge.options import MergeOptions
from lora_registry.merge.preview import preview
from lora_registry.merge.ranges import Treatment
from lora_registry.merge.receipt import Receipt
from lora_registry.merge.replay import replay
from lora_registry.ops.arrays import from_array, to_array

AGAIN = MergeOptions(requantize=True)
OTHER = {"n.weight": from_array(np.arange(24, dtype=np.float16).reshape(4, 6))}
Q_PROJ = "model.layers.0.self_attn.q_proj.weight"


def lora(name: str, shape: tuple[int, ...], size: float = 0.3, seed: int = 1) -> Target:
    """A change of rank 2 to one matrix."""
    rng = np.random.default_rng(seed)
    factors = {
        "A": from_array((rng.standard_normal((2, shape[1])) * size).astype(np.float32)),
        "B": from_array((rng.standard_normal((shape[0], 2)) * size).astype(np.float32)),
    }
    return Target(name=name, kind=Kind.LINEAR, layout=("out", "in"), shape=shape, scale=0.5, tensors=factors)


def change(target: Target) -> np.ndarray:
    """s·B·A in float64."""
    a, b = (to_array(target.tensors[role]).astype(np.float64) for role in "AB")
    return target.scale * (b @ a)


def values(path: Path, name: str) -> np.ndarray:
    """What a weight of a checkpoint stands for, in float64."""
    return open_view(path, None).array(name).astype(np.float64)


def assert_told(receipt: Receipt, name: str, before: np.ndarray, after: np.ndarray, wanted: np.ndarray) -> None:
    """The figures of a receipt are those of a computation in float64."""
    fidelity = next(record.fidelity for record in receipt.tensors if record.name == name)
    assert fidelity is not None
    lost, kept = wanted - before, after - before
    norm = np.linalg.norm
    assert fidelity.relative_error == pytest.approx(norm(after - wanted) / norm(lost), rel=1e-4, abs=1e-6)
    cosine = (kept * lost).sum() / norm(kept) / norm(lost) if kept.any() else 0.0
    assert fidelity.cosine == pytest.approx(cosine, rel=1e-4, abs=1e-6)
    assert fidelity.unchanged_fraction == (after == before).mean()


@pytest.mark.parametrize("name", NAMES)
def test_the_changed_weight_is_in_the_scheme_of_the_base_and_the_rest_is_as_it_was(tmp_path: Path, name: str) -> None:
    """Names, shapes, types, configuration; the figures are those of a computation of the test's own."""
    write_checkpoint(tmp_path / "base", name, **OTHER)
    target = lora("m.weight", vector(name)[2].shape)
    receipt = merge_checkpoint(Adapter(targets=(target,)), tmp_path / "base", tmp_path / "out", AGAIN)
    base, out = (open_container(tmp_path / each / "model.safetensors") for each in ("base", "out"))
    assert out.header_bytes == base.header_bytes
    (record,) = receipt.tensors
    assert (record.name, record.target) == ("m.weight", "m.weight")
    different = {key for key in base.entries if bytes(base.tensor(key).data) != bytes(out.tensor(key).data)}
    assert {record.parts[0]} <= different <= set(record.parts)
    assert (tmp_path / "base/config.json").read_bytes() == (tmp_path / "out/config.json").read_bytes()
    before = values(tmp_path / "base", "m.weight")
    assert_told(receipt, "m.weight", before, values(tmp_path / "out", "m.weight"), before + change(target))
    said = json.loads((tmp_path / "out/loreg-receipt.json").read_text())
    assert said["options"]["requantize"] is True
    assert said["tensors"][0]["parts"] == list(record.parts)
    assert said["view"] == receipt.view


@pytest.mark.parametrize("name", NAMES)
def test_a_change_of_nothing_leaves_every_byte(tmp_path: Path, name: str) -> None:
    """Groups that a change does not touch keep their codes and scales."""
    write_checkpoint(tmp_path / "base", name, **OTHER)
    target = lora("m.weight", vector(name)[2].shape, size=0)
    receipt = merge_checkpoint(Adapter(targets=(target,)), tmp_path / "base", tmp_path / "out", AGAIN)
    assert (tmp_path / "out/model.safetensors").read_bytes() == (tmp_path / "base/model.safetensors").read_bytes()
    assert receipt.tensors[0].fidelity is not None
    assert receipt.tensors[0].fidelity.unchanged_fraction == 1


@pytest.mark.parametrize("workers", [1, 3])
@pytest.mark.parametrize("name", ["nf4-double", "int8", "gptq-4", "awq", "fp8", "compressed-int4-zeros"])
def test_neither_workers_nor_digests_nor_the_size_of_a_run_show_in_the_output(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, workers: int
) -> None:
    """One run of all rows, or a run for each step of the encoder, by any number of threads."""
    write_checkpoint(tmp_path / "base", name, **OTHER)
    adapter = Adapter(targets=(lora("m.weight", vector(name)[2].shape), lora("n.weight", (4, 6))))
    merge_checkpoint(adapter, tmp_path / "base", tmp_path / "one", AGAIN, workers=1)
    monkeypatch.setattr(requantize, "ELEMENTS", 1)
    merge_checkpoint(adapter, tmp_path / "base", tmp_path / "two", AGAIN, workers=workers)
    plain = replace(AGAIN, hashed=False)
    merge_checkpoint(adapter, tmp_path / "base", tmp_path / "three", plain, workers=workers, durable=False)
    made = [(tmp_path / each / "model.safetensors").read_bytes() for each in ("one", "two", "three")]
    assert made[0] == made[1] == made[2]


def test_parts_may_lie_in_several_shards_and_a_shard_without_changes_is_copied(tmp_path: Path) -> None:
    """Index and file names stay; every part of the weight is that of the merge into one file."""
    stored, config, expected = vector("gptq-4")
    folder, places = tmp_path / "base", {}
    folder.mkdir()
    for number, (part, tensor) in enumerate({**stored.tensors, **OTHER}.items()):
        places[part] = f"model-{number}.safetensors"
        (folder / places[part]).write_bytes(b"".join(map(bytes, encode_tensors({part: tensor}, {}))))
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": places}))
    (folder / "config.json").write_text(json.dumps({"model_type": "llama", **config}))
    write_checkpoint(tmp_path / "whole", "gptq-4", **OTHER)
    adapter = Adapter(targets=(lora("m.weight", expected.shape),))
    receipt = merge_checkpoint(adapter, folder, tmp_path / "out", AGAIN, workers=2)
    single = merge_checkpoint(adapter, tmp_path / "whole", tmp_path / "single", AGAIN)
    assert receipt.tensors == single.tensors
    whole = open_container(tmp_path / "single/model.safetensors")
    for part, place in places.items():
        assert bytes(open_container(tmp_path / "out" / place).tensor(part).data) == bytes(whole.tensor(part).data)
    assert (tmp_path / "out" / index.name).read_bytes() == index.read_bytes()


@pytest.mark.parametrize("name", ["nf4-double", "gptq-8", "compressed-int3-zeros"])
def test_a_killed_merge_goes_on_and_ends_in_the_same_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """Whatever stands in the journal: nothing, some blocks of the weight, or all of them; the figures too."""
    write_checkpoint(tmp_path / "base", name, **OTHER)
    adapter = Adapter(targets=(lora("m.weight", vector(name)[2].shape), lora("n.weight", (4, 6))))
    whole = merge_checkpoint(adapter, tmp_path / "base", tmp_path / "whole", AGAIN)
    write = Journal._write
    for kept in range(6):
        out = tmp_path / f"out{kept}"

        def cut(self: Journal, record: dict, kept: int = kept) -> None:
            write(self, {"blocks": record["blocks"][:kept]})
            raise KeyboardInterrupt

        with monkeypatch.context() as patch:
            patch.setattr(Journal, "_write", cut)
            patch.setattr("lora_registry.merge.staging.shutil.rmtree", lambda *_, **__: None)
            patch.setattr("threading.excepthook", lambda _: None)
            patch.setattr("lora_registry.merge.checkpoint.publish", _killed)
            with pytest.raises(KeyboardInterrupt):
                merge_checkpoint(adapter, tmp_path / "base", out, AGAIN, workers=1)
        journal = (tmp_path / f".{out.name}.merging/journal.jsonl").read_text().splitlines()
        assert len(json.loads(journal[1])["blocks"]) == kept
        resumed = merge_checkpoint(adapter, tmp_path / "base", out, AGAIN, resume=True)
        assert (out / "model.safetensors").read_bytes() == (tmp_path / "whole/model.safetensors").read_bytes()
        assert resumed == whole


def _killed(*_: object) -> None:
    raise KeyboardInterrupt


def test_a_merge_that_keeps_too_little_writes_nothing(tmp_path: Path) -> None:
    """The share, the scheme and what to do instead are told; the same adapter passes a lower bar."""
    write_checkpoint(tmp_path / "base", "nf4")
    adapter = Adapter(targets=(lora("m.weight", vector("nf4")[2].shape, size=0.05),))
    with pytest.raises(IntegrityError, match=r"m\.weight the least: .*% in nf4; nothing was written\. Merge without"):
        merge_checkpoint(adapter, tmp_path / "base", tmp_path / "out", AGAIN, min_retention=0.5)
    assert [path.name for path in tmp_path.iterdir()] == ["base"]
    receipt = merge_checkpoint(adapter, tmp_path / "base", tmp_path / "out", AGAIN, min_retention=0.0)
    assert any(
        "of the change to m.weight is lost in nf4; serve the adapter unmerged, or merge without --requantize" in said
        for said in receipt.warnings
    )


def test_dora_is_scaled_before_it_is_quantized(tmp_path: Path) -> None:
    """The norm is that of the rows that the base stands for and the change."""
    write_checkpoint(tmp_path / "base", "int8")
    shape = vector("int8")[2].shape
    plain = lora("m.weight", shape, size=0.1)
    magnitude = np.linspace(4, 9, shape[0]).astype(np.float32)
    target = replace(plain, tensors={**plain.tensors, "magnitude": from_array(magnitude)}, digests={})
    receipt = merge_checkpoint(Adapter(targets=(target,)), tmp_path / "base", tmp_path / "out", AGAIN)
    before = values(tmp_path / "base", "m.weight")
    total = before + change(target)
    wanted = magnitude[:, None] * total / np.linalg.norm(total, axis=1, keepdims=True)
    after = values(tmp_path / "out", "m.weight")
    assert_told(receipt, "m.weight", before, after, wanted)
    assert np.abs(after - wanted).max() <= np.abs(wanted).max() / 254 * 1.01


def test_a_value_that_replaces_a_weight_is_quantized_too(tmp_path: Path) -> None:
    """A full target: what there was does not matter, but for the scales that may be kept."""
    write_checkpoint(tmp_path / "base", "int8")
    shape = vector("int8")[2].shape
    value = np.random.default_rng(3).standard_normal(shape).astype(np.float32)
    target = Target(name="m.weight", kind=Kind.FULL, layout=("any",), shape=shape, tensors={"value": from_array(value)})
    merge_checkpoint(Adapter(targets=(target,)), tmp_path / "base", tmp_path / "out", AGAIN)
    assert np.abs(values(tmp_path / "out", "m.weight") - value).max() <= np.abs(value).max() / 254 * 1.01


def test_what_means_nothing_is_refused_before_a_byte_is_written(tmp_path: Path) -> None:
    """An unquantized base, a dtype, an output of another kind, values that are no numbers."""
    write_checkpoint(tmp_path / "base", "nf4")
    adapter = Adapter(targets=(lora("m.weight", vector("nf4")[2].shape),))
    with pytest.raises(UsageError, match="leave dtype away"):
        prepare(adapter, tmp_path / "base", tmp_path / "out", MergeOptions(requantize=True, dtype="F32"))
    plain = tmp_path / "plain.safetensors"
    plain.write_bytes(b"".join(map(bytes, encode_tensors(OTHER, {}))))
    with pytest.raises(UnsupportedError, match="is not quantized, so that nothing in it can be quantized again"):
        prepare(Adapter(targets=(lora("n.weight", (4, 6)),)), plain, tmp_path / "out.safetensors", AGAIN)
    stored, config, expected = vector("int8")
    scales = to_array(stored.tensors["m.SCB"]).copy()
    scales[3] = np.inf
    broken = tmp_path / "broken"
    broken.mkdir()
    tensors: dict[str, Tensor] = {**stored.tensors, "m.SCB": from_array(scales)}
    (broken / "model.safetensors").write_bytes(b"".join(map(bytes, encode_tensors(tensors, {}))))
    (broken / "config.json").write_text(json.dumps(config))
    with pytest.raises(InvalidInputError, match=r"m\.weight: holds values that are not finite"):
        merge_checkpoint(Adapter(targets=(lora("m.weight", expected.shape),)), broken, tmp_path / "out", AGAIN)
    assert not (tmp_path / "out").exists()
    assert not list(tmp_path.glob(".*.merging"))


def test_a_preview_tells_which_stored_tensors_are_written_anew(tmp_path: Path) -> None:
    """The treatment has a name of its own, and the rest is copied."""
    write_checkpoint(tmp_path / "base", "awq", **OTHER)
    adapter = Adapter(targets=(lora("m.weight", vector("awq")[2].shape),))
    told = preview(prepare(adapter, tmp_path / "base", tmp_path / "out", AGAIN))
    assert set(told.tensors) == {"m.qweight", "m.qzeros", "m.scales"}
    size = (tmp_path / "base/model.safetensors").stat().st_size
    assert told.bytes(Treatment.REQUANTIZE) + told.bytes(Treatment.COPY) == size
    assert any("1 changed weight quantized again, every other byte left as it was" in note for note in told.notes)


KINDS = [Ggml.Q8_0, Ggml.Q4_0, Ggml.Q4_1, Ggml.Q5_0, Ggml.Q5_1, Ggml.F16, Ggml.BF16, Ggml.F32]


def gguf_changes(before: Path, after: Path) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Names of the tensors of which bytes differ, and their values in both files, by the gguf package's reader."""
    pairs = zip(gguf.GGUFReader(before).tensors, gguf.GGUFReader(after).tensors, strict=True)
    found = {}
    for one, other in pairs:
        assert (one.name, one.tensor_type, one.data_offset) == (other.name, other.tensor_type, other.data_offset)
        if one.data.tobytes() != other.data.tobytes():
            decoded = [gguf.dequantize(each.data, each.tensor_type).astype(np.float64) for each in (one, other)]
            found[one.name] = decoded[0], decoded[1]
    return found


@pytest.mark.parametrize("kind", KINDS)
def test_a_gguf_file_stays_one(tmp_path: Path, kind: Ggml) -> None:
    """Everything before the data is the same; queries are written in llama.cpp's order; the norm is F32 as it was."""
    path = write_gguf(tmp_path / "model.gguf", "llama", kind)
    target = lora(Q_PROJ, (64, 64), size=0.5)
    delta = np.linspace(-1, 1, 64).astype(np.float32)
    norm = Target(
        name="model.norm.weight", kind=Kind.BIAS, layout=("out",), shape=(64,), tensors={"delta": from_array(delta)}
    )
    out = tmp_path / "out.gguf"
    receipt = merge_checkpoint(Adapter(targets=(target, norm)), path, out, AGAIN)
    assert (receipt.kind, out.stat().st_size) == ("gguf", path.stat().st_size)
    assert {record.name: (record.dtype, record.parts) for record in receipt.tensors} == {
        Q_PROJ: (kind.name, ("blk.0.attn_q.weight",)),
        "model.norm.weight": ("F32", ("output_norm.weight",)),
    }
    changed = gguf_changes(path, out)
    assert set(changed) == {"blk.0.attn_q.weight", "output_norm.weight"}
    before, after = (
        each.reshape(4, 8, 2, 64).swapaxes(1, 2).reshape(64, 64) for each in changed["blk.0.attn_q.weight"]
    )
    assert_told(receipt, Q_PROJ, before, after, before + change(target))
    before, after = changed["output_norm.weight"]
    assert np.array_equal(after.astype(np.float32), (before + delta).astype(np.float32))
    start = gguf.GGUFReader(path).data_offset
    assert out.read_bytes()[:start] == path.read_bytes()[:start]


def test_a_gguf_file_without_a_change_is_the_same_file(tmp_path: Path) -> None:
    """Padding included."""
    path = write_gguf(tmp_path / "model.gguf", "qwen2", Ggml.Q4_1)
    names = [Q_PROJ, "model.layers.0.self_attn.k_proj.weight"]
    targets = [lora(name, (rows, 64), size=0) for name, rows in zip(names, (64, 32), strict=True)]
    merge_checkpoint(Adapter(targets=tuple(targets)), path, tmp_path / "out.gguf", AGAIN)
    assert (tmp_path / "out.gguf").read_bytes() == path.read_bytes()


@pytest.mark.parametrize("kind", ["Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K"])
def test_k_quants_are_written_again(tmp_path: Path, kind: str) -> None:
    """A table of tokens in k-quants, by its GGUF name: rows of tokens are replaced, and no other row changes."""
    from lora_registry.quantized.encoding import gguf_k_blocks as encode_gguf_k_blocks

    rng = np.random.default_rng(0)
    table = rng.standard_normal((24, 512)).astype(np.float32)
    fresh = getattr(encode_gguf_k_blocks, f"fresh_{kind.lower()}")
    path = tmp_path / "model.gguf"
    writer = gguf.GGUFWriter(path, "gemma")
    writer.add_tensor("token_embd.weight", fresh(table.reshape(-1, 256)).reshape(24, -1), raw_dtype=Ggml[kind])
    writer.add_tensor("output_norm.weight", np.ones(7, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    value = rng.standard_normal((2, 512)).astype(np.float32)
    tokens = Target(
        name="token_embd.weight",
        kind=Kind.TOKENS,
        layout=("num", "dim"),
        shape=(24, 512),
        rows=(3, 20),
        tensors={"value": from_array(value)},
    )
    receipt = merge_checkpoint(
        Adapter(targets=(tokens,)), path, tmp_path / "out.gguf", MergeOptions(requantize=True, tied="both")
    )
    before, after = gguf_changes(path, tmp_path / "out.gguf")["token_embd.weight"]
    wanted = before.copy()
    wanted[[3, 20]] = value
    assert np.array_equal(np.flatnonzero((after != before).any(axis=1)), [3, 20])
    assert_told(receipt, "token_embd.weight", before, after, wanted)
    upstream = gguf.dequantize(fresh(value.reshape(-1, 256)).reshape(2, -1), Ggml[kind])
    assert np.square(after[[3, 20]] - value).sum() <= np.square(upstream - value).sum() * 1.0001


def test_a_gguf_output_has_to_be_called_one(tmp_path: Path) -> None:
    """And without requantizing, a GGUF base makes a safetensors file."""
    path = write_gguf(tmp_path / "model.gguf", "llama")
    adapter = Adapter(targets=(lora(Q_PROJ, (64, 64)),))
    with pytest.raises(UsageError, match=r"must be called \*\.gguf"):
        prepare(adapter, path, tmp_path / "out.safetensors", AGAIN)
    with pytest.raises(UsageError, match=r"must be called \*\.safetensors"):
        prepare(adapter, path, tmp_path / "out.gguf")


@pytest.mark.parametrize("scales", ["tensor", "matrix", "row", "block"])
def test_stacks_of_float8_matrices_are_written_again(tmp_path: Path, scales: str) -> None:
    """Experts, with a scale for all of them, for each, for each row, or for blocks of which the last are cut off."""
    rng = np.random.default_rng(4)
    shape, rank = (3, 40, 48), 2
    stored = (rng.standard_normal(shape) * 60).clip(-440, 440).astype("float8_e4m3fn")
    form = {"tensor": (1,), "matrix": (3, 1, 1), "row": (3, 40, 1), "block": (3, 2, 2)}[scales]
    scale = (rng.random(form) * 0.01 + 0.01).astype(np.float32)
    base = tmp_path / "base"
    base.mkdir()
    tensors = {"m.experts": from_array(stored), "m.experts_scale_inv": from_array(scale), **OTHER}
    (base / "model.safetensors").write_bytes(b"".join(map(bytes, encode_tensors(tensors, {}))))
    settings = {"quant_method": "fp8", **({"weight_block_size": [32, 32]} if scales == "block" else {})}
    (base / "config.json").write_text(json.dumps({"dtype": "float32", "quantization_config": settings}))
    factors = {
        "A": from_array((rng.standard_normal((3, rank, 48)) * 0.3).astype(np.float32)),
        "B": from_array((rng.standard_normal((3, 40, rank)) * 0.3).astype(np.float32)),
    }
    target = Target(
        name="m.experts", kind=Kind.EXPERTS, layout=("expert", "out", "in"), shape=shape, scale=0.5, tensors=factors
    )
    before = values(base, "m.experts")
    wanted = before + 0.5 * (to_array(factors["B"]).astype(np.float64) @ to_array(factors["A"]).astype(np.float64))
    receipt = merge_checkpoint(Adapter(targets=(target,)), base, tmp_path / "out", AGAIN, workers=2)
    after = values(tmp_path / "out", "m.experts")
    assert_told(receipt, "m.experts", before, after, wanted)
    assert np.square(after - wanted).sum() < np.square(before - wanted).sum() / 5


def test_an_int8_weight_with_one_scale_is_covered_as_a_whole(tmp_path: Path) -> None:
    """Beyond the reach of the one scale, all rows get another one."""
    rng = np.random.default_rng(5)
    codes = rng.integers(-127, 128, (64, 48)).astype(np.int8)
    base = tmp_path / "base"
    base.mkdir()
    tensors = {"m.weight": from_array(codes), "m.weight_scale": from_array(np.full(1, 0.01, np.float32))}
    (base / "model.safetensors").write_bytes(b"".join(map(bytes, encode_tensors(tensors, {}))))
    weights = {"type": "int", "num_bits": 8, "strategy": "tensor", "symmetric": True}
    groups = {"group_0": {"targets": ["Linear"], "weights": weights}}
    settings = {"quant_method": "compressed-tensors", "format": "int-quantized", "config_groups": groups}
    (base / "config.json").write_text(json.dumps({"dtype": "float32", "quantization_config": settings}))
    for size, kept in ((0.01, True), (2.0, False)):
        target = lora("m.weight", (64, 48), size=size)
        before = values(base, "m.weight")
        wanted = before + change(target)
        out = tmp_path / f"out{kept}"
        receipt = merge_checkpoint(Adapter(targets=(target,)), base, out, AGAIN, workers=2)
        after = values(out, "m.weight")
        assert_told(receipt, "m.weight", before, after, wanted)
        scale = float(to_array(open_container(out / "model.safetensors").tensor("m.weight_scale"))[0])
        assert (scale == float(np.float32(0.01))) is kept
        assert np.abs(after - wanted).max() <= scale * 0.5001


def test_a_tie_that_would_need_a_quantized_table_of_its_own_is_refused(tmp_path: Path) -> None:
    """Nothing says how that would be quantized; changing both is what is left."""
    path = write_gguf(tmp_path / "model.gguf", "qwen2", Ggml.Q8_0)
    tied = tmp_path / "tied.gguf"
    reader = gguf.GGUFReader(path)
    writer = gguf.GGUFWriter(tied, "qwen2")
    for tensor in reader.tensors:
        if tensor.name != "output.weight":
            writer.add_tensor(tensor.name, tensor.data, raw_dtype=tensor.tensor_type)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    target = Target(
        name="model.embed_tokens.weight",
        kind=Kind.FULL,
        layout=("any",),
        shape=(40, 64),
        tensors={"value": from_array(np.random.default_rng(6).standard_normal((40, 64)).astype(np.float32))},
    )
    adapter = Adapter(targets=(target,))
    with pytest.raises(LoregError, match=r"tied: both|\(tied"):
        prepare(adapter, tied, tmp_path / "out.gguf", AGAIN)
    merge_checkpoint(adapter, tied, tmp_path / "out.gguf", MergeOptions(requantize=True, tied="both"))
    assert set(gguf_changes(tied, tmp_path / "out.gguf")) == {"token_embd.weight"}


def test_a_gguf_merge_is_replayed(tmp_path: Path) -> None:
    """The receipt has all that it takes."""
    path = write_gguf(tmp_path / "model.gguf", "llama", Ggml.Q4_0)
    adapter = Adapter(targets=(lora(Q_PROJ, (64, 64)),))
    merge_checkpoint(adapter, path, tmp_path / "out.gguf", AGAIN)
    replay(tmp_path / "out.gguf.receipt.json", adapter, path, tmp_path / "again.gguf")
    assert (tmp_path / "again.gguf").read_bytes() == (tmp_path / "out.gguf").read_bytes()


def test_every_rule_of_quantizing_again_is_tested_here() -> None:
    """The ids of spec/merging.md, section 9.1, are numbered without a gap."""
    text = (Path(__file__).parents[2] / "spec/merging.md").read_text()
    found = re.findall(r"^\*\*(Q-\d{3})\*\* ", text, re.MULTILINE)
    assert found == [f"Q-{number:03}" for number in range(1, len(found) + 1)]
    assert found


def test_the_command_quantizes_again(tmp_path: Path) -> None:
    """And says so."""
    write_checkpoint(tmp_path / "base", "int8")
    write_adapter(Adapter(targets=(lora("m.weight", vector("int8")[2].shape),)), tmp_path / "adapter.safetensors")
    arguments = ["merge", str(tmp_path / "adapter.safetensors"), "--base", str(tmp_path / "base"), "--requantize"]
    result = CliRunner().invoke(main, [*arguments, "-o", str(tmp_path / "out")])
    assert result.exit_code == 0, result.output
    assert "1 changed weight quantized again" in " ".join(result.output.split())
    assert open_container(tmp_path / "out/model.safetensors").entries["m.weight"].dtype == "I8"


def test_other_merges_import_no_encoder() -> None:
    """They would be a tenth of its start."""
    listed = "print(*(name for name in sys.modules if 'quantized.encoding.' in name))"
    code = f"import sys, lora_registry.merge.checkpoint; {listed}"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "\n"
