"""LoHa and LoKr against formulas written out in float64, and against PEFT's own layers."""

from __future__ import annotations

from collections.abc import Callable
from itertools import product

import numpy as np
import pytest
import torch
from peft import LoHaConfig, LoKrConfig, get_peft_model
from peft.tuners.lycoris_utils import LycorisLayer
from torch import nn

from lora_registry.adapter import Kind, Layout, Target
from lora_registry.ops import matrices
from lora_registry.ops.arrays import Array, from_array, to_array
from lora_registry.ops.change import RowMerger, delta, merged

SCALE = 0.37
LAYOUTS: list[tuple[Layout, tuple[int, ...]]] = [
    (("out", "in"), ()),
    (("in", "out"), ()),
    (("out", "in", "k"), (3,)),
    (("out", "in", "k", "k"), (3, 2)),
    (("out", "in", "k", "k", "k"), (2, 1, 3)),
]
random = np.random.default_rng(5)


def floats(*shape: int) -> Array:
    return random.normal(size=shape).astype(np.float32)


def composed(kind: Kind, layout: Layout, shape: tuple[int, ...], tensors: dict[str, Array]) -> Target:
    packed = {role: from_array(array) for role, array in tensors.items()}
    return Target(name="w", kind=kind, layout=layout, shape=shape, scale=SCALE, tensors=packed)


def side(tensors: dict[str, Array], number: str) -> Array:
    """C, or B·A, in float64."""
    if f"C{number}" in tensors:
        return tensors[f"C{number}"].astype(np.float64)
    a, b = (tensors[f"{letter}{number}"].astype(np.float64) for letter in "AB")
    joined: Array = np.einsum("or,r...->o...", b, a)
    return joined


def check(target: Target, change: Array) -> None:
    """``change`` (out, in, k…) is what the target adds, whole, in small blocks, and in float64."""
    change = change.T if target.layout == ("in", "out") else change
    assert target.shape == change.shape
    base = floats(*change.shape)
    np.testing.assert_allclose(delta(target), change, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(merged(target, base), base + change, rtol=1e-5, atol=1e-5)
    merger, flat = RowMerger(target, base.shape), base.reshape(-1)
    blocks = [merger.merge(start, stop, flat[start:stop]) for start, stop in merger.blocks(elements=70)]
    assert len(blocks) > 1
    np.testing.assert_allclose(np.concatenate(blocks).reshape(base.shape), base + change, rtol=1e-5, atol=1e-5)
    wide = base.astype(np.float64)
    np.testing.assert_allclose(merged(target, wide), wide + change, rtol=1e-13, atol=1e-13)


@pytest.fixture(params=[matrices._SCRATCH, 8])
def scratch(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """With plenty of room, and with room for a row or two."""
    monkeypatch.setattr(matrices, "_SCRATCH", request.param)


@pytest.mark.usefixtures("scratch")
@pytest.mark.parametrize(("layout", "kernel"), LAYOUTS)
def test_loha_is_a_product_of_elements(layout: Layout, kernel: tuple[int, ...]) -> None:
    """The two products may have ranks of their own."""
    tensors = {"A1": floats(3, 10, *kernel), "B1": floats(12, 3), "A2": floats(5, 10, *kernel), "B2": floats(12, 5)}
    shape = (10, 12) if layout == ("in", "out") else (12, 10, *kernel)
    check(composed(Kind.LOHA, layout, shape, tensors), SCALE * side(tensors, "1") * side(tensors, "2"))


@pytest.mark.usefixtures("scratch")
@pytest.mark.parametrize(("layout", "kernel"), LAYOUTS)
@pytest.mark.parametrize(("first", "second"), list(product(["whole", "factors"], repeat=2)))
def test_lokr_is_a_kronecker_product(layout: Layout, kernel: tuple[int, ...], first: str, second: str) -> None:
    """Either side is whole or a product; the kernel belongs to the second; indices run as the format says."""
    tensors = {"C1": floats(3, 5)} if first == "whole" else {"A1": floats(2, 5), "B1": floats(3, 2)}
    if second == "whole":
        tensors["C2"] = floats(4, 2, *kernel)
    else:
        tensors |= {"A2": floats(3, 2, *kernel), "B2": floats(4, 3)}
    one, two = side(tensors, "1"), side(tensors, "2")
    change = np.empty((12, 10, *kernel))
    for o1, o2, i1, i2 in product(range(3), range(4), range(5), range(2)):
        change[o1 * 4 + o2, i1 * 2 + i2] = SCALE * one[o1, i1] * two[o2, i2]
    shape = (10, 12) if layout == ("in", "out") else change.shape
    check(composed(Kind.LOKR, layout, shape, tensors), change)


@pytest.mark.parametrize("layout", [("out", "in"), ("in", "out")])
@pytest.mark.parametrize("kind", [Kind.LOHA, Kind.LOKR])
def test_magnitude_and_value_mean_what_they_mean_for_linear(kind: Kind, layout: Layout) -> None:
    """Each output gets its norm, and the value stands in for the base."""
    tensors = {"A1": floats(2, 10), "B1": floats(12, 2), "A2": floats(3, 10), "B2": floats(12, 3)}
    if kind is Kind.LOKR:
        tensors = {"C1": floats(3, 5), "C2": floats(4, 2)}
    one, two = side(tensors, "1"), side(tensors, "2")
    value, magnitude = floats(12, 10), floats(12)
    total = value + SCALE * (one * two if kind is Kind.LOHA else np.kron(one, two))
    expected = magnitude[:, None] * total / np.linalg.norm(total, axis=1, keepdims=True)
    if layout == ("in", "out"):
        value, expected = np.ascontiguousarray(value.T), expected.T
    target = composed(kind, layout, value.shape, {**tensors, "magnitude": magnitude, "value": value})
    np.testing.assert_allclose(merged(target, None), expected, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(merged(target, floats(*value.shape)), expected, rtol=1e-5, atol=1e-5)


class Layers(nn.Module):
    """A matrix and two kernels."""

    def __init__(self) -> None:
        super().__init__()
        self.linear, self.conv, self.line = nn.Linear(24, 36), nn.Conv2d(8, 12, (3, 2)), nn.Conv1d(6, 12, 3)


def loha(layer: LycorisLayer, shape: tuple[int, ...]) -> dict[str, Array]:
    """PEFT's Hadamard factors in our roles."""
    numbers = [number for number in "12" for _ in "ab"]
    roles = {"a": "B", "b": "A"}
    found = {}
    for number, letter in zip(numbers, "abab", strict=True):
        array = getattr(layer, f"hada_w{number}_{letter}")["default"].detach().numpy()
        found[f"{roles[letter]}{number}"] = array if letter == "a" else array.reshape(len(array), *shape[1:])
    return found


def lokr(layer: LycorisLayer, shape: tuple[int, ...]) -> dict[str, Array]:
    """PEFT's Kronecker factors in our roles."""
    found = {}
    for number in "12":
        kernel = shape[2:] if number == "2" else ()
        whole = getattr(layer, f"lokr_w{number}")
        if "default" in whole:
            found[f"C{number}"] = whole["default"].detach().numpy()
            continue
        found[f"B{number}"] = getattr(layer, f"lokr_w{number}_a")["default"].detach().numpy()
        a = getattr(layer, f"lokr_w{number}_b")["default"].detach().numpy()
        found[f"A{number}"] = a.reshape(len(a), -1, *kernel)
    return found


@pytest.mark.parametrize(
    ("kind", "config", "roles", "modules"),
    [
        (Kind.LOHA, LoHaConfig(r=4, alpha=6, init_weights=False), loha, {"linear", "conv", "line"}),
        (Kind.LOKR, LoKrConfig(r=16, alpha=6, init_weights=False), lokr, {"linear", "conv"}),
        (
            Kind.LOKR,
            LoKrConfig(r=1, alpha=3, init_weights=False, decompose_both=True),
            lokr,
            {"linear", "conv", "line"},
        ),
    ],
)
def test_same_as_peft(
    kind: Kind,
    config: LoHaConfig | LoKrConfig,
    roles: Callable[[LycorisLayer, tuple[int, ...]], dict[str, Array]],
    modules: set[str],
) -> None:
    """The change is PEFT's ``get_delta_weight``, for a linear layer and convolutions.

    One case is left out: where the second side of a one-dimensional convolution is whole, PEFT 0.21.2 multiplies
    its kernel with the inputs of the first side (``make_kron`` lines the axes up from the last one).
    """
    torch.manual_seed(0)
    config.target_modules = modules
    wrapped = get_peft_model(Layers(), config)
    layers = [module for module in wrapped.modules() if isinstance(module, LycorisLayer)]
    assert len(layers) == len(modules)
    for layer in layers:
        theirs = layer.get_delta_weight("default").detach().numpy()
        layout = ("out", "in", *("k" for _ in theirs.shape[2:]))
        packed = {role: from_array(array) for role, array in roles(layer, theirs.shape).items()}
        target = Target(
            name="w", kind=kind, layout=layout, shape=theirs.shape, scale=layer.scaling["default"], tensors=packed
        )
        np.testing.assert_allclose(delta(target), theirs, rtol=1e-4, atol=1e-6 * np.abs(theirs).max())
        assert all(to_array(tensor).ndim > 1 for tensor in packed.values())
