"""The adapter between two checkpoints: the exact rank where there is one, and an honest error where there is none."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from lora_registry.adapter import Adapter, Base, Kind
from lora_registry.algebra import dense as dense_module
from lora_registry.algebra.dense import approximate
from lora_registry.algebra.extract import Extracted, extract
from lora_registry.algebra.noise import rounding_noise
from lora_registry.algebra.truncation import Truncation
from lora_registry.errors import InvalidInputError, UnsupportedError, UsageError
from lora_registry.format.writer import encode_adapter
from lora_registry.ops.arrays import dtype_name
from lora_registry.ops.change import delta, merged
from lora_registry.ops.fingerprint import fingerprint

Array = np.ndarray[Any, Any]
RANDOM = np.random.default_rng(0)


class Model:
    """Arrays by name, as a base model."""

    def __init__(self, arrays: Mapping[str, Array], ties: Mapping[str, str] | None = None) -> None:
        self._arrays = arrays
        self.ties = ties or {}

    def names(self) -> Iterable[str]:
        return self._arrays

    def shape(self, name: str) -> tuple[int, ...]:
        return tuple(self._arrays[name].shape)

    def dtype(self, name: str) -> str:
        return dtype_name(self._arrays[name].dtype)

    def array(self, name: str) -> Array:
        return self._arrays[name]


def weights(*shape: int, dtype: Any = np.float32) -> Array:
    return (RANDOM.standard_normal(shape) * 0.02).astype(dtype)


def low_rank(rank: int, rows: int, columns: int, size: float = 0.01) -> Array:
    return RANDOM.standard_normal((rows, rank)) @ RANDOM.standard_normal((rank, columns)) * size


def extracted(*arguments: Any, **options: Any) -> tuple[Adapter, tuple[Extracted, ...]]:
    """The adapter and the records, where nothing was left out."""
    found = extract(*arguments, **options)
    assert found.rounding == ()
    return found.adapter, found.targets


def test_a_merged_lora_comes_out_at_its_rank() -> None:
    """In float32 the rank is exact without being asked for; untouched tensors are no targets; the base is stated."""
    base = {"q.weight": weights(60, 50), "k.weight": weights(40, 50), "norm.weight": weights(50)}
    change = low_rank(5, 60, 50)
    tuned = {**base, "q.weight": (base["q.weight"] + change).astype(np.float32)}
    made, [record] = extracted(Model(base), Model(tuned), Truncation(), about=Base(name="example/base"))
    [target] = made.targets
    assert (target.name, target.kind, target.rank, target.scale) == ("q.weight", Kind.LINEAR, 5, 1.0)
    assert target.fingerprint == fingerprint(base["q.weight"])
    assert made.base.name == "example/base"
    assert np.linalg.norm(delta(target) - change) / np.linalg.norm(change) < 1e-6
    assert record.retention.truncation == pytest.approx(record.noise, rel=0.2)
    assert made.lineage["operation"] == "extract"
    encode_adapter(made)


def test_the_error_of_a_bfloat16_checkpoint_is_its_rounding() -> None:
    """No low rank holds the rounding of every weight; what was left out is as large as was said beforehand."""
    base = weights(400, 300, dtype=ml_dtypes.bfloat16)
    change = low_rank(4, 400, 300, 0.0005)
    tuned = (base.astype(np.float64) + change).astype(ml_dtypes.bfloat16)
    made, [record] = extracted(Model({"w": base}), Model({"w": tuned}), Truncation())
    [target] = made.targets
    assert target.rank == 4
    assert record.noise > 0.01
    assert record.retention.truncation == pytest.approx(record.noise, rel=0.1)
    # The change itself is found far better than the difference that it was found in.
    assert np.linalg.norm(delta(target) - change) / np.linalg.norm(change) < 0.3 * record.noise


@pytest.mark.parametrize("truncation", [Truncation(), Truncation(rank=3)], ids=["noise", "rank"])
def test_a_matrix_that_was_only_rounded_is_no_target_and_is_named(truncation: Truncation) -> None:
    """A float32 base and a bfloat16 checkpoint differ everywhere; only the trained matrix was changed."""
    base = {"trained": weights(90, 80), "table": weights(200, 80)}
    change = low_rank(3, 90, 80)
    tuned = {"trained": (base["trained"] + change).astype(ml_dtypes.bfloat16)}
    tuned["table"] = base["table"].astype(ml_dtypes.bfloat16)
    found = extract(Model(base), Model(tuned), truncation)
    assert found.rounding == ("table",)
    assert [(target.name, target.rank) for target in found.adapter] == [("trained", 3)]
    del base["trained"], tuned["trained"]
    with pytest.raises(InvalidInputError, match="but for the rounding of table"):
        extract(Model(base), Model(tuned), truncation)


@pytest.mark.parametrize("truncation", [Truncation(rank=3), Truncation(energy=0.7)], ids=["rank", "energy"])
def test_the_error_is_that_of_the_dense_difference(truncation: Truncation) -> None:
    """Measured on the matrix, and no worse than the best."""
    base, tuned = weights(50, 40), weights(50, 40)
    made, [record] = extracted(Model({"w": base}), Model({"w": tuned}), truncation, dtype="F64")
    difference = (tuned - base).astype(np.float64)
    left = np.linalg.norm(difference - delta(made.targets[0])) / np.linalg.norm(difference)
    values = np.linalg.svd(difference, compute_uv=False)
    rank = made.targets[0].rank
    assert left == pytest.approx(record.retention.truncation, rel=1e-5)
    assert left == pytest.approx(np.linalg.norm(values[rank:]) / np.linalg.norm(values), rel=1e-5)
    if truncation.energy is not None:
        assert record.retention.energy >= truncation.energy


def test_tables_become_embeddings_and_the_merge_gives_the_checkpoint_back() -> None:
    """Stored (vocabulary, width); the factors are in logical order."""
    name = "model.embed_tokens.weight"
    base = {name: weights(30, 8)}
    tuned = {name: (base[name] + low_rank(2, 30, 8)).astype(np.float32)}
    made, _ = extracted(Model(base), Model(tuned), Truncation())
    [target] = made.targets
    assert (target.kind, target.layout, target.rank) == (Kind.EMBEDDING, ("in", "out"), 2)
    assert np.allclose(merged(target, base[name]), tuned[name], atol=1e-8)
    encode_adapter(made)


OTHERS: dict[str, tuple[Array | None, Array]] = {
    "norm.weight": (weights(8), weights(8)),
    "q.bias": (weights(8), weights(8)),
    "conv.weight": (weights(4, 3, 2), weights(4, 3, 2)),
    "grown.weight": (weights(8, 4), weights(9, 4)),
    "new.weight": (None, weights(2, 2)),
    "steps": (np.array([1]), np.array([2])),
}


@pytest.mark.parametrize("name", OTHERS)
def test_what_is_no_matrix_is_refused_by_name_or_taken_whole(name: str) -> None:
    """A change of a bias, and whole values of the rest; merging gives the tuned tensor."""
    before, after = OTHERS[name]
    base = {"same": np.ones(2, np.float32), **({} if before is None else {name: before})}
    tuned = {"same": np.ones(2, np.float32), name: after}
    with pytest.raises(UnsupportedError, match=f"{name}: what differs is no matrix"):
        extract(Model(base), Model(tuned), Truncation())
    made, records = extracted(Model(base), Model(tuned), Truncation(), full=True)
    [target] = made.targets
    assert target.kind is (Kind.BIAS if name == "q.bias" else Kind.FULL)
    assert len(records) == (1 if name == "q.bias" else 0)
    assert np.allclose(merged(target, before), after, rtol=1e-6)
    assert (target.fingerprint is None) == (name in ("grown.weight", "new.weight"))
    encode_adapter(made)


def test_a_head_that_is_stored_once_is_not_missing() -> None:
    """Tied tensors may be stored under one of their names; anything else has to be there."""
    base = {"w": weights(4, 4), "lm_head.weight": weights(4, 4), "embed.weight": weights(4, 4)}
    tuned = {"w": weights(4, 4), "embed.weight": base["embed.weight"]}
    ties = {"lm_head.weight": "embed.weight"}
    made, _ = extracted(Model(base, ties), Model(tuned, ties), Truncation(rank=1))
    assert [target.name for target in made] == ["w"]
    with pytest.raises(InvalidInputError, match=r"lacks lm_head\.weight"):
        extract(Model(base), Model(tuned), Truncation(rank=1))


def test_what_makes_no_adapter_is_refused() -> None:
    """Nothing differs; everything does; NaN; a type that factors cannot have."""
    base = {"w": weights(20, 20)}
    with pytest.raises(InvalidInputError, match="nothing to extract"):
        extract(Model(base), Model(base), Truncation())
    with pytest.raises(UnsupportedError, match="w: 20 directions of its change stand above the rounding"):
        extract(Model(base), Model({"w": weights(20, 20)}), Truncation())
    with pytest.raises(InvalidInputError, match="w: the difference of the two checkpoints is not finite"):
        extract(Model(base), Model({"w": np.full((20, 20), np.nan, np.float32)}), Truncation())
    with pytest.raises(UsageError, match="no type of factors"):
        extract(Model(base), Model(base), Truncation(), dtype="I64")


@pytest.mark.parametrize("shape", [(700, 500), (500, 700)])
@pytest.mark.parametrize(
    ("truncation", "floor"),
    [(Truncation(rank=12), 0.0), (Truncation(energy=0.98), 0.0), (Truncation(), 1.0)],
    ids=["rank", "energy", "noise"],
)
def test_a_drawn_range_is_as_good_as_the_exact_decomposition(
    shape: tuple[int, int], truncation: Truncation, floor: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Large matrices with a decaying spectrum: the same rank, and an error within a thousandth of the best."""
    matrix = (low_rank(20, *shape, 0.05) + RANDOM.standard_normal(shape) * 0.005).astype(np.float32)
    assert min(shape) > dense_module.EXACT
    drawn = approximate(matrix, truncation, floor=floor)
    monkeypatch.setattr(dense_module, "EXACT", 10**6)
    exact = approximate(matrix, truncation, floor=floor)
    assert drawn.matrix.rank == exact.matrix.rank == (truncation.rank or exact.matrix.rank)
    assert drawn.norm == exact.norm
    assert exact.error <= drawn.error * (1 + 1e-6)
    assert drawn.error == pytest.approx(exact.error, rel=1e-3)


def test_a_matrix_without_a_low_rank_is_decomposed_exactly_after_all() -> None:
    """An energy that needs most directions is not found in a drawn range."""
    matrix = RANDOM.standard_normal((450, 420)).astype(np.float32)
    found = approximate(matrix, Truncation(energy=0.9))
    assert found.matrix.rank > 420 // 4
    values = np.linalg.svd(matrix.astype(np.float64), compute_uv=False)
    assert found.error == pytest.approx(np.linalg.norm(values[found.matrix.rank :]), rel=1e-6)


@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16, ml_dtypes.float8_e4m3fn])
def test_the_noise_of_rounding_is_what_rounding_makes(dtype: Any) -> None:
    """Of float64 rounded to each type: the norm within four percent, the largest singular value below its bound."""
    exact = RANDOM.standard_normal((300, 200))
    rounded = exact.astype(dtype)
    error = rounded.astype(np.float64) - exact
    noise = rounding_noise(rounded)
    assert np.linalg.norm(error) == pytest.approx(noise.norm, rel=0.04)
    assert 0.4 * noise.largest < np.linalg.norm(error, 2) < 1.1 * noise.largest


@pytest.mark.parametrize("rank", [3, 16, 48])
@pytest.mark.parametrize("size", [0.01, 1.0, 30.0])
def test_the_rank_is_exact_whatever_arithmetic_merged(rank: int, size: float) -> None:
    """A product in float32, as PEFT computes it, is off by more than one rounding where the change is large."""
    base = weights(300, 200)
    left, right = (RANDOM.standard_normal(shape).astype(np.float32) for shape in ((300, rank), (rank, 200)))
    change = left @ right
    change *= np.float32(size * 0.02 / change.std())
    made, _ = extracted(Model({"w": base}), Model({"w": base + change}), Truncation())
    assert made.targets[0].rank == rank


def test_a_reading_decides_kind_and_layout() -> None:
    """Where a graph says how it reads a tensor, its name does not count; a kernel is a matrix (out, in·k)."""
    base = {"wte.weight": weights(30, 40), "table": weights(30, 40), "kernel": weights(24, 8, 3, 3)}
    changes = {name: low_rank(2, len(array), array[0].size).reshape(array.shape) for name, array in base.items()}
    tuned = {name: (array + changes[name]).astype(np.float32) for name, array in base.items()}
    readings = {
        "wte.weight": (Kind.LINEAR, ("in", "out")),
        "table": (Kind.EMBEDDING, ("in", "out")),
        "kernel": (Kind.CONV, ("out", "in", "k", "k")),
    }
    made, _ = extracted(Model(base), Model(tuned), Truncation(), readings=readings)
    assert {target.name: (target.kind, target.layout) for target in made} == readings
    for target in made:
        assert target.rank == 2
        assert np.linalg.norm(delta(target) - changes[target.name]) / np.linalg.norm(changes[target.name]) < 1e-5
    encode_adapter(made)
