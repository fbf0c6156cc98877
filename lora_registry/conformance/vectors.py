"""The test vectors: where they lie, and what their index says (spec/conformance.md, "The vectors")."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lora_registry.adapter import Json
from lora_registry.errors import InvalidInputError, NotFoundError

INDEX = "index.json"

_ASKED = {"edit": {"title"}, "merge": {"base"}}
_ACCEPTED = {
    "read": {"verdict", "content"},
    "validate": {"rules"},
    "write": {"file"},
    "edit": {"file"},
    "merge": {"tensors", "fingerprints", "ulp"},
    "probe": {"targets", "bounds"},
}
"""The members of an expectation by operation, besides those that the question needs; a refusal has two others."""

_BUILT = 1 << 26  # bytes of an adapter that is built: nobody's disk is filled by an index

_PACKAGED = Path(__file__).parent / "vectors"  # in a wheel
_CHECKOUT = Path(__file__).parents[2] / "spec" / "vectors"


@dataclass(frozen=True, slots=True)
class Vector:
    """One adapter, and what is expected of a program that is asked about it.

    Attributes:
        id: folder and name.
        why: what it is about, in a few words.
        rules: the rules that it is about.
        needs: features without which the expectations do not hold.
        file: the adapter, relative to the index; None where it is built of ``pieces``.
        pieces: of an adapter that is too large to lie there; see :func:`built`.
        expect: operation to expectation.
    """

    id: str
    why: str
    rules: tuple[str, ...]
    needs: frozenset[str]
    file: str | None
    pieces: tuple[Mapping[str, Any], ...]
    expect: Mapping[str, Mapping[str, Json]]


@dataclass(frozen=True, slots=True)
class Corpus:
    """The vectors of one version.

    Attributes:
        folder: of the index; absolute.
        version: of the vectors.
        format: version of the text that they were made from.
        vectors: in the order of the index.
    """

    folder: Path
    version: str
    format: str
    vectors: tuple[Vector, ...]

    def expecting(self, operation: str) -> list[Vector]:
        """The vectors that say what to expect of ``operation``."""
        return [vector for vector in self.vectors if operation in vector.expect]

    def adapter(self, vector: Vector, scratch: Path) -> Path:
        """The file of ``vector``, absolute; it is built in the folder ``scratch`` where it does not lie there."""
        if vector.file is not None:
            return self.folder / vector.file
        path = scratch / f"{vector.id.replace('/', '-')}.safetensors"
        if not path.exists():
            with path.open("xb") as stream:
                stream.writelines(built(vector.pieces))
        return path


def find() -> Path:
    """The folder of the vectors that came with this program: packaged with it, or beside it in a checkout.

    Raises:
        NotFoundError: there are none.
    """
    for folder in (_PACKAGED, _CHECKOUT):
        if (folder / INDEX).is_file():
            return folder
    raise NotFoundError("no vectors came with this installation: name their folder with --vectors")


def load(folder: Path) -> Corpus:
    """Read the index in ``folder``.

    Raises:
        NotFoundError: there is none.
        InvalidInputError: it is not what spec/conformance.md says, names a file that is not there, or is empty.
    """
    path = folder.resolve() / INDEX
    try:
        index = json.loads(path.read_bytes())
        corpus = Corpus(path.parent, index["version"], index["format"], tuple(map(_vector, index["vectors"])))
    except (FileNotFoundError, NotADirectoryError):
        raise NotFoundError(f"no vectors here: {path}") from None
    except KeyError as error:
        raise InvalidInputError(f"{path}: is no index of vectors: there is no member {error}") from None
    except (ValueError, TypeError, AttributeError) as error:
        raise InvalidInputError(f"{path}: is no index of vectors: {error}") from None
    if not corpus.vectors:
        raise InvalidInputError(f"{path}: lists no vector")
    for name in _files(corpus):
        if not (file := (corpus.folder / name).resolve()).is_file():
            raise InvalidInputError(f"{path}: names {name}, which is not there")
        if not file.is_relative_to(corpus.folder):
            raise InvalidInputError(f"{path}: names {name}, which is outside of its folder")
    return corpus


def _vector(entry: Mapping[str, Any]) -> Vector:
    if ("file" in entry) == ("build" in entry):
        raise ValueError(f"{entry['id']} has not one of 'file' and 'build'")
    for operation, expectation in entry["expect"].items():
        _check(f"{entry['id']}, {operation}", operation, expectation)
    if sum(map(_length, entry.get("build", ()))) > _BUILT:
        raise ValueError(f"{entry['id']} is built to more than {_BUILT} bytes")
    return Vector(
        id=entry["id"],
        why=entry["why"],
        rules=tuple(entry["rules"]),
        needs=frozenset(entry.get("needs", ())),
        file=entry.get("file"),
        pieces=tuple(entry.get("build", ())),
        expect={operation: dict(expectation) for operation, expectation in entry["expect"].items()},
    )


def _check(place: str, operation: str, expectation: Mapping[str, Any]) -> None:
    """Whether the expectation has what asking and judging take from it."""
    if operation not in _ACCEPTED:
        raise ValueError(f"{place}: there is no such operation")
    refused = expectation.get("verdict") == "reject"
    needed = _ASKED.get(operation, set()) | ({"verdict", "code"} if refused else _ACCEPTED[operation])
    if missing := sorted(needed - set(expectation)):
        raise ValueError(f"{place}: the expectation has no {missing[0]!r}")


def _length(piece: Mapping[str, Any]) -> int:
    """Of the bytes of a piece, the numbers in a text not counted."""
    if "hex" in piece:
        return len(bytes.fromhex(piece["hex"]))
    return len(piece["text"].encode()) * len(range(piece["times"]))


def _files(corpus: Corpus) -> Iterator[str]:
    """Every name of a file in the index."""
    for vector in corpus.vectors:
        if vector.file is not None:
            yield vector.file
        for expectation in vector.expect.values():
            yield from (str(expectation[member]) for member in ("file", "base") if member in expectation)


def built(pieces: tuple[Mapping[str, Any], ...]) -> Iterator[bytes]:
    """The bytes of an adapter in parts: each piece is ``hex``, or a ``text`` that stands there so many ``times``.

    In a text, ``#`` stands for the number of the time, from 0.
    """
    for piece in pieces:
        if "hex" in piece:
            yield bytes.fromhex(piece["hex"])
        else:
            for number in range(piece["times"]):
                yield piece["text"].replace("#", str(number)).encode()
