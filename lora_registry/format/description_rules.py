"""What a document says for people and for tools that keep adapters: typed, and without effect on W'."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from lora_registry.adapter import Json
from lora_registry.digest import Digest
from lora_registry.findings import Finding

_TEXTS: Mapping[str, tuple[str, ...]] = {
    "base": ("name", "revision", "license"),
    "info": ("title", "license"),
    "origin": (),
}


def check_descriptions(document: Mapping[str, Json]) -> Iterator[Finding]:
    """R-019, R-037 and R-039 to R-041."""
    for part, names in _TEXTS.items():
        record = document.get(part, {})
        if isinstance(record, dict):
            yield from _strings("R-037", part, record, names)
        else:
            yield Finding("R-037", part, "is no object")
    base = document.get("base")
    if isinstance(base, dict) and "view" in base:
        yield from _view(base["view"])
    for part, check in (("tokenizer", _tokenizer), ("lineage", _lineage), ("training", _training)):
        if part in document:
            yield from check(document[part])


def is_digest(value: Json) -> bool:
    """Whether ``value`` is a digest in the one spelling of spec section 2."""
    return isinstance(value, str) and Digest.is_well_formed(value)


def _strings(rule: str, place: str, record: Mapping[str, Json], names: tuple[str, ...]) -> Iterator[Finding]:
    for name in names:
        if not isinstance(record.get(name, ""), str):
            yield Finding(rule, f"{place}/{name}", "is no string")


def _objects(rule: str, place: str, value: Json) -> Iterator[Finding | tuple[str, dict[str, Json]]]:
    """The objects of a list, each with its place, or what is wrong with the list."""
    if not isinstance(value, list):
        yield Finding(rule, place, "is no list")
        return
    for index, item in enumerate(value):
        if isinstance(item, dict):
            yield f"{place}/{index}", item
        else:
            yield Finding(rule, f"{place}/{index}", "is no object")


def _view(view: Json) -> Iterator[Finding]:
    if not isinstance(view, dict) or not isinstance(view.get("scheme"), str):
        yield Finding("R-041", "base/view", "is no object with a scheme")


def _tokenizer(record: Json) -> Iterator[Finding]:
    if not isinstance(record, dict):
        yield Finding("R-019", "tokenizer", "is no object")
        return
    for name in ("digest", "chat_template"):
        if name in record and not is_digest(record[name]):
            yield Finding("R-019", f"tokenizer/{name}", "is no sha256 digest")
    for item in _objects("R-019", "tokenizer/added", record.get("added", [])):
        if isinstance(item, Finding):
            yield item
            continue
        place, token = item
        identity = token.get("id")
        if type(identity) is not int or identity < 0 or not isinstance(token.get("text"), str):
            yield Finding("R-019", place, "has no id of a token, or no text")


def _lineage(record: Json) -> Iterator[Finding]:
    if not isinstance(record, dict) or not isinstance(record.get("operation"), str):
        yield Finding("R-039", "lineage", "is no object with an operation")
        return
    if not isinstance(record.get("parameters", {}), dict):
        yield Finding("R-039", "lineage/parameters", "is no object")
    for item in _objects("R-039", "lineage/parents", record.get("parents", [])):
        if isinstance(item, Finding):
            yield item
            continue
        place, parent = item
        if not is_digest(parent.get("content")):
            yield Finding("R-039", f"{place}/content", "is no sha256 digest")
        yield from _strings("R-039", place, parent, ("name",))


def _training(record: Json) -> Iterator[Finding]:
    if not isinstance(record, dict):
        yield Finding("R-040", "training", "is no object")
        return
    yield from _strings("R-040", "training", record, ("tool", "version"))
    for item in _objects("R-040", "training/datasets", record.get("datasets", [])):
        if isinstance(item, Finding):
            yield item
            continue
        place, dataset = item
        if not isinstance(dataset.get("name"), str):
            yield Finding("R-040", f"{place}/name", "is no string")
        yield from _strings("R-040", place, dataset, ("revision", "license"))
