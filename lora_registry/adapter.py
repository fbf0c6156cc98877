"""What an adapter is: an immutable set of targets plus metadata (spec sections 3, 5 and 7).

A *target* names one tensor of the base model and says how the adapter changes it. With W the base tensor
in logical axis order, s the scale and A, B the factors (Hu et al. 2021, arXiv 2106.09685)::

    W' = W + s · B · A                          linear, embedding, conv, experts
    W' = m ∘ (W + s·B·A) / ‖W + s·B·A‖          the same with a magnitude m (DoRA, Liu et al. 2024)
    b' = b + s · delta                          bias
    W' = value                                  full
    W'[rows] = value                            tokens
    W' = W + s · (B1·A1) ∘ (B2·A2)              loha   (these three need a feature: spec/extensions.md)
    W' = W + s · C1 ⊗ C2                        lokr
    W'.flat[index] = W.flat[index] + s · delta  sparse

Where a target with factors also has a ``value``, the value stands in for W: the change is made on it.
Nothing here imports a framework: a tensor is a dtype, a shape and a buffer, which is usually a window of
a memory-mapped file and is read only when somebody looks at it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from math import prod
from typing import TypeAlias

from lora_registry.digest import Digest
from lora_registry.dtypes import DTYPES
from lora_registry.segments import Segments

Json: TypeAlias = "bool | int | float | str | list[Json] | dict[str, Json] | None"
Layout: TypeAlias = tuple[str, ...]


class Kind(StrEnum):
    """How a target changes its base tensor."""

    LINEAR = "linear"
    EMBEDDING = "embedding"
    CONV = "conv"
    EXPERTS = "experts"
    BIAS = "bias"
    FULL = "full"
    TOKENS = "tokens"
    LOHA = "loha"
    LOKR = "lokr"
    SPARSE = "sparse"


LOW_RANK = frozenset({Kind.LINEAR, Kind.EMBEDDING, Kind.CONV, Kind.EXPERTS})
"""The kinds whose change is s·B·A."""

SCALED = LOW_RANK | {Kind.BIAS, Kind.LOHA, Kind.LOKR, Kind.SPARSE}
"""The kinds that have a scale."""

_MATRICES = frozenset({("out", "in"), ("in", "out")})
_KERNELS = frozenset({("out", "in", "k"), ("out", "in", "k", "k"), ("out", "in", "k", "k", "k")})

LAYOUTS: Mapping[Kind, frozenset[Layout]] = {
    Kind.LINEAR: _MATRICES,
    Kind.EMBEDDING: frozenset({("in", "out")}),
    Kind.CONV: _KERNELS,
    Kind.EXPERTS: frozenset({("expert", "out", "in"), ("expert", "in", "out")}),
    Kind.BIAS: frozenset({("out",)}),
    Kind.FULL: frozenset({()}),
    Kind.TOKENS: frozenset({("in", "out")}),
    Kind.LOHA: _MATRICES | _KERNELS,
    Kind.LOKR: _MATRICES | _KERNELS,
    Kind.SPARSE: frozenset({()}),
}
"""The axis orders in which a base model may store the tensor of a target, by kind (rule R-023)."""


@dataclass(frozen=True, slots=True, eq=False)
class Tensor:
    """Elements in row-major order, little-endian, without a framework.

    Attributes:
        dtype: safetensors name, a key of :data:`lora_registry.dtypes.DTYPES`.
        shape: axis lengths.
        data: the bytes; a window of a memory map where the tensor comes from a file.
    """

    dtype: str
    shape: tuple[int, ...]
    data: bytes | memoryview

    def __post_init__(self) -> None:
        if len(self.data) != self.nbytes:
            raise ValueError(f"{self.dtype} {list(self.shape)} needs {self.nbytes} bytes, got {len(self.data)}")

    @property
    def nbytes(self) -> int:
        """Length of the data in bytes."""
        return prod(self.shape) * DTYPES[self.dtype].size

    def digest(self) -> Digest:
        """sha256 of the bytes; reads them all."""
        return Digest.of(self.data)

    def with_shape(self, *shape: int) -> Tensor:
        """The same bytes under another shape with as many elements."""
        return Tensor(self.dtype, shape, self.data)


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """One base tensor that the adapter changes, and how.

    Attributes:
        name: name of the base tensor in the base checkpoint, ``model.layers.0.self_attn.q_proj.weight``.
        kind: how it is changed.
        layout: axis order in which the base stores the tensor; one of ``LAYOUTS[kind]``.
        shape: shape of the base tensor as stored; None only where the source did not tell (tokens).
        scale: s in s·B·A, a finite float64. Normative: α, r and rsLoRA are provenance only.
        tensors: role to tensor. Roles and shapes by kind, with r the rank, E the number of experts:

            ============ =================================== ==========================================
            linear       A (r, in)  B (out, r)               optional magnitude (out,), value
            embedding    A (r, in)  B (out, r)               in = vocabulary; optional magnitude, value
            conv         A (r, in[/g], k…)  B (out, r/g, 1…) optional magnitude (out,), value
            experts      A (E, r, in)  B (E, out, r)         optional value
            bias         delta (out,)                        stored unscaled
            full         value (any shape)                   replaces the base tensor
            tokens       value (len(rows), out)              replaces the named rows
            loha         A1 (r, in, k…)  B1 (out, r)         and A2, B2 of another rank; optional magnitude, value
            lokr         C1 (o1, i1)  C2 (o2, i2, k…)        o1·o2 = out, i1·i2 = in; each may be B1·A1, B2·A2
            sparse       index (n,) I64  delta (n,)          flat positions in stored order, ascending
            ============ =================================== ==========================================
        digests: role to sha256 of the tensor's bytes as the file states them; empty for a target that was
            just made. :meth:`digest` looks here first, so that identity needs no look at the data.
        groups: groups of the second factor of a conv (PEFT's grouped form); 1 everywhere else.
        rows: the row numbers of a tokens target, ascending.
        length: rows of W' where a tokens target adds rows behind those of the base; None where it adds none.
        segments: the parts of a fused tensor along its outputs; describes the base, changes nothing.
        initial: how many of the last ranks are the negated initial factors of an adapter that was trained on
            a base minus those (PiSSA and its relatives); 0 where there are none. W' does not depend on it.
        fingerprint: digest of the base tensor's values (spec section 9), where the base was at hand.
        extra: fields this version does not know; kept, so that reading and writing back loses nothing.
    """

    name: str
    kind: Kind
    layout: Layout
    shape: tuple[int, ...] | None
    tensors: Mapping[str, Tensor]
    scale: float = 1.0
    groups: int = 1
    rows: tuple[int, ...] = ()
    length: int | None = None
    segments: Segments | None = None
    initial: int = 0
    fingerprint: Digest | None = None
    digests: Mapping[str, Digest] = field(default_factory=dict)
    extra: Mapping[str, Json] = field(default_factory=dict)

    @property
    def rank(self) -> int | None:
        """r, the length that A and B share; None where there are no factors."""
        if "A" not in self.tensors:
            return None
        return self.tensors["A"].shape[1 if self.kind is Kind.EXPERTS else 0]

    @property
    def parameters(self) -> int:
        """Number of elements that the target carries."""
        return sum(prod(tensor.shape) for tensor in self.tensors.values())

    def digest(self, role: str) -> Digest:
        """sha256 of the tensor in ``role``: as the file states it, or hashed now."""
        return self.digests.get(role) or self.tensors[role].digest()


@dataclass(frozen=True, slots=True, kw_only=True)
class Base:
    """The model that the adapter changes.

    Attributes:
        name: how people call it, such as ``HuggingFaceTB/SmolLM2-135M-Instruct``; never a local path.
        revision: commit or version of that name.
        license: SPDX expression of the base model's license.
        view: how the base was quantized while the adapter was trained, such as ``{"scheme": "nf4"}``; empty
            where it was used as stored, or nobody knows.
        extra: fields this version does not know.
    """

    name: str | None = None
    revision: str | None = None
    license: str | None = None
    view: Mapping[str, Json] = field(default_factory=dict)
    extra: Mapping[str, Json] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Adapter:
    """An immutable set of targets plus metadata; one file.

    Attributes:
        targets: ascending by name, each name once.
        base: the model that it changes.
        info: what people want to know: ``title``, ``description``, ``license`` (SPDX), ``authors``, ``tags``.
        origin: where the content came from: ``format``, ``version`` and the foreign ``config`` as it was,
            so that writing that format again gives back what was read. Provenance, never meaning.
        gate: token ids that switch the adapter on (activated LoRA); empty where it is always on. A gated
            adapter cannot be merged.
        tokenizer: ``digest`` of tokenizer.json, ``chat_template`` digest, ``added`` tokens (``id``, ``text``).
        lineage: ``operation`` and ``parameters`` that made the adapter from its ``parents``.
        training: ``tool``, ``version``, ``datasets``.
        requires_read: features without which a reader must not use the file (spec section 12), besides those
            that a gate and the kinds of the targets need by themselves.
        requires_write: features without which an editor must not change the file.
        extensions: reverse-DNS name to JSON; those named in ``requires_read`` are part of the meaning.
        extra: top-level fields this version does not know.
    """

    targets: tuple[Target, ...]
    base: Base = field(default_factory=Base)
    info: Mapping[str, Json] = field(default_factory=dict)
    origin: Mapping[str, Json] = field(default_factory=dict)
    gate: tuple[int, ...] = ()
    tokenizer: Mapping[str, Json] = field(default_factory=dict)
    lineage: Mapping[str, Json] = field(default_factory=dict)
    training: Mapping[str, Json] = field(default_factory=dict)
    requires_read: frozenset[str] = frozenset()
    requires_write: frozenset[str] = frozenset()
    extensions: Mapping[str, Json] = field(default_factory=dict)
    extra: Mapping[str, Json] = field(default_factory=dict)

    def __post_init__(self) -> None:
        ordered = tuple(sorted(self.targets, key=lambda target: target.name))
        object.__setattr__(self, "targets", ordered)

    def __iter__(self) -> Iterator[Target]:
        return iter(self.targets)

    def __len__(self) -> int:
        return len(self.targets)

    def target(self, name: str) -> Target:
        """The target of the base tensor ``name``; KeyError where there is none."""
        for target in self.targets:
            if target.name == name:
                return target
        raise KeyError(name)

    @property
    def parameters(self) -> int:
        """Number of elements that the adapter carries."""
        return sum(target.parameters for target in self.targets)

    @property
    def ranks(self) -> tuple[int, ...]:
        """The ranks that occur, ascending."""
        return tuple(sorted({target.rank for target in self.targets if target.rank is not None}))

    def with_fingerprints(self, fingerprints: Mapping[str, Digest]) -> Adapter:
        """A copy whose targets carry the given fingerprints of their base tensors, by target name."""
        return replace(
            self,
            targets=tuple(
                replace(target, fingerprint=fingerprints.get(target.name, target.fingerprint))
                for target in self.targets
            ),
        )
