"""Vectors for mergers: an adapter, a base, and what the one makes of the other."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import container
import identity
import probe
from container import Tensor
from draft import Draft
from merged import merge
from vector import SUFFIX, Vector, refused, sound


def fingerprints(draft: Draft, base: Mapping[str, Tensor]) -> dict[str, str]:
    """What a merger says of the fingerprint of each target."""
    result = {}
    for name, target in draft.document["targets"].items():
        stated = target.get("fingerprint")
        same = stated is not None and name in base and identity.fingerprint(base[name], target) == stated
        result[name] = "none" if stated is None else "same" if same else "other"
    return result


def outcome(draft: Draft, base: Mapping[str, Tensor]) -> dict[str, Any]:
    """The expectation of a merge in which every target finds its tensor."""
    results = {name: merge(draft.target(name), draft.roles(name), base[name]) for name in draft.document["targets"]}
    tensors, ulp = {}, 0
    for name, result in results.items():
        if result is None:
            return refused("invalid-input")
        ulp = max(ulp, result.ulp)
        item = result.tensor
        tensors[name] = {"dtype": item.dtype, "shape": list(item.shape), "data": item.data.hex()}
    return {"tensors": tensors, "fingerprints": fingerprints(draft, base), "ulp": ulp}


def merging(
    name: str,
    why: str,
    draft: Draft,
    base: Mapping[str, Tensor],
    *,
    rules: tuple[str, ...] = (),
    code: str = "",
    data: bytes | None = None,
) -> Vector:
    """A sound adapter, and a base that it is merged into.

    Args:
        name: of the vector.
        why: what it is about.
        draft: the adapter.
        base: name to tensor.
        rules: P rules that it is about.
        code: of the refusal, where the two do not go together.
        data: the file of the base, where it is not spelled as a writer spells it.
    """
    expected = refused(code) if code else outcome(draft, base)
    file = f"merge/{name}.base{SUFFIX}"
    vector = sound(name, why, draft, rules=rules, folder="merge", merge={"base": file, **expected})
    files = {**vector.files, file: container.sealed(base, None) if data is None else data}
    return replace(vector, expect=vector.expect | {"probe": probe.expectation(draft)}, files=files)
