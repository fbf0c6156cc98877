"""numpy, torch and JAX each open a native file by themselves and compute the same change from it.

What is used here is what anybody has who is handed a file and the specification: the public safetensors
package, a JSON parser, and the equations of the text, written out once in each framework and in a different way
in each (``tests/models/*_equations.py``). None of it shares code with ``lora_registry.ops``, which has to agree.

Files with BF16 tensors have a trap for users of numpy: numpy has no bfloat16. ``safetensors.numpy.load_file``
and ``safe_open(..., "numpy")`` find the type under its name once ``ml_dtypes`` has been imported, by whomever,
and raise TypeError before; ``safetensors.numpy.load``, which takes bytes, refuses BF16 always. torch and JAX
bring the type along. JAX in turn makes I64 into int32, in silence, unless ``jax_enable_x64`` is set.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import jax_equations
import ml_dtypes  # (gives numpy the bfloat16 that safetensors asks it for)
import numpy as np
import numpy_equations
import pytest
import safetensors.flax
import safetensors.numpy
import safetensors.torch
import torch
import torch_equations
from safetensors import safe_open

from lora_registry.adapter import Adapter, Kind, Target
from lora_registry.format.reader import SUFFIX, read_adapter
from lora_registry.format.writer import write_adapter
from lora_registry.ops.arrays import from_array
from lora_registry.ops.change import delta, merged

TOLERANCE = 2.0**-20
"""How far two results may lie apart, as a part of the largest element: 8 units in the last place of a float32.
Sums here are of at most 24 products, and frameworks add them up in different orders."""

RANK = 4
SCALE = 0.37

Record = Mapping[str, Any]
"""The record of one target in the document, as ``json.loads`` gives it."""

Tensors = Mapping[str, Any]
"""Role to tensor of a framework, widened to float32."""


@dataclass(frozen=True, slots=True)
class Framework:
    """How one framework loads a file, and the equations in it.

    Attributes:
        name: as safetensors calls it.
        load: file to tensors by key.
        bfloat16: its type of that name.
        array: a numpy array as one of its own.
        widen: one of its tensors in float32.
        change: what a target adds to W, in stored axis order.
        result: W' of a target.
    """

    name: str
    load: Callable[[Path], dict[str, Any]]
    bfloat16: Any
    array: Callable[[np.ndarray], Any]
    widen: Callable[[Any], Any]
    change: Callable[[Record, Tensors], Any]
    result: Callable[[Record, Tensors, Any], Any]


FRAMEWORKS = (
    Framework(
        "numpy",
        safetensors.numpy.load_file,
        np.dtype(ml_dtypes.bfloat16),
        np.asarray,
        lambda tensor: tensor.astype(np.float32),
        numpy_equations.change,
        numpy_equations.result,
    ),
    Framework(
        "pt",
        safetensors.torch.load_file,
        torch.bfloat16,
        torch.from_numpy,
        torch.Tensor.float,
        torch_equations.change,
        torch_equations.result,
    ),
    Framework(
        "flax",
        safetensors.flax.load_file,
        jnp.bfloat16,
        jnp.asarray,
        lambda tensor: tensor.astype(jnp.float32),
        jax_equations.change,
        jax_equations.result,
    ),
)

random = np.random.default_rng(20211)


def low_rank(kind: Kind, layout: str, *shape: int, groups: int = 1, beside: str = "") -> Target:
    """A target with random float32 factors, and with the roles ``beside`` them."""
    axes = tuple(layout.split())
    out, inner = shape[axes.index("out")], shape[axes.index("in")] * groups
    stack = shape[:1] if kind is Kind.EXPERTS else ()
    kernel = shape[2:] if kind is Kind.CONV else ()
    shapes = {
        "A": (*stack, RANK, inner, *kernel),
        "B": (*stack, out, RANK // groups, *(1 for _ in kernel)),
        "magnitude": (out,),
        "value": shape,
    }
    arrays = {role: random.normal(size=shapes[role]).astype(np.float32) for role in ("A", "B", *beside.split())}
    tensors = {role: from_array(array) for role, array in arrays.items()}
    return Target(name="", kind=kind, layout=axes, shape=shape, scale=SCALE, groups=groups, tensors=tensors)


def plain(
    kind: Kind, layout: str, shape: tuple[int, ...], rows: tuple[int, ...] = (), **axes: tuple[int, ...]
) -> Target:
    """A target whose tensors are given by their shapes."""
    tensors = {role: from_array(random.normal(size=each).astype(np.float32)) for role, each in axes.items()}
    return Target(
        name="", kind=kind, layout=tuple(layout.split()), shape=shape, scale=SCALE, rows=rows, tensors=tensors
    )


def sparse() -> Target:
    """Five elements of a matrix."""
    tensors = {
        "index": from_array(np.array([0, 3, 17, 41, 76])),
        "delta": from_array(random.normal(size=5).astype(np.float32)),
    }
    return Target(name="", kind=Kind.SPARSE, layout=(), shape=(11, 7), scale=SCALE, tensors=tensors)


TARGETS = {
    "linear": low_rank(Kind.LINEAR, "out in", 11, 7),
    "linear-transposed": low_rank(Kind.LINEAR, "in out", 7, 11),
    "linear-square": low_rank(Kind.LINEAR, "in out", 9, 9),
    "embedding": low_rank(Kind.EMBEDDING, "in out", 13, 5),
    "conv1d": low_rank(Kind.CONV, "out in k", 6, 4, 3),
    "conv2d": low_rank(Kind.CONV, "out in k k", 6, 4, 3, 2),
    "conv3d": low_rank(Kind.CONV, "out in k k k", 6, 4, 2, 1, 3),
    "experts": low_rank(Kind.EXPERTS, "expert out in", 3, 5, 4),
    "experts-transposed": low_rank(Kind.EXPERTS, "expert in out", 3, 4, 5),
    "bias": plain(Kind.BIAS, "out", (6,), delta=(6,)),
    "dora": low_rank(Kind.LINEAR, "out in", 11, 7, beside="magnitude"),
    "dora-transposed": low_rank(Kind.LINEAR, "in out", 7, 11, beside="magnitude"),
    "dora-embedding": low_rank(Kind.EMBEDDING, "in out", 13, 5, beside="magnitude"),
    "dora-conv": low_rank(Kind.CONV, "out in k k", 6, 4, 3, 2, beside="magnitude"),
    "value": low_rank(Kind.LINEAR, "out in", 11, 7, beside="value"),
    "dora-value": low_rank(Kind.LINEAR, "out in", 11, 7, beside="magnitude value"),
    "loha": plain(Kind.LOHA, "out in", (6, 8), A1=(3, 8), B1=(6, 3), A2=(2, 8), B2=(6, 2)),
    "loha-transposed": plain(Kind.LOHA, "in out", (8, 6), A1=(3, 8), B1=(6, 3), A2=(2, 8), B2=(6, 2)),
    "loha-conv": plain(Kind.LOHA, "out in k k", (6, 4, 3, 2), A1=(3, 4, 3, 2), B1=(6, 3), A2=(2, 4, 3, 2), B2=(6, 2)),
    "loha-dora": plain(Kind.LOHA, "in out", (8, 6), A1=(3, 8), B1=(6, 3), A2=(2, 8), B2=(6, 2), magnitude=(6,)),
    "lokr": plain(Kind.LOKR, "out in", (6, 8), C1=(2, 4), C2=(3, 2)),
    "lokr-transposed": plain(Kind.LOKR, "in out", (8, 6), C1=(2, 4), A2=(1, 2), B2=(3, 1)),
    "lokr-conv": plain(Kind.LOKR, "out in k k", (6, 4, 3, 2), A1=(1, 2), B1=(2, 1), A2=(2, 2, 3, 2), B2=(3, 2)),
    "sparse": sparse(),
}
"""Every kind that adds something to W, in every layout."""

REPLACED = {
    "full": plain(Kind.FULL, "", (5, 3), value=(5, 3)),
    "tokens": plain(Kind.TOKENS, "in out", (9, 4), rows=(1, 7, 8), value=(3, 4)),
}
"""The kinds that put something in the place of W, or of rows of it."""

GROUPED = {
    "grouped-conv1d": low_rank(Kind.CONV, "out in k", 6, 4, 3, groups=2),
    "grouped-conv2d": low_rank(Kind.CONV, "out in k k", 8, 3, 3, 2, groups=4),
}
"""Changes of a dense kernel that the base tensor has no place for (section 5.1)."""


def rounded(target: Target, dtype: str) -> Target:
    """The same with factors of ``dtype``; magnitudes and values stay float32, as trainers leave them."""
    if dtype == "F32":
        return target
    tensors = dict(target.tensors)
    for role in set(tensors) - {"magnitude", "value", "index"}:
        array = np.frombuffer(tensors[role].data, np.float32).reshape(tensors[role].shape)
        tensors[role] = from_array(array.astype(ml_dtypes.bfloat16))
    return replace(target, tensors=tensors)


ALL = TARGETS | REPLACED | GROUPED


@pytest.fixture(scope="module", params=["F32", "BF16"])
def file(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All targets as one native file, with factors of float32 or of bfloat16."""
    path = tmp_path_factory.mktemp("frameworks") / f"{request.param}{SUFFIX}"
    targets = (replace(rounded(each, request.param), name=name) for name, each in ALL.items())
    write_adapter(Adapter(targets=tuple(targets)), path)
    return path


def opened(framework: Framework, path: Path, name: str) -> tuple[Record, Tensors]:
    """One target by means of the framework and of the public package alone."""
    with safe_open(path, framework=framework.name) as container:
        document = json.loads(container.metadata()["loreg"])
    record = document["targets"][name]
    tensors = framework.load(path)
    loaded = {role: tensors[f"{name}/{role}"] for role in record["tensors"]}
    return record, {role: each if role == "index" else framework.widen(each) for role, each in loaded.items()}


def assert_agree(arrays: Mapping[str, Any]) -> None:
    """Every two of them differ by no more than the tolerance."""
    first, *others = (np.asarray(array) for array in arrays.values())
    for other in others:
        assert other.dtype == first.dtype == np.float32
        assert other.shape == first.shape
        np.testing.assert_allclose(other, first, rtol=0, atol=TOLERANCE / 2 * float(np.abs(first).max()))


@pytest.mark.parametrize("framework", FRAMEWORKS, ids=lambda framework: framework.name)
def test_tensors_arrive_with_their_types(framework: Framework, file: Path) -> None:
    """What the file calls BF16 is bfloat16 in each framework, with the values that were written."""
    tensors = framework.load(file)
    for target in read_adapter(file):
        for role, tensor in target.tensors.items():
            loaded = tensors[f"{target.name}/{role}"]
            if tensor.dtype == "I64":
                np.testing.assert_array_equal(np.asarray(loaded), np.frombuffer(tensor.data, "<i8"))
                continue
            assert (loaded.dtype == framework.bfloat16) == (tensor.dtype == "BF16")
            bits = np.frombuffer(tensor.data, "<u2" if tensor.dtype == "BF16" else "<u4").astype(np.uint32)
            exact = (bits << 16 if tensor.dtype == "BF16" else bits).view(np.float32).reshape(tensor.shape)
            np.testing.assert_array_equal(np.asarray(framework.widen(loaded)), exact)


@pytest.mark.parametrize("name", TARGETS)
def test_the_change_is_the_same_everywhere(name: str, file: Path) -> None:
    """What every kind adds to W, in stored axis order: numpy, torch, JAX and lora_registry."""
    changes = {each.name: each.change(*opened(each, file, name)) for each in FRAMEWORKS}
    assert_agree(changes | {"loreg": delta(read_adapter(file).target(name))})


@pytest.mark.parametrize("name", TARGETS | REPLACED)
def test_the_result_is_the_same_everywhere(name: str, file: Path) -> None:
    """W' for a given W, norms of magnitudes included: numpy, torch, JAX and lora_registry."""
    target = read_adapter(file).target(name)
    weight = np.random.default_rng(7).normal(size=target.shape).astype(np.float32)
    results = {each.name: each.result(*opened(each, file, name), each.array(weight)) for each in FRAMEWORKS}
    assert_agree(results | {"loreg": merged(target, weight)})


@pytest.mark.parametrize("name", GROUPED)
def test_the_change_of_a_grouped_conv_is_the_same_everywhere(name: str, file: Path) -> None:
    """Its dense kernel: numpy and JAX by the text of section 5.1, torch by what it does with grouped convolutions."""
    changes = {each.name: each.change(*opened(each, file, name)) for each in FRAMEWORKS}
    assert_agree(changes)
    target = GROUPED[name]
    assert target.shape is not None
    assert changes["numpy"].shape == (target.shape[0], target.shape[1] * target.groups, *target.shape[2:])


def test_numpy_needs_ml_dtypes_for_bfloat16(tmp_path: Path) -> None:
    """The trap: the same line fails before ml_dtypes has been imported and works after it."""
    path = tmp_path / f"trap{SUFFIX}"
    write_adapter(Adapter(targets=(replace(rounded(TARGETS["linear"], "BF16"), name="w"),)), path)
    load = "from safetensors.numpy import load_file; print(load_file(__import__('sys').argv[1])['w/A'].dtype)"

    def run(program: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run([sys.executable, "-c", program, str(path)], capture_output=True, text=True, check=False)

    assert "bfloat16" in run(load).stderr.splitlines()[-1]
    assert run(f"import ml_dtypes; {load}").stdout.strip() == "bfloat16"
