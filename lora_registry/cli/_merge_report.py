"""What ``loreg merge`` prints: what it did, or what it would do."""

from __future__ import annotations

from math import isnan
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from lora_registry.cli._output import print_fields, print_table, size
from lora_registry.text import plural, printable

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from lora_registry.adapter import Json
    from lora_registry.merge.preview import FilePreview, Preview
    from lora_registry.merge.receipt import Receipt
    from lora_registry.merge.undo.patch import UndoSize

_LARGE = 0.75  # of the base, a patch that hardly saves anything

_VERDICTS = {
    "exact": "the one that the adapter was made for, by its fingerprints",
    "same-shapes": "fits in names and shapes; its weights are other ones, or not known to be the same",
}


def print_receipt(receipt: Receipt, output: Path, undo: UndoSize | None = None) -> None:
    """What a merge did, and how large the reverse patch became that was written after it."""
    from lora_registry.merge.receipt import receipt_path

    click.echo(f"merged into {click.style(printable(str(output)), bold=True)}")
    measured = [record.fidelity.relative_error for record in receipt.tensors if record.fidelity is not None]
    losses = [loss for loss in measured if not isnan(loss)]  # of the others, a warning speaks
    print_fields(
        [
            ("adapter", receipt.adapter),
            ("base", _VERDICTS[receipt.verdict]),
            ("view", None if receipt.view is None else _view(receipt.view)),
            ("merged", f"{plural(len(receipt.tensors), 'tensor')} from {_targets(receipt)}"),
            ("lost to rounding", f"{max(losses):.2%} of the worst change, {sum(losses) / len(losses):.2%} on average")
            if losses
            else ("lost to rounding", None),
            ("written", ", ".join(f"{record.name} ({size(record.size)})" for record in receipt.outputs[:4])),
            ("receipt", receipt_path(output)),
            ("undo", None if undo is None else undo_size(undo)),
        ]
    )
    _print_notes(receipt.notes)
    _print_warnings(receipt.warnings)


def undo_size(undo: UndoSize) -> str:
    """How large a reverse patch is, against what it brings back."""
    share = undo.patch / undo.base if undo.base else 0.0
    said = f"{size(undo.patch)}, {share:.0%} of the base, of whose {size(undo.base)} {size(undo.changed)} changed"
    return f"{said}; the base itself is hardly larger" if share > _LARGE else said


def print_preview(preview: Preview, output: Path) -> None:
    """What a merge would do."""
    from lora_registry.merge.ranges import Treatment

    click.echo(f"would merge into {click.style(printable(str(output)), bold=True)}; nothing was written")
    rows = [_file_row(file) for file in preview.files]
    print_table(
        ["file", "size", "ranges", "copied", "merged", "converted", "added"],
        rows,
        right=["size", "ranges", "copied", "merged", "converted", "added"],
    )
    print_fields(
        [
            ("base", _VERDICTS[preview.verdict]),
            ("view", None if preview.view is None else _view(preview.view)),
            ("merged", f"{plural(len(preview.tensors), 'tensor')}, {size(preview.bytes(Treatment.MERGE))}"),
            ("copied", size(preview.bytes(Treatment.COPY))),
            ("dtypes", ", ".join(f"{plural(count, 'tensor')} {name}" for name, count in preview.dtypes.items())),
            ("ties", ", ".join(f"{name} = {source}" for name, source in preview.ties.items())),
            ("other files", size(preview.others) if preview.others else None),
            ("room", f"{size(preview.needed)} needed, {size(preview.free)} free"),
        ]
    )
    _print_notes(preview.notes)
    _print_warnings(preview.cautions)


def print_onnx_preview(preview: Mapping[str, Any], output: Path) -> None:
    """What a merge into an ONNX model would do."""
    click.echo(f"would merge into {click.style(printable(str(output)), bold=True)}; nothing was written")
    print_fields(
        [
            ("base", _VERDICTS[preview["verdict"]]),
            ("merged", f"{plural(len(preview['targets']), 'target')}, {size(preview['bytes']['merge'])}"),
            ("graph", preview["graph"]),
            ("data files", ", ".join(f"{file['name']} ({size(file['size'])})" for file in preview["files"][:4])),
        ]
    )
    _print_notes(preview["notes"])


def _file_row(file: FilePreview) -> list[str]:
    from lora_registry.merge.ranges import Treatment

    ways = (Treatment.COPY, Treatment.MERGE, Treatment.CONVERT, Treatment.ADD)
    return [file.name, size(file.size), str(len(file.ranges)), *(size(file.bytes(way)) for way in ways)]


def _print_notes(notes: Iterable[str]) -> None:
    for note in notes:
        click.echo(f"{click.style('note', fg='cyan')}     {printable(note)}", err=True)


def _print_warnings(warnings: Iterable[str]) -> None:
    for warning in warnings:
        click.echo(f"{click.style('warning', fg='yellow')}  {printable(warning)}", err=True)


def _view(view: Mapping[str, Json]) -> str:
    return ", ".join(str(value) if key == "scheme" else f"{key} {value}" for key, value in view.items())


def _targets(receipt: Receipt) -> str:
    return plural(len({record.target for record in receipt.tensors}), "target")
