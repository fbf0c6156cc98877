"""What an editor keeps, and what it refuses to touch (P-025, P-026)."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import samples
from container import tensor
from draft import Draft
from samples import DIGEST
from vector import SUFFIX, Vector, refused, sound

TITLE = "Answers in JSON"


def editing(
    name: str,
    why: str,
    draft: Draft,
    *,
    title: str = TITLE,
    data: bytes | None = None,
    refuse: bool = False,
    about: tuple[str, ...] = (),
) -> Vector:
    """A sound adapter that is given a title, or refuses one."""
    rules = ("P-025",) if refuse else ("P-017", *about, "P-026")
    if refuse:
        return sound(
            name,
            why,
            draft,
            data=data,
            rules=rules,
            folder="canonical",
            edit={"title": title, **refused("unsupported")},
        )
    edited = draft.copy()
    edited.document["info"] = {**edited.document.get("info", {}), "title": title}
    file = f"canonical/{name}.edited{SUFFIX}"
    vector = sound(name, why, draft, data=data, rules=rules, folder="canonical", edit={"title": title, "file": file})
    return replace(vector, files={**vector.files, file: edited.canonical_file()})


def _with(draft: Draft | None = None, **fields: Any) -> Draft:
    result = samples.linear() if draft is None else draft
    result.document.update(fields)
    return result


def vectors() -> Iterator[Vector]:
    """All of them."""
    yield editing("edit-first", "the first title of an adapter", samples.linear())
    info = {"title": "old", "description": "kept", "license": "MIT", "authors": ["A. Author"], "tags": ["x"], "more": 1}
    yield editing("edit-title", "another title; everything else stays", _with(info=info))
    yield editing("edit-empty", "a title of no characters", _with(info=info), title="")
    yield editing(
        "edit-letters",
        "a title with letters that are escaped, and others",
        samples.linear(),
        title='"\\\n\x00\u20ac\U0001f600/',
    )
    unknown = _with(
        samples.linear(hobby=[1, {"b": 2, "a": None}], fingerprint=DIGEST),
        base={"name": "example/base", "colour": "blue", "view": {"scheme": "nf4", "block": 64}},
        lineage={"operation": "add", "parents": [{"content": DIGEST, "weight": 0.5}]},
        training={"tool": "t", "steps": 100, "datasets": [{"name": "d", "rows": 7}]},
        tokenizer={"digest": DIGEST, "model": "bpe", "added": [{"id": 1, "text": "<x>", "special": True}]},
        origin={"format": "peft", "config": {"lora_alpha": 16, "nested": {"deep": [1.5]}}},
        extensions={"com.example.evaluation": {"accuracy": 0.75}},
        x={"y": [1e-7, None, True]},
    )
    yield editing("edit-unknown", "fields that nobody knows survive", unknown)
    fused = samples.linear(initial=1, segments={"parts": [{"name": "q", "length": 1}, {"name": "k", "length": 2}]})
    yield editing("edit-descriptions", "segments and initial ranks survive", fused)
    yield editing(
        "edit-spelled", "a file in another spelling", fused, data=fused.file(json.dumps(fused.document, indent=2))
    )
    grown = samples.tokens(rows=[0, 5], length=6)
    yield editing("edit-tokens", "rows and their length survive", grown)
    gated = _with(samples.requiring(samples.linear(), "gate"), gate={"tokens": [7, 7]})
    yield editing("edit-gate", "a gate survives", gated)
    yield editing("edit-lokr", "a registered kind survives", samples.lokr(magnitude=tensor("F32", (6,))))
    several = samples.requiring(samples.linear(), "gate", "loha")
    yield editing("edit-required", "features that nothing needs stay named", several)
    known = _with(requires={"read": ["gate"], "write": ["gate"]})
    yield editing("edit-required-write", "an editor implements the features that it reads", known, about=("P-025",))
    for name, requires in {
        "unknown": {"write": ["com.example.signed"]},
        "second": {"read": ["gate"], "write": ["a", "z"]},
    }.items():
        draft = _with(requires=requires)
        yield editing(f"edit-refused-{name}", "an editor that knows more is asked for", draft, refuse=True)
