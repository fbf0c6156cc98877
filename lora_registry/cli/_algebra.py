"""What the commands of the adapter algebra do alike: open parents, write the result, print what was kept."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from lora_registry.adapter import Adapter
from lora_registry.cli._adapters import open_sound
from lora_registry.cli._output import print_table
from lora_registry.dtypes import DTYPES
from lora_registry.errors import UsageError
from lora_registry.text import printable

if TYPE_CHECKING:
    from lora_registry.algebra.lineage import Parent
    from lora_registry.algebra.retention import Retention

Function = TypeVar("Function", bound=Callable[..., Any])


def result_options(function: Function) -> Function:
    """Add ``-o``, ``--dtype`` and ``--overwrite``."""
    floats = [dtype.name for dtype in DTYPES.values() if dtype.floating]
    for option in (
        click.option("--overwrite", is_flag=True, help="Replace OUTPUT if it exists."),
        click.option(
            "--dtype", type=click.Choice(floats), default="F32", show_default=True, help="Element type of the factors."
        ),
        click.option(
            "-o", "--output", type=click.Path(path_type=Path), required=True, help="Native file, *.safetensors."
        ),
    ):
        function = option(function)
    return function


device_option = click.option(
    "--device",
    type=click.Choice(["cpu", "cuda"]),
    default="cpu",
    show_default=True,
    help="Where singular values and signs are computed; cuda needs torch and an NVIDIA GPU.",
)
"""``--device``, for :func:`lora_registry.algebra.arithmetic.computed_on`."""


def truncation_options(function: Function) -> Function:
    """Add ``--rank`` and ``--energy``."""
    energy = click.option(
        "--energy", type=float, metavar="SHARE", help="Keep the fewest ranks that hold this share of ‖ΔW‖², as in 0.99."
    )
    return click.option("--rank", type=int, help="Keep at most so many ranks in each target.")(energy(function))


def check_output(output: Path, *, overwrite: bool) -> None:
    """Refuse a place for the result before any work is done.

    Raises:
        UsageError: it is not called ``*.safetensors``.
        ConflictError: it exists.
    """
    from lora_registry.format.files import refuse_existing

    if output.suffix != ".safetensors":
        raise UsageError(f"{output}: the result is a native file, *.safetensors; loreg convert writes other formats")
    if not overwrite:
        refuse_existing(output)


def sound(source: str, registry_home: str | None) -> Adapter:
    """The adapter of ``source`` with all its bytes held against their digests: what is computed of others lies."""
    return open_sound(source, registry_home).adapter


def parent(source: str, registry_home: str | None) -> Parent:
    """The adapter of ``source`` under its reference or its title; a path of this machine is no name (P-053)."""
    from lora_registry.algebra.lineage import Parent

    adapter = sound(source, registry_home)
    is_path = source.startswith((".", "/", "~")) or Path(source).exists()
    return Parent(adapter, str(adapter.info.get("title", "")) if is_path else source)


def print_retentions(retentions: Sequence[Retention], before: Adapter | None = None) -> None:
    """Print a line for each target, and the worst of all.

    Args:
        retentions: of a result.
        before: where the ranks of one adapter were changed, that adapter.
    """
    from lora_registry.algebra.retention import worst

    was = {target.name: f"{target.rank} -> " for target in before or () if target.rank is not None}
    rows = [
        (
            one.target,
            "-" if one.rank is None else f"{was.get(one.target, '')}{one.rank}",
            f"{one.norm:.4g}",
            percent(one.energy),
            f"{one.truncation:.3g}",
            f"{one.rounding:.1e}",
        )
        for one in retentions
    ]
    numbers = ("rank", "norm", "energy", "error", "rounding")
    print_table(("target", *numbers), rows, right=numbers)
    if (least := worst(retentions)) is not None:
        kept = f"keeps {percent(least.energy)} of its energy, error {least.truncation:.3g}"
        rounding = max(one.rounding for one in retentions)
        click.echo(f"worst: {printable(least.target)} {kept}; rounding at most {rounding:.1e}")


def ranks(adapter: Adapter) -> str:
    """``8``, or ``2 to 16``; empty where no target has a rank."""
    found = adapter.ranks
    return str(found[0]) if len(found) == 1 else f"{found[0]} to {found[-1]}" if found else ""


def percent(share: float) -> str:
    """``97.3125%``; 100% is printed only where nothing that a float could tell is missing."""
    return "100%" if share == 1 else f"{min(share, 0.999999):.4%}"


def print_notes(notes: Sequence[str]) -> None:
    """Print what there is to know beside the result, to stderr."""
    for note in notes:
        click.echo(f"{click.style('note', fg='cyan')}     {printable(note)}", err=True)
