"""numpy, torch and JAX each open a native file by themselves and compute the same change from it.

What is used here is what anybody has who is handed a file and the specification: the public safetensors
package, a JSON parser, and the equations of section 5, written out once in each framework and in a different
way in each. None of it shares code with ``lora_registry.ops``, which has to agree as well.

Files with BF16 tensors have a trap for users of numpy: numpy has no bfloat16. ``safetensors.numpy.load_file``
and ``safe_open(..., "numpy")`` find the type under its name once ``ml_dtypes`` has been imported, by whomever,
and raise TypeError before; ``safetensors.numpy.load``, which takes bytes, refuses BF16 always. torch and JAX
bring the type along.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes  # (gives numpy the bfloat16 that safetensors asks it for)
import numpy as np
import pytest
import safetensors.flax
import safetensors.numpy
import safetensors.torch
import torch
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
        change: ΔW of a target, or s·delta of a bias, in stored axis order.
        result: W' of a target.
    """

    name: str
    load: Callable[[Path], dict[str, Any]]
    bfloat16: Any
    array: Callable[[np.ndarray], Any]
    widen: Callable[[Any], Any]
    change: Callable[[Record, Tensors], Any]
    result: Callable[[Record, Tensors, Any], Any]


def numpy_change(record: Record, tensors: Mapping[str, np.ndarray]) -> np.ndarray:
    """Matrix products; a convolution output by output."""
    scale = float(record["scale"])
    if record["kind"] == "bias":
        return scale * tensors["delta"]
    a, b = tensors["A"], scale * tensors["B"]
    if record["kind"] == "conv":
        ranks, outputs = b.shape[1], b.shape[0] // record.get("groups", 1)
        kernel = np.zeros((b.shape[0], *a.shape[1:]), dtype=np.float32)
        for out in range(b.shape[0]):
            first = out // outputs * ranks  # of the ranks that the group of this output reads
            for rank in range(ranks):
                kernel[out] += b[out, rank].item() * a[first + rank]
        return kernel
    change: np.ndarray = b @ a
    return change if record["layout"].index("out") < record["layout"].index("in") else change.swapaxes(-1, -2)


def numpy_result(record: Record, tensors: Mapping[str, np.ndarray], weight: np.ndarray) -> np.ndarray:
    """The sum, divided by the norm of each output where there is a magnitude."""
    total: np.ndarray = tensors.get("value", weight) + numpy_change(record, tensors)
    if "magnitude" not in tensors:
        return total
    out = record["layout"].index("out")
    others = tuple(axis for axis in range(total.ndim) if axis != out)
    total /= np.sqrt(np.square(total).sum(axis=others, keepdims=True))
    total *= np.expand_dims(tensors["magnitude"], others)
    return total


def torch_change(record: Record, tensors: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """Applied linear maps; a convolution as B convolved over A, whose inputs stand in for a batch."""
    if record["kind"] == "bias":
        return tensors["delta"].mul(record["scale"])
    a, b = tensors["A"], tensors["B"]
    if record["kind"] == "conv":
        convolve = {1: torch.conv1d, 2: torch.conv2d, 3: torch.conv3d}[a.ndim - 2]
        kernel = convolve(a.transpose(0, 1), b, groups=record.get("groups", 1)).transpose(0, 1)
        return kernel.mul(record["scale"])
    if record["layout"][-1] == "in":
        return torch.matmul(b, a).mul(record["scale"])
    return torch.matmul(a.mT, b.mT).mul(record["scale"])


def torch_result(record: Record, tensors: Mapping[str, torch.Tensor], weight: torch.Tensor) -> torch.Tensor:
    """Outputs first and all else in one row, where there is a magnitude."""
    total = torch.add(tensors.get("value", weight), torch_change(record, tensors))
    if "magnitude" not in tensors:
        return total
    out = record["layout"].index("out")
    rows = total.movedim(out, 0).flatten(1)
    scaled = torch.nn.functional.normalize(rows, dim=1) * tensors["magnitude"][:, None]
    return scaled.reshape(total.movedim(out, 0).shape).movedim(0, out)


def jax_change(record: Record, tensors: Mapping[str, jax.Array]) -> jax.Array:
    """Sums over indices: o outputs, i inputs, r ranks, e experts, g groups."""
    scale = float(record["scale"])
    if record["kind"] == "bias":
        return jnp.multiply(scale, tensors["delta"])
    a, b = tensors["A"], tensors["B"]
    if record["kind"] == "conv":
        groups = record.get("groups", 1)
        grouped_a = a.reshape(groups, a.shape[0] // groups, *a.shape[1:])
        grouped_b = b.reshape(groups, b.shape[0] // groups, b.shape[1])
        change = jnp.einsum("gor,gr...->go...", grouped_b, grouped_a, precision="highest")
        return scale * change.reshape(b.shape[0], *a.shape[1:])
    stored = "".join(axis[0] for axis in record["layout"])
    expert = "e" if record["kind"] == "experts" else ""
    return scale * jnp.einsum(f"{expert}or,{expert}ri->{stored}", b, a, precision="highest")


def jax_result(record: Record, tensors: Mapping[str, jax.Array], weight: jax.Array) -> jax.Array:
    """Outputs last, so that norm and magnitude broadcast, where there is a magnitude."""
    total = jnp.add(tensors.get("value", weight), jax_change(record, tensors))
    if "magnitude" not in tensors:
        return total
    out = record["layout"].index("out")
    last = jnp.moveaxis(total, out, -1)
    norm = jnp.linalg.norm(last.reshape(-1, last.shape[-1]), axis=0)
    return jnp.moveaxis(last * (tensors["magnitude"] / norm), -1, out)


FRAMEWORKS = (
    Framework(
        "numpy",
        safetensors.numpy.load_file,
        np.dtype(ml_dtypes.bfloat16),
        np.asarray,
        lambda tensor: tensor.astype(np.float32),
        numpy_change,
        numpy_result,
    ),
    Framework(
        "pt",
        safetensors.torch.load_file,
        torch.bfloat16,
        torch.from_numpy,
        torch.Tensor.float,
        torch_change,
        torch_result,
    ),
    Framework(
        "flax",
        safetensors.flax.load_file,
        jnp.bfloat16,
        jnp.asarray,
        lambda tensor: tensor.astype(jnp.float32),
        jax_change,
        jax_result,
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


def bias() -> Target:
    """A change of a bias."""
    tensors = {"delta": from_array(random.normal(size=6).astype(np.float32))}
    return Target(name="", kind=Kind.BIAS, layout=("out",), shape=(6,), scale=SCALE, tensors=tensors)


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
    "bias": bias(),
    "dora": low_rank(Kind.LINEAR, "out in", 11, 7, beside="magnitude"),
    "dora-transposed": low_rank(Kind.LINEAR, "in out", 7, 11, beside="magnitude"),
    "dora-embedding": low_rank(Kind.EMBEDDING, "in out", 13, 5, beside="magnitude"),
    "dora-conv": low_rank(Kind.CONV, "out in k k", 6, 4, 3, 2, beside="magnitude"),
    "value": low_rank(Kind.LINEAR, "out in", 11, 7, beside="value"),
    "dora-value": low_rank(Kind.LINEAR, "out in", 11, 7, beside="magnitude value"),
}
"""Every kind whose equation computes something, in every layout."""

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
    for role in {"A", "B", "delta"} & set(tensors):
        array = np.frombuffer(tensors[role].data, np.float32).reshape(tensors[role].shape)
        tensors[role] = from_array(array.astype(ml_dtypes.bfloat16))
    return replace(target, tensors=tensors)


ALL = TARGETS | GROUPED


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
    return record, {role: framework.widen(tensors[f"{name}/{role}"]) for role in record["tensors"]}


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
            assert (loaded.dtype == framework.bfloat16) == (tensor.dtype == "BF16")
            bits = np.frombuffer(tensor.data, "<u2" if tensor.dtype == "BF16" else "<u4").astype(np.uint32)
            exact = (bits << 16 if tensor.dtype == "BF16" else bits).view(np.float32).reshape(tensor.shape)
            np.testing.assert_array_equal(np.asarray(framework.widen(loaded)), exact)


@pytest.mark.parametrize("name", TARGETS)
def test_the_change_is_the_same_everywhere(name: str, file: Path) -> None:
    """s·B·A of every kind in stored axis order: numpy, torch, JAX and lora_registry."""
    changes = {each.name: each.change(*opened(each, file, name)) for each in FRAMEWORKS}
    assert_agree(changes | {"loreg": delta(read_adapter(file).target(name))})


@pytest.mark.parametrize("name", TARGETS)
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
