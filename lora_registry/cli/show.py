"""``loreg show``."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import TYPE_CHECKING

import click

from lora_registry.adapter import SCALED
from lora_registry.cli._adapters import ADAPTER, open_any, open_sound
from lora_registry.cli._command import command, json_option, registry_option
from lora_registry.cli._output import print_fields, print_json, print_table, size
from lora_registry.cli._picture import draw, family
from lora_registry.cli._report import print_report
from lora_registry.format.features import required_features
from lora_registry.text import plural, printable

if TYPE_CHECKING:
    from lora_registry.adapter import Adapter, Json, Target
    from lora_registry.segments import Segments


@command(
    "show",
    examples="""
loreg show support/tone:1
loreg show ./my-peft-adapter --targets
loreg show support/tone:1 --norms
loreg show tone.loreg.safetensors --json
""",
)
@click.argument("adapter", type=ADAPTER)
@click.option("--from", "format_name", metavar="FORMAT", help="Read ADAPTER as this format instead of detecting it.")
@click.option("--targets", is_flag=True, help="List every target instead of grouping them by name.")
@click.option("--norms", is_flag=True, help="Draw how large each change is, layer by layer; reads every tensor.")
@registry_option
@json_option
def show(
    adapter: str, format_name: str | None, targets: bool, norms: bool, registry_home: str | None, as_json: bool
) -> None:
    """Show what an adapter is: its base, its targets and its identity.

    Reads the header only, unless --norms is given.
    """
    from lora_registry.format.identity import base_root, content_digest

    opened = (open_sound if norms else open_any)(adapter, registry_home, format_name)
    content, root = content_digest(opened.adapter), base_root(opened.adapter)
    if as_json:
        from lora_registry.format.document import to_document

        document: Json = to_document(opened.adapter)
        report = opened.report.to_json() if opened.report else None
        identity = {"content": str(content), "root": None if root is None else str(root)}
        shown = {"source": adapter, **identity, "document": document, "conversion": report}
        print_json({**shown, "norms": _norms(opened.adapter)} if norms else shown)
        return
    subject = opened.adapter
    print_fields(
        [
            ("source", adapter),
            ("title", subject.info.get("title")),
            ("description", subject.info.get("description")),
            ("authors", _texts(subject.info.get("authors"))),
            ("tags", _texts(subject.info.get("tags"))),
            ("content", content),
            ("base", " @ ".join(filter(None, (subject.base.name, subject.base.revision)))),
            ("base license", subject.base.license),
            ("base view", _view(subject)),
            ("base root", root),
            ("license", subject.info.get("license")),
            ("origin", " ".join(str(subject.origin[key]) for key in ("format", "version") if subject.origin.get(key))),
            *_descriptions(subject),
            ("targets", f"{len(subject)}, of which {_fingerprinted(subject)} with a fingerprint of their base tensor"),
            ("carries", f"{plural(subject.parameters, 'parameter')}, {size(_bytes(subject))}"),
            ("dtypes", ", ".join(_dtypes(subject))),
            ("requires", ", ".join(required_features(subject))),
            ("extensions", ", ".join(sorted(subject.extensions))),
        ]
    )
    click.echo()
    if targets:
        rows = [(1, target.name, *_columns(target)) for target in subject]
    else:
        grouped = Counter((family(target.name), *_columns(target)) for target in subject)
        rows = [(count, *group) for group, count in grouped.items()]
    columns = ("count", "target", "kind", "shape", "rank", "scale", "with")
    print_table(columns, rows, right=("count", "rank", "scale"))
    if norms:
        click.echo()
        drawn = _norms(subject)
        for line in draw(drawn):
            click.echo(printable(line))
        if left := [target.name for target in subject if target.name not in drawn]:
            what = f"{plural(len(left), 'target')} without low-rank factors, or not finite: {left[0]}"
            click.echo(printable(f"not drawn  {what}" + (" …" if len(left) > 1 else "")))
    print_report(opened.report)


def _view(adapter: Adapter) -> str | None:
    """The quantization that the adapter was trained on, with its parameters."""
    view = dict(adapter.base.view)
    scheme = view.pop("scheme", None)
    return f"{scheme} {_settings(view)}".rstrip() if scheme else None


def _settings(record: Json) -> str:
    """The members of an object in one line."""
    return " ".join(f"{name}={value}" for name, value in record.items()) if isinstance(record, dict) else ""


def _descriptions(adapter: Adapter) -> Iterable[tuple[str, str | None]]:
    """What the document says about tokens, ancestors and training, a line each."""
    tokens, added = ", ".join(map(str, adapter.gate)), adapter.tokenizer.get("added")
    parents, datasets = adapter.lineage.get("parents"), adapter.training.get("datasets")
    tool = " ".join(str(adapter.training[key]) for key in ("tool", "version") if adapter.training.get(key))
    yield "gate", f"on from the last tokens {tokens}; served unmerged" if tokens else None
    yield "tokenizer", _texts(adapter.tokenizer.get("digest"))
    yield "chat template", _texts(adapter.tokenizer.get("chat_template"))
    yield "added tokens", ", ".join(_members(added, "text"))
    if adapter.lineage:
        named = [
            name or content
            for name, content in zip(_members(parents, "name"), _members(parents, "content"), strict=True)
        ]
        yield "made by", " of ".join(filter(None, (str(adapter.lineage["operation"]), ", ".join(named))))
        yield "parameters", _settings(adapter.lineage.get("parameters"))
    yield "trained with", tool
    licensed = zip(_members(datasets, "name"), _members(datasets, "license"), strict=True)
    yield "trained on", ", ".join(f"{name} ({license_})" if license_ else name for name, license_ in licensed)


def _texts(items: Json) -> str:
    """A list of strings in one line; whatever else stands there is shown as it is."""
    return ", ".join(map(str, items)) if isinstance(items, list) else str(items or "")


def _members(records: Json, name: str) -> list[str]:
    """One member of each object in a list, empty where an object does not have it."""
    found = [record for record in records if isinstance(record, dict)] if isinstance(records, list) else []
    return [str(record.get(name, "")) for record in found]


def _columns(target: Target) -> tuple[str, str, str, str, str]:
    """Kind, shape by axis, rank, scale and what there is beyond A and B."""
    shape = "x".join(map(str, target.shape)) if target.shape is not None else "?"
    layout = f" ({','.join(target.layout)})" if target.layout else ""
    rank = target.rank
    extras = sorted(set(target.tensors) - {"A", "B"})
    scale = f"{target.scale:g}" if target.kind in SCALED else "-"
    if target.segments is not None:
        extras.append(_fused(target.segments))
    if target.initial:
        extras.append(f"{target.initial} initial")
    if target.length is not None and target.shape is not None:
        extras.append(f"{target.length - target.shape[0]} more rows")
    return target.kind.value, shape + layout, "-" if rank is None else str(rank), scale, ", ".join(extras) or "-"


def _fused(segments: Segments) -> str:
    """The parts of a fused tensor, how they are interleaved, and which of them are rotated."""
    names = " ".join(part.name for part in segments.parts)
    interleaved = f" in {segments.interleave} blocks" if segments.interleave > 1 else ""
    orders = sorted({part.rope.order for part in segments.parts if part.rope is not None})
    return f"segments {names}{interleaved}" + (f", rope {' '.join(orders)}" if orders else "")


def _norms(adapter: Adapter) -> dict[str, float]:
    """‖s·B·A‖ of every low-rank target that is finite."""
    from lora_registry.audit.measure import measure

    measured = {target.name: measure(target).norm for target in adapter}
    return {name: norm for name, norm in measured.items() if norm is not None}


def _fingerprinted(adapter: Adapter) -> int:
    return sum(target.fingerprint is not None for target in adapter)


def _bytes(adapter: Adapter) -> int:
    return sum(tensor.nbytes for target in adapter for tensor in target.tensors.values())


def _dtypes(adapter: Adapter) -> Iterable[str]:
    return sorted({tensor.dtype for target in adapter for tensor in target.tensors.values()})
