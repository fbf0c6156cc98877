"""A vector: an adapter, what it is about, and what is expected of programs that are asked about it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import identity
from draft import Draft

SUFFIX = ".safetensors"
FEATURES = ("gate", "loha", "lokr", "sparse")
UNSUPPORTED = ("R-013", "R-015")


@dataclass(frozen=True, slots=True)
class Vector:
    """One entry of the index, and the files that it brings.

    Attributes:
        id: folder and name.
        why: in a few words, what it is about.
        rules: the rules that it is about.
        needs: the features without which the expectations do not hold.
        data: the bytes of the adapter; None where ``build`` says how to make them.
        build: pieces of a file that is larger than vectors are.
        expect: operation to expectation.
        files: name to bytes of what the expectations refer to.
    """

    id: str
    why: str
    rules: tuple[str, ...]
    expect: dict[str, Any]
    data: bytes | None = None
    build: tuple[dict[str, Any], ...] = ()
    needs: tuple[str, ...] = ()
    files: Mapping[str, bytes] = field(default_factory=dict)

    @property
    def file(self) -> str:
        """Where the adapter lies."""
        return self.id + SUFFIX

    def entry(self) -> dict[str, Any]:
        """The entry of the index."""
        where: dict[str, Any] = {"build": list(self.build)} if self.data is None else {"file": self.file}
        needs = {"needs": list(self.needs)} if self.needs else {}
        return {"id": self.id, **where, "why": self.why, "rules": list(self.rules), **needs, "expect": self.expect}


def code_of(rules: Iterable[str]) -> str:
    """The code of a reader that refuses a file which breaks these rules (section 15)."""
    broken = set(rules)
    if broken & set(UNSUPPORTED):
        return "unsupported"
    return "invalid-input" if broken - {"R-035"} else "integrity"


def refused(code: str) -> dict[str, str]:
    """The refusal of a request."""
    return {"verdict": "reject", "code": code}


def invalid(
    name: str,
    rules: str | tuple[str, ...],
    why: str,
    data: bytes | tuple[dict[str, Any], ...],
    needs: Iterable[str] = (),
    about: tuple[str, ...] = (),
) -> Vector:
    """A file that breaks these rules and no others; and the P rules that it is about."""
    broken = (rules,) if isinstance(rules, str) else tuple(sorted(rules))
    pieces = {"data": data} if isinstance(data, bytes) else {"build": data}
    expect = {"read": refused(code_of(broken)), "validate": {"rules": list(broken)}}
    return Vector(
        f"invalid/{'-and-'.join(broken)}-{name}", why, (*about, *broken), expect, needs=tuple(needs), **pieces
    )


def needed(draft: Draft) -> tuple[str, ...]:
    """The features that a document names."""
    return tuple(draft.document.get("requires", {}).get("read", []))


def reading(draft: Draft) -> dict[str, Any]:
    """What a reader answers about a sound adapter."""
    root = identity.root_digest(draft)
    stated = {} if root is None else {"root": root}
    return {"verdict": "accept", "content": identity.content_digest(draft), **stated}


def sound(
    name: str,
    why: str,
    draft: Draft,
    *,
    data: bytes | None = None,
    rules: tuple[str, ...] = (),
    folder: str = "valid",
    **expect: Any,
) -> Vector:
    """A sound file: it is read, breaks no rule, and has a canonical form.

    Args:
        name: of the vector.
        why: what it is about.
        draft: what the file says.
        data: the file, where it is not spelled as a writer spells it.
        rules: P rules that it is about.
        folder: the first part of the id.
        expect: expectations of more operations.
    """
    written = draft.canonical_file()
    data = draft.file() if data is None else data
    id_ = f"{folder}/{name}"
    file = id_ + (SUFFIX if data == written else ".canonical" + SUFFIX)
    files = {} if data == written else {file: written}
    common = {"read": reading(draft), "validate": {"rules": []}, "write": {"file": file}}
    return Vector(id_, why, rules, common | expect, data=data, needs=needed(draft), files=files)


def everywhere(vector: Vector, base: str) -> Vector:
    """The same vector, whose refusal is expected of every operation that refuses.

    Args:
        vector: a file that breaks a rule.
        base: any base; the adapter is refused before it counts.
    """
    refusal = vector.expect["read"]
    more = {
        "write": refusal,
        "edit": {"title": "x", **refusal},
        "merge": {"base": base, **refusal},
        "probe": refusal,
    }
    return replace(vector, expect=vector.expect | more)
