"""``loreg verify``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from lora_registry.cli._adapters import ADAPTER, open_any
from lora_registry.cli._command import command, json_option, registry_option
from lora_registry.cli._output import print_json
from lora_registry.cli._progress import progress, status
from lora_registry.errors import InconclusiveError, IntegrityError, UsageError
from lora_registry.text import printable

if TYPE_CHECKING:
    from lora_registry.adapter import Adapter
    from lora_registry.ops.tied import TiedPolicy


@command(
    "verify",
    examples="""
loreg verify ./merged --base ./base --adapter support/tone:1
loreg verify ./merged --base ./base --adapter ./my-peft-adapter --all
loreg verify merged.onnx --base ./base --adapter support/tone:1 --provider cuda
""",
)
@click.argument("merged", type=click.Path(path_type=Path))
@click.option(
    "--base",
    type=click.Path(path_type=Path),
    required=True,
    help="The base model: a folder (quantized ones too), a .safetensors, .bin or .gguf file.",
)
@click.option("--adapter", type=ADAPTER, help="The adapter that was merged; none for the base itself, or an export.")
@click.option("--all", "every", is_flag=True, help="Checkpoints: recompute every row and compare every byte.")
@click.option("--rows", type=click.IntRange(min=1), help="Checkpoints: rows of a tensor to try.  [default: 32]")
@click.option("--one-rounding", is_flag=True, help="Checkpoints: more than one rounding does not hold (P-015).")
@click.option("--provider", type=click.Choice(["cpu", "cuda"]), help="ONNX: where MERGED runs.  [default: cpu]")
@click.option(
    "--tolerance",
    type=click.FloatRange(min=0, min_open=True),
    help="ONNX: largest relative error that holds.  [default: by dtype]",
)
@click.option("--samples", type=click.IntRange(min=1), help="ONNX: inputs to try.  [default: 4]")
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Seed of rows, or of inputs.")
@click.option(
    "--tied",
    type=click.Choice(["untie", "both"]),
    help="What the merge had to do with tied tensors.  [default: what MERGED shows; ONNX: untie]",
)
@registry_option
@json_option
def verify(
    merged: Path,
    base: Path,
    adapter: str | None,
    every: bool,
    rows: int | None,
    one_rounding: bool,
    provider: str | None,
    tolerance: float | None,
    samples: int | None,
    seed: int,
    tied: TiedPolicy | None,
    registry_home: str | None,
    as_json: bool,
) -> None:
    """Say whether MERGED is base + adapter, whatever program merged it.

    A checkpoint is recomputed tensor by tensor in float64, from formulas of its own: it holds, does not, or cannot
    be decided, and a known mistake is called by its name. Of a quantized base, the values that it stands for count,
    and where MERGED is quantized too, its scheme's encoding of the right ones. An ONNX file is run beside the base with
    the unmerged adapter, on the provider that was asked for and no other.

    Exit 7 when it does not hold, 9 when it cannot be decided.
    """
    from lora_registry.runtime.export_place import is_export

    expected = open_any(adapter, registry_home).adapter if adapter is not None else None
    if merged.suffix == ".onnx" or is_export(merged):
        _refuse("an ONNX file", all=every, rows=rows, one_rounding=one_rounding)
        _run(merged, base, expected, provider, tolerance, samples, seed, tied, as_json=as_json)
        return
    _refuse("a checkpoint", provider=provider, tolerance=tolerance, samples=samples)
    if every and rows is not None:
        raise UsageError("--all looks at every row, so that --rows means nothing")
    _recompute(merged, base, expected, every, rows, seed, tied, one_rounding, as_json=as_json)


def _refuse(what: str, **options: object) -> None:
    """Refuse options that mean nothing for this kind of file, instead of ignoring them."""
    for name, value in options.items():
        if value:
            raise UsageError(f"--{name.replace('_', '-')} is not for {what}")


def _recompute(
    merged: Path,
    base: Path,
    adapter: Adapter | None,
    every: bool,
    rows: int | None,
    seed: int,
    tied: TiedPolicy | None,
    one_rounding: bool,
    *,
    as_json: bool,
) -> None:
    from lora_registry.merge.proof.judgement import Answer
    from lora_registry.merge.proof.recompute import ROWS, recompute

    with progress(f"recomputing {merged.name}", unit="tensors", quiet=as_json) as advance:
        found = recompute(
            merged,
            base,
            adapter,
            every=every,
            rows=ROWS if rows is None else rows,
            seed=seed,
            tied=tied,
            once_only=one_rounding,
            progress=advance,
        )
    _print(found.to_json(), found.lines(), as_json=as_json)
    if found.answer is Answer.UNDECIDED:
        raise InconclusiveError(f"nothing tells whether {merged} is {_claim(adapter)}")
    if found.answer is Answer.DOES_NOT:
        raise IntegrityError(f"{merged} is not {_claim(adapter)}")


def _run(
    merged: Path,
    base: Path,
    adapter: Adapter | None,
    provider: str | None,
    tolerance: float | None,
    samples: int | None,
    seed: int,
    tied: TiedPolicy | None,
    *,
    as_json: bool,
) -> None:
    from lora_registry.runtime.verify import verify as compare

    with status("running both", quiet=as_json):
        report = compare(
            merged,
            base,
            adapter,
            provider=provider or "cpu",
            samples=4 if samples is None else samples,
            seed=seed,
            tolerance=tolerance,
            tied=tied or "untie",
        )
    _print(report.to_json(), report.lines(), as_json=as_json)
    if not report.holds:
        raise IntegrityError(f"{merged} is not {_claim(adapter)}")


def _print(document: object, lines: list[str], *, as_json: bool) -> None:
    if as_json:
        print_json(document)
    else:
        for line in lines:
            click.echo(printable(line))


def _claim(adapter: Adapter | None) -> str:
    return "the base with this adapter" if adapter is not None else "the base that it is said to come from"
