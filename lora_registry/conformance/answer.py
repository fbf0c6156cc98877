"""loreg itself as a program that is asked: every class, all features."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from lora_registry import __version__
from lora_registry.adapter import Adapter, Json, Kind, Target, Tensor
from lora_registry.conformance.protocol import FORMAT, OPERATIONS, Hello, accepted, rejected
from lora_registry.errors import IntegrityError, InvalidInputError, LoregError, refusal
from lora_registry.format.container import open_container
from lora_registry.format.data_rules import check_data
from lora_registry.format.edit import edited
from lora_registry.format.features import FEATURES
from lora_registry.format.identity import base_root, content_digest
from lora_registry.format.reader import check_file, read_adapter
from lora_registry.format.writer import encode_adapter
from lora_registry.ops.arrays import Array, from_array, round_to, to_array, widened
from lora_registry.ops.change import merged, own_weight, refuse_nonfinite
from lora_registry.ops.fingerprint import target_fingerprint
from lora_registry.ops.mergeable import refuse_gate, refuse_groups
from lora_registry.ops.probe import certify


def serve(requests: Iterable[str]) -> Iterator[str]:
    """One line of JSON for each line of ``requests``."""
    for line in requests:
        yield json.dumps(respond(line))


def respond(line: str) -> dict[str, Json]:
    """The answer to one request; one with the member ``error`` where there is none."""
    try:
        request = Request.of(line)
        return _ANSWERS[request.operation](request)
    except (InvalidInputError, IntegrityError) as error:
        return rejected(error.code)
    except (LoregError, OSError, ValueError) as error:
        return {"error": " ".join(str(error).split())}


@dataclass(frozen=True, slots=True)
class Request:
    """What is asked.

    Attributes:
        operation: one of those below, or ``hello``.
        members: the other members.
    """

    operation: str
    members: Mapping[str, Json]

    @classmethod
    def of(cls, line: str) -> Request:
        """Read a request.

        Raises:
            ValueError: it is none that anybody here answers.
        """
        request = json.loads(line)
        if not isinstance(request, dict) or request.get("op") not in _ANSWERS:
            raise ValueError("no such operation")
        return cls(str(request["op"]), request)

    def text(self, name: str) -> str:
        """The member ``name``, a string.

        Raises:
            ValueError: it is missing, or something else.
        """
        value = self.members.get(name)
        if not isinstance(value, str):
            raise ValueError(f"{name!r} is no string")
        return value

    def adapter(self, name: str = "file") -> Adapter:
        """The adapter that ``name`` leads to, with all bytes looked at.

        Raises:
            InvalidInputError: it breaks a rule, R-035 excepted.
            IntegrityError: it breaks R-035 alone.
        """
        path = Path(self.text(name))
        adapter = read_adapter(path)
        if findings := check_data(adapter):
            raise refusal(str(path), findings)
        return adapter


def _hello(request: Request) -> dict[str, Json]:
    return Hello("loreg", __version__, FORMAT, tuple(OPERATIONS), FEATURES).to_json()


def _read(request: Request) -> dict[str, Json]:
    adapter = request.adapter()
    root = base_root(adapter)
    stated: dict[str, Json] = {} if root is None else {"root": str(root)}
    return accepted(content=str(content_digest(adapter)), **stated)


def _validate(request: Request) -> dict[str, Json]:
    return {"rules": list[Json](sorted({finding.rule for finding in check_file(Path(request.text("file")))}))}


def _write(request: Request) -> dict[str, Json]:
    return accepted(bytes=_file(request.adapter()))


def _edit(request: Request) -> dict[str, Json]:
    adapter = request.adapter()
    return accepted(bytes=_file(edited(adapter, info={**adapter.info, "title": request.text("title")})))


def _file(adapter: Adapter) -> str:
    return b"".join(encode_adapter(adapter).chunks()).hex()


def _merge(request: Request) -> dict[str, Json]:
    adapter = request.adapter("adapter")
    # Not check_mergeable: rows that grow a table are merged here, where no configuration is written (P-042).
    refuse_gate(adapter, "a merged tensor would be on always")
    for target in adapter:
        refuse_groups(target)
    tensors: dict[str, Json] = {}
    fingerprints: dict[str, Json] = {}
    with open_container(Path(request.text("base"))) as base:
        for target in adapter:
            if target.name not in base.entries:
                raise InvalidInputError(f"the base has no tensor {target.name} (P-012)")
            stored = to_array(base.tensor(target.name))
            fingerprints[target.name] = _compared(target, stored)
            tensors[target.name] = _record(_merged(target, stored))
    return accepted(tensors=tensors, fingerprints=fingerprints)


def _compared(target: Target, stored: Array) -> str:
    if target.fingerprint is None:
        return "none"
    return "same" if target_fingerprint(target, stored) == target.fingerprint else "other"


def _merged(target: Target, stored: Array) -> Tensor:
    """W' in the element type of W, rounded once.

    Raises:
        InvalidInputError: W has another shape than the target says (P-012), or W' is not finite where W is (P-016).
    """
    shape = target.shape
    if target.kind is Kind.TOKENS:
        shape = (stored.shape[0] if shape is None else shape[0], target.tensors["value"].shape[1])
    elif target.kind is Kind.FULL:
        shape = target.tensors["value"].shape
    if stored.shape != shape:
        raise InvalidInputError(f"{target.name}: the base tensor has another shape than the target (P-012)")
    written = from_array(round_to(merged(target, stored), from_array(stored).dtype))
    value = own_weight(target)
    result, before = (widened(w).reshape(-1) for w in (to_array(written), stored if value is None else value))
    if before.dtype.kind == "f":
        refuse_nonfinite(target.name, 0, before, result[: before.size])
        refuse_nonfinite(target.name, before.size, None, result[before.size :])  # rows that are added
    return written


def _record(tensor: Tensor) -> Json:
    return {"dtype": tensor.dtype, "shape": list[Json](tensor.shape), "data": bytes(tensor.data).hex()}


def _probe(request: Request) -> dict[str, Json]:
    certificate = certify(request.adapter()).to_json()
    return accepted(
        targets={
            name: {component: list[Json](numbers) for component, numbers in components.items()}
            for name, components in certificate.items()
        }
    )


_ANSWERS: Mapping[str, Callable[[Request], dict[str, Json]]] = {
    "hello": _hello,
    "read": _read,
    "validate": _validate,
    "write": _write,
    "edit": _edit,
    "merge": _merge,
    "probe": _probe,
}
