"""What is not right is refused by its rule, and nothing is written."""

from __future__ import annotations

import bz2
import json
import shutil
import tracemalloc
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from lpatch_cases import Case, save_model

from lora_registry.errors import (
    ConflictError,
    IntegrityError,
    InvalidInputError,
    LoregError,
    MachineError,
    NotAllowedError,
    NotFoundError,
    UnsupportedError,
)
from lora_registry.format.canonical import encode
from lora_registry.lpatch.block import BLOCK, pack, unpack
from lora_registry.lpatch.header import MAGIC
from lora_registry.lpatch.rebuild import apply, revert
from lora_registry.lpatch.words import folded, unfolded
from lora_registry.lpatch.write import write_patch

Edit = Callable[[dict[str, Any]], Any]


@pytest.fixture
def patched(case: Case, tmp_path: Path) -> tuple[Path, Path, Path]:
    """Base, merged model, and a patch with products, literals and copies."""
    base, merged, adapter = case
    write_patch(base, merged, tmp_path / "x.lpatch", adapter=adapter)
    (tmp_path / "out").mkdir()
    return base, merged, tmp_path / "x.lpatch"


def refused(error: type[LoregError], base: Path, patch: Path, match: str | None = None) -> None:
    """Applying is refused, and the folder of the output stays empty."""
    out = patch.parent / "out"
    with pytest.raises(error, match=match):
        apply(base, patch, out / "m.onnx")
    assert list(out.iterdir()) == []


def header_of(patch: Path) -> tuple[bytes, dict[str, Any]]:
    """Everything before the header, and the header."""
    whole = patch.read_bytes()
    length = int.from_bytes(whole[-16:-8], "little")
    return whole[: -16 - length], json.loads(whole[-16 - length : -16])


def rewritten(patch: Path, body: bytes, header: dict[str, Any]) -> Path:
    """The patch with another body and header."""
    text = encode(header)
    patch.write_bytes(body + text + len(text).to_bytes(8, "little") + MAGIC)
    return patch


def first(header: dict[str, Any], op: str) -> dict[str, Any]:
    """A run of the merged side."""
    return next(run for runs in header["merged"]["runs"].values() for run in runs if run["op"] == op)


def renamed(header: dict[str, Any], name: str) -> None:
    """The data file of the merged model under another name."""
    side = header["merged"]
    [old] = [record["name"] for record in side["files"] if record["name"] != side["model"]]
    for record in side["files"]:
        record["name"] = name if record["name"] == old else record["name"]
    side["runs"][name] = side["runs"].pop(old)
    for runs in header["base"]["runs"].values():
        for run in runs:
            if run.get("file") == old:
                run["file"] = name


def grown(header: dict[str, Any]) -> None:
    """A file of a petabyte, literally."""
    side = header["merged"]
    record = next(each for each in side["files"] if each["name"] != side["model"])
    record["size"] += 2**50 - first(header, "product")["length"]
    run = first(header, "product")
    copied = {"op": "literal", "length": 2**50, "at": run["at"], "size": run["size"]}
    run.clear()
    run.update(copied)


HOSTILE: dict[str, tuple[Edit, type[LoregError], str]] = {
    "another version": (lambda h: h.update(loreg_lpatch=2), UnsupportedError, "version 2"),
    "another member": (lambda h: h.update(more=1), InvalidInputError, "L-001"),
    "no product list": (lambda h: h.update(products={}), InvalidInputError, "L-003"),
    "a model that is none of the files": (lambda h: h["base"].update(model="z"), InvalidInputError, "L-001"),
    "a name that leaves": (lambda h: renamed(h, "../evil"), InvalidInputError, "no name"),
    "an absolute name": (lambda h: renamed(h, "/tmp/evil"), InvalidInputError, "no name"),
    "a file without runs": (lambda h: h["merged"]["runs"].popitem(), InvalidInputError, "L-002"),
    "a run that is too long": (lambda h: first(h, "copy").update(length=10**9), InvalidInputError, "L-002"),
    "a run of nothing": (lambda h: first(h, "copy").update(length=0), InvalidInputError, "L-002"),
    "a run before the file": (lambda h: first(h, "product").update(offset=-4), InvalidInputError, "L-002"),
    "a run behind the file": (lambda h: first(h, "product").update(offset=10**9), InvalidInputError, "L-002"),
    "a run of no operation": (lambda h: first(h, "copy").update(op="move"), InvalidInputError, "L-002"),
    "a boolean for a number": (lambda h: first(h, "product").update(product=False), InvalidInputError, "L-002"),
    "no such product": (lambda h: first(h, "product").update(product=7), InvalidInputError, "L-003"),
    "elements that are no floats": (lambda h: first(h, "product").update(dtype="I32"), InvalidInputError, "L-003"),
    "elements of another size": (lambda h: first(h, "product").update(dtype="F16"), InvalidInputError, "L-003"),
    "a rank of zero": (lambda h: h["products"][0].update(rank=0), InvalidInputError, "L-003"),
    "a rank beyond the matrix": (lambda h: h["products"][0].update(rank=97), InvalidInputError, "L-003"),
    "factors that are no floats": (lambda h: h["products"][0].update(dtype="U8"), InvalidInputError, "L-003"),
    "a scale that is text": (lambda h: h["products"][0].update(scale="1"), InvalidInputError, "L-003"),
    "factors elsewhere": (lambda h: h["products"][0].update(at=9), InvalidInputError, "L-004"),
    "blocks elsewhere": (lambda h: first(h, "product").update(at=9), InvalidInputError, "L-004"),
    "blocks beyond the end": (lambda h: first(h, "product").update(size=10**9), InvalidInputError, "L-004"),
    "more than the disk holds": (grown, MachineError, "free"),
    "another base": (
        lambda h: h["base"]["files"][0].update(digest="sha256:" + 64 * "0"),
        IntegrityError,
        "not the file of the base",
    ),
    "another result": (
        lambda h: h["merged"]["files"][0].update(digest="sha256:" + 64 * "0"),
        IntegrityError,
        "L-005",
    ),
    "another scale": (lambda h: h["products"][0].update(scale=9.0), IntegrityError, "L-005"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_header_is_refused(name: str, patched: tuple[Path, Path, Path]) -> None:
    """Each in its own way, before or after the bytes were made; none of them gets a name."""
    base, _, patch = patched
    body, header = header_of(patch)
    edit, error, match = HOSTILE[name]
    edit(header)
    refused(error, base, rewritten(patch, body, header), match)


def test_bytes_that_belong_to_nothing_are_refused(patched: tuple[Path, Path, Path]) -> None:
    """A body with a hole could carry anything."""
    base, _, patch = patched
    body, header = header_of(patch)
    refused(InvalidInputError, base, rewritten(patch, body + b"\0", header), "L-004")


@pytest.mark.parametrize("cut", [0, 1, 8, 15, 16, 200])
def test_a_patch_that_was_cut_short_is_refused(cut: int, patched: tuple[Path, Path, Path]) -> None:
    """Its last bytes are missing, and so is the end of the magic; an empty file is no patch either."""
    base, _, patch = patched
    whole = patch.read_bytes()
    patch.write_bytes(whole[: len(whole) - cut] if cut else b"")
    refused(InvalidInputError, base, patch, "L-001")


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_no_byte_can_be_changed_unseen(patched: tuple[Path, Path, Path], data: st.DataObject) -> None:
    """Wherever a byte is another, something is refused, by one of loreg's errors and no other."""
    base, _, patch = patched
    whole = patch.read_bytes()
    place = data.draw(st.integers(0, len(whole) - 1))
    changed = bytearray(whole)
    changed[place] ^= data.draw(st.integers(1, 255))
    other = patch.with_name("other.lpatch")
    other.write_bytes(bytes(changed))
    out = patch.parent / "out"
    try:
        apply(base, other, out / "m.onnx")
        # A name in the header is free, the name of the model first of all; the bytes are not.
        made = {path.read_bytes() for path in out.iterdir()}
        assert made == {path.read_bytes() for path in (patch.parent / "merged").iterdir() if path.suffix != ".json"}
    except LoregError:
        pass
    finally:
        shutil.rmtree(out)
        out.mkdir()


@pytest.mark.parametrize("op", ["literal", "difference", "product"])
def test_a_block_that_grows_is_not_unpacked(op: str) -> None:
    """A megabyte asked for, a gigabyte packed: no more than the megabyte is ever there, and the block is refused."""
    whole = bytes(1 << 26)
    bomb = bz2.compress(whole) if op == "product" else zlib.compress(whole, 9)
    tracemalloc.start()
    with pytest.raises(InvalidInputError, match="L-004"):
        unpack(bomb, op, BLOCK, "bomb")
    assert tracemalloc.get_traced_memory()[1] < 8 << 20
    tracemalloc.stop()


@pytest.mark.parametrize("op", ["literal", "difference", "product"])
def test_a_block_of_another_length_is_refused(op: str) -> None:
    """Too little, too much, something behind, or nothing that was compressed."""
    packed = pack(bytes(range(200)), op)[4:]
    assert unpack(packed, op, 200, "x") == bytes(range(200))
    for bad, length in ((packed, 199), (packed, 201), (packed + b"\0", 200), (packed[:-1], 200), (b"text", 4)):
        with pytest.raises(InvalidInputError, match="L-004"):
            unpack(bad, op, length, "x")


@settings(max_examples=60, deadline=None)
@given(st.sampled_from([1, 2, 4, 8]), st.data())
def test_differences_are_exact_for_all_words(width: int, data: st.DataObject) -> None:
    """Whatever the words are, either of two comes back from the other."""
    count = data.draw(st.integers(1, 40))
    one, other = (
        np.frombuffer(data.draw(st.binary(min_size=count * width, max_size=count * width)), f"<u{width}")
        for _ in range(2)
    )
    stored = folded(one, other)
    assert unfolded(stored, other).tobytes() == one.tobytes()
    assert unfolded(stored, one, subtract=True).tobytes() == other.tobytes()


def test_a_base_that_is_another_one_is_refused(patched: tuple[Path, Path, Path], tmp_path: Path) -> None:
    """Other values, a missing data file, the merged model itself, which is told; and a patch that is not there."""
    base, merged, patch = patched
    refused(IntegrityError, save_model(tmp_path / "other" / "base.onnx", seed=1), patch, "not the file of the base")
    refused(IntegrityError, merged, patch, "it is the merged model already|is missing")
    refused(NotFoundError, base, patch.with_name("none.lpatch"))
    refused(NotFoundError, base.with_name("none.onnx"), patch)
    with pytest.raises(IntegrityError, match="missing, a file of the merged model"):
        revert(base, patch, tmp_path / "out" / "b.onnx")
    (base.parent / "weights.bin").unlink()
    refused(IntegrityError, base, patch, "missing")


def test_a_name_that_is_taken_is_refused(patched: tuple[Path, Path, Path], tmp_path: Path) -> None:
    """The model's, that of its data, or both at once; what is there stays as it was."""
    base, _, patch = patched
    with pytest.raises(ConflictError, match="cannot have this name"):
        apply(base, patch, tmp_path / "out" / "merged.onnx.data")
    (tmp_path / "out" / "merged.onnx.data").write_text("mine")
    with pytest.raises(ConflictError, match="exists"):
        apply(base, patch, tmp_path / "out" / "m.onnx")
    assert [path.read_text() for path in (tmp_path / "out").iterdir()] == ["mine"]
    with pytest.raises(NotFoundError):
        apply(base, patch, tmp_path / "none" / "m.onnx")


def test_a_link_that_leaves_is_not_followed(patched: tuple[Path, Path, Path], tmp_path: Path) -> None:
    """A patch that names a file behind a link of the user's folder does not write where the link leads."""
    base, _, patch = patched
    body, header = header_of(patch)
    renamed(header, "link/data")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "out" / "link").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(NotAllowedError, match="leaves"):
        apply(base, rewritten(patch, body, header), tmp_path / "out" / "m.onnx")
    assert list((tmp_path / "elsewhere").iterdir()) == []


def test_the_patch_is_not_written_over_what_it_is_of(case: Case, tmp_path: Path) -> None:
    """A file of either model is no place for it, even with overwrite; another patch is, with overwrite."""
    base, merged, _ = case
    for path in (base, merged, merged.with_name("merged.onnx.data")):
        before = path.read_bytes()
        with pytest.raises(NotAllowedError):
            write_patch(base, merged, path, overwrite=True)
        assert path.read_bytes() == before
    (tmp_path / "x.lpatch").write_text("old")
    with pytest.raises(ConflictError):
        write_patch(base, merged, tmp_path / "x.lpatch")
    write_patch(base, merged, tmp_path / "x.lpatch", overwrite=True)
    assert (tmp_path / "x.lpatch").read_bytes().startswith(MAGIC)
