"""Probe certificates against exact fractions, computed from the matrices that the factors stand for."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from fractions import Fraction
from math import prod
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from lora_registry.adapter import LAYOUTS, Adapter, Kind, Layout, Target
from lora_registry.errors import InvalidInputError
from lora_registry.ops import probe as probe_module
from lora_registry.ops.arrays import from_array
from lora_registry.ops.probe import Certificate, Probe, certify
from lora_registry.ops.signs import signs, signs_at

SHAPES: Mapping[Kind, tuple[int, ...]] = {Kind.EXPERTS: (3, 4, 6), Kind.BIAS: (5,), Kind.FULL: (3, 2, 2)}


def exact(array: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """The elements as fractions."""
    wide = array.astype(np.float64)
    return np.array([Fraction(float(value)) for value in wide.reshape(-1)], dtype=object).reshape(array.shape)


def sign(side: str, stream: int, place: int) -> int:
    """One sign, as section 11.1 says it."""
    digest = hashlib.sha256(f"loreg-probe-v1/{side}/{stream}/{place // 256}".encode()).digest()
    return -1 if digest[place % 256 // 8] >> (place % 8) & 1 else 1


def sums(matrix: np.ndarray[Any, Any]) -> list[Fraction]:
    """The eight numbers of a matrix of fractions."""
    rows, columns = matrix.shape
    u = [[sign("left", j, i) for i in range(rows)] for j in range(8)]
    v = [[sign("right", j, k) for k in range(columns)] for j in range(8)]
    return [np.array(u[j], dtype=object) @ matrix @ np.array(v[j], dtype=object) for j in range(8)]


def change(target: Target, part: Mapping[str, np.ndarray[Any, Any]], scale: Fraction) -> np.ndarray[Any, Any]:
    """The matrix of the component ``change``, from the equations of section 5 and of spec/extensions.md."""
    match target.kind:
        case Kind.LINEAR | Kind.EMBEDDING:
            matrix = part["B"] @ part["A"]
        case Kind.CONV:
            b, a = part["B"].reshape(len(part["B"]), -1), part["A"].reshape(len(part["A"]), -1)
            outputs, ranks = len(b) // target.groups, len(a) // target.groups
            matrix = np.array([b[i] @ a[i // outputs * ranks :][:ranks] for i in range(len(b))])
        case Kind.EXPERTS:
            matrix = np.concatenate([b @ a for b, a in zip(part["B"], part["A"], strict=True)])
        case Kind.BIAS:
            matrix = part["delta"][:, None]
        case Kind.LOHA:
            first, second = (part[f"B{n}"] @ part[f"A{n}"].reshape(len(part[f"A{n}"]), -1) for n in (1, 2))
            matrix = first * second
        case Kind.LOKR:
            c1 = part["C1"] if "C1" in part else part["B1"] @ part["A1"]
            c2 = part["C2"] if "C2" in part else np.tensordot(part["B2"], part["A2"], 1)
            product = np.tensordot(c1, c2, 0)  # o1, i1, o2, i2, k...
            matrix = np.moveaxis(product, 2, 1).reshape(len(c1) * len(c2), -1)
        case Kind.SPARSE:
            assert target.shape is not None
            flat = np.full(prod(target.shape), Fraction(0), dtype=object)
            flat[np.frombuffer(target.tensors["index"].data, "<i8")] = part["delta"]
            matrix = flat.reshape(target.shape[0] if target.shape else 1, -1)
        case _:
            raise AssertionError(target.kind)
    return matrix * scale


def expected(target: Target, arrays: Mapping[str, np.ndarray[Any, Any]]) -> dict[str, np.ndarray[Any, Any]]:
    """Component to matrix."""
    part = {role: exact(array) for role, array in arrays.items()}
    found = {}
    if target.kind not in (Kind.FULL, Kind.TOKENS):
        found["change"] = change(target, part, Fraction(target.scale))
    if "magnitude" in part:
        found["magnitude"] = part["magnitude"][:, None]
    if "value" in part:
        swapped = target.kind in (Kind.LINEAR, Kind.EXPERTS, Kind.LOHA, Kind.LOKR) and target.layout[-2:] == (
            "in",
            "out",
        )
        value = np.swapaxes(part["value"], -1, -2) if swapped else part["value"]
        found["value"] = value.reshape(value.shape[0] if value.ndim else 1, -1)
    return found


def made(
    kind: Kind, layout: Layout, arrays: Mapping[str, np.ndarray[Any, Any]], shape: tuple[int, ...] | None, **more: Any
) -> Target:
    tensors = {role: from_array(array) for role, array in arrays.items()}
    return Target(name="w", kind=kind, layout=layout, shape=shape, tensors=tensors, **more)


def factors(seed: int, *, dtype: Any = np.float32, **shapes: tuple[int, ...]) -> dict[str, np.ndarray[Any, Any]]:
    random = np.random.default_rng(seed)
    return {role: random.standard_normal(shape).astype(dtype) for role, shape in shapes.items()}


def sparse(shape: tuple[int, ...], places: list[int]) -> tuple[Target, dict[str, np.ndarray[Any, Any]]]:
    arrays = {"index": np.array(places), **factors(7, delta=(len(places),))}
    return made(Kind.SPARSE, (), arrays, shape, scale=3.0), arrays


def cases() -> dict[str, tuple[Target, dict[str, np.ndarray[Any, Any]]]]:
    """Every kind in every layout, every role, and what bends the equations: groups, kernels, both forms of a C."""
    found = {}

    def case(name: str, kind: Kind, layout: Layout, shape: tuple[int, ...] | None, **shapes: Any) -> None:
        more = {key: shapes.pop(key) for key in ("groups", "rows", "dtype") if key in shapes}
        arrays = factors(len(found), dtype=more.pop("dtype", np.float32), **shapes)
        if kind not in (Kind.FULL, Kind.TOKENS):
            more["scale"] = -1.7
        found[name] = made(kind, layout, arrays, shape, **more), arrays

    straight, swapped = ("out", "in"), ("in", "out")
    case("linear", Kind.LINEAR, straight, (5, 300), A=(2, 300), B=(5, 2), magnitude=(5,), value=(5, 300))
    case("linear in out", Kind.LINEAR, swapped, (6, 5), A=(2, 6), B=(5, 2), magnitude=(5,), value=(6, 5))
    case("linear bf16", Kind.LINEAR, straight, (5, 6), A=(3, 6), B=(5, 3), dtype=ml_dtypes.bfloat16)
    case("linear f64", Kind.LINEAR, straight, (5, 6), A=(3, 6), B=(5, 3), dtype=np.float64)
    case("embedding", Kind.EMBEDDING, swapped, (9, 4), A=(2, 9), B=(4, 2), magnitude=(4,), value=(9, 4))
    for kernel in ((3,), (3, 2), (2, 1, 3)):
        layout = ("out", "in", *("k" for _ in kernel))
        ones = (1,) * len(kernel)
        case(f"conv {len(kernel)}", Kind.CONV, layout, (4, 3, *kernel), A=(2, 3, *kernel), B=(4, 2, *ones))
        case(
            f"loha {len(kernel)}",
            Kind.LOHA,
            layout,
            (4, 3, *kernel),
            A1=(2, 3, *kernel),
            B1=(4, 2),
            A2=(3, 3, *kernel),
            B2=(4, 3),
        )
        case(f"lokr {len(kernel)}", Kind.LOKR, layout, (4, 6, *kernel), C1=(2, 3), A2=(1, 2, *kernel), B2=(2, 1))
    case("conv grouped", Kind.CONV, ("out", "in", "k", "k"), (6, 2, 3, 3), A=(4, 4, 3, 3), B=(6, 2, 1, 1), groups=2)
    for last in (straight, swapped):
        shape = (3, 4, 6) if last == straight else (3, 6, 4)
        case(f"experts {last}", Kind.EXPERTS, ("expert", *last), shape, A=(3, 2, 6), B=(3, 4, 2), value=shape)
        plain = shape[1:]
        case(f"loha {last}", Kind.LOHA, last, plain, A1=(2, 6), B1=(4, 2), A2=(1, 6), B2=(4, 1), value=plain)
        case(f"lokr {last}", Kind.LOKR, last, plain, C1=(2, 3), C2=(2, 2), magnitude=(4,), value=plain)
    case("lokr factored", Kind.LOKR, straight, (6, 12), A1=(1, 3), B1=(2, 1), A2=(2, 4), B2=(3, 2))
    case("lokr factored whole", Kind.LOKR, straight, (6, 12), A1=(2, 3), B1=(2, 2), C2=(3, 4))
    case("bias", Kind.BIAS, ("out",), (5,), delta=(5,))
    for shape in ((), (5,), (3, 4), (2, 3, 4)):
        case(f"full {shape}", Kind.FULL, (), shape, value=shape)
        found[f"sparse {shape}"] = sparse(shape, [0] if prod(shape) == 1 else [0, 2, prod(shape) - 1])
    case("tokens", Kind.TOKENS, swapped, None, value=(2, 5), rows=(3, 8))
    return found


CASES = cases()


@pytest.mark.parametrize("block", [1 << 20, 4], ids=["whole", "in blocks"])
@pytest.mark.parametrize("name", CASES)
def test_numbers_are_the_exact_ones(name: str, block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each number is within P-051 of the exact one, and c is the exact c; in blocks of any size."""
    monkeypatch.setattr(probe_module, "_BLOCK", max(block, 8))
    target, arrays = CASES[name]
    found = certify(Adapter(targets=(target,))).targets["w"]
    matrices = expected(target, arrays)
    assert list(found) == list(matrices)
    bounds = expected(positive(target), {role: np.abs(array) for role, array in arrays.items()})
    for component, matrix in matrices.items():
        bound = bounds[component].sum()
        assert abs(Fraction(found[component].bound) - bound) <= bound / 2**40
        for number, right in zip(found[component].numbers, sums(matrix), strict=True):
            assert abs(Fraction(number) - right) <= bound / 2**30


def positive(target: Target) -> Target:
    return Target(
        name="w",
        kind=target.kind,
        layout=target.layout,
        shape=target.shape,
        tensors=target.tensors,
        scale=abs(target.scale),
        groups=target.groups,
        rows=target.rows,
    )


def test_the_cases_are_every_kind_in_every_layout() -> None:
    """No kind is certified that the fractions have not seen."""
    seen = {(target.kind, target.layout) for target, _ in CASES.values()}
    assert seen >= {(kind, layout) for kind in Kind for layout in LAYOUTS[kind] if kind is not Kind.TOKENS}
    assert any(kind is Kind.TOKENS for kind, _ in seen)


def test_the_example_of_the_specification() -> None:
    """The numbers of section 11.1, exactly."""
    arrays = {"A": np.array([[1, 2, 3]], np.float32), "B": np.array([[1], [10]], np.float32)}
    target = made(Kind.LINEAR, ("out", "in"), arrays, (2, 3), scale=2.0)
    numbers = certify(Adapter(targets=(target,))).to_json()
    assert numbers == {"w": {"change": [-72, -72, 0, 132, 0, 0, 44, 88]}}


@pytest.mark.parametrize("side", ["left", "right"])
def test_signs_are_those_of_the_text_from_any_place_on(side: Any) -> None:
    """Ranges that begin inside a byte and cross a chunk, and single places in any order."""
    for start, stop in ((0, 1), (3, 20), (16380, 16390), (40000, 40001)):
        text = [[sign(side, j, i) for i in range(start, stop)] for j in range(8)]
        assert signs(side, start, stop).tolist() == text
    places = np.array([40000, 3, 16384, 16383, 3])
    assert signs_at(side, places).tolist() == [[sign(side, j, int(i)) for i in places] for j in range(8)]


def test_a_single_element_of_a_huge_tensor_costs_nothing() -> None:
    """A position near 2^40 is looked up, and not walked to."""
    place = 2**40 - 1
    arrays = {"index": np.array([place]), "delta": np.array([3.0], np.float32)}
    target = made(Kind.SPARSE, (), arrays, (1, 2**40), scale=1.0)
    numbers = certify(Adapter(targets=(target,))).targets["w"]["change"].numbers
    assert numbers == tuple(3.0 * sign("left", j, 0) * sign("right", j, place) for j in range(8))


def test_a_kronecker_product_of_two_vectors_is_never_spread_out() -> None:
    """C1 of one column and C2 of one row are as long as the matrix is wide: its elements would not fit."""
    width = 1 << 17
    arrays = {"C1": np.ones((width, 1), np.float32), "C2": np.ones((1, width), np.float32)}
    target = made(Kind.LOKR, ("out", "in"), arrays, (width, width), scale=1.0)
    found = certify(Adapter(targets=(target,))).targets["w"]["change"]
    assert found.bound == width * width
    u, v = signs("left", 0, width), signs("right", 0, width)
    assert found.numbers == tuple((u.sum(axis=1) * v.sum(axis=1)).tolist())


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_what_is_not_finite_has_no_certificate(bad: float) -> None:
    """NaN would agree with nothing, itself included, and infinity with too much."""
    arrays = {"A": np.array([[1, bad]], np.float32), "B": np.ones((2, 1), np.float32)}
    with pytest.raises(InvalidInputError, match="w: the change is not finite"):
        certify(Adapter(targets=(made(Kind.LINEAR, ("out", "in"), arrays, (2, 2)),)))


def test_zero_has_one_sign() -> None:
    """A change of nothing is 0.0 in JSON and never -0.0."""
    arrays = {"A": np.zeros((1, 2), np.float32), "B": np.ones((2, 1), np.float32)}
    target = made(Kind.LINEAR, ("out", "in"), arrays, (2, 2), scale=-1.0)
    certificate = certify(Adapter(targets=(target,)))
    assert certificate == Certificate({"w": {"change": Probe((0.0,) * 8, 0.0)}})
    assert "-" not in str(certificate.to_json())
