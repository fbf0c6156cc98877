"""``loreg onnx map``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from lora_registry.cli._adapters import ADAPTER, open_any
from lora_registry.cli._command import command, json_option, registry_option
from lora_registry.cli._output import print_findings, print_json, print_table
from lora_registry.errors import EXIT_FINDINGS, NotFoundError, UsageError
from lora_registry.text import plural

if TYPE_CHECKING:
    from lora_registry.adapter import Target
    from lora_registry.onnx.model import OnnxModel
    from lora_registry.onnx.resolution import Resolution
    from lora_registry.ops.base_model import BaseModel


@command(
    "map",
    examples="""
loreg onnx map base.onnx
loreg onnx map base.onnx --adapter support/tone:1 --base ./base
loreg onnx map base.onnx --base ./base --targets '*_proj.weight' --json
""",
)
@click.argument("model", type=click.Path(path_type=Path))
@click.option("--adapter", type=ADAPTER, help="Look for the targets of this adapter.")
@click.option(
    "--targets",
    "patterns",
    multiple=True,
    metavar="PATTERN",
    help="Look for the matrices, tables and kernels whose names match, such as '*.q_proj.weight'; may be given "
    "several times.  [default: all of them]",
)
@click.option(
    "--base", type=click.Path(path_type=Path), help="Checkpoint of the model, to find and confirm weights by value."
)
@registry_option
@json_option
@click.pass_context
def map_(
    ctx: click.Context,
    model: Path,
    adapter: str | None,
    patterns: tuple[str, ...],
    base: Path | None,
    registry_home: str | None,
    as_json: bool,
) -> None:
    """Say which initializer of MODEL holds which tensor, by which rules, and who reads it.

    rules: what speaks for it, all of which agree. initializer: with the part of it that is meant, where several
    tensors are packed into one. held: as the checkpoint stores it, or transposed. readers: the operators that a merge
    changes; shared is an initializer that others read too, which a merge leaves as it is.

    Exit 1 when a tensor is not found, or cannot be changed; the finding says why.
    """
    from lora_registry.merge.bases.base import open_base
    from lora_registry.onnx.model import OnnxModel
    from lora_registry.onnx.resolve import attempt

    if adapter is not None and patterns:
        raise UsageError("--adapter says what to look for, so that --targets means nothing")
    opened, checkpoint = OnnxModel.open(model), open_base(base) if base is not None else None
    if adapter is not None:
        targets = open_any(adapter, registry_home).adapter.targets
    else:
        targets = _matching(opened, patterns, checkpoint)
    resolutions, findings = attempt(opened, targets, base=checkpoint)
    if as_json:
        print_json(
            {
                "targets": {resolution.target.name: resolution.evidence() for resolution in resolutions},
                "findings": [finding.to_json() for finding in findings],
            }
        )
    else:
        print_table(
            ("target", "rules", "initializer", "held", "readers"),
            (row for resolution in resolutions for row in _rows(resolution)),
        )
        print_findings(findings)
        click.echo(f"{len(resolutions)} of {plural(len(targets), 'target')} found")
    if findings:
        ctx.exit(EXIT_FINDINGS)


def _matching(model: OnnxModel, patterns: tuple[str, ...], base: BaseModel | None) -> tuple[Target, ...]:
    """What could be a target: the tensors that the graph names, and those of the checkpoint that it holds."""
    from lora_registry.onnx.names import Names
    from lora_registry.onnx.resolve import attempt
    from lora_registry.onnx.slots.quantized_seats import quantized_seats
    from lora_registry.onnx.slots.targets import matching
    from lora_registry.ops.prefix import uniform_prefix

    names = Names(model)
    found = matching(model, names, tuple(quantized_seats(model, names)), patterns or ("*",), base)
    if not found:
        hint = "" if base is not None else "; the checkpoint (--base) would let them be found by their values"
        raise NotFoundError(f"{model.path}: no tensor that could be a target{hint}")
    if base is None:
        return _one_name_each(attempt(model, found)[0])
    stored = set(base.names())
    prefix = uniform_prefix([target.name for target in found], stored)
    return tuple(target for target in found if prefix is None or prefix.find(target.name, stored))


def _one_name_each(resolutions: tuple[Resolution, ...]) -> tuple[Target, ...]:
    """Of several names for what operators read, the one that most rules give; parts, rather than the whole."""
    held = [(each.carriers[0], each) for each in resolutions if each.carriers]
    packed = {(carrier.value, carrier.sites) for carrier, _ in held if carrier.window is not None}
    plain = [pair for pair in held if pair[0].window is not None or (pair[0].value, pair[0].sites) not in packed]
    plain.sort(key=lambda pair: (len(pair[0].sites), len(pair[1].rules), "builder" in pair[1].rules), reverse=True)
    chosen: dict[str, Target] = {}
    taken: dict[object, set[object]] = {}
    for carrier, each in plain:
        covered = taken.setdefault((carrier.value, carrier.window), set())
        if not covered.issuperset(carrier.sites):
            chosen[each.target.name] = each.target
            covered.update(carrier.sites)
    return tuple(chosen[name] for name in sorted(chosen))


def _rows(resolution: Resolution) -> list[tuple[str, ...]]:
    """One line for each initializer that holds the target."""
    name, rules = resolution.target.name, " ".join(resolution.rules)
    rows: list[tuple[str, ...]] = [
        (name, rules, "none: it was zero", "to be added", str(gemm.name)) for gemm in resolution.open_gemms
    ]
    for carrier in resolution.carriers:
        readers = ", ".join(site.node or site.operator for site in carrier.sites)
        held = "transposed" if carrier.transposed else "as stored"
        rows.append(
            (
                name,
                rules,
                f"{carrier.value.name}{carrier.window or ''}",
                f"{held}, shared" if carrier.shared else held,
                readers,
            )
        )
    return rows
