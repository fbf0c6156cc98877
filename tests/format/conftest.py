"""Small adapters and hand-made files for the tests of the format."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest

from lora_registry.adapter import Adapter, Base, Kind, Target, Tensor
from lora_registry.format.container import encode_tensors

MakeFile = Callable[..., Path]


def filled(dtype: str, size: int, *shape: int) -> Tensor:
    """A tensor of ``shape`` whose bytes follow from what it is; ``size`` is that of one element."""
    count = size
    for length in shape:
        count *= length
    seed = sha256(f"{dtype}{shape}".encode()).digest()
    return Tensor(dtype, shape, bytes(byte & 0x3F for byte in (seed * (count // 32 + 1))[:count]))


@pytest.fixture
def adapter() -> Adapter:
    """One target of every kind, one of them with all optional tensors."""
    return Adapter(
        targets=(
            Target(
                name="layers.0.q_proj.weight",
                kind=Kind.LINEAR,
                layout=("out", "in"),
                shape=(6, 4),
                scale=2.0,
                tensors={
                    "A": filled("BF16", 2, 2, 4),
                    "B": filled("BF16", 2, 6, 2),
                    "magnitude": filled("F32", 4, 6),
                    "value": filled("F16", 2, 6, 4),
                },
            ),
            Target(
                name="embed.weight",
                kind=Kind.EMBEDDING,
                layout=("in", "out"),
                shape=(9, 4),
                scale=0.5,
                tensors={"A": filled("F32", 4, 2, 9), "B": filled("F32", 4, 4, 2)},
            ),
            Target(
                name="conv.weight",
                kind=Kind.CONV,
                layout=("out", "in", "k", "k"),
                shape=(4, 3, 3, 3),
                groups=2,
                tensors={"A": filled("F16", 2, 2, 6, 3, 3), "B": filled("F16", 2, 4, 1, 1, 1)},
            ),
            Target(
                name="experts.down_proj",
                kind=Kind.EXPERTS,
                layout=("expert", "in", "out"),
                shape=(3, 4, 5),
                tensors={"A": filled("F32", 4, 3, 2, 4), "B": filled("F32", 4, 3, 5, 2)},
            ),
            Target(
                name="layers.0.q_proj.bias",
                kind=Kind.BIAS,
                layout=("out",),
                shape=(6,),
                tensors={"delta": filled("F32", 4, 6)},
            ),
            Target(name="norm.weight", kind=Kind.FULL, layout=(), shape=(4,), tensors={"value": filled("F64", 8, 4)}),
            Target(
                name="lm_head.weight",
                kind=Kind.TOKENS,
                layout=("in", "out"),
                shape=(9, 4),
                rows=(1, 7),
                tensors={"value": filled("BF16", 2, 2, 4)},
            ),
        ),
        base=Base(name="example/base", revision="abc", license="Apache-2.0"),
        info={"title": "everything"},
    )


@pytest.fixture
def make_file(tmp_path: Path) -> MakeFile:
    """A function that makes a native file out of anything, right or wrong, and returns its path."""

    def make(
        document: Any, tensors: Mapping[str, Tensor], *, metadata: Mapping[str, str] | None = None, text: str = ""
    ) -> Path:
        path = tmp_path / "made.loreg.safetensors"
        entries = {"loreg": text or json.dumps(document)} if metadata is None else metadata
        path.write_bytes(b"".join(encode_tensors(tensors, entries)))
        return path

    return make
