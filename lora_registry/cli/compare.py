"""``loreg compare``."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from math import sqrt
from typing import TYPE_CHECKING

import click

from lora_registry.cli._adapters import ADAPTER
from lora_registry.cli._algebra import print_notes, sound
from lora_registry.cli._command import command, json_option, registry_option
from lora_registry.cli._output import print_fields, print_json, print_prefix, print_table
from lora_registry.cli._picture import draw, family
from lora_registry.cli._progress import progress, status
from lora_registry.text import listed, plural, printable

if TYPE_CHECKING:
    from lora_registry.algebra.similarity import Comparison, Similarity


@command(
    "compare",
    examples="""
loreg compare support/tone:1 support/tone:2
loreg compare ./my-peft-adapter support/facts:3 --targets
loreg compare support/tone:1 support/facts:3 --json
""",
)
@click.argument("one", metavar="ADAPTER", type=ADAPTER)
@click.argument("other", type=ADAPTER)
@click.option("--targets", is_flag=True, help="List every target instead of grouping them by name.")
@click.option("--dense", is_flag=True, help="Multiply out LoHa, LoKr and sparse changes, which have no two factors.")
@registry_option
@json_option
def compare(one: str, other: str, targets: bool, dense: bool, registry_home: str | None, as_json: bool) -> None:
    """Say how alike the changes of two adapters are, and where they get into each other's way.

    cosine: of the two changes as vectors. outputs, inputs: how much of the space that one acts on, or reads, the other
    does too; 1 is all of it, and unrelated adapters share rank/width. conflict: share of the elements with opposite
    signs. cancelled: share of both that is gone in their sum; unrelated adapters of one size lose 0.29.
    """
    from lora_registry.algebra.similarity import compare as compared
    from lora_registry.ops.agreement import TOLERANCE, agree, unseen, with_names_of
    from lora_registry.ops.probe import certify

    first, second = sound(one, registry_home), sound(other, registry_home)
    first, prefix = with_names_of(first, second)
    with status("probing both", quiet=as_json):
        beside = unseen(first, second)
        differences = [*beside, *agree(certify(first), certify(second), TOLERANCE)]
    with progress("comparing", unit="targets", quiet=as_json) as advance:
        found = compared(first, second, dense=dense, progress=advance)
    if as_json:
        print_json(
            {
                "same": not differences,
                "tolerance": TOLERANCE,
                "prefix": str(prefix),
                "cosine": found.cosine,
                "targets": [similarity.to_json() for similarity in found.targets],
                "only": [list(names) for names in found.only],
                "notes": list(found.notes),
                "beside": [difference.to_json() for difference in beside],
            }
        )
        return
    print_prefix(prefix)
    verdict = f"{'not ' if differences else ''}the same change, tolerance {TOLERANCE:g}"
    reasons = sorted({difference.reason for difference in beside})
    _print(found, "; ".join([verdict, *reasons]), each=targets)


def _print(found: Comparison, verdict: str, *, each: bool) -> None:
    numbers = ("cosine", "outputs", "inputs", "conflict", "cancelled")
    if each:
        print_table(("target", *numbers), [(one.target, *_figures([one])) for one in found.targets], right=numbers)
    elif found.targets:
        groups: dict[str, list[Similarity]] = defaultdict(list)
        for similarity in found.targets:
            groups[family(similarity.target)].append(similarity)
        rows = [(len(group), name, *_figures(group)) for name, group in groups.items()]
        print_table(("count", "target", *numbers), rows, right=("count", *numbers))
    if found.targets:
        click.echo("cancelled, layer by layer:")
        for line in draw({one.target: one.cancelled for one in found.targets}):
            click.echo(printable(line))
        click.echo()
    both = f"{plural(len(found.targets), 'target')}, cosine {found.cosine:z.4f}" if found.targets else None
    first, second = (listed(names) if names else None for names in found.only)
    print_fields([("probe", verdict), ("both change", both), ("only the first", first), ("only the second", second)])
    print_notes(found.notes)


def _figures(group: Sequence[Similarity]) -> list[str]:
    """The cosine of a group as one vector, and the means of the other figures."""
    from lora_registry.algebra.similarity import cosine

    sizes = [sqrt(sum(one.norms[side] ** 2 for one in group)) for side in (0, 1)]
    means = (
        sum(figure) / len(group)
        for figure in zip(*((one.outputs, one.inputs, one.conflict, one.cancelled) for one in group), strict=True)
    )
    return [f"{number:z.3f}" for number in (cosine(sum(one.inner for one in group), *sizes), *means)]
