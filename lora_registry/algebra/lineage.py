"""What an adapter that was computed from others says about itself: its base, its parents, its license.

What all parents agree on is kept. What they contradict each other in is either refused (the base), or left out
with a note (everything that describes). Foreign configurations are left out: they describe the parents' files.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, replace

from lora_registry.adapter import Adapter, Base, Json, Target
from lora_registry.digest import Digest
from lora_registry.errors import InvalidInputError
from lora_registry.format.edit import edited
from lora_registry.format.identity import content_digest
from lora_registry.text import plural


@dataclass(frozen=True, slots=True)
class Parent:
    """An adapter that another one is made from.

    Attributes:
        adapter: the adapter.
        name: what people call it, such as a reference; empty where they do not. Never a local path.
    """

    adapter: Adapter
    name: str = ""


def descendant(
    parents: Sequence[Parent],
    targets: Iterable[Target],
    operation: str,
    parameters: Mapping[str, Json],
    *,
    force: bool = False,
) -> tuple[Adapter, tuple[str, ...]]:
    """The adapter of ``targets`` with what its parents pass on.

    Args:
        parents: one at least, in the order of the operation. What describes a single parent is kept.
        targets: of the new adapter.
        operation: what was done, one word.
        parameters: how; JSON.
        force: leave out what the parents contradict each other in about the base, instead of refusing.

    Returns:
        The adapter, and a line about each thing that was left out.

    Raises:
        InvalidInputError: the parents are made for different bases.
        UnsupportedError: a parent says that changing it needs an editor that knows more.
    """
    notes: list[str] = []
    base = _common_base([parent.adapter.base for parent in parents], force, notes)
    heirs = [edited(parent.adapter) for parent in parents]
    lineage: dict[str, Json] = {
        "operation": operation,
        "parameters": dict(parameters),
        "parents": [_record(parent) for parent in parents],
    }
    if len(heirs) == 1:
        return replace(heirs[0], targets=tuple(targets), origin={}, lineage=lineage), ()
    info = {key: value for key, value in heirs[0].info.items() if key == "license"}
    if any(heir.info.get("license") != info.get("license") for heir in heirs):
        info = {}
        notes.append("license: the parents do not state one and the same; left out")
    made = Adapter(
        targets=tuple(targets),
        base=base,
        info=info,
        tokenizer=_common("tokenizer", [heir.tokenizer for heir in heirs], notes),
        lineage=lineage,
        requires_read=frozenset[str]().union(*(heir.requires_read for heir in heirs)),
        requires_write=frozenset[str]().union(*(heir.requires_write for heir in heirs)),
        extensions=_common("extensions", [heir.extensions for heir in heirs], notes),
        extra=_common("unknown fields", [heir.extra for heir in heirs], notes),
    )
    return made, tuple(notes)


def _record(parent: Parent) -> dict[str, Json]:
    record: dict[str, Json] = {"content": str(content_digest(parent.adapter))}
    return {**record, "name": parent.name} if parent.name else record


def _common(name: str, values: Sequence[Mapping[str, Json]], notes: list[str]) -> Mapping[str, Json]:
    """The one value of those who have one, or nothing and a note."""
    stated = [value for value in values if value]
    if any(value != stated[0] for value in stated):
        notes.append(f"{name}: the parents contradict each other; left out")
        return {}
    return stated[0] if stated else {}


def _common_base(bases: Sequence[Base], force: bool, notes: list[str]) -> Base:
    """The base of all: each field as those say who state it."""
    agreed = {}
    for field in fields(Base):
        stated = [value for base in bases if (value := getattr(base, field.name))]
        if all(value == stated[0] for value in stated):
            agreed[field.name] = stated[0] if stated else getattr(Base(), field.name)
        elif field.name in ("license", "extra"):
            notes.append(f"base {field.name}: the parents contradict each other; left out")
        elif force:
            notes.append(f"base {field.name}: {' and '.join(map(str, stated))}; forced, and left out")
        else:
            raise InvalidInputError(
                f"the adapters are made for different bases: {field.name} {' and '.join(map(str, stated))}; "
                "refused unless forced"
            )
    return Base(**agreed)


def common_fingerprint(targets: Sequence[Target], force: bool, note: Callable[[str], None]) -> Digest | None:
    """The fingerprint of the base tensor of ``targets``, as those say who state it.

    Raises:
        InvalidInputError: they contradict each other, and nothing is forced.
    """
    stated = {target.fingerprint for target in targets if target.fingerprint is not None}
    if len(stated) < 2:
        return stated.pop() if stated else None
    if not force:
        raise InvalidInputError(
            f"{targets[0].name}: the adapters were made for base tensors with {plural(len(stated), 'fingerprint')}: "
            "not one base; refused unless forced"
        )
    note(f"{targets[0].name}: made for different base tensors; forced, and no fingerprint is stated")
    return None
