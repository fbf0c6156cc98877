"""``loreg combine``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.shell_completion import CompletionItem

from lora_registry.cli._adapters import ADAPTER
from lora_registry.cli._algebra import (
    check_output,
    device_option,
    parent,
    print_notes,
    print_retentions,
    ranks,
    result_options,
    truncation_options,
)
from lora_registry.cli._command import command, json_option, registry_option
from lora_registry.cli._output import print_fields, print_json
from lora_registry.cli._progress import progress
from lora_registry.text import printable

if TYPE_CHECKING:
    from lora_registry.algebra.combine import Combination

_METHODS = ("cat", "linear", "svd", "orthogonal", "ties", "dare", "magnitude")
_CONVENTIONS = ("peft", "mergekit", "paper")


class WeightedType(click.ParamType[tuple[str, float]]):
    """An adapter and its weight, ``support/tone:1=0.7``; the weight is 1 where none is written."""

    name = "adapter"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, float]:
        """Name and weight. What follows the last ``=`` and is no number belongs to the name."""
        name, separator, weight = str(value).rpartition("=")
        try:
            return (name, float(weight)) if separator and name else (str(value), 1.0)
        except ValueError:
            return str(value), 1.0

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        """As any adapter; the weight has to be typed."""
        return ADAPTER.shell_complete(ctx, param, incomplete)


@command(
    "combine",
    examples="""
loreg combine support/tone:1=0.7 support/facts:3=0.3 -o both.loreg.safetensors
loreg combine support/tone:2 support/tone:1=-1 -o learned.loreg.safetensors
loreg combine ./a ./b=0.5 -o both.loreg.safetensors --method svd --rank 16
loreg combine ./a ./b ./c -o all.loreg.safetensors --method ties --density 0.2 --rank 32 --convention mergekit
""",
)
@click.argument("adapters", metavar="ADAPTER[=WEIGHT]...", type=WeightedType(), nargs=-1, required=True)
@click.option(
    "--method",
    type=click.Choice(_METHODS),
    default="linear",
    show_default=True,
    help="cat: the exact sum, ranks added up. linear: the same sum at the rank that it has. svd: the same, truncated. "
    "orthogonal: each without the directions of those before it. ties, dare, magnitude: element by element, truncated.",
)
@truncation_options
@click.option("--density", type=float, help="Share of the elements that ties, dare and magnitude keep.")
@click.option(
    "--convention",
    type=click.Choice(_CONVENTIONS),
    help="Whose rules for signs and weights in ties and dare.  [default: peft]",
)
@click.option("--seed", type=int, help="Of what dare draws.  [default: 0]")
@click.option("--dense", is_flag=True, help="Multiply out LoHa, LoKr and sparse changes, which have no two factors.")
@click.option("--force", is_flag=True, help="Combine adapters that say they were made for different bases.")
@device_option
@result_options
@registry_option
@json_option
def combine(
    adapters: tuple[tuple[str, float], ...],
    method: str,
    rank: int | None,
    energy: float | None,
    density: float | None,
    convention: str | None,
    seed: int | None,
    dense: bool,
    force: bool,
    device: str,
    output: Path,
    dtype: str,
    overwrite: bool,
    registry_home: str | None,
    as_json: bool,
) -> None:
    """Write one adapter out of several: a weighted sum, or what a method makes of them.

    Weights multiply the changes s·B·A as they are; a negative one takes a change away. The sums have no cross terms:
    PEFT's `linear`, which adds the A and the B, is not offered, nor is its `ties`, which elects signs in A and in B.
    DoRA, activated LoRA and replaced values have no weighted sum and are refused by name.
    """
    from lora_registry.algebra.arithmetic import computed_on
    from lora_registry.algebra.combine import Weighted
    from lora_registry.algebra.combine import combine as combined
    from lora_registry.algebra.election import Convention
    from lora_registry.algebra.recipe import Method, Recipe
    from lora_registry.algebra.truncation import Truncation
    from lora_registry.format.identity import content_digest
    from lora_registry.format.writer import write_adapter

    check_output(output, overwrite=overwrite)
    recipe = Recipe(
        method=Method(method),
        truncation=Truncation(rank, energy),
        density=density,
        convention=None if convention is None else Convention(convention),
        seed=seed,
        dtype=dtype,
        dense=dense,
        force=force,
    )
    parts = [Weighted(parent(source, registry_home), weight) for source, weight in adapters]
    with progress("combining", unit="targets", quiet=as_json) as advance, computed_on(device):
        made = combined(parts, recipe, progress=advance)
    write_adapter(made.adapter, output, overwrite=overwrite)
    content = str(content_digest(made.adapter))
    if as_json:
        print_json({"path": str(output), "content": content, "recipe": recipe.to_json(), **_to_json(made)})
        return
    print_retentions(made.retentions)
    click.echo(f"wrote {printable(str(output))}")
    terms = [f"{weight:g} · {source}" for source, weight in adapters]
    print_fields([("content", content), (method, " + ".join(terms)), ("ranks", ranks(made.adapter))])
    print_notes(made.notes)


def _to_json(made: Combination) -> dict[str, object]:
    return {"targets": [one.to_json() for one in made.retentions], "notes": list(made.notes)}
