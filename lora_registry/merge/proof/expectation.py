"""Which tensors a merged checkpoint has to hold, and which targets change each, whoever wrote it.

What becomes of tied tensors is a choice (``spec/merging.md``, section 3). It is read off the checkpoint that is
judged: two tensors of their own were untied, one that is shared was changed for both uses.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from lora_registry.adapter import Json, Target
from lora_registry.merge.bases.base import Checkpoint
from lora_registry.merge.bases.ties import FLAG, second_ties, tie_flag
from lora_registry.merge.fitting.fit import Change
from lora_registry.merge.fitting.growth import resized
from lora_registry.merge.proof.untouched import same_bytes
from lora_registry.ops.tied import TiedPolicy, policy_for
from lora_registry.text import listed

_DESCRIPTIVE = frozenset({FLAG, "dtype", "torch_dtype", "transformers_version", "_name_or_path", "text_config"})
"""Fields of a configuration that a program may write otherwise without making it that of another model."""


@dataclass(frozen=True, slots=True)
class Expected:
    """One tensor of the merged checkpoint.

    Attributes:
        source: name of the base tensor that it comes from; None for one that the adapter brings.
        targets: what changes it.
    """

    source: str | None
    targets: tuple[Target, ...] = ()


@dataclass(slots=True)
class Expectation:
    """What a merged checkpoint has to be.

    Attributes:
        tensors: name to what it holds, for every tensor that is there and has a reason to be.
        problems: what is missing, too much, or contradicts itself, one sentence each.
        notes: what was read off the checkpoint.
    """

    tensors: dict[str, Expected] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def expect(changes: Iterable[Change], base: Checkpoint, merged: Checkpoint, tied: TiedPolicy | None) -> Expectation:
    """Say what ``merged`` has to hold.

    Args:
        changes: what was merged, as the fit found it.
        base: what it was merged into, with room for the rows that it adds.
        merged: what is judged.
        tied: the policy that has to have been followed; None reads it off ``merged``.
    """
    result = Expectation()
    wanted: dict[str, list[Target]] = {}
    for change in changes:
        wanted.setdefault(change.place, []).append(change.target)
    untied: dict[str, str] = {}
    for output, source in base.ties.items():
        own, other = wanted.get(source, []), wanted.pop(output, [])
        _check_flag(result, merged, source, output)
        if output in merged.places and merged.ties.get(output) != source:
            untied[output] = source
            shared = [target for target in own if policy_for(target, "untie") == "both"]
            wanted[output] = [*other, *shared]
            both = [*own, *(target for target in other if policy_for(target, "untie") == "both")]
            wanted[source] = both
            if tied == "both":
                result.problems.append(f"{output} and {source} were untied, and both were to be changed")
            result.notes.append(f"{output} and {source} are untied: each has its own values")
        else:
            wanted[source] = [*own, *other]
            if output in merged.places:
                untied[output] = source
                wanted[output] = wanted[source]
            _note_shared(result, wanted[source], source, output, tied)
    _collect(result, wanted, base, merged, untied)
    if base.vocabulary is not None and resized(merged.config, *base.vocabulary) != merged.config:
        before, after = base.vocabulary
        result.problems.append(f"config.json says that there are {before} tokens, and the tables have {after} rows")
    _compare_configurations(result, base.written_config if merged.scheme is None else base.config, merged.config)
    return result


def _note_shared(result: Expectation, targets: list[Target], source: str, output: str, tied: TiedPolicy | None) -> None:
    if not any(policy_for(target, "untie") == "untie" for target in targets):
        return
    if tied == "untie":
        result.problems.append(f"{output} and {source} are still tied, and only one of them was to be changed")
    result.notes.append(f"{output} and {source} are tied, so that both uses changed (tied: both)")


def _check_flag(result: Expectation, merged: Checkpoint, source: str, output: str) -> None:
    """A loader that ties two tensors with values of their own drops one of them."""
    if tie_flag(merged.config) is True and {source, output} <= merged.places.keys():
        one, other = merged.array(source), merged.array(output)
        if one.shape != other.shape or one.dtype != other.dtype or not same_bytes(one, other):
            result.problems.append(
                f"config.json ties {output} to {source}, and they hold different values: a loader keeps one of them"
            )


def _collect(
    result: Expectation,
    wanted: Mapping[str, list[Target]],
    base: Checkpoint,
    merged: Checkpoint,
    untied: Mapping[str, str],
) -> None:
    sources: dict[str, str | None] = {name: name for name in base.places}
    sources |= {name: source for name, source in untied.items() if name not in sources}
    sources |= {name: None for name in wanted if name not in sources}
    ways = second_ties(base.places)
    sources |= {name: source for name, source in ways.items() if name in merged.places and name not in sources}
    missing = []
    for name, source in sources.items():
        if name in merged.places:
            result.tensors[name] = Expected(source, tuple(wanted.get(name, ())))
        elif name in merged.ties and base.ties.get(name) == merged.ties[name]:
            result.notes.append(f"{name} is not stored; it is tied to {merged.ties[name]}")
        else:
            missing.append(name)
    extra = sorted(merged.places.keys() - sources.keys())
    if missing:
        result.problems.append(f"missing: {listed(sorted(missing))}")
    if extra:
        result.problems.append(f"neither the base nor the adapter has: {listed(extra)}")


def _compare_configurations(result: Expectation, base: Mapping[str, Json], merged: Mapping[str, Json]) -> None:
    if not base or not merged:
        return
    other = sorted(
        key for key in base.keys() | merged.keys() if key not in _DESCRIPTIVE and base.get(key) != merged.get(key)
    )
    if other:
        result.notes.append(f"config.json says something else than the base's about {listed(other)}")
