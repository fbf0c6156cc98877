"""Beside loreg_reader.py, a merger: W' and fingerprints, by sections 5, 9 and 10 of adapter-format.md 1.0.

Tensors are flat lists in row-major order, and arithmetic is binary64; W' is rounded once, to the type of the base.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Iterable, Sequence
from itertools import chain, zip_longest
from operator import add, mul
from typing import Any

from loreg_reader import FLOATS, SIZES, Adapter, RefusalError, canonical, digest

CODES = {"F64": "d", "F32": "f", "F16": "e", "I64": "q", "I32": "i", "I16": "h", "I8": "b"}  # of the module struct
CODES |= {"U64": "Q", "U32": "I", "U16": "H", "U8": "B", "BOOL": "B"}
BITS = {"F32": (8, 23), "F16": (5, 10), "BF16": (8, 7), "F8_E4M3": (4, 3), "F8_E5M2": (5, 2)}  # exponent, mantissa
UPPER_HALVES = {"BF16": "F32", "F8_E5M2": "F16"}  # the same sign and exponent, and less mantissa
Values = list[float]


def widened(dtype: str, data: bytes) -> tuple[str, bytes]:
    """An element type that struct knows, and the same elements in it; F8_E4M3 stays as it is."""
    if dtype not in UPPER_HALVES:
        return dtype, data
    size = SIZES[dtype]
    wide = bytearray(2 * len(data))
    for byte in range(size):
        wide[size + byte :: 2 * size] = data[byte::size]
    return UPPER_HALVES[dtype], bytes(wide)


def e4m3(byte: int) -> float:
    """An element of F8_E4M3, which has no infinities and one NaN of each sign (OCP 8-bit floating point, 1.0)."""
    exponent, mantissa = byte >> 3 & 15, byte & 7
    magnitude = math.ldexp(mantissa + 8 * (exponent > 0), max(exponent, 1) - 10) if byte & 127 < 127 else math.nan
    return -magnitude if byte > 127 else magnitude


def decode(dtype: str, data: bytes) -> Values:
    """The elements of a tensor, exactly."""
    if dtype == "F8_E4M3":
        return [e4m3(byte) for byte in data]
    dtype, data = widened(dtype, data)
    return list(struct.unpack(f"<{len(data) // SIZES[dtype]}{CODES[dtype]}", data))


def bits(dtype: str, value: float) -> int:
    """The pattern of the element that is nearest to a value, ties to even; beyond the largest, infinity or else NaN."""
    exponent_bits, mantissa_bits = BITS[dtype]
    ones, lowest = (1 << exponent_bits + mantissa_bits) - 1, 2 - (1 << exponent_bits - 1)
    beyond = ones if dtype == "F8_E4M3" else ones >> mantissa_bits << mantissa_bits
    size = abs(value)
    if math.isnan(size) or math.isinf(size):
        magnitude = beyond if size == math.inf else ones
    else:
        exponent = max(math.frexp(size)[1] - 1, lowest) if size else lowest
        steps = round(math.ldexp(size, mantissa_bits - exponent))  # a carry goes into the exponent, as it is to
        magnitude = min(steps + (exponent - lowest << mantissa_bits), beyond)
    return magnitude | (ones + 1 if math.copysign(1, value) < 0 else 0)


def encode(dtype: str, values: Values) -> bytes:
    """The bytes of values, each rounded once to a floating-point type, to nearest with ties to even (P-015)."""
    if dtype == "F64":
        return struct.pack(f"<{len(values)}d", *values)
    return b"".join(bits(dtype, value).to_bytes(SIZES[dtype], "little") for value in values)


def is_transposed(target: dict[str, Any]) -> bool:
    """Whether the base stores the matrices of a target as (in, out)."""
    return list(target.get("layout", []))[-2:] == ["in", "out"]


def logical_places(shape: list[int]) -> list[int]:
    """Where (..., in, out) stores the elements of (..., out, in)."""
    inputs, outputs = shape[-2:]
    starts = range(0, math.prod(shape), inputs * outputs)
    return [start + i * outputs + o for start in starts for o in range(outputs) for i in range(inputs)]


def fingerprint_order(target: dict[str, Any], shape: list[int]) -> tuple[list[int], Sequence[int]]:
    """The shape of a tensor in the axis order of its fingerprint (section 9), and where its elements are stored."""
    if target["kind"] in ("linear", "experts") and is_transposed(target):
        return [*shape[:-2], shape[-1], shape[-2]], logical_places(shape)
    return shape, range(math.prod(shape))


def fingerprint(target: dict[str, Any], record: dict[str, Any], data: bytes) -> str:
    """The identity of the values of a base tensor (section 9)."""
    dtype, size = record["dtype"], SIZES[record["dtype"]]
    shape, places = fingerprint_order(target, record["shape"])
    data = b"".join(data[place * size : (place + 1) * size] for place in places)
    name = b"" if dtype in BITS else dtype.encode() + b"\0"
    dtype, data = widened(dtype, data)
    if dtype in ("F16", "F8_E4M3"):
        values = decode(dtype, data)
        data = struct.pack(f"<{len(values)}f", *values)
    return digest(b"loreg-base-v1\0" + canonical(shape).encode() + b"\0" + name + data)


def rows(values: Values, width: int) -> list[Values]:
    """The rows of a matrix."""
    return [values[start : start + width] for start in range(0, len(values), width)]


def dot(left: Iterable[float], right: Iterable[float]) -> float:
    """The inner product of two vectors."""
    return sum(map(mul, left, right), 0.0)


def tensors_of(adapter: Adapter, name: str) -> dict[str, Values]:
    """The elements of a target's tensors, by role."""
    keys = {role: f"{name}/{role}" for role in adapter.targets[name]["tensors"]}
    return {role: decode(adapter.tensors[key]["dtype"], adapter.data(key)) for role, key in keys.items()}


def blocks(target: dict[str, Any], tensors: dict[str, Values]) -> list[tuple[list[Values], list[Values]]]:
    """The rows of B and of A that belong together: those of an expert, or of a group of a convolution (section 5.1)."""
    axes = dict(zip(target["layout"], target["shape"], strict=True))
    outputs, count = axes["out"] * axes.get("expert", 1), axes.get("expert", target.get("groups", 1))
    left = rows(tensors["B"], len(tensors["B"]) // outputs)
    rank, height = len(left[0]), outputs // count
    right = rows(tensors["A"], len(tensors["A"]) // (rank * count))
    return [(left[n * height : (n + 1) * height], right[n * rank : (n + 1) * rank]) for n in range(count)]


def normalized(row: Values, magnitude: float) -> Values:
    """An output at its magnitude (section 5.2), which is NaN where its norm is 0."""
    norm = math.hypot(*row)
    return [magnitude * element / norm if norm else math.nan for element in row]


def changed(target: dict[str, Any], tensors: dict[str, Values], base: Values) -> Values:
    """W' of a target with a scale, as the base stores it and before it is rounded (section 5)."""
    scale, start = target["scale"], tensors.get("value", base)
    if target["kind"] == "bias":
        return [b + scale * delta for b, delta in zip(base, tensors["delta"], strict=True)]
    change = [
        [scale * dot(row, column) for column in columns]
        for left, right in blocks(target, tensors)
        for columns in [list(zip(*right, strict=True))]
        for row in left
    ]
    places = logical_places(target["shape"]) if is_transposed(target) else range(len(start))
    before = rows([start[place] for place in places], len(change[0]))
    after = [list(map(add, *pair)) for pair in zip(before, change, strict=True)]
    if "magnitude" in tensors:
        after = list(map(normalized, after, tensors["magnitude"]))
    result = [0.0] * len(start)
    for place, element in zip(places, chain.from_iterable(after), strict=True):
        result[place] = element
    return result


def merged(adapter: Adapter, name: str, dtype: str, base: bytes) -> bytes:
    """The bytes of W', in the element type of the base (section 10)."""
    target = adapter.targets[name]
    if target["kind"] not in ("full", "tokens"):
        return encode(dtype, changed(target, tensors_of(adapter, name), decode(dtype, base)))
    stored, value = adapter.tensors[f"{name}/value"], adapter.data(f"{name}/value")
    if stored["dtype"] != dtype:
        value = encode(dtype, decode(stored["dtype"], value))
    if target["kind"] == "full":
        return value
    width = len(value) // len(target["rows"])
    result = bytearray(base.ljust(target.get("length", 0) * width, b"\0"))
    for n, row in enumerate(target["rows"]):
        result[row * width : (row + 1) * width] = value[n * width : (n + 1) * width]
    return bytes(result)


def mixes(adapter: Adapter, name: str, dtype: str) -> bool:
    """Whether the change of a base tensor of this type would mix types that do not mix (P-054)."""
    value = adapter.tensors.get(f"{name}/value", {}).get("dtype")
    if adapter.targets[name]["kind"] in ("full", "tokens"):
        return value != dtype and not {value, dtype} <= FLOATS.keys()
    return dtype not in FLOATS


def suits(adapter: Adapter, name: str, shape: list[int]) -> bool:
    """Whether a tensor of the base has the shape of a target; a tokens target is free to say no more than its rows."""
    target, value = adapter.targets[name], adapter.tensors.get(f"{name}/value", {"shape": []})["shape"]
    if "shape" in target:
        return bool(target["shape"] == shape)
    return len(shape) == 2 and shape[1] == value[1] and target["rows"][-1] < shape[0]


def stays_finite(adapter: Adapter, name: str, dtype: str, new: bytes, old: bytes) -> bool:
    """Whether every element of W' is finite where that of W is, or where W has none (P-016).

    Where a target has factors and a value, W is the value.
    """
    before = decode(dtype, old)
    if "value" in adapter.targets[name]["tensors"] and "A" in adapter.targets[name]["tensors"]:
        before = decode(adapter.tensors[f"{name}/value"]["dtype"], adapter.data(f"{name}/value"))
    pairs = zip_longest(decode(dtype, new), before, fillvalue=0.0)
    return all(math.isfinite(after) or not math.isfinite(was) for after, was in pairs)


def merge(adapter: Adapter, request: dict[str, Any]) -> dict[str, Any]:
    """The changed tensors of a base, and how its fingerprints compare; RefusalError where section 15 says so."""
    if "gate" in adapter.document:
        raise RefusalError("unsupported", "a gated adapter is on in parts of a sequence only (P-046)")
    if any(target.get("groups", 1) > 1 for target in adapter.targets.values()):
        raise RefusalError("unsupported", "the base has no place for the change of a grouped convolution (P-006)")
    base, tensors, fingerprints = Adapter(request["base"], until="container"), {}, {}
    for name, target in adapter.targets.items():
        record = base.tensors.get(name)
        if record is None or not suits(adapter, name, record["shape"]):
            raise RefusalError("invalid-input", f"the base has no tensor {name} of the target's shape (P-012)")
        dtype, old = record["dtype"], base.data(name)
        if mixes(adapter, name, dtype):
            raise RefusalError("invalid-input", f"the base has {name} in {dtype}, which does not mix (P-054)")
        new = merged(adapter, name, dtype, old)
        if not stays_finite(adapter, name, dtype, new, old):
            raise RefusalError("invalid-input", f"an element of {name} is not finite any more (P-016)")
        shape = [target["length"], *record["shape"][1:]] if "length" in target else record["shape"]
        tensors[name] = {"dtype": dtype, "shape": shape, "data": new.hex()}
        stated = target.get("fingerprint", "none")
        fingerprints[name] = {"none": "none", fingerprint(target, record, old): "same"}.get(stated, "other")
    return {"tensors": tensors, "fingerprints": fingerprints}
