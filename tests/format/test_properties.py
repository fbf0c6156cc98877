"""Properties of the format that hold for every adapter, every JSON value, and every file that a stranger sends.

``LOREG_TEST_EFFORT=50 pytest tests/format/test_properties.py`` draws fifty times as many examples, and new ones.
"""

from __future__ import annotations

import json
import math
import re
import struct
from collections.abc import Callable
from dataclasses import fields, replace
from fractions import Fraction
from pathlib import Path
from random import Random
from typing import Any

import pytest
from adapter_strategies import FORMS, JSON, adapters, effort, samples, targets, tensors
from file_properties import assert_refused, examine
from hypothesis import assume, given
from hypothesis import strategies as st
from mutator import mutated, respelled

from lora_registry.adapter import SCALED, Adapter, Base, Kind, Target, Tensor
from lora_registry.digest import Digest
from lora_registry.dtypes import DTYPES
from lora_registry.errors import InvalidInputError
from lora_registry.format.canonical import JsonError, decode, encode, number
from lora_registry.format.document import to_document
from lora_registry.format.features import FEATURES, required_features
from lora_registry.format.identity import content_digest
from lora_registry.format.limits import SAFE_INTEGER
from lora_registry.format.reader import check_file, read_adapter
from lora_registry.format.rules import RULES
from lora_registry.format.target_rules import ROLES
from lora_registry.format.writer import encode_adapter, write_adapter

SEEDS = st.integers(0, 2**32)
SAMPLES = samples(60, adapters())


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One folder for all examples of a test."""
    return tmp_path_factory.mktemp("properties")


def file_of(adapter: Adapter) -> bytes:
    """The native file of an adapter."""
    return b"".join(encode_adapter(adapter).chunks())


def contents(adapter: Adapter) -> dict[str, tuple[str, tuple[int, ...], bytes]]:
    """The tensors of an adapter, as values that compare."""
    return {
        f"{target.name}/{role}": (tensor.dtype, tensor.shape, bytes(tensor.data))
        for target in adapter
        for role, tensor in target.tensors.items()
    }


def described(adapter: Adapter) -> Adapter:
    """An adapter without its tensors, which compare by identity."""
    return replace(adapter, targets=tuple(replace(target, tensors={}, digests={}) for target in adapter))


# What is drawn


def test_everything_is_drawn() -> None:
    """The strategies leave out no kind, layout, role, element type, feature or optional part of the format."""
    drawn = samples(100, adapters())
    every = [target for form in FORMS for target in samples(12, targets("w", form))]
    assert {(target.kind, target.layout) for target in every} == set(FORMS)
    assert {kind for kind, _ in FORMS} == set(Kind)
    assert {role for target in every for role in target.tensors} == set(ROLES)
    assert {tensor.dtype for tensor in samples(200, tensors(1, dtypes=sorted(DTYPES)))} == set(DTYPES)
    assert {name for adapter in drawn for name in required_features(adapter)} == FEATURES
    every += [target for adapter in drawn for target in adapter]
    for record, instances in ((Target, every), (Adapter, drawn), (Base, [adapter.base for adapter in drawn])):
        for field in fields(record):
            varied = {repr(getattr(instance, field.name)) for instance in instances}
            assert len(varied) > 1 or field.name == "digests", f"{record.__name__}.{field.name} is always the same"


# Reading and writing


@effort(100)
@given(adapter=adapters())
def test_reading_undoes_writing(folder: Path, adapter: Adapter) -> None:
    """An adapter comes back as it was, field by field and byte by byte, and writing it again changes nothing."""
    path = folder / "adapter.loreg.safetensors"
    path.unlink(missing_ok=True)
    digest = write_adapter(adapter, path)
    back = read_adapter(path)
    assert described(back) == described(adapter)
    assert encode(to_document(back)) == encode(to_document(adapter))  # == takes true for 1
    assert contents(back) == contents(adapter)
    assert check_file(path) == []
    assert file_of(back) == path.read_bytes()
    assert digest == Digest.of_file(path)


@effort(50)
@given(adapter=adapters(), seed=SEEDS)
def test_another_spelling_is_the_same_adapter(folder: Path, adapter: Adapter, seed: int) -> None:
    """White space, escapes, order of members, of tensors and of data are not content, and writing removes them."""
    file = file_of(adapter)
    other = respelled(file, Random(seed))
    assert examine(other, folder) == []
    path = folder / "other.loreg.safetensors"
    path.unlink(missing_ok=True)
    path.write_bytes(other)
    back = read_adapter(path)
    assert content_digest(back) == content_digest(adapter)
    assert file_of(back) == file


# Identity


TARGET_EDITS: dict[str, Callable[[Target], Target]] = {
    "name": lambda target: replace(target, name=f"{target.name}x"),
    "kind": lambda target: replace(target, kind=Kind.FULL if target.kind is not Kind.FULL else Kind.SPARSE),
    "layout": lambda target: replace(target, layout=(*target.layout, "k")),
    "shape": lambda target: replace(target, shape=(*(target.shape or ()), 2)),
    "scale": lambda target: replace(target, scale=1.5 if target.scale != 1.5 else 2.5),
    "groups": lambda target: replace(target, groups=target.groups + 1),
    "rows": lambda target: replace(target, rows=(*target.rows, 99)),
    "length": lambda target: replace(target, length=(target.length or 0) + 1),
}
"""Changes of the fields of a target that mean something, besides its tensors."""

TARGET_DESCRIPTIONS = {"segments", "initial", "fingerprint", "extra"}
"""The fields that only describe; ``digests`` say what the tensors say."""

ADAPTER_EDITS: dict[str, Callable[[Adapter], Adapter]] = {
    "gate": lambda adapter: replace(adapter, gate=(*adapter.gate, 99)),
    "requires_read": lambda adapter: replace(adapter, requires_read=adapter.requires_read | {"x"}),
    "targets": lambda adapter: replace(adapter, targets=adapter.targets[1:]),
}

ADAPTER_DESCRIPTIONS = {
    *("base", "info", "origin", "tokenizer", "lineage", "training", "requires_write", "extensions", "extra")
}


def test_every_field_means_something_or_describes() -> None:
    """No field is left out of the tests below."""
    assert {field.name for field in fields(Target)} == {*TARGET_EDITS, *TARGET_DESCRIPTIONS, "tensors", "digests"}
    assert {field.name for field in fields(Adapter)} == {*ADAPTER_EDITS, *ADAPTER_DESCRIPTIONS}


@pytest.mark.parametrize("field", TARGET_EDITS)
@effort(10)
@given(target=targets("w"))
def test_a_field_of_a_target_is_in_the_content_digest(field: str, target: Target) -> None:
    """Another value of a field that means something is another content digest."""
    assume(field != "scale" or target.kind in SCALED)
    other = TARGET_EDITS[field](target)
    assert content_digest(Adapter(targets=(other,))) != content_digest(Adapter(targets=(target,)))


@effort(60)
@given(target=targets("w"), data=st.data())
def test_a_tensor_is_in_the_content_digest(target: Target, data: st.DataObject) -> None:
    """Another bit, element type, shape or role of any tensor is another content digest."""
    role = data.draw(st.sampled_from(sorted(target.tensors)))
    tensor = target.tensors[role]
    changed = bytearray(tensor.data)
    changed[data.draw(st.integers(0, tensor.nbytes - 1))] ^= 1 << data.draw(st.integers(0, 7))
    size = DTYPES[tensor.dtype].size
    (twin, *_) = (name for name, dtype in DTYPES.items() if dtype.size == size and name != tensor.dtype)
    variants = [
        {**target.tensors, role: Tensor(tensor.dtype, tensor.shape, bytes(changed))},
        {**target.tensors, role: Tensor(twin, tensor.shape, tensor.data)},
        {**target.tensors, role: Tensor(tensor.dtype, (1, *tensor.shape), tensor.data)},
        {name: other for name, other in target.tensors.items() if name != role},
        {**target.tensors, "another": tensor},
    ]
    before = content_digest(Adapter(targets=(target,)))
    for variant in variants:
        assert content_digest(Adapter(targets=(replace(target, tensors=variant),))) != before


@pytest.mark.parametrize("field", ADAPTER_EDITS)
@effort(15)
@given(adapter=adapters())
def test_a_field_of_an_adapter_is_in_the_content_digest(field: str, adapter: Adapter) -> None:
    """What opens the adapter, what a reader is asked to know, and each target is part of the content."""
    assert content_digest(ADAPTER_EDITS[field](adapter)) != content_digest(adapter)


@effort(30)
@given(adapter=adapters(), other=adapters())
def test_what_describes_is_outside_of_the_content_digest(adapter: Adapter, other: Adapter) -> None:
    """All that describes can be exchanged for what describes another adapter."""
    donor = other.targets[0]
    targets = tuple(
        replace(target, **{name: getattr(donor, name) for name in TARGET_DESCRIPTIONS}) for target in adapter
    )
    same = replace(adapter, targets=targets, **{name: getattr(other, name) for name in ADAPTER_DESCRIPTIONS})
    assert content_digest(same) == content_digest(adapter)


# Canonical JSON


@effort(300)
@given(value=JSON)
def test_canonical_json_is_a_fixed_point(value: Any) -> None:
    """Encoding what was decoded gives the same bytes, which any JSON parser reads as the same value."""
    data = encode(value)
    assert encode(decode(data)) == data
    assert decode(data) == value == json.loads(data)


@effort(300)
@given(value=st.floats(allow_nan=False, allow_infinity=False))
def test_canonical_numbers_are_exact_and_shortest(value: float) -> None:
    """A number reads back as the same binary64, no decimal with a digit less does, and the layout is ECMAScript's."""
    text = number(value)
    assert struct.pack(">d", float(text)) == struct.pack(">d", value + 0.0)
    mantissa, exponent, _ = text.lstrip("-").partition("e")
    assert bool(exponent) == (value != 0 and not 1e-6 <= abs(value) < 1e21)
    assert re.fullmatch(r"-?(0|[1-9]\d*)(\.\d*[1-9])?(e[+-][1-9]\d*)?", text)
    digits = mantissa.replace(".", "").strip("0")
    if len(digits) > 1:
        assert float(f"{value:.{len(digits) - 2}e}") != value


@effort(300)
@given(
    whole=st.text("0123456789", min_size=1, max_size=25),
    fraction=st.text("0123456789", max_size=30),
    exponent=st.none() | st.integers(-345, 330),
    sign=st.sampled_from(["", "-"]),
)
def test_numbers_of_any_length_are_rounded_or_refused(
    whole: str, fraction: str, exponent: int | None, sign: str
) -> None:
    """A literal is the nearest binary64, checked with fractions, or beyond what all readers keep."""
    literal = sign + (whole.lstrip("0") or "0") + (f".{fraction}" if fraction else "")
    literal += "" if exponent is None else f"e{exponent}"
    exact = Fraction(literal)
    try:
        value = decode(literal)
    except JsonError:
        assert abs(exact) >= SAFE_INTEGER  # refused for its size only
        return
    assert isinstance(value, int | float)
    if isinstance(value, int):
        assert value == exact
    else:
        ulp = Fraction(math.ulp(value))
        assert abs(Fraction(value) - exact) <= ulp / 2
    assert encode(decode(encode(value))) == encode(value)


# Files of strangers


@effort(300)
@given(adapter=st.sampled_from(SAMPLES), seed=SEEDS)
def test_a_changed_file_is_refused_by_a_rule_or_sound(folder: Path, adapter: Adapter, seed: int) -> None:
    """Whatever is changed in a file: a refusal names rules; what is accepted loses nothing when it is written."""
    random = Random(seed)
    file = mutated(file_of(adapter), random)
    if random.random() < 0.3:
        file = mutated(file, random)
    examine(file, folder)


@effort(150)
@given(
    data=st.binary(max_size=64)
    | st.binary(max_size=64).map(lambda rest: (len(rest) + 2).to_bytes(8, "little") + b"{}" + rest)
)
def test_any_bytes_are_refused(folder: Path, data: bytes) -> None:
    """Bytes that nobody meant to be a file are refused, and never with another error."""
    assert examine(data, folder) != []


@effort(120)
@given(document=st.dictionaries(st.sampled_from(["loreg", "targets", "requires", "gate", "base", "x"]), JSON))
def test_any_document_is_refused(folder: Path, document: dict[str, Any]) -> None:
    """Any JSON in the place of the document is refused with findings, because it has no target."""
    header = json.dumps({"__metadata__": {"loreg": json.dumps({"loreg": 1, **document})}}).encode()
    findings = examine(len(header).to_bytes(8, "little") + header, folder)
    assert findings
    assert {finding.rule for finding in findings} <= set(RULES)


@effort(60)
@given(adapter=adapters(), data=st.data())
def test_the_writer_refuses_what_the_reader_refuses(folder: Path, adapter: Adapter, data: st.DataObject) -> None:
    """An adapter with one field spoiled is refused by the writer, with findings, or it is still sound (P-005)."""
    target = data.draw(st.sampled_from(adapter.targets))
    edit = data.draw(st.sampled_from(sorted(TARGET_EDITS)))
    spoiled = tuple(TARGET_EDITS[edit](each) if each is target else each for each in adapter)
    try:
        file = b"".join(encode_adapter(replace(adapter, targets=spoiled)).chunks())
    except InvalidInputError as error:
        assert_refused(str(error), error.findings)
    else:
        assert examine(file, folder) == []
