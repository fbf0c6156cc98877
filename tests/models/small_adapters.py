"""An adapter in a few hundred bytes, or in as many as a test wants, without a framework."""

from __future__ import annotations

from random import Random

from lora_registry.adapter import Adapter, Base, Kind, Target, Tensor


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
