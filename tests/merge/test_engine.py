"""The engine: the same bytes whatever the number of workers, digests or not, and what it refuses to publish."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from lora_registry.adapter import Adapter, Kind, Target
from lora_registry.digest import Digest
from lora_registry.errors import ConflictError, IntegrityError, InvalidInputError, UsageError
from lora_registry.merge import engine, output
from lora_registry.merge.bases.base import open_base
from lora_registry.merge.checkpoint import merge_checkpoint, prepare
from lora_registry.merge.options import MergeOptions
from lora_registry.merge.preview import preview
from lora_registry.merge.ranges import Treatment, blocks_of
from lora_registry.ops.arrays import from_array

SHAPES = {"a.weight": (700, 900), "b.weight": (64, 3000), "c.weight": (2000, 900), "norm": (900,)}


def change(name: str, shape: tuple[int, int], *, rank: int = 4, size: float = 0.01, dora: bool = False) -> Target:
    """A random change of a linear layer."""
    rng = np.random.default_rng(len(name))
    tensors = {
        "A": rng.normal(size=(rank, shape[1])).astype(np.float32),
        "B": (rng.normal(size=(shape[0], rank)) * size).astype(np.float32),
    }
    if dora:
        tensors["magnitude"] = np.linspace(1, 2, shape[0], dtype=np.float32)
    return Target(
        name=name,
        kind=Kind.LINEAR,
        layout=("out", "in"),
        shape=shape,
        tensors={role: from_array(array) for role, array in tensors.items()},
    )


@pytest.fixture
def base(tmp_path: Path) -> Path:
    """Two shards of several blocks in bfloat16, one tensor of which stays as it is."""
    rng = np.random.default_rng(0)
    folder = tmp_path / "base"
    folder.mkdir()
    tensors = {name: rng.normal(size=shape).astype(ml_dtypes.bfloat16) for name, shape in SHAPES.items()}
    tensors["d.weight"] = rng.normal(size=(3000, 900)).astype(ml_dtypes.bfloat16)
    places = {"model-1.safetensors": ["a.weight", "b.weight", "d.weight"], "model-2.safetensors": ["c.weight", "norm"]}
    for file, names in places.items():
        save_file({name: tensors[name] for name in names}, folder / file, metadata={"format": "pt"})
    weight_map = {name: file for file, names in places.items() for name in names}
    index = {"metadata": {"total_size": sum(t.nbytes for t in tensors.values())}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    (folder / "config.json").write_text('{"dtype": "bfloat16", "text_config": {"dtype": "bfloat16"}}')
    return folder


@pytest.fixture
def adapter() -> Adapter:
    """Changes a, b and c, of which c has a magnitude."""
    targets = [change(name, SHAPES[name], dora=name.startswith("c")) for name in ("a.weight", "b.weight", "c.weight")]
    return Adapter(targets=tuple(targets))


def files(folder: Path) -> dict[str, bytes]:
    """Name to bytes."""
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_the_number_of_workers_does_not_show_in_the_output(base: Path, adapter: Adapter, tmp_path: Path) -> None:
    """One worker or five: the same bytes in every file, the receipt included."""
    for count in (1, 2, 5):
        merge_checkpoint(adapter, base, tmp_path / f"out{count}", workers=count)
    assert files(tmp_path / "out1") == files(tmp_path / "out2") == files(tmp_path / "out5")
    with pytest.raises(UsageError, match="0 workers"):
        merge_checkpoint(adapter, base, tmp_path / "none", workers=0)


def test_digests_are_those_of_the_files(base: Path, adapter: Adapter, tmp_path: Path) -> None:
    """Whatever was copied, changed, converted or moved; without digests, the weights are the same."""
    for dtype in (None, "F32", ["a.*=F32", "d.weight=F16"]):
        out, plain = tmp_path / f"out{dtype}", tmp_path / f"plain{dtype}"
        receipt = merge_checkpoint(adapter, base, out, MergeOptions(dtype=dtype), workers=3)
        assert {record.name: record.digest for record in receipt.inputs} == {
            path.name: Digest.of_file(path) for path in base.iterdir()
        }
        assert {record.name: record.digest for record in receipt.outputs} == {
            path.name: Digest.of_file(path) for path in out.iterdir() if path.name != "loreg-receipt.json"
        }
        told = merge_checkpoint(adapter, base, plain, MergeOptions(dtype=dtype, hashed=False))
        assert {record.name for record in told.outputs if record.digest is None} == {
            "model-1.safetensors",
            "model-2.safetensors",
        }
        assert told.options["hash"] is False
        for name in ("model-1.safetensors", "model-2.safetensors"):
            assert (out / name).read_bytes() == (plain / name).read_bytes()


def test_types_by_pattern(base: Path, adapter: Adapter, tmp_path: Path) -> None:
    """The last rule that matches decides; index and configuration stay true; a rule for nothing is refused."""
    out = tmp_path / "out"
    receipt = merge_checkpoint(adapter, base, out, MergeOptions(dtype=["touched=F32", "b.*=F16"]))
    merged = open_base(out)
    assert {name: merged.dtype(name) for name in merged.names()} == {
        "a.weight": "F32",
        "b.weight": "F16",
        "c.weight": "F32",
        "d.weight": "BF16",
        "norm": "BF16",
    }
    index = json.loads((out / "model.safetensors.index.json").read_bytes())
    tensors = {name: array for file in out.glob("*.safetensors") for name, array in load_file(file).items()}
    assert index["metadata"]["total_size"] == sum(array.nbytes for array in tensors.values())
    assert json.loads((out / "config.json").read_bytes())["dtype"] == "bfloat16"
    assert any("dtype=float32 to use them as they are written" in note for note in receipt.notes)
    assert receipt.options["dtype"] == ["touched=F32", "b.*=F16"]
    merge_checkpoint(adapter, base, tmp_path / "whole", MergeOptions(dtype=["F16", "*=F32"]))
    config = json.loads((tmp_path / "whole" / "config.json").read_bytes())
    assert config == {"dtype": "float32", "text_config": {"dtype": "float32"}}
    for rule in ("q_proj=F32", "=F32", "a.*=int8"):
        with pytest.raises(UsageError):
            merge_checkpoint(adapter, base, tmp_path / "none", MergeOptions(dtype=rule))


def test_a_change_that_is_lost_can_be_refused(base: Path, tmp_path: Path) -> None:
    """Below the share that is asked for, nothing is left but a line that names the worst tensor."""
    adapter = Adapter(
        targets=(change("a.weight", SHAPES["a.weight"], size=1e-4), change("b.weight", SHAPES["b.weight"]))
    )
    kept = {
        record.name: record.fidelity.retention
        for record in merge_checkpoint(adapter, base, tmp_path / "out").tensors
        if record.fidelity
    }
    assert kept["a.weight"] < 0.5 < 0.8 < kept["b.weight"]
    with pytest.raises(IntegrityError, match=r"1 tensor of 2 keep.*a\.weight the least.* in BF16; nothing was written"):
        merge_checkpoint(adapter, base, tmp_path / "refused", min_retention=0.5)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["base", "out"]
    merge_checkpoint(adapter, base, tmp_path / "wide", MergeOptions(dtype="touched=F32"), min_retention=0.999)
    with pytest.raises(UsageError, match="from 0 to 1"):
        merge_checkpoint(adapter, base, tmp_path / "none", min_retention=50)


@pytest.mark.parametrize("how", ["touched", "replaced", "shortened"])
def test_a_base_that_changes_meanwhile_is_noticed(
    base: Path, adapter: Adapter, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    """Written to, replaced, or cut: one line that names the file, and no output."""
    file = base / "model-2.safetensors"

    def meanwhile(done: int, total: int) -> None:
        if 0 < done < total and not (tmp_path / "happened").exists():
            (tmp_path / "happened").touch()
            if how == "touched":
                os.utime(file, (time.time() + 5, time.time() + 5))
            elif how == "replaced":
                (tmp_path / "other").write_bytes(file.read_bytes())
                (tmp_path / "other").replace(file)
            else:
                os.truncate(file, 5000)

    with pytest.raises(ConflictError, match=r"model-2\.safetensors (changed|became shorter) while it was being merged"):
        merge_checkpoint(adapter, base, tmp_path / "out", workers=1, progress=meanwhile)
    (tmp_path / "happened").unlink()
    assert [path.name for path in tmp_path.iterdir()] == ["base"]


def test_the_plan_tells_every_byte_and_writes_none(base: Path, adapter: Adapter, tmp_path: Path) -> None:
    """Ranges follow each other from the first byte to the last; every target is there; the disk stays as it was."""
    merge = prepare(adapter, base, tmp_path / "out", MergeOptions(dtype=["d.*=F32"]))
    told = preview(merge)
    for file in told.files:
        assert [range_.begin for range_ in file.ranges] == [0, *(range_.end for range_ in file.ranges[:-1])]
        assert file.ranges[-1].end == file.size
        blocks = list(blocks_of(file.ranges))
        assert [block.begin for block in blocks] == [0, *(block.end for block in blocks[:-1])]
        assert [block.number for block in blocks] == list(range(len(blocks)))
        assert blocks[-1].end == file.size
    assert set(told.tensors) == {"a.weight", "b.weight", "c.weight"}
    assert told.bytes(Treatment.MERGE) == sum(2 * a * b for a, b in (SHAPES[name] for name in told.tensors))
    assert told.bytes(Treatment.CONVERT) == 4 * 3000 * 900
    assert told.dtypes == {"BF16": 4, "F32": 1}
    assert [path.name for path in tmp_path.iterdir()] == ["base"]
    merge_checkpoint(adapter, base, tmp_path / "out", MergeOptions(dtype=["d.*=F32"]))
    assert {file.name: file.size for file in told.files} == {
        path.name: path.stat().st_size for path in (tmp_path / "out").glob("*.safetensors")
    }
    assert json.loads(json.dumps(told.to_json()))["room"]["needed"] == told.needed


def test_the_first_error_of_a_worker_stops_all(base: Path, adapter: Adapter, tmp_path: Path) -> None:
    """An infinity in the factors of one target: nothing is left, and no thread goes on."""
    import threading

    target = adapter.targets[1]
    factors = {**target.tensors, "A": from_array(np.full((4, 3000), np.inf, np.float32))}
    broken = Target(name=target.name, kind=target.kind, layout=target.layout, shape=target.shape, tensors=factors)
    with pytest.raises(InvalidInputError, match=r"b\.weight: the merged weight is not finite"):
        merge_checkpoint(Adapter(targets=(adapter.targets[0], broken)), base, tmp_path / "out", workers=4)
    assert [path.name for path in tmp_path.iterdir()] == ["base"]
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("loreg")]


def test_where_files_cannot_be_copied_by_the_kernel_the_bytes_are_the_same(
    base: Path, adapter: Adapter, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Across file systems, and outside of Linux, blocks are read and written."""
    merge_checkpoint(adapter, base, tmp_path / "out", MergeOptions(hashed=False))
    monkeypatch.delattr(os, "copy_file_range")
    merge_checkpoint(adapter, base, tmp_path / "again", MergeOptions(hashed=False))
    assert files(tmp_path / "out") == files(tmp_path / "again")


def test_a_clone_that_is_written_over_is_the_same_file(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the file system shares blocks, a file that is little touched begins as a clone of the base's."""
    adapter = Adapter(targets=(change("b.weight", SHAPES["b.weight"]),))
    expected = merge_checkpoint(adapter, base, tmp_path / "out")
    cloned = []

    def clone(target: int, request: int, source: int) -> None:
        assert request == 0x40049409
        size = os.fstat(source).st_size
        assert os.pwrite(target, os.pread(source, size, 0), 0) == size
        cloned.append(size)

    monkeypatch.setattr(output.fcntl, "ioctl", clone)
    for hashed in (True, False):
        receipt = merge_checkpoint(adapter, base, tmp_path / f"cloned{hashed}", MergeOptions(hashed=hashed))
        assert (receipt == expected) is hashed
        for name in ("model-1.safetensors", "model-2.safetensors"):
            assert (tmp_path / f"cloned{hashed}" / name).read_bytes() == (tmp_path / "out" / name).read_bytes()
    assert len(cloned) == 4
    assert engine.CLONED == output.CLONED
