"""Making a delta patch from two models, and the adapter between them where there is one."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import IO

from lora_registry.adapter import Adapter, Json
from lora_registry.digest import Digest
from lora_registry.errors import InvalidInputError, NotAllowedError
from lora_registry.format.files import atomic_write, refuse_existing, storage_errors
from lora_registry.lpatch.block import BLOCK, pack
from lora_registry.lpatch.header import MAGIC, Header, Side
from lora_registry.lpatch.layout import Layout, Piece, mapped
from lora_registry.lpatch.places import ModelFiles
from lora_registry.lpatch.product import Product
from lora_registry.lpatch.recipes import Recipe, recipes
from lora_registry.lpatch.runs import Factors, Run
from lora_registry.lpatch.words import folded
from lora_registry.merge.receipt import FileRecord
from lora_registry.merge.watch import Watch
from lora_registry.onnx.model import OnnxModel
from lora_registry.ops.arrays import Array, as_bytes, dtype_name
from lora_registry.progress import Counted, Progress

_UNDER_WAY = 4  # blocks that are being made, at most


@dataclass(frozen=True, slots=True, kw_only=True)
class PatchSize:
    """What a patch is made of, in bytes.

    Attributes:
        patch: all of it.
        base: the files of the base.
        merged: the files of the merged model.
        changed: bytes of the merged model that the base does not hold as they are.
        factors: the factors of the adapter.
        corrections: what they leave to be said, in both directions.
        differences: of tensors that no factors explain.
        literals: bytes that are in one model alone, compressed.
        products: tensors that are made of factors.
        unexplained: names of targets of the adapter that explain no tensor.
    """

    patch: int
    base: int
    merged: int
    changed: int
    factors: int
    corrections: int
    differences: int
    literals: int
    products: int
    unexplained: tuple[str, ...]

    def to_json(self) -> dict[str, Json]:
        """The fields by name."""
        return {field.name: getattr(self, field.name) for field in fields(self)} | {
            "unexplained": list(self.unexplained)
        }


def write_patch(
    base_path: Path,
    merged_path: Path,
    out: Path,
    *,
    adapter: Adapter | None = None,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> PatchSize:
    """Write the patch that makes ``merged_path`` of ``base_path``, and the other way round.

    Args:
        base_path: an ``.onnx``; its external data belong to it.
        merged_path: what was made of it, by whatever program.
        out: the file to write.
        adapter: what was merged. The patch then holds its factors, and the bits in which their sum with the base,
            computed in one arithmetic everywhere, is not what was written. A wrong adapter costs nothing but time.
        overwrite: ``out`` may be replaced.
        progress: called with the bytes of both models that are done, and all.

    Raises:
        NotFoundError: a model, or the folder of ``out``, does not exist.
        InvalidInputError: a model is broken; or the two are the same.
        InconclusiveError: the names of the adapter fit the base in several ways.
        NotAllowedError: ``out`` is a file of one of the models.
        ConflictError: ``out`` exists, or a model changed while it was read.
    """
    if not overwrite:
        refuse_existing(out)
    opened = OnnxModel.open(base_path)
    base, merged = ModelFiles(opened), ModelFiles(OnnxModel.open(merged_path))
    for path in (*base.paths.values(), *merged.paths.values()):
        if out.resolve() == path.resolve():
            raise NotAllowedError(f"{out} is a file of one of the models; choose another name")
    with storage_errors(out):
        watch = Watch((*base.paths.values(), *merged.paths.values()))
        known, left = recipes(adapter or (), opened, base, merged)
        sides = {"base": _records(base), "merged": _records(merged)}
        if {record.digest for record in sides["base"]} == {record.digest for record in sides["merged"]}:
            raise InvalidInputError(f"{base_path} and {merged_path} are the same model; there is nothing to patch")
        counted = Counted(progress, sum(record.size for records in sides.values() for record in records))
        with atomic_write(out, overwrite=overwrite) as stream, ThreadPoolExecutor(2) as threads:
            maker = _Maker(stream, base, merged, known, threads, counted)
            runs = maker.write()
            header = Header(
                base=Side(model=base.model, files=sides["base"], runs=runs["base"]),
                merged=Side(model=merged.model, files=sides["merged"], runs=runs["merged"]),
                products=tuple(maker.factors),
            )
            stream.write(header.encode())
            size = stream.tell()
            watch.require_unchanged()
    explained = {name for recipe in maker.used for name in recipe.targets}
    return PatchSize(
        patch=size,
        base=header.base.size,
        merged=header.merged.size,
        changed=sum(run.length for each in runs["merged"].values() for run in each if run.op != "copy"),
        factors=sum(factors.size for factors in maker.factors),
        corrections=maker.written["product"],
        differences=maker.written["difference"],
        literals=maker.written["literal"],
        products=len(maker.used),
        unexplained=tuple(sorted({*left, *(name for recipe in known for name in recipe.targets)} - explained)),
    )


def _records(model: ModelFiles) -> tuple[FileRecord, ...]:
    with ThreadPoolExecutor(2) as threads:  # hashing lets go of the interpreter lock
        digests = list(threads.map(Digest.of_file, model.paths.values()))
    sizes = [path.stat().st_size for path in model.paths.values()]
    return tuple(FileRecord(*record) for record in zip(model.paths, sizes, digests, strict=True))


class _Maker:
    """Writes the body of a patch and gives the runs that point into it."""

    def __init__(
        self,
        stream: IO[bytes],
        base: ModelFiles,
        merged: ModelFiles,
        known: tuple[Recipe, ...],
        threads: ThreadPoolExecutor,
        counted: Counted,
    ) -> None:
        self.factors: list[Factors] = []
        self.used: list[Recipe] = []
        self.written = {"product": 0, "difference": 0, "literal": 0}
        self._stream, self._threads, self._counted = stream, threads, counted
        self._files = {"base": base, "merged": merged}
        self._bytes = {"base": mapped(base.paths), "merged": mapped(merged.paths)}
        self._recipes = known
        self._numbers: dict[str, int] = {}  # merged initializer of a recipe that is used to its product
        self._refused: set[str] = set()
        self._shared: dict[tuple[str, int, str, int, int], tuple[int, int]] = {}

    def write(self) -> dict[str, dict[str, tuple[Run, ...]]]:
        """The runs of both sides."""
        self._stream.write(MAGIC)
        ahead = {recipe.merged: (recipe.base, recipe) for recipe in self._recipes}
        merged = self._side("merged", "base", ahead)
        # A tensor that was cloned to be changed is still there as it was, and that is what the base gets back.
        left = self._files["merged"].places.keys() - self._numbers.keys()
        back = {
            recipe.base: (recipe.merged, recipe)
            for recipe in self._recipes
            if recipe.merged in self._numbers and recipe.base not in left
        }
        base = self._side("base", "merged", back)
        return {"base": base, "merged": merged}

    def _side(self, made: str, source: str, known: Mapping[str, tuple[str, Recipe]]) -> dict[str, tuple[Run, ...]]:
        layout = Layout(self._files[made], self._files[source], known)
        return {
            file: tuple(self._run(piece, made, source) for piece in layout.pieces(file))
            for file in self._files[made].paths
        }

    def _run(self, piece: Piece, made: str, source: str) -> Run:
        subtract = made == "base"
        if piece.recipe is not None and not self._pays(piece, made, source):
            piece = replace(piece, op="difference", recipe=None, dtype="")
        run = Run(op=piece.op, length=piece.length, file=piece.source, offset=piece.source_offset)
        if piece.op == "copy":
            self._counted.advance(piece.length)
            return run
        number = self._number(piece.recipe) if piece.recipe is not None else 0
        run = replace(run, width=piece.word if piece.op == "difference" else 0, dtype=piece.dtype, product=number)
        ends = [(piece.file, piece.offset), (piece.source, piece.source_offset)]
        key = (*ends[subtract], *ends[not subtract], piece.length)
        if piece.op == "difference" and key in self._shared:
            at, size = self._shared[key]
            self._counted.advance(piece.length)
            return replace(run, at=at, size=size)
        at = self._stream.tell()
        for block in self._blocks(piece, made, source):
            self._stream.write(block)
        size = self._stream.tell() - at
        self.written[piece.op] += size
        if piece.op == "difference":
            self._shared[key] = at, size
        return replace(run, at=at, size=size)

    def _number(self, recipe: Recipe) -> int:
        """The number of the product of ``recipe``, whose factors are written when it is first used."""
        if recipe.merged not in self._numbers:
            self._numbers[recipe.merged] = len(self.factors)
            product = recipe.product
            (rank, rows), columns = product.left.shape, product.right.shape[1]
            dtype = dtype_name(product.left.dtype)
            at = self._stream.tell()
            for factor in (product.left, product.right):
                self._stream.write(as_bytes(_ordered(factor)))
            self.factors.append(Factors(rows=rows, columns=columns, rank=rank, scale=product.scale, dtype=dtype, at=at))
            self.used.append(recipe)
        return self._numbers[recipe.merged]

    def _pays(self, piece: Piece, made: str, source: str) -> bool:
        """Whether the first block is smaller with the product than without: the adapter is the one that was merged."""
        assert piece.recipe is not None
        name = piece.recipe.merged
        if name not in self._numbers and name not in self._refused:
            plain = replace(piece, op="difference")
            length = min(BLOCK, piece.length)
            with_product, without = (self._block(each, made, source, 0, length) for each in (piece, plain))
            factors = (piece.recipe.product.left.nbytes + piece.recipe.product.right.nbytes) * length // piece.length
            if 2 * len(with_product) + factors >= len(without):  # corrections are needed in both directions
                self._refused.add(name)
        return name not in self._refused

    def _blocks(self, piece: Piece, made: str, source: str) -> Iterator[bytes]:
        """The blocks of a piece in order, a few of them being made at a time."""
        waiting: deque[Future[bytes]] = deque()
        for start in range(0, piece.length, BLOCK):
            length = min(BLOCK, piece.length - start)
            waiting.append(self._threads.submit(self._block, piece, made, source, start, length))
            if len(waiting) > _UNDER_WAY:
                yield waiting.popleft().result()
            self._counted.advance(length)
        while waiting:
            yield waiting.popleft().result()

    def _block(self, piece: Piece, made: str, source: str, start: int, length: int) -> bytes:
        wanted = _part(self._bytes[made][piece.file], piece.offset + start, length)
        if piece.op == "literal":
            return pack(wanted.data, piece.op)
        known = _part(self._bytes[source][piece.source], piece.source_offset + start, length)
        word = f"<u{piece.word}"
        new, old = wanted.view(word), known.view(word)
        if piece.op == "product":
            assert piece.recipe is not None
            product: Product = piece.recipe.product
            old = product.predicted(old, start // piece.word, piece.dtype, subtract=made == "base")
        elif made == "base":
            new, old = old, new  # what is stored is always merged - base
        return pack(folded(new, old), piece.op)


def _part(data: Array, offset: int, length: int) -> Array:
    """A copy, since offsets in a file are no multiples of the size of a word."""
    return data[offset : offset + length].copy()


def _ordered(factor: Array) -> Array:
    ordered: Array = factor.copy(order="C") if not factor.flags.c_contiguous else factor
    return ordered
