"""``loreg extract``."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import click

from lora_registry.cli._algebra import (
    check_output,
    device_option,
    percent,
    print_notes,
    print_retentions,
    ranks,
    result_options,
    truncation_options,
)
from lora_registry.cli._command import command, json_option
from lora_registry.cli._output import print_fields, print_json
from lora_registry.cli._progress import progress
from lora_registry.cli._texts import LICENSE, NAME
from lora_registry.errors import UsageError
from lora_registry.text import listed, plural, printable

if TYPE_CHECKING:
    from lora_registry.algebra.extract import Extraction, Reading
    from lora_registry.ops.base_model import BaseModel


@command(
    "extract",
    examples="""
loreg extract --base ./base --tuned ./tuned -o tuned.loreg.safetensors
loreg extract --base ./base --tuned ./tuned -o tuned.loreg.safetensors --rank 64 --dtype BF16
loreg extract --base base.safetensors --tuned tuned.safetensors -o tuned.loreg.safetensors --energy 0.9 --full
loreg extract --base base.onnx --tuned tuned.onnx -o tuned.loreg.safetensors
""",
)
@click.option(
    "--base", type=click.Path(path_type=Path), required=True, help="Hugging Face folder, .safetensors or .onnx file."
)
@click.option(
    "--tuned", type=click.Path(path_type=Path), required=True, help="The same model after training, of the same form."
)
@truncation_options
@click.option("--full", is_flag=True, help="Take whole values of what is no matrix, and changes of biases.")
@click.option("--base-name", type=NAME, help="What people call the base model.")
@click.option("--base-license", type=LICENSE, help="SPDX license expression of the base model.")
@device_option
@result_options
@json_option
def extract(
    base: Path,
    tuned: Path,
    rank: int | None,
    energy: float | None,
    full: bool,
    base_name: str | None,
    base_license: str | None,
    device: str,
    output: Path,
    dtype: str,
    overwrite: bool,
    as_json: bool,
) -> None:
    """Write the adapter that makes TUNED out of BASE.

    It holds the largest singular values of the difference of each matrix. Without --rank and --energy these are the
    ones that stand above the rounding of TUNED: where a LoRA was merged, its own. Rounding to bfloat16 is a change of
    every weight, which no low rank holds; a note says how large it is, for an error of that size is nothing lost.

    Of ONNX models, the graphs are the same but for the values. Targets are called as in the checkpoint where the
    exporter left its names, and are (out, in) again where it transposed them; other initializers keep their names.
    """
    from lora_registry.adapter import Base
    from lora_registry.algebra.arithmetic import computed_on
    from lora_registry.algebra.extract import extract as extracted
    from lora_registry.algebra.truncation import Truncation
    from lora_registry.format.identity import content_digest
    from lora_registry.format.writer import write_adapter

    check_output(output, overwrite=overwrite)
    asked, about = Truncation(rank, energy), Base(name=base_name, license=base_license)
    first, second, readings = _opened(base, tuned)
    with progress("extracting", unit="tensors", quiet=as_json) as advance, computed_on(device):
        found = extracted(
            first, second, asked, dtype=dtype, full=full, about=about, readings=readings, progress=advance
        )
    made = found.adapter
    write_adapter(made, output, overwrite=overwrite)
    content = str(content_digest(made))
    if as_json:
        records = [record.to_json() for record in found.targets]
        print_json({"path": str(output), "content": content, "targets": records, "rounding": list(found.rounding)})
        return
    print_retentions([record.retention for record in found.targets])
    click.echo(f"wrote {printable(str(output))}")
    print_fields([("content", content), ("targets", plural(len(made), "target")), ("ranks", ranks(made))])
    print_notes(_noise(found))


def _opened(base: Path, tuned: Path) -> tuple[BaseModel, BaseModel, Mapping[str, Reading]]:
    """Both models, and how they read their tensors, where a graph tells it."""
    if (base.suffix == ".onnx") != (tuned.suffix == ".onnx"):
        raise UsageError("one of the two is an ONNX model, and the other is not")
    if base.suffix == ".onnx":
        from lora_registry.onnx.pairs import open_pair

        first, second = open_pair(base, tuned)
        return first, second, first.readings
    from lora_registry.merge.bases.base import open_base

    return open_base(base), open_base(tuned), {}


def _noise(found: Extraction) -> list[str]:
    """What the rounding of the checkpoint accounts for, where it is worth a line: from one percent of a change on."""
    left_out = f"{listed(found.rounding)}: no more than the rounding of the tuned checkpoint; left out"
    notes = [left_out] if found.rounding else []
    loudest = max(found.targets, key=lambda record: record.noise, default=None)
    if loudest is None or loudest.noise < 0.01:
        return notes
    alone, error = percent(min(1.0, loudest.noise)), percent(loudest.retention.truncation)
    name = loudest.retention.target
    return [
        *notes,
        f"{name}: the rounding of the tuned checkpoint alone is {alone} of the difference, and the error is {error}",
    ]
