"""A patch makes the merged model of the base and the base of the merged model, byte by byte, and is small."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from lpatch_cases import Case, Cases, save_model
from onnx_models import linear_adapter

from lora_registry.adapter import Adapter
from lora_registry.digest import Digest
from lora_registry.errors import InvalidInputError
from lora_registry.lpatch.discover import discover
from lora_registry.lpatch.rebuild import apply, revert
from lora_registry.lpatch.recipes import _product, _sum
from lora_registry.lpatch.write import PatchSize, write_patch
from lora_registry.onnx.model import OnnxModel
from lora_registry.onnx.resolution import Carrier
from lora_registry.onnx.window import Window
from lora_registry.ops.change import delta


def content(folder: Path) -> dict[str, str]:
    """The digest of every file but the receipt."""
    return {
        path.relative_to(folder).as_posix(): Digest.of_file(path).hex
        for path in folder.rglob("*")
        if path.is_file() and not path.name.endswith(".receipt.json")
    }


def there_and_back(base: Path, merged: Path, adapter: Adapter | None, folder: Path) -> PatchSize:
    """Write the patch, apply and revert it into new folders, compare every file with the original."""
    folder.mkdir()
    made = write_patch(base, merged, folder / "x.lpatch", adapter=adapter)
    assert made.patch == (folder / "x.lpatch").stat().st_size
    (folder / "merged").mkdir()
    (folder / "base").mkdir()
    before = content(base.parent), content(merged.parent)
    apply(base, folder / "x.lpatch", folder / "merged" / merged.name)
    revert(merged, folder / "x.lpatch", folder / "base" / base.name)
    assert (content(folder / "base"), content(folder / "merged")) == before
    assert (content(base.parent), content(merged.parent)) == before
    return made


@pytest.mark.parametrize("storage", ["inside", "one", "many"])
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16", "float64"])
def test_both_directions_are_byte_exact(dtype: str, storage: str, cases: Cases, tmp_path: Path) -> None:
    """Every float type in every form of storage, with the adapter and without; the adapter makes it smaller."""
    base, merged, adapter = cases(dtype=dtype, storage=storage)
    by_factors = there_and_back(base, merged, adapter, tmp_path / "with")
    by_bits = there_and_back(base, merged, None, tmp_path / "without")
    assert (by_factors.products, by_factors.unexplained, by_factors.differences) == (2, (), 0)
    assert (by_bits.products, by_bits.factors, by_bits.corrections) == (0, 0, 0)
    assert by_factors.corrections < 0.1 * by_bits.differences + 400
    assert by_factors.patch < by_bits.patch


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_factors_are_found_where_the_adapter_is_lost(dtype: str, cases: Cases, tmp_path: Path) -> None:
    """Those of the difference do nearly as well; in 16 bits they are known less well, which costs corrections."""
    base, merged, _ = cases(dtype=dtype, size=0.2)
    found = discover(base, merged)
    assert {target.name: target.rank for target in found} == {"a.weight": 2, "c.weight": 4}
    made = there_and_back(base, merged, found, tmp_path / "found")
    by_bits = there_and_back(base, merged, None, tmp_path / "without")
    assert (made.products, made.unexplained) == (2, ())
    assert made.corrections + made.factors < 0.5 * by_bits.differences


def test_a_difference_of_no_low_rank_is_left_as_it_is(tmp_path: Path) -> None:
    """Other weights altogether have no factors to be found, and no patch is refused for it."""
    base, merged = save_model(tmp_path / "base" / "b.onnx"), save_model(tmp_path / "merged" / "m.onnx", seed=1)
    found = discover(base, merged)
    assert found.targets == ()
    assert there_and_back(base, merged, found, tmp_path / "out").products == 0


def test_a_large_change_comes_back_too(cases: Cases, tmp_path: Path) -> None:
    """Where the change is a hundred times the weights, W' holds few bits of W, and the patch the others."""
    base, merged, adapter = cases(size=100.0)
    there_and_back(base, merged, adapter, tmp_path / "with")


def test_another_adapter_costs_size_and_nothing_else(case: Case, tmp_path: Path) -> None:
    """The wrong scale, or factors of something else, explain nothing: differences are stored, and it is told."""
    base, merged, adapter = case
    wrong = replace(adapter, targets=tuple(replace(target, scale=target.scale * -3) for target in adapter))
    made = there_and_back(base, merged, wrong, tmp_path / "wrong")
    assert made.products == 0
    assert made.unexplained == ("a.weight", "c.weight")
    plain = there_and_back(base, merged, None, tmp_path / "plain")
    assert made.patch == plain.patch


def test_weights_that_are_no_numbers_come_back(tmp_path: Path) -> None:
    """NaN with payloads, infinities, both zeros and subnormals, next to a change."""
    base = save_model(tmp_path / "base" / "base.onnx")
    special = [np.nan, -np.nan, np.inf, -np.inf, 0.0, -0.0, 1e-45, -1e-40]
    (tmp_path / "merged").mkdir()
    data = np.fromfile(base.parent / "weights.bin", np.float32)
    data[: len(special)] = special
    data.view(np.uint32)[0] |= 0x1234
    data.tofile(base.parent / "weights.bin")
    (tmp_path / "merged" / "m.onnx").write_bytes(base.read_bytes())
    changed = data.copy()
    changed[4:5000] *= np.float32(1.001)
    changed[2] = -np.inf
    changed.tofile(tmp_path / "merged" / "weights.bin")
    there_and_back(base, tmp_path / "merged" / "m.onnx", None, tmp_path / "there")


def test_a_tensor_that_was_cloned_to_be_changed_comes_from_the_one_it_was(tmp_path: Path) -> None:
    """Two operators read one initializer, one of them is changed: a new tensor in the merged model, and a product."""
    from onnx import TensorProto, helper, numpy_helper

    from lora_registry.merge.onnx.model import merge_onnx

    weight = (np.random.default_rng(3).standard_normal((64, 64)) * 0.02).astype(np.float32)
    nodes = [
        helper.make_node("MatMul", ["x", "shared"], ["h"], name="/a/MatMul"),
        helper.make_node("MatMul", ["h", "shared"], ["y"], name="/b/MatMul"),
    ]
    for node, module in zip(nodes, ("a", "b"), strict=True):
        node.metadata_props.add(key="pkg.torch.onnx.name_scopes", value=str(["", module, "linear"]))
        node.metadata_props.add(
            key="pkg.torch.onnx.class_hierarchy", value=str(["Model", "torch.nn.modules.linear.Linear", "aten.linear"])
        )
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", 64]) for name in "xy"]
    graph = helper.make_graph(nodes, "g", values[:1], values[1:], [numpy_helper.from_array(weight, "shared")])
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    (tmp_path / "base").mkdir()
    (tmp_path / "merged").mkdir()
    onnx.save(proto, tmp_path / "base" / "b.onnx", save_as_external_data=True, location="w", size_threshold=0)
    target = replace(linear_adapter("a.weight", (64, 64), rank=2), scale=0.0002)
    adapter = Adapter(targets=(target,))
    merge_onnx(adapter, tmp_path / "base" / "b.onnx", tmp_path / "merged" / "m.onnx")
    assert len(onnx.load(tmp_path / "merged" / "m.onnx", load_external_data=False).graph.initializer) == 2
    made = there_and_back(tmp_path / "base" / "b.onnx", tmp_path / "merged" / "m.onnx", adapter, tmp_path / "out")
    assert made.products == 1
    assert made.differences == 0


def test_parts_of_a_packed_matrix_are_one_product(tmp_path: Path) -> None:
    """Queries and values side by side in one initializer, with scales of their own; keys are left as they are."""
    from onnx_models import graph

    weight = (np.random.default_rng(4).standard_normal((64, 96)) * 0.02).astype(np.float32)
    node = onnx.helper.make_node("MatMul", ["x", "qkv"], ["y"])
    (tmp_path / "base").mkdir()
    (tmp_path / "merged").mkdir()
    graph([node], {"qkv": weight}, inputs={"x": ["n", 64]}, path=tmp_path / "base" / "b.onnx", external=True)
    opened = OnnxModel.open(tmp_path / "base" / "b.onnx")
    targets = [replace(linear_adapter(name, (32, 64), rank=2), scale=s) for name, s in (("q", 2e-4), ("v", 3e-4))]
    windows = {"q": Window(1, 0, 32), "v": Window(1, 64, 32)}
    carriers = {name: Carrier(opened.initializers["qkv"], True, (), False, window) for name, window in windows.items()}
    products = [_product(target, carriers[target.name]) for target in targets]
    assert all(product is not None for product in products)
    whole = _sum([product for product in products if product is not None])
    assert whole is not None
    changed = weight.copy()
    for target in targets:
        changed[:, windows[target.name].indices()] += delta(target).T
    np.testing.assert_allclose(weight + whole.change(0, whole.size).reshape(64, 96), changed, rtol=0, atol=1e-7)
    assert whole.left.shape == (4, 64)


def test_models_without_a_tensor_in_common_are_stored_whole(tmp_path: Path) -> None:
    """Nothing is assumed of the two: other names, another form of storage, another graph."""
    base = save_model(tmp_path / "base" / "base.onnx", storage="inside")
    merged = save_model(tmp_path / "merged" / "m.onnx", storage="many", dtype="float16", seed=1)
    made = there_and_back(base, merged, None, tmp_path / "out")
    assert made.differences == made.corrections == 0


def test_the_same_model_is_refused(case: Case, tmp_path: Path) -> None:
    """There is nothing to patch, and somebody took the wrong file."""
    base, _, _ = case
    with pytest.raises(InvalidInputError, match="the same model"):
        write_patch(base, base, tmp_path / "x.lpatch")
    assert not (tmp_path / "x.lpatch").exists()


@pytest.mark.parametrize("threads", ["1", "2"])
def test_a_patch_is_applied_in_another_process_with_other_threads(threads: str, case: Case, tmp_path: Path) -> None:
    """Neither BLAS, nor how many threads it has, nor the processor features that numpy uses, take part in a product."""
    base, merged, adapter = case
    write_patch(base, merged, tmp_path / "x.lpatch", adapter=adapter)
    (tmp_path / "out").mkdir()
    command = [sys.executable, "-m", "lora_registry", "onnx", "apply", base, tmp_path / "x.lpatch"]
    settings = {"OPENBLAS_NUM_THREADS": threads, "OPENBLAS_CORETYPE": "Prescott"}
    if threads == "2":
        settings["NPY_DISABLE_CPU_FEATURES"] = _disposable()
    subprocess.run(
        [*map(str, command), "-o", str(tmp_path / "out" / "merged.onnx")],
        check=True,
        env={**os.environ, **settings},
        capture_output=True,
    )
    assert content(tmp_path / "out") == content(merged.parent)


def _disposable() -> str:
    """Features of this processor that numpy can do without, among those with wide vectors and fused operations."""
    from numpy._core._multiarray_umath import __cpu_dispatch__, __cpu_features__

    wanted: list[Any] = [name for name in __cpu_dispatch__ if __cpu_features__.get(name)]
    return " ".join(wanted)
