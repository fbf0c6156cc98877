"""The rules that only the data can break: digests, and the positions of sparse changes."""

from __future__ import annotations

import struct
from dataclasses import replace

import pytest

from lora_registry.adapter import Adapter, Kind, Target, Tensor
from lora_registry.digest import Digest
from lora_registry.errors import InvalidInputError
from lora_registry.format import data_rules
from lora_registry.format.data_rules import check_data
from lora_registry.format.writer import encode_adapter

PLACE = "targets/w/tensors/index"


def sparse(*positions: int, shape: tuple[int, ...] = (3, 4)) -> Adapter:
    """An adapter of one sparse target that adds to the elements at ``positions``."""
    index = Tensor("I64", (len(positions),), struct.pack(f"<{len(positions)}q", *positions))
    delta = Tensor("F32", (len(positions),), bytes(4 * len(positions)))
    target = Target(name="w", kind=Kind.SPARSE, layout=(), shape=shape, tensors={"index": index, "delta": delta})
    return Adapter(targets=(target,))


def test_positions_in_order_are_sound() -> None:
    """Ascending positions from the first element to the last break nothing, and can be written."""
    assert check_data(sparse(0, 1, 5, 11)) == []
    assert encode_adapter(sparse(11)).tensors.keys() == {"w/index", "w/delta"}


@pytest.mark.parametrize(
    ("positions", "message"),
    [
        ((0, 5, 3), "position 3 after 5"),
        ((0, 5, 5), "position 5 after 5"),
        ((-1, 0), "position -1 is none of the 12"),
        ((0, 12), "position 12 is none of the 12"),
        ((2**63 - 1,), "is none of the 12"),
        ((-(2**63), 1), "is none of the 12"),
        ((3, 2, 99), "position 2 after 3"),
    ],
)
def test_positions_out_of_order_or_range_are_named(positions: tuple[int, ...], message: str) -> None:
    """The first position that is wrong is told, and nothing is written."""
    (finding,) = check_data(sparse(*positions))
    assert (finding.rule, finding.place) == ("R-045", PLACE)
    assert message in finding.message
    with pytest.raises(InvalidInputError) as refused:
        encode_adapter(sparse(*positions))
    assert [found.rule for found in refused.value.findings] == ["R-045"]


@pytest.mark.parametrize("wrong", range(1, 8))
def test_order_is_held_across_blocks(monkeypatch: pytest.MonkeyPatch, wrong: int) -> None:
    """A list that is read in several pieces is one list."""
    monkeypatch.setattr(data_rules, "_BLOCK", 3)
    assert check_data(sparse(*range(8), shape=(8,))) == []
    positions = [*range(8)]
    positions[wrong] = wrong - 1
    assert f"position {wrong - 1} after {wrong - 1}" in check_data(sparse(*positions, shape=(8,)))[0].message


def test_digests_are_compared_where_they_are_stated() -> None:
    """R-035 names the role whose bytes have another digest; what is stated nowhere cannot be wrong."""
    (target,) = sparse(0, 1)
    right = {role: tensor.digest() for role, tensor in target.tensors.items()}
    assert check_data(Adapter(targets=(replace(target, digests=right),))) == []
    wrong = {**right, "delta": Digest.of(b"other")}
    (finding,) = check_data(Adapter(targets=(replace(target, digests=wrong),)))
    assert (finding.rule, finding.place) == ("R-035", "targets/w/tensors/delta")
