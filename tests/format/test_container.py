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
from lora_registry.conformance.vectors import Vector, load
from lora_registry.errors import InvalidInputError, NotFoundError
from lora_registry.format.container import encode_header, encode_tensors, open_container, parse_header, place


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

VECTORS = load(Path(__file__).parents[2] / "spec" / "vectors")
FRAMING = {f"R-{number:03}" for number in (*range(1, 9), 10)}


@pytest.mark.parametrize("vector", [v for v in VECTORS.vectors if FRAMING & set(v.rules)], ids=lambda vector: vector.id)
def test_broken_file(vector: Vector, tmp_path: Path) -> None:
    """Where the framing is broken nothing opens: in one short line, with the rule, and with exit code 8."""
    path = VECTORS.adapter(vector, tmp_path)
    with pytest.raises(InvalidInputError) as caught:
        open_container(path)
    assert {finding.rule for finding in caught.value.findings} == set(vector.rules)
    assert caught.value.exit_code == 8
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 500 + len(str(path))


def test_sound_file(tmp_path: Path) -> None:
    """A file of one tensor is sound, and its parts are where the header says."""
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
