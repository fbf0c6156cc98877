"""Adapters of a gigabyte that take no room on the disk: every element is zero, and the data of a file is a hole."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache
from math import prod
from pathlib import Path

from lora_registry.adapter import Adapter, Base, Kind, Target, Tensor
from lora_registry.digest import Digest
from lora_registry.format.canonical import encode
from lora_registry.format.container import encode_header, place
from lora_registry.format.document import tensor_key, to_document
from lora_registry.format.rules import KEY

LLAMA_8B = {
    "self_attn.q_proj": (4096, 4096),
    "self_attn.k_proj": (1024, 4096),
    "self_attn.v_proj": (1024, 4096),
    "self_attn.o_proj": (4096, 4096),
    "mlp.gate_proj": (14336, 4096),
    "mlp.up_proj": (14336, 4096),
    "mlp.down_proj": (4096, 14336),
}
"""The linear layers of a block of Llama 3 8B: (out, in)."""


@cache
def _zeros(size: int) -> tuple[bytes, Digest]:
    zeros = bytes(size)
    return zeros, Digest.of(zeros)


def _target(name: str, kind: Kind, shape: tuple[int, int], tensors: dict[str, tuple[int, ...]]) -> Target:
    """A target of bfloat16 zeros, with the digests of its tensors and some fingerprint."""
    filled = {role: _zeros(2 * prod(axes)) for role, axes in tensors.items()}
    return Target(
        name=name,
        kind=kind,
        layout=() if kind is Kind.FULL else ("out", "in"),
        shape=shape,
        tensors={role: Tensor("BF16", tensors[role], zeros) for role, (zeros, _) in filled.items()},
        digests={role: digest for role, (_, digest) in filled.items()},
        fingerprint=Digest.of(name.encode()),
    )


def _linear(name: str, shape: tuple[int, int], rank: int) -> Target:
    return _target(name, Kind.LINEAR, shape, {"A": (rank, shape[1]), "B": (shape[0], rank)})


def _of_llama(layers: Iterable[int], rank: int) -> list[Target]:
    return [
        _linear(f"model.layers.{layer}.{module}.weight", shape, rank)
        for layer in layers
        for module, shape in LLAMA_8B.items()
    ]


def every_linear() -> Adapter:
    """All linear layers of Llama 3 8B at rank 208: 224 targets, 448 tensors, 1.09 GB."""
    return _adapter(_of_llama(range(32), 208))


def new_head() -> Adapter:
    """A whole new output embedding of Llama 3 8B, and the last block at rank 16: 8 targets, 1.05 GB."""
    head = (128_256, 4096)
    return _adapter([_target("lm_head.weight", Kind.FULL, head, {"value": head}), *_of_llama([31], 16)])


def many_experts() -> Adapter:
    """One projection of 128 experts in each of 32 layers at rank 48: 4096 targets, 8192 tensors, 1.11 GB."""
    names = (f"model.layers.{layer}.mlp.experts.{expert}.up_proj" for layer in range(32) for expert in range(128))
    return _adapter(_linear(f"{name}.weight", (768, 2048), 48) for name in names)


def _adapter(targets: Iterable[Target]) -> Adapter:
    return Adapter(
        targets=tuple(targets),
        base=Base(name="example/base", revision="0" * 40, license="Apache-2.0"),
        info={"title": "Large and empty", "license": "Apache-2.0"},
    )


def write_hole(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str]) -> Path:
    """A safetensors file whose data is a hole, which reads as zeros."""
    header = encode_header(place({key: (tensor.dtype, tensor.shape) for key, tensor in tensors.items()}), metadata)
    with path.open("wb") as stream:
        stream.write(header)
        stream.truncate(len(header) + sum(tensor.nbytes for tensor in tensors.values()))
    return path


def write_native(adapter: Adapter, path: Path) -> Path:
    """An adapter of zeros as the native file that ``write_adapter`` would make of it."""
    tensors = {tensor_key(target.name, role): tensor for target in adapter for role, tensor in target.tensors.items()}
    return write_hole(path, tensors, {KEY: encode(to_document(adapter)).decode()})
