"""Whether an answer is the expected one: digests, rules, codes and bytes exactly, numbers within stated bounds.

Standard library only: what judges an implementation computes with none.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from math import isfinite
from pathlib import Path
from typing import Any

from lora_registry.adapter import Json
from lora_registry.conformance.protocol import accepted, rejected
from lora_registry.dtypes import DTYPES

Expectation = Mapping[str, Json]

_SHOWN = 100  # characters of a value in a reason


def request(operation: str, expectation: Expectation, adapter: Path, folder: Path) -> dict[str, Json]:
    """What a program is asked about ``adapter``; other files are relative to ``folder``."""
    if operation == "merge":
        return {"op": "merge", "adapter": str(adapter), "base": str(folder / str(expectation["base"]))}
    asked: dict[str, Json] = {"op": operation, "file": str(adapter)}
    if operation == "edit":
        asked["title"] = expectation["title"]
    return asked


def without_feature(operation: str, expectation: Expectation) -> dict[str, Json]:
    """What is expected of a program that lacks a feature which the adapter needs: the refusal of R-015."""
    if operation == "validate":
        return {"rules": ["R-015"]}
    asked = {name: expectation[name] for name in ("title", "base") if name in expectation}
    return {**asked, **rejected("unsupported")}


def judge(operation: str, expectation: Expectation, answer: Mapping[str, Json], folder: Path) -> str | None:
    """Compare an answer with the expectation.

    Args:
        operation: that was asked for.
        expectation: of the vector.
        answer: of the program.
        folder: of the index; the files of expectations are relative to it.

    Returns:
        None where the answer is right, otherwise what is wrong about it, in one sentence.
    """
    if "error" in answer:
        return f"could not answer: {_shown(answer['error'])}"
    if "rules" in expectation:
        return _rules(expectation, answer)
    if expectation.get("verdict") == "reject":
        return _equal("the answer", rejected(str(expectation["code"])), answer)
    if answer.get("verdict") != "accept":
        return f"is to be accepted; the answer is {_shown(dict(answer))}"
    return _JUDGES[operation](expectation, answer, folder)


def _rules(expectation: Expectation, answer: Mapping[str, Json]) -> str | None:
    """P-003: of several rules that a file breaks one is enough, and none besides."""
    if wrong := _equal("the members of the answer", ["rules"], sorted(answer)):
        return wrong
    expected: Any = expectation["rules"]
    got: Any = answer["rules"]
    if not isinstance(got, list) or any(rule not in expected for rule in got) or bool(got) != bool(expected):
        return f"the rules: expected {'some of ' * (len(expected) > 1)}{_shown(expected)}, got {_shown(got)}"
    return _equal("the rules, sorted and each once", sorted(set(got)), got)


def _read(expectation: Expectation, answer: Mapping[str, Json], folder: Path) -> str | None:
    return _equal("the answer", expectation, answer)


def _bytes(expectation: Expectation, answer: Mapping[str, Json], folder: Path) -> str | None:
    if wrong := _members(answer, "bytes"):
        return wrong
    expected = (folder / str(expectation["file"])).read_bytes()
    got = _from_hex(answer["bytes"])
    if got is None:
        return f"the bytes are not in hexadecimal: {_shown(answer['bytes'])}"
    if got == expected:
        return None
    place = next(
        (i for i, (a, b) in enumerate(zip(got, expected, strict=False)) if a != b), min(len(got), len(expected))
    )
    return f"{len(got)} bytes differ from the {len(expected)} expected ones from byte {place} on"


def _merge(expectation: Expectation, answer: Mapping[str, Json], folder: Path) -> str | None:
    if wrong := _members(answer, "tensors", "fingerprints"):
        return wrong
    if wrong := _equal("fingerprints", expectation["fingerprints"], answer["fingerprints"]):
        return wrong
    expected, got = _object(expectation["tensors"]), _object(answer["tensors"])
    if wrong := _equal("the changed tensors", sorted(expected), sorted(got)):
        return wrong
    ulp: Any = expectation["ulp"]
    return next((wrong for name in expected if (wrong := _tensor(name, expected[name], got[name], ulp))), None)


def _tensor(name: str, expected: Any, got: Any, ulp: int) -> str | None:
    """Compare two records of ``dtype``, ``shape`` and ``data``."""
    if not isinstance(got, dict) or set(got) != {"dtype", "shape", "data"}:
        return f"{name} has not dtype, shape and data: {_shown(got)}"
    for member in ("dtype", "shape"):
        if wrong := _equal(f"{member} of {name}", expected[member], got[member]):
            return wrong
    before, after = bytes.fromhex(expected["data"]), _from_hex(got["data"])
    if after is None or len(after) != len(before):
        return f"{name} has not {len(before)} bytes in hexadecimal: {_shown(got['data'])}"
    apart = ulps(before, after, expected["dtype"])
    worst = max(apart, default=0)
    if worst <= ulp:
        return None
    return f"element {apart.index(worst)} of {name} is {worst} units in the last place away; {ulp} are allowed"


def ulps(one: bytes, other: bytes, dtype: str) -> list[int]:
    """How far the elements of two tensors are apart, in units in the last place; integers in ones.

    Floats of one type, read as sign and magnitude, are in the order of their values, neighbors one apart.
    """
    size, floating = DTYPES[dtype].size, DTYPES[dtype].floating
    sign = 1 << (8 * size - 1)

    def numbers(data: bytes) -> list[int]:
        raw = [int.from_bytes(data[start : start + size], "little") for start in range(0, len(data), size)]
        return [sign - number if floating and number >= sign else number for number in raw]

    return [abs(a - b) for a, b in zip(numbers(one), numbers(other), strict=True)]


def _probe(expectation: Expectation, answer: Mapping[str, Json], folder: Path) -> str | None:
    if wrong := _members(answer, "targets"):
        return wrong
    expected, got = _object(expectation["targets"]), _object(answer["targets"])
    if wrong := _equal("the targets", sorted(expected), sorted(got)):
        return wrong
    bounds = _object(expectation["bounds"])
    for name, components in expected.items():
        if wrong := _equal(f"the components of {name}", sorted(components), sorted(_object(got[name]))):
            return wrong
        for component, numbers in components.items():
            if wrong := _numbers(f"{name} {component}", numbers, got[name][component], bounds[name][component]):
                return wrong
    return None


def _numbers(what: str, expected: list[float], got: Any, bound: float) -> str | None:
    if not isinstance(got, list) or len(got) != len(expected) or not all(map(_is_number, got)):
        return f"{what} is not {len(expected)} numbers: {_shown(got)}"
    for index, (right, number) in enumerate(zip(expected, got, strict=True)):
        if not abs(right - number) <= bound:
            return f"number {index} of {what} is {number!r} and not {right!r} within {bound!r}"
    return None


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and isfinite(value)


_JUDGES: Mapping[str, Callable[[Expectation, Mapping[str, Json], Path], str | None]] = {
    "read": _read,
    "write": _bytes,
    "edit": _bytes,
    "merge": _merge,
    "probe": _probe,
}


def _members(answer: Mapping[str, Json], *names: str) -> str | None:
    """Whether an answer that accepts has these members beside the verdict and no others."""
    return _equal("the members of the answer", sorted(accepted(**dict.fromkeys(names))), sorted(answer))


def _object(value: Any) -> dict[str, Any]:
    """``value``, or nothing where it is no object: what is expected in it is then missing."""
    return value if isinstance(value, dict) else {}


def _equal(what: str, expected: Any, got: Any) -> str | None:
    if _same(expected, got):
        return None
    return f"{what}: expected {_shown(expected)}, got {_shown(got)}"


def _same(one: Any, other: Any) -> bool:
    """Equality of JSON: ``true`` is not 1, and 1.0 is no integer."""
    if type(one) is not type(other):
        return False
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(_same(one[key], other[key]) for key in one)
    if isinstance(one, list):
        return len(one) == len(other) and all(map(_same, one, other))
    return bool(one == other)


def _from_hex(value: Json) -> bytes | None:
    try:
        return bytes.fromhex(value) if isinstance(value, str) else None
    except ValueError:
        return None


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}…"
