"""The probe certificate: eight numbers for each matrix of an adapter, by which two adapters are known to be one.

Two files make the same change and differ in every byte: one has the scale in B, another has padded ranks, a
third was transposed on the way. Σ u(i) M(i, k) v(k) with fixed signs u and v depends on the change M alone,
and comes out of the factors without M itself (spec section 11.1)::

    linear, embedding, conv    s · (uᵀB) · (Av)
    experts, grouped conv      the same, summed over the stack
    loha                       s · Σ ((B1ᵀ diag(u) B2) ∘ (A1 diag(v) A2ᵀ))
    lokr                       s · Σ ((Uᵀ C1) ∘ (C2 Vᵀ))      with U, V the signs as (o1, o2) and (i1, i2·k)

All of it is float64 on blocks of bounded size. Beside each number stands c of P-051: the same formula with the
absolute values of everything, of which the error of any two correct provers is a tiny fraction.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import prod

import numpy as np

from lora_registry.adapter import LOW_RANK, Adapter, Kind, Target
from lora_registry.errors import InvalidInputError
from lora_registry.ops.arrays import Array, to_array
from lora_registry.ops.fingerprint import logical
from lora_registry.ops.signs import STREAMS, Side, signs, signs_at

_BLOCK = 1 << 20  # elements widened at a time: 8 MB of float64


@dataclass(frozen=True, slots=True)
class Probe:
    """What is known of one component.

    Attributes:
        numbers: the eight sums.
        bound: c of P-051; a correct prover is within 2⁻³⁰ · c of the exact numbers.
    """

    numbers: tuple[float, ...]
    bound: float


@dataclass(frozen=True, slots=True)
class Certificate:
    """The probes of an adapter.

    Attributes:
        targets: name of the base tensor to its components, ``change``, ``magnitude`` and ``value``, as far as
            the target has them.
    """

    targets: Mapping[str, Mapping[str, Probe]]

    def to_json(self) -> dict[str, dict[str, list[float]]]:
        """Name to component to the eight numbers, as a prover answers."""
        return {
            name: {component: list(probe.numbers) for component, probe in probes.items()}
            for name, probes in self.targets.items()
        }


def certify(adapter: Adapter) -> Certificate:
    """Compute the certificate of ``adapter``. Reads all of the data once, and again for the bounds.

    The data is taken to be sound: see :func:`lora_registry.format.data_rules.check_data`.

    Raises:
        InvalidInputError: a component has elements that are not finite, so that no number says what it is.
    """
    return Certificate({target.name: dict(_probes(target)) for target in adapter})


def _probes(target: Target) -> Iterator[tuple[str, Probe]]:
    components = []
    if target.kind not in (Kind.FULL, Kind.TOKENS):
        components.append("change")
    components += [role for role in ("magnitude", "value") if role in target.tensors]
    for component in components:
        with np.errstate(all="ignore"):  # what goes wrong shows in the sums, which are checked
            numbers, bounds = (_component(target, component, weights) for weights in (_SIGNED, _ABSOLUTE))
        if not (np.isfinite(numbers).all() and np.isfinite(bounds).all()):
            raise InvalidInputError(f"{target.name}: the {component} is not finite, so that it has no certificate")
        yield component, Probe(tuple((numbers + 0.0).tolist()), float(bounds[0]))  # + 0.0: no negative zero


@dataclass(frozen=True, slots=True)
class _Weights:
    """What the formula is evaluated with: the eight streams of signs, or ones and the values without their signs."""

    absolute: bool

    @property
    def rows(self) -> int:
        return 1 if self.absolute else STREAMS

    def signs(self, side: Side, start: int, stop: int) -> Array:
        return np.ones((1, stop - start)) if self.absolute else signs(side, start, stop)

    def signs_at(self, side: Side, places: Array) -> Array:
        return np.ones((1, len(places))) if self.absolute else signs_at(side, places)

    def values(self, array: Array) -> Array:
        """``array`` as float64."""
        wide = array.astype(np.float64)
        return np.abs(wide) if self.absolute else wide

    def scale(self, target: Target) -> float:
        return abs(target.scale) if self.absolute else target.scale


_SIGNED, _ABSOLUTE = _Weights(absolute=False), _Weights(absolute=True)


def _component(target: Target, component: str, weights: _Weights) -> Array:
    """The sums of one component: float64 of shape (8,), or (1,) for the bound."""
    if component == "magnitude":
        return _dense(to_array(target.tensors["magnitude"]), weights)
    if component == "value":
        return _dense(logical(target, to_array(target.tensors["value"])), weights)
    sums = (
        _low_rank(target, weights)
        if target.kind in LOW_RANK
        else _CHANGES[target.kind]({role: to_array(t) for role, t in target.tensors.items()}, target, weights)
    )
    return sums * weights.scale(target)


def _dense(array: Array, weights: _Weights) -> Array:
    """Σ u M v of a tensor as it is, as (first axis, product of the others); block by block in both axes."""
    table = array.reshape(1, 1) if array.ndim == 0 else array
    rows, columns = table.shape[0], prod(table.shape[1:])
    sums = np.zeros(weights.rows)
    step = max(1, _BLOCK // columns)
    for top in range(0, rows, step):
        stripe = table[top : top + step].reshape(-1, columns)  # copies where the view is transposed: a stripe at most
        left = weights.signs("left", top, top + len(stripe))
        for start in range(0, columns, _BLOCK):
            block = weights.values(stripe[:, start : start + _BLOCK])
            right = weights.signs("right", start, start + block.shape[1])
            sums += ((left @ block) * right).sum(axis=1)
    return sums


def _low_rank(target: Target, weights: _Weights) -> Array:
    """Σ (uᵀB)(Av), over a stack of matrices: experts share the inputs, and so do the groups of a conv."""
    a, b = to_array(target.tensors["A"]), to_array(target.tensors["B"])
    if target.kind is not Kind.EXPERTS:
        # Outputs of group j read the ranks of group j, and A reaches all of the input (section 5.1).
        a = a.reshape(target.groups, a.shape[0] // target.groups, -1)
        b = b.reshape(target.groups, b.shape[0] // target.groups, -1)
    sums = np.zeros(weights.rows)
    for index, (factor_a, factor_b) in enumerate(zip(a, b, strict=True)):
        left = _weighed(factor_b, weights, "left", index * len(factor_b))
        right = _weighed(factor_a.T, weights, "right", 0)
        sums += (left * right).sum(axis=1)
    return sums


def _weighed(matrix: Array, weights: _Weights, side: Side, offset: int) -> Array:
    """Σ over the rows of ``matrix``, each with its sign; ``offset`` is the place of the first: (8, columns)."""
    sums = np.zeros((weights.rows, matrix.shape[1]))
    step = max(1, _BLOCK // matrix.shape[1])
    for start in range(0, len(matrix), step):
        block = weights.values(matrix[start : start + step])
        sums += weights.signs(side, offset + start, offset + start + len(block)) @ block
    return sums


def _bias(tensors: Mapping[str, Array], target: Target, weights: _Weights) -> Array:
    return _dense(tensors["delta"], weights)


def _loha(tensors: Mapping[str, Array], target: Target, weights: _Weights) -> Array:
    """The rows of both products carry one sign, so that the sums over rows and columns come apart."""
    a1, b1, a2, b2 = (weights.values(tensors[role]) for role in ("A1", "B1", "A2", "B2"))
    a1, a2 = a1.reshape(len(a1), -1), a2.reshape(len(a2), -1)
    left, right = weights.signs("left", 0, len(b1)), weights.signs("right", 0, a1.shape[1])
    return np.array([np.sum(((b1.T * u) @ b2) * ((a1 * v) @ a2.T)) for u, v in zip(left, right, strict=True)])


def _lokr(tensors: Mapping[str, Array], target: Target, weights: _Weights) -> Array:
    """Rows of C2 in blocks, so that nothing of the size of the base tensor is made for any shapes of C1 and C2."""
    c1 = [weights.values(tensors[role]) for role in ("C1", "B1", "A1") if role in tensors]
    c2 = tensors["C2"] if "C2" in tensors else tensors["B2"]
    a2 = weights.values(tensors["A2"]).reshape(tensors["A2"].shape[0], -1) if "A2" in tensors else None
    c2 = c2.reshape(len(c2), -1)
    outer_out, outer_in = c1[0].shape[0], c1[-1].shape[1]
    inner_out, inner_in = len(c2), (c2 if a2 is None else a2).shape[1]
    left = weights.signs("left", 0, outer_out * inner_out).reshape(-1, outer_out, inner_out)
    right = weights.signs("right", 0, outer_in * inner_in).reshape(-1, outer_in, inner_in)
    sums = np.zeros(weights.rows)
    step = max(1, _BLOCK // max(outer_in, c2.shape[1]))
    for start in range(0, inner_out, step):
        block = weights.values(c2[start : start + step])
        for stream, (u, v) in enumerate(zip(left, right, strict=True)):
            outer = u[:, start : start + step].T
            for matrix in c1:
                outer = outer @ matrix
            inner = block @ (v.T if a2 is None else a2 @ v.T)
            sums[stream] += np.sum(outer * inner)
    return sums


def _sparse(tensors: Mapping[str, Array], target: Target, weights: _Weights) -> Array:
    """Single elements; a base tensor of one axis is a column, and one of none a single element."""
    assert target.shape is not None  # only tokens may leave it out
    index, delta = tensors["index"], tensors["delta"]
    columns = prod(target.shape[1:])
    sums = np.zeros(weights.rows)
    for start in range(0, len(index), _BLOCK // STREAMS):
        places = index[start : start + _BLOCK // STREAMS]
        left, right = weights.signs_at("left", places // columns), weights.signs_at("right", places % columns)
        sums += (left * right) @ weights.values(delta[start : start + len(places)])
    return sums


_CHANGES = {Kind.BIAS: _bias, Kind.LOHA: _loha, Kind.LOKR: _lokr, Kind.SPARSE: _sparse}
