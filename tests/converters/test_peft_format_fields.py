"""Fields of a native file that PEFT has no place for are refused where W' depends on them, and reported where not."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from loreg_converters.peft import converter

from lora_registry.adapter import Adapter, Base, Kind, Target, Tensor
from lora_registry.digest import Digest
from lora_registry.errors import UnsupportedError
from lora_registry.segments import Segment, Segments


def ones(*shape: int) -> Tensor:
    """A tensor of ones."""
    return Tensor("F32", shape, np.ones(shape, "<f4").tobytes())


LINEAR = Target(
    name="model.q_proj.weight",
    kind=Kind.LINEAR,
    layout=("out", "in"),
    shape=(4, 6),
    scale=2.0,
    tensors={"A": ones(2, 6), "B": ones(4, 2)},
)
LOHA = replace(
    LINEAR,
    name="model.k_proj.weight",
    kind=Kind.LOHA,
    tensors={"A1": ones(2, 6), "B1": ones(4, 2), "A2": ones(2, 6), "B2": ones(4, 2)},
)
GROWN = Target(
    name="model.embed.weight",
    kind=Kind.TOKENS,
    layout=("in", "out"),
    shape=(10, 6),
    rows=(10, 11),
    length=12,
    tensors={"value": ones(2, 6)},
)


@pytest.mark.parametrize(
    "adapter",
    [
        Adapter(targets=(LINEAR, LOHA)),
        Adapter(targets=(LINEAR,), requires_read=frozenset({"gate"})),
        Adapter(targets=(LINEAR, GROWN)),
    ],
    ids=["loha", "requires", "length"],
)
def test_what_changes_the_result_is_refused(adapter: Adapter, tmp_path: Path) -> None:
    """A kind or another thing that needs a feature, and a longer vocabulary, are refused, and nothing is written."""
    with pytest.raises(UnsupportedError):
        converter.write(adapter, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_the_shape_of_a_table_is_lost_and_its_rows_are_not(tmp_path: Path) -> None:
    """PEFT's files name rows and leave the table to the base; a table that grows is refused by its length."""
    table = replace(GROWN, shape=(12, 6), length=None)
    report = converter.write(Adapter(targets=(LINEAR, table)), tmp_path / "out")
    assert "shape of a table of trained rows" in {entry.subject for entry in report.losses}
    again = converter.read(tmp_path / "out")[0].target(table.name)
    assert (again.rows, again.shape) == ((10, 11), None)
    with pytest.raises(UnsupportedError) as refused:
        converter.write(Adapter(targets=(LINEAR, GROWN)), tmp_path / "grown")
    assert "grows to 12 rows" in str(refused.value.findings[0])


@pytest.mark.parametrize(
    ("fields", "target", "subject"),
    [
        ({"base": Base(view={"scheme": "nf4"})}, {}, "quantized view of the base"),
        ({"tokenizer": {"digest": str(Digest.of(b""))}}, {}, "tokenizer"),
        ({"lineage": {"operation": "add"}}, {}, "lineage"),
        ({"training": {"tool": "a trainer"}}, {}, "training"),
        ({}, {"segments": Segments((Segment("q", 2), Segment("k", 2)))}, "segments"),
        ({}, {"initial": 1}, "how many ranks are initial"),
    ],
    ids=["view", "tokenizer", "lineage", "training", "segments", "initial"],
)
def test_what_describes_is_reported(
    fields: dict[str, Any], target: dict[str, Any], subject: str, tmp_path: Path
) -> None:
    """What PEFT has no field for and W' does not depend on is dropped, and the report names it."""
    report = converter.write(Adapter(targets=(replace(LINEAR, **target),), **fields), tmp_path / "out")
    assert subject in {entry.subject for entry in report.losses}
