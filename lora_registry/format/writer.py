"""Writing a native file: canonical bytes, checked by the reader's rules before the first one is written."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from lora_registry.adapter import Adapter, Tensor
from lora_registry.digest import Digest
from lora_registry.errors import LoregError, refusal
from lora_registry.findings import Finding
from lora_registry.format.canonical import JsonError, encode
from lora_registry.format.container import encode_tensors
from lora_registry.format.data_rules import check_data
from lora_registry.format.document import tensor_key, to_document
from lora_registry.format.files import atomic_write
from lora_registry.format.limits import HEADER_BYTES, TENSORS
from lora_registry.format.rules import KEY, check_document


@dataclass(frozen=True, slots=True)
class EncodedAdapter:
    """A native file that is ready to be written.

    Attributes:
        document: canonical JSON of the metadata.
        tensors: key in the file to tensor.
    """

    document: bytes
    tensors: dict[str, Tensor]

    def chunks(self) -> Iterator[bytes | memoryview]:
        """The bytes of the file. Equal adapters give equal bytes."""
        yield from encode_tensors(self.tensors, {KEY: self.document.decode("utf-8")})


def encode_adapter(adapter: Adapter) -> EncodedAdapter:
    """Check ``adapter`` by every rule, its stated digests against the data included, and lay it out.

    Raises:
        InvalidInputError: a rule is broken; carries every finding.
        IntegrityError: the bytes of a tensor do not have the digest that is stated (R-035), and nothing else is wrong.
    """
    tensors = {tensor_key(target.name, role): tensor for target in adapter for role, tensor in target.tensors.items()}
    document = to_document(adapter)
    findings = check_document(document, {key: (tensor.dtype, tensor.shape) for key, tensor in tensors.items()})
    findings += [*_twice(adapter), *check_data(adapter)]
    if findings:
        raise _broken(findings)
    try:
        encoded = EncodedAdapter(encode(document), tensors)
    except JsonError as error:
        raise _broken([Finding("R-012", KEY, str(error))]) from None
    if findings := _framing(encoded):
        raise _broken(findings)
    return encoded


def _broken(findings: list[Finding]) -> LoregError:
    return refusal("the adapter breaks its format", findings)


def _twice(adapter: Adapter) -> Iterator[Finding]:
    """Targets of one name would become one key of the document, and all but the last would be lost."""
    for before, target in pairwise(adapter):
        if before.name == target.name:
            yield Finding("R-012", f"targets/{target.name}", "there are two targets of this name")


def _framing(encoded: EncodedAdapter) -> list[Finding]:
    """R-001 and R-010 on the header as the reader will see it, so that what is written can be read."""
    if len(encoded.tensors) > TENSORS:
        return [Finding("R-010", "header", f"{len(encoded.tensors)} tensors, at most {TENSORS}")]
    header = len(next(encoded.chunks())) - 8
    if header > HEADER_BYTES:
        return [Finding("R-001", "header", f"{header} bytes are beyond the limit of {HEADER_BYTES}")]
    return []


def write_adapter(adapter: Adapter, path: Path, *, overwrite: bool = False) -> Digest:
    """Write a native file, whole or not at all.

    Returns:
        sha256 of the file.

    Raises:
        InvalidInputError: a rule is broken; nothing is written.
        IntegrityError: the bytes of a tensor do not have the digest that is stated; nothing is written.
        ConflictError: ``path`` exists and ``overwrite`` is false.
        MachineError: the disk is full, or failed; nothing is left.
    """
    encoded = encode_adapter(adapter)
    state = hashlib.sha256()
    with atomic_write(path, overwrite=overwrite) as stream:
        for chunk in encoded.chunks():
            state.update(chunk)
            stream.write(chunk)
    return Digest(state.hexdigest())
