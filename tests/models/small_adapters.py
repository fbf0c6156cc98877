"""An adapter in a few hundred bytes, or in as many as a test wants, without a framework."""

from __future__ import annotations

import json
from pathlib import Path
from random import Random

from lora_registry.adapter import Adapter, Base, Kind, Target, Tensor
from lora_registry.digest import Digest
from lora_registry.format.container import encode_header, place


def small_adapter(seed: int, *, width: int = 4, rank: int = 2, targets: int = 2) -> Adapter:
    """Equal seeds give equal adapters; the factors hold 4 * rank * width bytes each, F32 between 1 and 2."""
    random = Random(seed)

    def factor(*shape: int) -> Tensor:
        # 1.0 to 2.0: sign and exponent fixed, the mantissa random
        raw = bytearray(random.randbytes(4 * shape[0] * shape[1]))
        raw[3::4] = b"\x3f" * (len(raw) // 4)
        raw[2::4] = bytes(byte | 0x80 for byte in raw[2::4])
        return Tensor("F32", shape, bytes(raw))

    return Adapter(
        targets=tuple(
            Target(
                name=f"layers.{index}.q_proj.weight",
                kind=Kind.LINEAR,
                layout=("out", "in"),
                shape=(width, width),
                scale=2.0,
                tensors={"A": factor(rank, width), "B": factor(width, rank)},
            )
            for index in range(targets)
        ),
        base=Base(name="example/base", license="Apache-2.0"),
        info={"title": f"number {seed}", "license": "MIT"},
    )


def sparse_adapter(path: Path, side: int) -> Path:
    """A native file of one target with 128 bytes of factors for each of ``side`` rows; all zero, and not on disk."""
    tensors = {"w/A": ("F32", (16, side)), "w/B": ("F32", (side, 16))}
    stated = str(Digest.of(b"not looked at"))
    record = {
        "kind": "linear",
        "layout": ["out", "in"],
        "shape": [side, side],
        "scale": 1,
        "tensors": {"A": stated, "B": stated},
    }
    header = encode_header(place(tensors), {"loreg": json.dumps({"loreg": 1, "targets": {"w": record}})})
    with path.open("wb") as stream:
        stream.write(header)
        stream.truncate(len(header) + 128 * side)
    return path
