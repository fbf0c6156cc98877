"""``loreg push``."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from lora_registry.cli._adapters import ADAPTER, open_any
from lora_registry.cli._command import command, json_option, registry_option
from lora_registry.cli._output import print_fields, print_json, size
from lora_registry.cli._progress import progress
from lora_registry.cli._report import print_report, refuse_losses
from lora_registry.cli._texts import LICENSE, NAME, WORD
from lora_registry.registry import Registry
from lora_registry.text import plural

if TYPE_CHECKING:
    from lora_registry.adapter import Adapter


@command(
    "push",
    examples="""
loreg push ./my-peft-adapter support/tone:1
loreg push ./my-peft-adapter support/tone:2 --license Apache-2.0 --base ./base
loreg push tone.loreg.safetensors support/tone:prod --move
""",
)
@click.argument("adapter", type=ADAPTER)
@click.argument("reference")
@click.option("--from", "format_name", metavar="FORMAT", help="Read ADAPTER as this format instead of detecting it.")
@click.option(
    "--base", type=click.Path(path_type=Path), help="Base model; records a fingerprint of each touched tensor."
)
@click.option("--base-name", type=NAME, help="What people call the base model.")
@click.option("--base-revision", type=WORD, help="Commit or version of the base model.")
@click.option("--base-license", type=LICENSE, metavar="SPDX", help="License of the base model.")
@click.option("--base-view", type=WORD, metavar="SCHEME", help="Quantization it was trained on, such as nf4 or int8.")
@click.option("--license", "license_", type=LICENSE, metavar="SPDX", help="License of the adapter, such as Apache-2.0.")
@click.option("--title", help="One line that says what the adapter is for.")
@click.option("--move", is_flag=True, help="Let the tag move if it already points elsewhere.")
@click.option("--strict", is_flag=True, help="Refuse if the conversion drops anything.")
@registry_option
@json_option
def push(
    adapter: str,
    reference: str,
    format_name: str | None,
    base: Path | None,
    base_name: str | None,
    base_revision: str | None,
    base_license: str | None,
    base_view: str | None,
    license_: str | None,
    title: str | None,
    move: bool,
    strict: bool,
    registry_home: str | None,
    as_json: bool,
) -> None:
    """Convert, validate and store ADAPTER under REFERENCE.

    REFERENCE is repository:tag, such as support/tone:1. Pushing the same thing again changes nothing; a tag
    that points to something else is left alone unless --move is given.
    """
    opened = open_any(adapter, registry_home, format_name)
    refuse_losses(opened.report, strict=strict)
    described = _describe(
        opened.adapter,
        _said(name=base_name, revision=base_revision, license=base_license)
        | ({"view": {"scheme": base_view}} if base_view is not None else {}),
        _said(title=title, license=license_),
    )
    if base is not None:
        from lora_registry.merge.fitting.pin import pin

        with progress("fingerprinting the base", unit="targets", quiet=as_json) as advance:
            described = pin(described, base, progress=advance)
    record = Registry.open(registry_home).push(described, reference, move=move)
    if as_json:
        report = opened.report.to_json() if opened.report else None
        print_json({**record.to_json(), "conversion": report})
        return
    state = "already there" if record.unchanged else "pushed"
    click.echo(f"{state} {click.style(str(record.reference), bold=True)}")
    print_fields(
        [
            ("digest", record.digest),
            ("content", record.content),
            ("size", size(record.size)),
            ("targets", f"{plural(len(described), 'target')}, {plural(described.parameters, 'parameter')}"),
            ("base", described.base.name),
            ("license", described.info.get("license")),
        ]
    )
    print_report(opened.report)


def _describe(adapter: Adapter, base: dict[str, Any], info: dict[str, Any]) -> Adapter:
    """The adapter with what the command line says about it; the same one where that is nothing."""
    from lora_registry.format.edit import edited

    if not base and not info:
        return adapter
    return edited(adapter, base=replace(adapter.base, **base), info={**adapter.info, **info})


def _said(**options: str | None) -> dict[str, Any]:
    return {name: value for name, value in options.items() if value is not None}
