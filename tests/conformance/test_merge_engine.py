"""The engine of ``loreg merge``, which reads and writes whole checkpoints in blocks, on the vectors for mergers."""

from __future__ import annotations

from pathlib import Path

import pytest

from lora_registry.adapter import Json
from lora_registry.conformance.judge import judge
from lora_registry.conformance.vectors import Vector, load
from lora_registry.errors import LoregError, UnsupportedError
from lora_registry.format.container import open_container
from lora_registry.format.reader import read_adapter
from lora_registry.merge.checkpoint import merge_checkpoint

CORPUS = load(Path(__file__).parents[2] / "spec" / "vectors")
MERGES = [vector for vector in CORPUS.expecting("merge") if vector.file and not vector.expect["validate"]["rules"]]
WIDE = {"F64", "F32", "F16", "BF16"}
STRICTER = {"merge/full-beyond-infinite"}
"""Where the engine refuses what a merger is free to make: a value beyond the type, in place of an infinity."""


def answer(vector: Vector, out: Path) -> dict[str, Json]:
    """What the engine makes of a vector, as a program would answer it.

    Raises:
        UnsupportedError: the engine does not merge that, and says so.
    """
    expected = vector.expect["merge"]
    base = CORPUS.folder / str(expected["base"])
    try:
        merge_checkpoint(read_adapter(CORPUS.folder / str(vector.file)), base, out)
    except UnsupportedError:
        raise
    except LoregError as error:
        return {"verdict": "reject", "code": error.code}
    names = expected.get("tensors", {})
    assert isinstance(names, dict)
    with open_container(out) as merged:
        tensors: dict[str, Json] = {
            name: {
                "dtype": merged.tensor(name).dtype,
                "shape": list(merged.tensor(name).shape),
                "data": bytes(merged.tensor(name).data).hex(),
            }
            for name in names
        }
    return {"verdict": "accept", "tensors": tensors, "fingerprints": expected.get("fingerprints", {})}


def carried(vector: Vector) -> bool:
    """Whether it is about floating-point numbers of 16 bits or more, and a table that does not grow."""
    adapter = read_adapter(CORPUS.folder / str(vector.file))
    base = str(vector.expect["merge"]["base"])
    try:
        with open_container(CORPUS.folder / base) as container:
            types = {entry.dtype for name, entry in container.entries.items() if name in {t.name for t in adapter}}
    except LoregError:
        types = set()
    types |= {tensor.dtype for t in adapter for role, tensor in t.tensors.items() if role == "value"}
    return types <= WIDE and all(target.length is None for target in adapter)


@pytest.mark.parametrize("vector", MERGES, ids=lambda vector: vector.id)
def test_the_engine_makes_what_the_vector_expects(vector: Vector, tmp_path: Path) -> None:
    """Of every vector W', or a refusal; nothing that it does not merge is merged, and it says which that is."""
    expected = vector.expect["merge"]
    try:
        got = answer(vector, tmp_path / "out.safetensors")
    except UnsupportedError:
        assert not carried(vector) or expected.get("code") == "unsupported"
        return
    wrong = judge("merge", expected, got, CORPUS.folder)
    assert (wrong is not None) == (vector.id in STRICTER), wrong
