"""``loreg probe``."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from lora_registry.cli._adapters import ADAPTER, open_sound
from lora_registry.cli._command import command, json_option, registry_option
from lora_registry.cli._output import print_json, print_prefix, print_table
from lora_registry.cli._progress import status
from lora_registry.errors import EXIT_FINDINGS
from lora_registry.text import plural, printable

if TYPE_CHECKING:
    from lora_registry.ops.agreement import Difference
    from lora_registry.ops.prefix import Prefix
    from lora_registry.ops.probe import Certificate

_SHOWN = 20  # differences on a terminal or in a pipe; --json has them all


@command(
    "probe",
    examples="""
loreg probe support/tone:1
loreg probe tone.loreg.safetensors --json > tone.probe.json
loreg probe ./my-peft-adapter tone.loreg.safetensors
loreg probe support/tone:1 support/tone:2 --tolerance 1e-3
""",
)
@click.argument("adapter", type=ADAPTER)
@click.argument("other", type=ADAPTER, required=False)
@click.option(
    "--tolerance",
    type=click.FloatRange(min=0),
    default=1e-6,
    show_default=True,
    help="Largest relative difference at which two changes are the same.",
)
@registry_option
@json_option
@click.pass_context
def probe(
    ctx: click.Context,
    adapter: str,
    other: str | None,
    tolerance: float,
    registry_home: str | None,
    as_json: bool,
) -> None:
    """Print the probe certificate of ADAPTER, or say whether it makes the same change as OTHER.

    Eight numbers for each changed tensor follow from the change alone, whatever the format, the scale or the
    factors that it is written in. Exit 1 where the two differ; the worst difference is listed first.
    """
    from lora_registry.ops.probe import certify

    one = open_sound(adapter, registry_home).adapter
    if other is None:
        with status("probing", quiet=as_json):
            certificate = certify(one)
        _show(adapter, certificate, as_json=as_json)
        return
    from lora_registry.ops.agreement import agree, unseen, with_names_of

    second = open_sound(other, registry_home).adapter
    one, prefix = with_names_of(one, second)
    with status("probing both", quiet=as_json):
        found = [*unseen(one, second), *agree(certify(one), certify(second), tolerance)]
    if as_json:
        print_json(
            {
                "same": not found,
                "tolerance": tolerance,
                "prefix": str(prefix),
                "differences": [difference.to_json() for difference in found],
            }
        )
    else:
        _compare(found, prefix, targets=len(second), tolerance=tolerance)
    if found:
        ctx.exit(EXIT_FINDINGS)


def _show(source: str, certificate: Certificate, *, as_json: bool) -> None:
    if as_json:
        print_json({"source": source, "targets": certificate.to_json()})
        return
    rows = [
        (name, component, *(f"{number:.6g}" for number in found.numbers))
        for name, probes in certificate.targets.items()
        for component, found in probes.items()
    ]
    numbers = [f"p{index}" for index in range(8)]
    print_table(("target", "component", *numbers), rows, right=numbers)


def _compare(found: list[Difference], prefix: Prefix, *, targets: int, tolerance: float) -> None:
    print_prefix(prefix)
    if not found:
        click.echo(f"the same change: {plural(targets, 'target')}, within {tolerance:g}")
        return
    for difference in found[:_SHOWN]:
        place = " ".join(part for part in (difference.target, difference.component) if part)
        apart = "" if difference.relative is None else f" by {difference.relative:.3g}"
        click.echo(f"{printable(place)}: {difference.reason}{apart}")
    if len(found) > _SHOWN:
        click.echo(f"… and {len(found) - _SHOWN} more; --json lists them all")
    click.echo(f"not the same change: {plural(len(found), 'difference')}, tolerance {tolerance:g}")
