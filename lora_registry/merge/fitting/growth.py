"""A base whose vocabulary has grown: its tables with room for the rows that an adapter adds.

The rows between those of the base and the new length are zeros until a target replaces them; every one is replaced
(R-044 for tokens, and a whole table has all of them). So a merge sees nothing but a base of the new shapes.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import prod

import numpy as np

from lora_registry.adapter import Json, Kind
from lora_registry.dtypes import DTYPES
from lora_registry.errors import UnsupportedError
from lora_registry.merge.bases.base import Checkpoint
from lora_registry.merge.bases.ties import embedding_pair
from lora_registry.merge.fitting.fit import Fit
from lora_registry.ops.arrays import Array, numpy_dtype
from lora_registry.ops.tied import TiedPolicy
from lora_registry.quantized.weight import Scheme
from lora_registry.text import listed

_SIZE = "vocab_size"


class GrownCheckpoint(Checkpoint):
    """A checkpoint of which some tables have more rows than are stored.

    Args:
        base: what is stored.
        rows: name of each such table to the number of its rows, the same for all.
    """

    def __init__(self, base: Checkpoint, rows: Mapping[str, int]) -> None:
        super().__init__(base.path, base.shards, base.index, base.config)
        self.places = base.places
        self._base = base
        self._rows = rows

    @property
    def ties(self) -> Mapping[str, str]:
        """Those of the base."""
        return self._base.ties

    @property
    def vocabulary(self) -> tuple[int, int]:
        """Rows of the tables in the base, and here."""
        name, rows = next(iter(self._rows.items()))
        return self._base.shape(name)[0], rows

    @property
    def scheme(self) -> Scheme | None:
        """How the weights are quantized."""
        return self._base.scheme

    @property
    def written_config(self) -> dict[str, Json]:
        """The configuration with the new size of the vocabulary."""
        return resized(self._base.written_config, *self.vocabulary)

    def is_computed(self, name: str) -> bool:
        """Whether the elements are computed: those of a table that has grown are."""
        return name in self._rows or self._base.is_computed(name)

    def names_in(self, file: str) -> list[str]:
        """Names of the tensors of one file, in the order of their bytes."""
        return self._base.names_in(file)

    def shape(self, name: str) -> tuple[int, ...]:
        """Axis lengths, with the new rows."""
        shape = self._base.shape(name)
        return (self._rows[name], *shape[1:]) if name in self._rows else shape

    def dtype(self, name: str) -> str:
        """Element type."""
        return self._base.dtype(name)

    def written_dtype(self, name: str) -> str:
        """Element type in a merge that is not told another."""
        return self._base.written_dtype(name)

    def window(self, name: str) -> tuple[int, int]:
        """Offsets in its file; of a table that has grown, those that it would have in a file of its own."""
        if name not in self._rows:
            return self._base.window(name)
        return 0, prod(self.shape(name)) * DTYPES[self.dtype(name)].size

    def elements(self, name: str, start: int, stop: int) -> Array:
        """Elements, flat; zeros behind those of the base."""
        if name not in self._rows:
            return self._base.elements(name, start, stop)
        stored = prod(self._base.shape(name))
        if stop <= stored:
            return self._base.elements(name, start, stop)
        made = np.zeros(stop - start, numpy_dtype(self.dtype(name)))
        if start < stored:
            made[: stored - start] = self._base.elements(name, start, stored)
        return made

    def array(self, name: str) -> Array:
        """All elements."""
        if name not in self._rows:
            return self._base.array(name)
        shape = self.shape(name)
        return self.elements(name, 0, prod(shape)).reshape(shape)


def with_room(base: Checkpoint, fitted: Fit) -> Checkpoint:
    """The base with the rows that the adapter adds to its tables; itself where there are none.

    A table that is tied to one that grows, and stored all the same, grows with it.

    Raises:
        UnsupportedError: tables grow from, or to, several numbers of rows.
    """
    rows: dict[str, int] = {}
    for place, length in fitted.grown.items():
        source = base.ties.get(place, place)
        tied = [output for output, of in base.ties.items() if of == source and output in base.places]
        rows |= dict.fromkeys((source, *tied), length)
    steps = sorted({(base.shape(name)[0], length) for name, length in rows.items()})
    if len(steps) > 1:
        said = " and ".join(f"from {before} to {after}" for before, after in steps)
        raise UnsupportedError(f"a model has one vocabulary, and the adapter grows tables {said} rows")
    return GrownCheckpoint(base, rows) if rows else base


def check_growth(base: Checkpoint, fitted: Fit, tied: TiedPolicy) -> None:
    """Refuse to grow a part of what has to be as long as the vocabulary (P-042).

    Args:
        base: without the new rows.
        fitted: what the adapter grows.
        tied: what happens to tied tensors.

    Raises:
        UnsupportedError: a table with a row for each token would keep its rows, or nothing in the configuration
            says how many there are.
    """
    if not fitted.grown:
        return
    place, length = next(iter(fitted.grown.items()))
    rows = base.shape(base.ties.get(place, place))[0]
    shared = {change.place for change in fitted.changes if change.target.kind is Kind.TOKENS}
    grown = set(fitted.grown)
    for output, source in base.ties.items():
        if grown & {output, source} and (tied == "both" or shared & {output, source}):
            grown |= {output, source}
    short = [name for name in _tables(base, rows) if name not in grown]
    if short:
        raise UnsupportedError(
            f"the vocabulary grows from {rows} rows to {length}, and {listed(short)} would keep its {rows}"
            + ("; choose to change every use (tied: both)" if any(name in base.ties for name in short) else "")
        )
    if base.config and resized(base.config, rows, length) == base.config:
        raise UnsupportedError(
            f"no {_SIZE} of {rows} in config.json, so that nothing would say that there are {length}"
        )


def _tables(base: Checkpoint, rows: int) -> list[str]:
    """Names of the tensors with a row for each token: both embeddings and the bias of the head.

    Where the names of the embeddings are not known, everything that has as many rows counts.
    """
    pair = embedding_pair(frozenset(base.names()), base.config)
    if pair is None:
        return [name for name in base.names() if base.shape(name)[:1] == (rows,)]
    source, output = pair
    own = {source, *({output} & (base.places.keys() | base.ties.keys()))}
    biases = {output.removesuffix("weight") + "bias", "cls.predictions.bias", "predictions.bias", "final_logits_bias"}
    return sorted(own | {name for name in biases & base.places.keys() if rows in base.shape(name)})


def resized(config: Mapping[str, Json], before: int, after: int) -> dict[str, Json]:
    """A copy of a configuration in which a vocabulary of ``before`` tokens has ``after``, in the text part too."""
    result = dict(config)
    if result.get(_SIZE) == before:
        result[_SIZE] = after
    text = result.get("text_config")
    if isinstance(text, Mapping) and text.get(_SIZE) == before:
        result["text_config"] = {**text, _SIZE: after}
    return result


def growth_notes(base: Checkpoint) -> tuple[str, ...]:
    """What a person has to know about a vocabulary that has grown; nothing where none has."""
    if base.vocabulary is None:
        return ()
    before, after = base.vocabulary
    size = f"{_SIZE} in config.json says so" if base.config else f"set {_SIZE} to {after} where this file is used"
    return (
        f"the vocabulary grows from {before} rows to {after}, and {size}",
        "the files of the tokenizer are the base's, which does not know tokens that were added to it",
    )
