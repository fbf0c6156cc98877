"""Beside loreg_reader.py, a prover: the probe certificate, by section 11.1 of adapter-format.md 1.0."""

from __future__ import annotations

import hashlib
import math
from functools import lru_cache
from itertools import chain
from typing import Any

from loreg_reader import Adapter, RefusalError
from merge import Values, blocks, dot, fingerprint_order, rows, tensors_of


@lru_cache(maxsize=32)
def signs(side: str, j: int, count: int) -> list[int]:
    """The signs u, of the side `left`, or v, of the side `right` (section 11.1)."""
    parts = (f"loreg-probe-v1/{side}/{j}/{n}" for n in range(-(-count // 256)))
    stream = b"".join(hashlib.sha256(part.encode()).digest() for part in parts)
    return [-1 if stream[i // 8] >> i % 8 & 1 else 1 for i in range(count)]


def numbers(matrix: list[Values]) -> Values:
    """The eight numbers of a matrix, given as its rows."""
    sides = [(signs("left", j, len(matrix)), signs("right", j, len(matrix[0]))) for j in range(8)]
    return [float(dot(u, (dot(row, v) for row in matrix))) for u, v in sides]


def change_numbers(target: dict[str, Any], tensors: dict[str, Values]) -> Values:
    """The eight numbers of s · B · A, for which the matrix of the base's size is not needed."""
    pairs = blocks(target, tensors)
    height, width = sum(len(left) for left, _ in pairs), len(pairs[0][1][0])
    result = []
    for j in range(8):
        u, v, outputs = signs("left", j, height), signs("right", j, width), Values()
        for left, right in pairs:
            inner = [dot(row, v) for row in right]
            outputs += [dot(row, inner) for row in left]
        result.append(target["scale"] * dot(u, outputs))
    return result


def probe(adapter: Adapter, _: dict[str, Any]) -> dict[str, Any]:
    """The probe certificate: the components of every target, eight numbers each."""
    certificate = {}
    for name, target in adapter.targets.items():
        tensors, components = tensors_of(adapter, name), dict[str, Values]()
        if target["kind"] == "bias":
            components["change"] = numbers([[target["scale"] * delta] for delta in tensors["delta"]])
        elif "A" in tensors:
            components["change"] = change_numbers(target, tensors)
        if "magnitude" in tensors:
            components["magnitude"] = numbers(rows(tensors["magnitude"], 1))
        if "value" in tensors:
            shape, places = fingerprint_order(target, adapter.tensors[f"{name}/value"]["shape"])
            value = [tensors["value"][place] for place in places]
            components["value"] = numbers(rows(value, math.prod(shape[1:])))
        if not all(map(math.isfinite, chain.from_iterable(components.values()))):
            raise RefusalError("invalid-input", f"{name} leaves the range of binary64 (P-051)")
        certificate[name] = components
    return {"targets": certificate}
