"""R-001 to R-008 and R-010: what a safetensors file must be before anything in it is believed."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lora_registry.adapter import Tensor
from lora_registry.errors import InvalidInputError, NotFoundError
from lora_registry.format.container import encode_header, encode_tensors, open_container, parse_header, place
from lora_registry.format.limits import AXIS_LENGTH, HEADER_BYTES, JSON_DEPTH, SAFE_INTEGER, TENSORS


def framed(header: bytes | dict[str, Any], data: bytes = b"") -> bytes:
    """The bytes of a file with this header and this data."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data


def record(dtype: Any = "F32", shape: Any = (2,), offsets: Any = (0, 8)) -> dict[str, Any]:
    """A tensor record; what is not given is sound."""
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


def one(data: bytes = bytes(8), **fields: Any) -> bytes:
    """A file with one tensor whose record has these fields."""
    return framed({"t": record(**fields)}, data)


SOUND = one()

BROKEN: dict[str, tuple[str, bytes]] = {
    "nothing at all": ("R-001", b""),
    "seven bytes": ("R-001", bytes(7)),
    "header of 2**63": ("R-001", (1 << 63).to_bytes(8, "little") + b"{}"),
    "header of 2**64 - 1": ("R-001", b"\xff" * 8 + b"{}"),
    "header beyond the limit": ("R-001", (HEADER_BYTES + 1).to_bytes(8, "little") + b"{}"),
    "header longer than the file": ("R-001", SOUND[:20]),
    "header that lacks its last byte": ("R-001", framed(b'{"t":{}}')[:-1]),
    "empty header": ("R-002", framed(b"")),
    "leading space": ("R-002", framed(b" {}")),
    "byte order mark": ("R-002", framed(b"\xef\xbb\xbf{}")),
    "an array": ("R-002", framed(b"[]")),
    "something after the object": ("R-002", framed(b"{}{}")),
    "padded with NUL": ("R-002", framed(b"{}\0\0\0\0\0\0")),
    "half an object": ("R-002", framed(b'{"t":')),
    "a comment": ("R-002", framed(b"{/* */}")),
    "not UTF-8": ("R-002", framed(b'{"\xff":1}')),
    "an overlong encoding": ("R-002", framed(b'{"\xc0\xaf":1}')),
    "a lone surrogate as bytes": ("R-002", framed(b'{"\xed\xa0\x80":1}')),
    "a lone surrogate as an escape": ("R-002", framed(rb'{"\ud800":1}')),
    "NaN": ("R-002", framed(b'{"t":NaN}')),
    "Infinity": ("R-002", framed(b'{"t":-Infinity}')),
    "a number beyond float64": ("R-002", framed(b'{"t":1e400}')),
    "an integer beyond 2**53 - 1": ("R-002", one(shape=[SAFE_INTEGER + 1])),
    "an integer of ten thousand digits": ("R-002", framed(b'{"t":' + b"9" * 10_000 + b"}")),
    "two tensors of one name": ("R-002", framed(b'{"t":%b,"t":%b}' % ((json.dumps(record()).encode(),) * 2), bytes(8))),
    "one name in two spellings": ("R-002", framed(rb'{"t":1,"\u0074":1}')),
    "a key of the string map twice": ("R-002", framed(b'{"__metadata__":{"a":"1","a":"2"}}')),
    "a field twice": ("R-002", framed(b'{"t":{"dtype":"F32","dtype":"F64"}}')),
    "one level too deep": ("R-002", framed(b'{"t":' + b"[" * (JSON_DEPTH + 1) + b"]" * (JSON_DEPTH + 1) + b"}")),
    "a depth bomb": ("R-002", framed(b'{"t":' + b"[" * 1_000_000)),
    "a closed depth bomb": ("R-002", framed(b'{"t":' + b"[" * 200_000 + b"]" * 200_000 + b"}")),
    "truncated data": ("R-003", SOUND[:-1]),
    "trailing bytes": ("R-003", SOUND + b"\0"),
    "bytes of no tensor": ("R-003", framed({}, b"\0")),
    "a number in the string map": ("R-004", framed({"__metadata__": {"a": 1}})),
    "a list as the string map": ("R-004", framed({"__metadata__": []})),
    "null as the string map": ("R-004", framed({"__metadata__": None})),
    "a tensor that is a string": ("R-004", framed({"t": "F32"})),
    "a field too many": ("R-004", framed({"t": record() | {"offset": 0}}, bytes(8))),
    "a field too few": ("R-004", framed({"t": {"dtype": "F32", "shape": []}}, bytes(4))),
    "an unknown dtype": ("R-005", one(dtype="F128")),
    "a dtype of half a byte": ("R-005", one(dtype="F4")),
    "a dtype in lower case": ("R-005", one(dtype="f32")),
    "a dtype that is a list": ("R-005", one(dtype=["F32"])),
    "true as a length": ("R-006", one(shape=[True, 2])),
    "a negative length": ("R-006", one(shape=[-2])),
    "a length with a fraction": ("R-006", one(shape=[2.0])),
    "a length that is a string": ("R-006", one(shape=["2"])),
    "a shape that is a number": ("R-006", one(shape=2)),
    "nine axes": ("R-006", one(shape=[2] + [1] * 8)),
    "an axis beyond the limit": ("R-006", one(shape=[AXIS_LENGTH + 1])),
    "two negative lengths": ("R-006", one(shape=[-1, -2])),
    "descending offsets": ("R-007", one(offsets=[8, 0])),
    "negative offsets": ("R-007", one(offsets=[-8, 0])),
    "three offsets": ("R-007", one(offsets=[0, 8, 8])),
    "offsets that are booleans": ("R-007", one(shape=[0], offsets=[False, False])),
    "offsets with a fraction": ("R-007", one(offsets=[0.0, 8.0])),
    "offsets that span too little": ("R-007", one(offsets=[0, 4])),
    "offsets that span too much": ("R-007", one(bytes(16), offsets=[0, 16])),
    "a product that wraps to zero in 64 bits": ("R-007", one(b"", shape=[1 << 32, 1 << 32], offsets=[0, 0])),
    "a product that wraps to eight": ("R-007", one(shape=[(1 << 31) + 1, 1 << 33, 2], offsets=[0, 8])),
    "overlapping tensors": ("R-008", framed({"t": record(), "u": record(offsets=[4, 12])}, bytes(12))),
    "two names for one range": ("R-008", framed({"t": record(), "u": record()}, bytes(8))),
    "a tensor inside another": ("R-008", framed({"t": record("U8", [8]), "u": record("U8", [2], [4, 6])}, bytes(8))),
    "a hole": ("R-008", framed({"t": record(), "u": record(offsets=[16, 24])}, bytes(24))),
    "a hole at the start": ("R-008", one(bytes(16), offsets=[8, 16])),
    "a million tensors' worth of names": (
        "R-010",
        framed({f"{number}": record(shape=[0], offsets=[0, 0]) for number in range(TENSORS + 1)}),
    ),
}  # fmt: skip


@pytest.mark.parametrize(("rule", "data"), BROKEN.values(), ids=BROKEN)
def test_broken_file(rule: str, data: bytes, tmp_path: Path) -> None:
    """A broken file is refused with the rule that it breaks, in one line, with exit code 8."""
    path = tmp_path / "broken.safetensors"
    path.write_bytes(data)
    with pytest.raises(InvalidInputError) as caught:
        open_container(path)
    assert {finding.rule for finding in caught.value.findings} == {rule}
    assert caught.value.exit_code == 8
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 500 + len(str(path))


def test_every_framing_rule_is_broken_above() -> None:
    """The table has a case for each rule that is about bytes."""
    assert {rule for rule, _ in BROKEN.values()} == {f"R-{number:03}" for number in (*range(1, 9), 10)}


def test_sound_file(tmp_path: Path) -> None:
    """The file that the table breaks is sound, and its parts are where the header says."""
    path = tmp_path / "sound.safetensors"
    path.write_bytes(framed({"__metadata__": {"format": "pt"}, "t": record()}, b"abcdefgh"))
    with open_container(path) as container:
        tensor = container.tensor("t")
    assert container.metadata == {"format": "pt"}
    assert (tensor.dtype, tensor.shape, bytes(tensor.data)) == ("F32", (2,), b"abcdefgh")


def test_a_file_that_takes_the_name_is_another(tmp_path: Path) -> None:
    """Tensors are those of the file whose header was read, also when another one has its name by now."""
    path = tmp_path / "a.safetensors"
    path.write_bytes(one(b"\1" * 8))
    container = open_container(path)
    other = tmp_path / "b.safetensors"
    other.write_bytes(one(b"\2" * 8))
    other.replace(path)
    assert bytes(container.tensor("t").data) == b"\1" * 8


def test_a_closed_container_has_no_tensors(tmp_path: Path) -> None:
    """After the block it refuses to give a tensor, instead of reading what has the name now."""
    path = tmp_path / "a.safetensors"
    path.write_bytes(SOUND)
    with open_container(path) as container:
        pass
    with pytest.raises(ValueError, match="closed"):
        container.tensor("t")


def test_empty_tensors_are_sound_in_foreign_files(tmp_path: Path) -> None:
    """safetensors allows empty tensors; only native files do not (R-038)."""
    path = tmp_path / "empty.safetensors"
    path.write_bytes(framed({"t": record(shape=[0, 4], offsets=[0, 0]), "u": record()}, bytes(8)))
    assert open_container(path).tensor("t").shape == (0, 4)


def test_nesting_up_to_the_limit(tmp_path: Path) -> None:
    """Nesting at the limit is JSON; the record is then refused for what it is (R-004)."""
    path = tmp_path / "deep.safetensors"
    path.write_bytes(framed(b'{"t":' + b"[" * JSON_DEPTH + b"]" * JSON_DEPTH + b"}"))
    with pytest.raises(InvalidInputError, match="R-004"):
        open_container(path)


def test_all_problems_are_reported() -> None:
    """Every tensor that is wrong is named, not only the first."""
    header = json.dumps({"a": record(dtype="X"), "b": record(shape=[-1]), "c": record()}).encode()
    _, entries, findings = parse_header(header, 8)
    assert [(finding.rule, finding.place) for finding in findings] == [("R-005", "a"), ("R-006", "b")]
    assert list(entries) == ["c"]


def test_an_overlap_is_reported_once() -> None:
    """A tensor inside another is one problem; those that follow the outer one are where they belong."""
    header = {"a": record("U8", [8], [0, 8]), "b": record("U8", [2], [4, 6]), "c": record("U8", [8], [8, 16])}
    _, _, findings = parse_header(json.dumps(header).encode(), 16)
    assert [(finding.rule, finding.place) for finding in findings] == [("R-008", "b")]


def test_escape_sequences_do_not_reach_a_terminal(tmp_path: Path) -> None:
    """A name with control characters is shown escaped."""
    path = tmp_path / "ansi.safetensors"
    path.write_bytes(framed({"\x1b[2J\u202e": record(dtype="X")}, bytes(8)))
    with pytest.raises(InvalidInputError) as caught:
        open_container(path)
    assert str(caught.value).isprintable()


def test_no_such_file(tmp_path: Path) -> None:
    """A path that leads nowhere is not found, also where a file stands in for a folder."""
    (tmp_path / "file").touch()
    for path in (tmp_path / "none", tmp_path / "file" / "below"):
        with pytest.raises(NotFoundError, match="no such file"):
            open_container(path)


def test_named_pipes_and_devices(tmp_path: Path) -> None:
    """A named pipe is refused instead of waited for, and a device is not read."""
    pipe = tmp_path / "pipe.safetensors"
    os.mkfifo(pipe)
    for path in (pipe, Path("/dev/zero")):
        with pytest.raises(InvalidInputError, match="a pipe or a device"):
            open_container(path)


def test_folder(tmp_path: Path) -> None:
    """A folder is no safetensors file."""
    with pytest.raises(InvalidInputError, match="a folder"):
        open_container(tmp_path)


@settings(deadline=None)
@given(position=st.integers(0, len(SOUND) - 1), byte=st.integers(0, 255))
def test_any_changed_byte_is_refused_or_harmless(
    position: int, byte: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Whatever byte of a file is changed, it opens or is refused with findings; nothing else happens."""
    path = tmp_path_factory.mktemp("mutated") / "mutated.safetensors"
    path.write_bytes(SOUND[:position] + bytes([byte]) + SOUND[position + 1 :])
    try:
        container = open_container(path)
    except InvalidInputError as error:
        assert error.findings  # noqa: PT017  (being refused is one of two outcomes that are fine)
    else:
        for name, entry in container.entries.items():
            assert container.tensor(name).nbytes == entry.end - entry.begin


@settings(deadline=None)
@given(header=st.binary(max_size=200), size=st.integers(0, 1 << 40))
def test_any_header_is_refused_or_covers_the_data(header: bytes, size: int) -> None:
    """Arbitrary bytes never make the parser raise, nor accept a header that does not account for the data."""
    for text in (header, b"{" + header):
        _, entries, findings = parse_header(text, size)
        assert findings or sum(entry.end - entry.begin for entry in entries.values()) == size


def test_layout_is_aligned_and_without_holes() -> None:
    """The writer puts wider elements first, so that each tensor begins at a multiple of its own element."""
    entries = place({"b": ("F16", (3,)), "a": ("U8", (5,)), "c": ("F64", (1,)), "d": ("F32", (3,))})
    assert list(entries) == ["c", "d", "b", "a"]
    assert [(entry.begin, entry.end) for entry in entries.values()] == [(0, 8), (8, 20), (20, 26), (26, 31)]
    header = encode_header(entries, {"k": "v"})
    assert len(header) % 8 == 0
    assert parse_header(header[8:], 31) == ({"k": "v"}, {name: entries[name] for name in sorted(entries)}, [])


def test_equal_tensors_give_equal_bytes() -> None:
    """The order in which tensors and metadata are handed over does not reach the file."""
    tensors = {name: Tensor("U8", (1,), name.encode()) for name in "abc"}
    metadata = {"x": "1", "y": "2"}
    backwards = dict(reversed(tensors.items())), dict(reversed(metadata.items()))
    assert b"".join(encode_tensors(tensors, metadata)) == b"".join(encode_tensors(*backwards))
