"""What an adapter is: an immutable set of targets plus metadata (spec sections 3 to 6).

A *target* names one tensor of the base model and says how the adapter changes it. With W the base tensor
in logical axis order, s the scale and A, B the factors (Hu et al. 2021, arXiv 2106.09685)::

    W' = W + s · B · A                          linear, embedding, conv, experts
    W' = m ∘ (W + s·B·A) / ‖W + s·B·A‖          the same with a magnitude m (DoRA, Liu et al. 2024)
    b' = b + s · delta                          bias
    W' = value                                  full
    W'[rows] = value                            tokens

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


LOW_RANK = frozenset({Kind.LINEAR, Kind.EMBEDDING, Kind.CONV, Kind.EXPERTS})
"""The kinds whose change is s·B·A."""

SCALED = LOW_RANK | {Kind.BIAS}
"""The kinds that have a scale."""

LAYOUTS: Mapping[Kind, frozenset[Layout]] = {
    Kind.LINEAR: frozenset({("out", "in"), ("in", "out")}),
    Kind.EMBEDDING: frozenset({("in", "out")}),
    Kind.CONV: frozenset({("out", "in", "k"), ("out", "in", "k", "k"), ("out", "in", "k", "k", "k")}),
    Kind.EXPERTS: frozenset({("expert", "out", "in"), ("expert", "in", "out")}),
    Kind.BIAS: frozenset({("out",)}),
    Kind.FULL: frozenset({()}),
    Kind.TOKENS: frozenset({("in", "out")}),
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
            ============ =================================== ==========================================
        digests: role to sha256 of the tensor's bytes as the file states them; empty for a target that was
            just made. :meth:`digest` looks here first, so that identity needs no look at the data.
        groups: groups of the second factor of a conv (PEFT's grouped form); 1 everywhere else.
        rows: the row numbers of a tokens target, ascending.
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
        extra: fields this version does not know.
    """

    name: str | None = None
    revision: str | None = None
    license: str | None = None
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
        requires_read: features without which a reader must not use the file (spec section 12).
        requires_write: features without which an editor must not change the file.
        extensions: reverse-DNS name to JSON; those named in ``requires_read`` are part of the meaning.
        extra: top-level fields this version does not know.
    """

    targets: tuple[Target, ...]
    base: Base = field(default_factory=Base)
    info: Mapping[str, Json] = field(default_factory=dict)
    origin: Mapping[str, Json] = field(default_factory=dict)
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
