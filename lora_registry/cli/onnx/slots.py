"""``loreg onnx slots``."""

from __future__ import annotations

from pathlib import Path

import click

from lora_registry.cli._adapters import ADAPTER, open_sound
from lora_registry.cli._command import command, json_option, registry_option
from lora_registry.cli._output import print_fields, print_json, print_table
from lora_registry.text import listed, plural, printable


@command(
    "slots",
    examples="""
loreg onnx slots base.onnx -o switchable.onnx --adapter support/tone:1 --adapter support/french:2
loreg onnx slots base.onnx -o switchable.onnx --targets '*_proj.weight' --base ./base
loreg onnx slots base.onnx -o batched.onnx --targets '*_proj.weight' --batched
""",
)
@click.argument("model", type=click.Path(path_type=Path))
@click.option(
    "-o", "--output", "out", type=click.Path(path_type=Path), required=True, help="The switchable model to write."
)
@click.option(
    "--adapter", "adapters", type=ADAPTER, multiple=True, help="Make slots for its targets.  [repeat for more]"
)
@click.option(
    "--targets",
    "patterns",
    metavar="PATTERN",
    multiple=True,
    help="Make slots for all tensors whose names match, such as '*.q_proj.weight'.  [repeat for more]",
)
@click.option("--base", type=click.Path(path_type=Path), help="Checkpoint of the model, to find weights by value.")
@click.option("--batched", is_flag=True, help="Let each row of a batch choose its own adapter.")
@click.option("--overwrite", is_flag=True, help="Replace outputs that exist.")
@registry_option
@json_option
def slots(
    model: Path,
    out: Path,
    adapters: tuple[str, ...],
    patterns: tuple[str, ...],
    base: Path | None,
    batched: bool,
    overwrite: bool,
    registry_home: str | None,
    as_json: bool,
) -> None:
    """Write a copy of MODEL with slots for adapters: inputs that may be left out.

    While no adapter is given, the copy computes what MODEL computes, bit for bit. MODEL may be from any exporter and
    quantized; it is never changed. `loreg convert ADAPTER x.onnx_adapter --model SWITCHABLE` makes what ONNX Runtime
    feeds to the slots, of any rank.
    """
    from lora_registry.merge.bases.base import open_base
    from lora_registry.onnx.slots.insert import add_slots

    opened = [open_sound(adapter, registry_home).adapter for adapter in adapters]
    made = add_slots(
        model,
        out,
        adapters=opened,
        patterns=patterns,
        base=open_base(base) if base is not None else None,
        batched=batched,
        overwrite=overwrite,
    )
    manifest = made.manifest
    if as_json:
        print_json(
            {
                "batched": manifest.batched,
                "model_version": manifest.model_version,
                "slots": {name: slot.record() for name, slot in manifest.slots.items()},
                "variable": list(made.variable),
                "files": [{"name": each.name, "size": each.size, "digest": str(each.digest)} for each in made.files],
            }
        )
        return
    rows = (
        (name, slot.kind, f"{slot.width} → {slot.height}", slot.dtype, ", ".join(slot.nodes))
        for name, slot in manifest.slots.items()
    )
    print_table(("target", "kind", "in → out", "dtype", "nodes"), rows)
    kind = "batched" if manifest.batched else "switchable"
    click.echo(f"wrote {printable(str(out))}: {kind}, {plural(len(manifest.slots), 'slot')}")
    print_fields([("model version", str(manifest.model_version))])
    if made.variable:
        click.echo(
            f"{listed(made.variable)}: computed once so far, when the model is opened; its results can differ from the "
            "base's in the last bits"
        )
