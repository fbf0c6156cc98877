"""The header of a delta patch: what it is of, and how each side is made of the other (``spec/lpatch.md``).

It stands at the end of the file, after the body that it points into, so that a patch is written in one go and one
that was cut short is told by its last bytes.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import isfinite
from typing import IO, cast

from lora_registry.adapter import Json
from lora_registry.errors import InvalidInputError, UnsupportedError
from lora_registry.format.canonical import JsonError, decode, encode, is_integers
from lora_registry.lpatch.product import is_computable
from lora_registry.lpatch.runs import MEMBERS, Factors, Op, Run
from lora_registry.lpatch.words import WIDTHS
from lora_registry.merge.receipt import FileRecord
from lora_registry.merge.recorded import parse_records

MAGIC = b"lpatch\r\n"
"""The first eight bytes, and the last: a transfer that changes the ends of lines shows."""
VERSION = 1
LIMIT = 1 << 26
"""Bytes of a header, at most."""
_TAIL = 8 + len(MAGIC)  # the length of the header, and the magic again


@dataclass(frozen=True, slots=True, kw_only=True)
class Side:
    """One of the two models.

    Attributes:
        model: name of its ``.onnx``.
        files: all its files, the ``.onnx`` too.
        runs: name of each file to how it is made of the other side.
    """

    model: str
    files: tuple[FileRecord, ...]
    runs: Mapping[str, tuple[Run, ...]]

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(record.size for record in self.files)

    def to_json(self) -> Json:
        """The side as a JSON object."""
        return {
            "model": self.model,
            "files": [record.to_json() for record in sorted(self.files)],
            "runs": {name: [run.to_json() for run in runs] for name, runs in self.runs.items()},
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Header:
    """What a patch says about itself.

    Attributes:
        base: what it is applied to, and how it is got back.
        merged: what comes of it.
        products: what the runs name by number.
    """

    base: Side
    merged: Side
    products: tuple[Factors, ...] = ()

    def encode(self) -> bytes:
        """Everything after the body: canonical JSON, its length, magic."""
        text = encode(
            {
                "loreg_lpatch": VERSION,
                "base": self.base.to_json(),
                "merged": self.merged.to_json(),
                "products": [factors.to_json() for factors in self.products],
            }
        )
        return text + len(text).to_bytes(8, "little") + MAGIC


def read_header(stream: IO[bytes], size: int, name: str) -> Header:
    """Read and check everything but the body.

    Args:
        stream: the patch.
        size: bytes of it.
        name: of it, for messages.

    Raises:
        InvalidInputError: it breaks a rule of the format.
        UnsupportedError: it is of another version.
    """
    if stream.read(len(MAGIC)) != MAGIC:
        raise InvalidInputError(f"{name}: no delta patch (L-001)")
    body = size - _TAIL
    stream.seek(max(body, 0))
    tail = stream.read(_TAIL)
    length = int.from_bytes(tail[:8], "little")
    if not tail.endswith(MAGIC) or len(tail) < _TAIL or not 0 < length <= min(LIMIT, body - len(MAGIC)):
        raise InvalidInputError(f"{name}: truncated, or a header that is too large (L-001)")
    stream.seek(body - length)
    try:
        said = decode(stream.read(length))
    except JsonError as error:
        raise InvalidInputError(f"{name}: {error} (L-001)") from None
    if not isinstance(said, dict) or "loreg_lpatch" not in said:
        raise InvalidInputError(f"{name}: no delta patch (L-001)")
    if said["loreg_lpatch"] != VERSION:
        raise UnsupportedError(f"{name}: a delta patch of version {said['loreg_lpatch']!r}, not {VERSION}")
    if set(said) != {"loreg_lpatch", "base", "merged", "products"}:
        raise InvalidInputError(f"{name}: other members than a delta patch has (L-001)")
    header = _header(said, name)
    _require_tiling(header, body - length, name)
    return header


def _header(said: Mapping[str, Json], name: str) -> Header:
    listed = said["products"]
    if not isinstance(listed, list):
        raise InvalidInputError(f"{name}: no list of products (L-003)")
    products = tuple(_factors(each, name) for each in listed)
    sides = {}
    for which in ("base", "merged"):
        side = said[which]
        if not isinstance(side, dict) or set(side) != {"model", "files", "runs"}:
            raise InvalidInputError(f"{name}: {which} has other members than a side (L-001)")
        files = parse_records(side["files"], f"{name}: {which}")
        if side["model"] not in {record.name for record in files}:
            raise InvalidInputError(f"{name}: the model of {which} is none of its files (L-001)")
        sides[which] = (str(side["model"]), files, side["runs"])
    parsed = {}
    for which, other in (("base", "merged"), ("merged", "base")):
        model, files, runs = sides[which]
        sizes = {record.name: record.size for record in sides[other][1]}
        parsed[which] = Side(model=model, files=files, runs=_runs(runs, files, sizes, products, f"{name}: {which}"))
    return Header(base=parsed["base"], merged=parsed["merged"], products=products)


def _runs(
    said: Json, files: Iterable[FileRecord], sizes: Mapping[str, int], products: tuple[Factors, ...], what: str
) -> dict[str, tuple[Run, ...]]:
    files = tuple(files)
    if not isinstance(said, dict) or set(said) != {record.name for record in files}:
        raise InvalidInputError(f"{what}: runs of other files than its own (L-002)")
    result = {}
    for record in files:
        listed = said[record.name]
        if not isinstance(listed, list):
            raise InvalidInputError(f"{what}: {record.name} has no runs (L-002)")
        runs = tuple(_run(each, sizes, products, f"{what}: {record.name}") for each in listed)
        if sum(run.length for run in runs) != record.size:
            raise InvalidInputError(f"{what}: the runs of {record.name} do not add up to its size (L-002)")
        result[record.name] = runs
    return result


def _run(said: Json, sizes: Mapping[str, int], products: tuple[Factors, ...], what: str) -> Run:
    if not isinstance(said, dict) or set(said) != MEMBERS.get(str(said.get("op"))):
        raise InvalidInputError(f"{what}: a run with other members than it has (L-002)")
    numbers = [said.get(key, 0) for key in ("length", "offset", "width", "product", "at", "size")]
    if not is_integers(numbers) or numbers[0] < 1 or min(numbers) < 0:
        raise InvalidInputError(f"{what}: a run with a number that it cannot have (L-002)")
    length, offset, width, product, at, size = numbers
    run = Run(
        op=cast("Op", said["op"]),
        length=length,
        file=str(said.get("file", "")),
        offset=offset,
        width=width,
        dtype=str(said.get("dtype", "")),
        product=product,
        at=at,
        size=size,
    )
    if run.op != "literal" and run.offset + run.length > sizes.get(run.file, -1):
        raise InvalidInputError(f"{what}: a run beyond the end of {run.file!r} (L-002)")
    if run.op == "difference" and (run.width not in WIDTHS or run.length % run.width):
        raise InvalidInputError(f"{what}: a difference of words of {run.width} bytes (L-003)")
    if run.op == "product" and not _is_of(run, products):
        raise InvalidInputError(f"{what}: a product that is not of its elements (L-003)")
    return run


def _is_of(run: Run, products: tuple[Factors, ...]) -> bool:
    if run.product >= len(products) or not is_computable(run.dtype):
        return False
    factors = products[run.product]
    return factors.rows * factors.columns * run.word == run.length


def _factors(said: Json, name: str) -> Factors:
    if not isinstance(said, dict) or set(said) != {"rows", "columns", "rank", "scale", "dtype", "at"}:
        raise InvalidInputError(f"{name}: a product with other members than it has (L-003)")
    numbers = [said[key] for key in ("rows", "columns", "rank", "at")]
    scale, dtype = said["scale"], said["dtype"]
    is_number = isinstance(scale, int | float) and not isinstance(scale, bool) and isfinite(scale)
    if not is_integers(numbers) or not is_number or not isinstance(dtype, str) or not is_computable(dtype):
        raise InvalidInputError(f"{name}: a product that is not of floats (L-003)")
    rows, columns, rank, at = numbers
    if at < 0 or not 1 <= rank <= min(rows, columns):
        raise InvalidInputError(f"{name}: a product of rank {rank} for {rows} rows and {columns} columns (L-003)")
    return Factors(rows=rows, columns=columns, rank=rank, scale=float(cast("float", scale)), dtype=dtype, at=at)


def _require_tiling(header: Header, end: int, name: str) -> None:
    """Every byte of the body belongs to one product, or to the blocks of a run; two runs may share theirs."""
    parts = {(factors.at, factors.size) for factors in header.products}
    for side in (header.base, header.merged):
        parts |= {(run.at, run.size) for runs in side.runs.values() for run in runs if run.op != "copy"}
    position = len(MAGIC)
    for at, size in sorted(parts):
        if at != position:
            raise InvalidInputError(f"{name}: a body with bytes that belong to nothing, or to two things (L-004)")
        position += size
    if position != end:
        raise InvalidInputError(f"{name}: a body with bytes that belong to nothing, or to two things (L-004)")
