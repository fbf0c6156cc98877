"""The plan of a merge whose output is quantized as the base is: the same tensors, of which some have other bytes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from lora_registry.errors import UnsupportedError
from lora_registry.format.container import Entry, encode_header
from lora_registry.merge.bases.requantized import StoredCheckpoint
from lora_registry.merge.plan import FilePlan, Part, Plan, lay_out


def requantized(plan: Plan, base: StoredCheckpoint) -> Plan:
    """The plan for the stored tensors.

    Args:
        plan: that for the values which they stand for.
        base: the stored tensors.

    Raises:
        UnsupportedError: a changed weight cannot be quantized again, or the output would need another tensor.
    """
    from lora_registry.quantized.encoding.choice import encoder_for  # not at the start of every merge

    new = [part for file in plan.files for part in file.parts if part.name in plan.added]
    for part in new:
        if part.source is not None and base.view.is_computed(part.source):
            raise UnsupportedError(
                f"{part.name} would need values of its own, and nothing says how these would be quantized; choose to "
                f"change every use of {part.source} (tied: both)"
            )
    changed = {part.name: part for file in plan.files for part in file.parts if part.changes}
    weights: dict[str, Part] = {}
    for name, part in changed.items():
        if part.source is not None and base.view.is_computed(part.source):
            weights.update(dict.fromkeys(encoder_for(base.weight(name), name).parts, part))
    if new and base.kind == "gguf":
        raise UnsupportedError(f"{new[0].name} would be a new tensor, and a GGUF file keeps those that it has")
    files = tuple(
        _file(file, base, changed, weights, [part for part in new if plan.added[part.name] == file.origin])
        for file in plan.files
    )
    return replace(plan, files=files)


def _file(
    file: FilePlan, base: StoredCheckpoint, changed: Mapping[str, Part], weights: Mapping[str, Part], new: list[Part]
) -> FilePlan:
    container = base.shards[file.origin]
    names = base.names_in(file.origin)
    specs = {name: (container.entries[name].dtype, container.entries[name].shape) for name in names}
    specs.update({part.name: (part.entry.dtype, part.entry.shape) for part in new})
    entries = lay_out(specs)
    same = entries == container.entries
    head = base.head(file.origin) if same else encode_header(entries, container.metadata)
    brought = {part.name: part for part in new}
    parts = tuple(_part(name, entry, base, changed, weights, brought) for name, entry in entries.items())
    follows = [name for name in entries if name in container.entries] == names and bool(names) and not base.is_pickled
    return FilePlan(base.written_name(file.origin), file.origin, head, parts, follows, same)


def _part(
    name: str,
    entry: Entry,
    base: StoredCheckpoint,
    changed: Mapping[str, Part],
    weights: Mapping[str, Part],
    brought: Mapping[str, Part],
) -> Part:
    if name in brought:
        return replace(brought[name], entry=entry)
    if name in weights:
        part = weights[name]
        return Part(name, entry, name, part.changes, weight=part.name)
    logical = changed.get(name)
    plain = logical is not None and not base.view.is_computed(name)
    return Part(name, entry, name, logical.changes if plain and logical is not None else ())
