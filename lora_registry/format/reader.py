"""Reading a native file: the header is read and checked, the tensors are left where they are."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from lora_registry.adapter import Adapter, Json
from lora_registry.errors import InvalidInputError, NotAllowedError
from lora_registry.findings import Finding
from lora_registry.format.canonical import JsonError, decode
from lora_registry.format.container import Container, open_container, read_metadata
from lora_registry.format.data_rules import check_data
from lora_registry.format.document import from_document
from lora_registry.format.files import Opener, open_file
from lora_registry.format.rules import KEY, check_document

SUFFIX = ".loreg.safetensors"
"""What native files are called; :func:`is_native` looks inside first."""


def is_native(path: Path) -> bool:
    """Whether ``path`` is a safetensors file with loreg's metadata key, sound or not; by its name where nothing tells.

    A broken native file deserves its findings, and not "unknown format".
    """
    if not path.is_file():
        return False
    try:
        return KEY in read_metadata(path)
    except (InvalidInputError, NotAllowedError):
        return path.name.endswith(SUFFIX)


@dataclass(frozen=True, slots=True)
class NativeFile:
    """A native file whose header was read and checked.

    Attributes:
        adapter: what it says; the tensors are windows of a memory map.
        document: the bytes that say it: the metadata entry ``loreg`` in UTF-8, spelled as in the file.
    """

    adapter: Adapter
    document: bytes


def read_adapter(path: Path, opener: Opener = open_file) -> Adapter:
    """The adapter of a native file; arguments and errors as of :func:`open_native`."""
    return open_native(path, opener).adapter


def open_native(path: Path, opener: Opener = open_file) -> NativeFile:
    """Read a native file. Only the header is read; the tensors are windows of a memory map.

    Args:
        path: the file.
        opener: opens it, once; it may count what is read.

    Raises:
        NotFoundError: there is no such file.
        InvalidInputError: the file breaks a rule that can be seen without the data; carries every finding.
    """
    container = open_container(path, opener)
    document, findings = _document(container)
    if findings:
        raise InvalidInputError.from_findings(str(path), findings)
    adapter = from_document(document, {key: container.tensor(key) for key in container.entries})
    return NativeFile(adapter, container.metadata[KEY].encode())


def check_file(path: Path) -> list[Finding]:
    """Everything that a native file breaks, the digests of its data included. Reads all of it.

    Raises:
        NotFoundError: there is no such file.
    """
    try:
        adapter = read_adapter(path)
    except InvalidInputError as error:
        return list(error.findings) or [Finding("R-001", "file", str(error))]
    return check_data(adapter)


def _document(container: Container) -> tuple[Mapping[str, Json], list[Finding]]:
    if set(container.metadata) != {KEY}:
        others = sorted(set(container.metadata) - {KEY})
        what = f"has other keys: {others}" if KEY in container.metadata else "has no key 'loreg': not a native file"
        return {}, [Finding("R-011", "__metadata__", what)]
    try:
        document = decode(container.metadata[KEY])
    except JsonError as error:
        return {}, [Finding("R-012", KEY, str(error))]
    findings = check_document(document, {key: (entry.dtype, entry.shape) for key, entry in container.entries.items()})
    return (document if isinstance(document, dict) else {}), findings
