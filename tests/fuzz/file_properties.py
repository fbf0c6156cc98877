"""What holds of every file whatsoever that is given to the reader. The fuzzer and the tests ask the same questions.

A file is refused with findings, in one line, or it is accepted. What is accepted is what the reference library of
safetensors reads, too; written again it is canonical, and it still says everything that it said.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import safetensors

from lora_registry.adapter import Adapter
from lora_registry.errors import InvalidInputError, LoregError
from lora_registry.findings import Finding
from lora_registry.format.canonical import decode, encode
from lora_registry.format.container import open_container
from lora_registry.format.document import to_document
from lora_registry.format.identity import content_digest
from lora_registry.format.reader import check_file, read_adapter
from lora_registry.format.rules import RULES
from lora_registry.format.writer import encode_adapter

LINE = 2000
"""Characters of the line that says why a file is refused, its path left out. A terminal is not for megabytes."""


def examine(data: bytes, folder: Path) -> list[Finding]:
    """Everything that the reader finds wrong with a file of these bytes; AssertionError where the reader is wrong.

    Args:
        data: the file.
        folder: where to write it.
    """
    path = folder / "given.loreg.safetensors"
    path.unlink(missing_ok=True)  # truncating a file that is still mapped would kill the process
    path.write_bytes(data)
    read, findings = outcome(path), check_file(path)
    if isinstance(read, InvalidInputError):
        assert list(read.findings) == findings
        assert_refused(str(read).removeprefix(str(path)), findings)
    elif findings:  # what only the data shows
        assert_refused(str(InvalidInputError.from_findings("", findings)), findings)
        assert_not_written(read)
    else:
        assert_accepted(read, path, folder)
    return findings


def outcome(path: Path) -> Adapter | InvalidInputError:
    """What the reader makes of a file; any other exception goes on."""
    try:
        return read_adapter(path)
    except InvalidInputError as error:
        return error


def assert_refused(line: str, findings: Sequence[Finding]) -> None:
    """A refusal names its rules, in one line that a terminal can show."""
    assert findings
    assert {finding.rule for finding in findings} <= set(RULES)
    assert len(line) <= LINE, f"a line of {len(line)} characters"
    assert line.isprintable(), f"not printable: {line!r}"


def assert_not_written(adapter: Adapter) -> None:
    """What the checker refuses the writer refuses."""
    try:
        encode_adapter(adapter)
    except LoregError:  # broken bytes are an integrity error
        return
    raise AssertionError("the writer takes what the checker refuses")


def assert_accepted(adapter: Adapter, path: Path, folder: Path) -> None:
    """What is accepted is written, reads back the same, and loses nothing; others read it too."""
    container = open_container(path)
    others = {key: (tensor["dtype"], tuple(tensor["shape"]), bytes(tensor["data"])) for key, tensor in reference(path)}
    ours = {key: container.tensor(key) for key in container.entries}
    assert others == {key: (tensor.dtype, tensor.shape, bytes(tensor.data)) for key, tensor in ours.items()}

    written = b"".join(encode_adapter(adapter).chunks())
    again = folder / "again.loreg.safetensors"
    again.unlink(missing_ok=True)
    again.write_bytes(written)
    back = read_adapter(again)
    assert check_file(again) == []
    assert content_digest(back) == content_digest(adapter)
    assert b"".join(encode_adapter(back).chunks()) == written
    assert open_container(again).data_start % 8 == 0

    before, after = (decode(opened.metadata["loreg"]) for opened in (container, open_container(again)))
    assert encode(after) == encode(to_document(adapter)) == open_container(again).metadata["loreg"].encode()
    assert encode(without_defaults(before)) == encode(after), "writing loses something"
    assert json.loads(encode(after)) == after


def reference(path: Path) -> list[tuple[str, dict[str, Any]]]:
    """The tensors as the safetensors package reads them."""
    tensors: list[tuple[str, dict[str, Any]]] = safetensors.deserialize(path.read_bytes())
    return tensors


def without_defaults(document: Any) -> dict[str, Any]:
    """A document as the canonical form has it (P-019): without parts that are empty or say what holds anyway."""
    parts = ("requires", "base", "info", "origin", "extensions", "tokenizer", "training")
    document = dict(document)
    if "requires" in document:
        document["requires"] = {side: names for side, names in document["requires"].items() if names}
    document = {name: part for name, part in document.items() if part or name not in parts}
    return document | {
        "targets": {name: target_without_defaults(record) for name, record in document["targets"].items()}
    }


def target_without_defaults(record: dict[str, Any]) -> dict[str, Any]:
    """The same for one target."""
    record = dict(record)
    for name, default in (("layout", []), ("groups", 1)):
        if record.get(name) == default:
            del record[name]
    if "segments" in record:
        record["segments"] = segments_without_defaults(record["segments"])
    return record


def segments_without_defaults(record: dict[str, Any]) -> dict[str, Any]:
    """The same for the segments of a target."""
    record = {name: value for name, value in record.items() if (name, value) != ("interleave", 1)}
    parts = [dict(part) for part in record["parts"]]
    for part in parts:
        if "rope" in part:
            rope = part["rope"]
            part["rope"] = {name: value for name, value in rope.items() if (name, value) != ("rotary", rope["head"])}
    return record | {"parts": parts}
