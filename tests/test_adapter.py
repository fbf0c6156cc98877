"""The model of an adapter, its digests and its element types, without any file."""

from __future__ import annotations

import io
from collections.abc import Iterable
from dataclasses import replace

import ml_dtypes
import numpy as np
import pytest

from lora_registry.adapter import LAYOUTS, LOW_RANK, Adapter, Kind, Target, Tensor
from lora_registry.digest import Digest
from lora_registry.dtypes import BY_NUMPY, BY_ONNX, BY_TORCH, DTYPES


def linear(name: str, rank: int = 2) -> Target:
    """A target on a weight of shape (4, 6)."""
    return Target(
        name=name,
        kind=Kind.LINEAR,
        layout=("out", "in"),
        shape=(4, 6),
        tensors={
            "A": Tensor("F32", (rank, 6), bytes(24 * rank)),
            "B": Tensor("F32", (4, rank), bytes(16 * rank)),
        },
    )


def test_targets_are_sorted() -> None:
    """Targets are in the order of their names, however they are handed over."""
    adapter = Adapter(targets=(linear("b"), linear("c"), linear("a")))
    assert [target.name for target in adapter] == ["a", "b", "c"]
    assert len(adapter) == 3


def test_target_by_name() -> None:
    """A target is found by its name; one that is not there is a KeyError."""
    adapter = Adapter(targets=(linear("a"), linear("b")))
    assert adapter.target("b").name == "b"
    with pytest.raises(KeyError):
        adapter.target("c")


def test_ranks_and_parameters() -> None:
    """Ranks are listed once and ascending; parameters count every element; a target without factors has no rank."""
    value = Target(name="v", kind=Kind.FULL, layout=(), shape=(3,), tensors={"value": Tensor("U8", (3,), b"123")})
    adapter = Adapter(targets=(linear("a", 3), linear("b", 1), linear("c", 3), value))
    assert adapter.ranks == (1, 3)
    assert value.rank is None
    assert adapter.parameters == 30 + 10 + 30 + 3


def test_rank_of_experts() -> None:
    """The first axis of stacked factors counts experts and is no rank."""
    tensors = {"A": Tensor("F32", (5, 2, 6), bytes(240)), "B": Tensor("F32", (5, 4, 2), bytes(160))}
    target = Target(name="e", kind=Kind.EXPERTS, layout=("expert", "out", "in"), shape=(5, 4, 6), tensors=tensors)
    assert target.rank == 2


def test_tensor_needs_its_bytes() -> None:
    """A tensor whose data does not fit dtype and shape cannot be made."""
    with pytest.raises(ValueError, match="needs 8 bytes, got 7"):
        Tensor("F32", (2,), bytes(7))
    assert Tensor("F64", (), bytes(8)).nbytes == 8
    assert Tensor("BF16", (2, 3), bytes(12)).with_shape(3, 2).shape == (3, 2)


def test_stated_digest_is_believed() -> None:
    """A digest that the file states is used without a look at the data; otherwise the data is hashed."""
    target = linear("a")
    stated = Digest.of(b"stated")
    assert target.digest("A") == Digest.of(bytes(48))
    assert replace(target, digests={"A": stated}).digest("A") == stated


def test_fingerprints_are_added() -> None:
    """Fingerprints are set by name; targets that are not named keep theirs, and the original is unchanged."""
    old, new = Digest.of(b"old"), Digest.of(b"new")
    adapter = Adapter(targets=(replace(linear("a"), fingerprint=old), linear("b")))
    pinned = adapter.with_fingerprints({"b": new})
    assert [target.fingerprint for target in pinned] == [old, new]
    assert [target.fingerprint for target in adapter] == [old, None]


def test_kinds_with_factors() -> None:
    """Every kind whose change is s·B·A has the axes out and in."""
    assert all({"out", "in"} <= set(layout) for kind in LOW_RANK for layout in LAYOUTS[kind])


@pytest.mark.parametrize(
    "text",
    ["", "sha256:", "sha256:" + "0" * 63, "sha256:" + "0" * 65, "sha256:" + "A" * 64, "SHA256:" + "0" * 64,
     "md5:" + "0" * 64, "0" * 64, " sha256:" + "0" * 64, "sha256:" + "0" * 64 + "\n", "sha256:" + "\u0660" * 64],
)  # fmt: skip
def test_digests_have_one_spelling(text: str) -> None:
    """Anything but sha256: and 64 lower-case hexadecimal digits is no digest."""
    with pytest.raises(ValueError, match="not a digest"):
        Digest.parse(text)


def test_digest_of_anything() -> None:
    """The digest of the empty string is the known one, and parts, chunks and streams agree."""
    assert str(Digest.of(b"")) == "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
    parts: Iterable[bytes] = (b"a", b"", b"bc")
    digests = {Digest.of(b"abc"), Digest.of_chunks(parts), Digest.of_stream(io.BytesIO(b"abc")), Digest.of(*parts)}
    assert len(digests) == 1
    (digest,) = digests
    assert Digest.parse(str(digest)) == digest
    assert digest.hex.startswith(digest.short)


@pytest.mark.parametrize("name", DTYPES)
def test_element_types(name: str) -> None:
    """Each element type has the size that numpy, ml_dtypes and torch give it, and the number that ONNX does."""
    import onnx
    import torch

    entry = DTYPES[name]
    native = getattr(ml_dtypes, entry.numpy, None) or np.dtype(entry.numpy)
    assert np.dtype(native).itemsize == entry.size
    assert getattr(torch, entry.torch).itemsize == entry.size
    assert onnx.helper.tensor_dtype_to_np_dtype(entry.onnx) == np.dtype(native)


def test_element_types_have_one_name_each() -> None:
    """No two element types share a name anywhere."""
    assert len(DTYPES) == len(BY_NUMPY) == len(BY_TORCH) == len(BY_ONNX)
