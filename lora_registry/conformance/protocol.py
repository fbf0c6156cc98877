"""What is asked of a program, and in which members it answers (spec/conformance.md, "The protocol")."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from lora_registry.adapter import Json

FORMAT = "1.0"
"""Version of the text that loreg implements."""

OPERATIONS: Mapping[str, str] = {
    "reader": "read",
    "validator": "validate",
    "writer": "write",
    "editor": "edit",
    "merger": "merge",
    "prover": "probe",
}
"""Class of a program to the operation that it answers; converters are asked by no vector."""

HELLO: Mapping[str, Json] = {"op": "hello"}

_HELLO_MEMBERS = {"name", "version", "format", "classes", "features"}


@dataclass(frozen=True, slots=True)
class Hello:
    """Who answers.

    Attributes:
        name: of the program.
        version: of the program.
        format: version of the text that it implements.
        classes: those that it claims, in the order of :data:`OPERATIONS`.
        features: those of ``requires.read`` that it implements.
    """

    name: str
    version: str
    format: str
    classes: tuple[str, ...]
    features: frozenset[str]

    @classmethod
    def of(cls, answer: Mapping[str, Json]) -> Hello:
        """Read the answer to :data:`HELLO`.

        Raises:
            ValueError: it is none; the message says why.
        """
        if set(answer) != _HELLO_MEMBERS:
            raise ValueError(f"the members are {sorted(answer)} and not {sorted(_HELLO_MEMBERS)}")
        texts = {name: answer[name] for name in ("name", "version", "format")}
        if not all(isinstance(text, str) and text for text in texts.values()):
            raise ValueError("name, version and format are strings that say something")
        lists = {name: _names(name, answer[name]) for name in ("classes", "features")}
        unknown = sorted(set(lists["classes"]) - set(OPERATIONS))
        if unknown:
            raise ValueError(f"no such class: {', '.join(unknown)}")
        return cls(
            name=str(texts["name"]),
            version=str(texts["version"]),
            format=str(texts["format"]),
            classes=tuple(name for name in OPERATIONS if name in lists["classes"]),
            features=frozenset(lists["features"]),
        )

    def to_json(self) -> dict[str, Json]:
        """The answer to :data:`HELLO`."""
        return {
            "name": self.name,
            "version": self.version,
            "format": self.format,
            "classes": list[Json](self.classes),
            "features": list[Json](sorted(self.features)),
        }


def _names(member: str, value: Json) -> list[str]:
    if not isinstance(value, list) or not all(isinstance(name, str) for name in value):
        raise ValueError(f"{member} is no list of names")
    return [str(name) for name in value]


def accepted(**members: Json) -> dict[str, Json]:
    """The answer of a program that did what was asked."""
    return {"verdict": "accept", **members}


def rejected(code: str) -> dict[str, Json]:
    """The answer of a program that refuses the file, or adapter and base together, with a code of section 15."""
    return {"verdict": "reject", "code": code}
