"""A base of three layers in every form of storage, and its merge, for tests of delta patches."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from lora_registry.adapter import Adapter

WIDTH = 96
TYPES = {
    "float32": TensorProto.FLOAT,
    "float16": TensorProto.FLOAT16,
    "bfloat16": TensorProto.BFLOAT16,
    "float64": TensorProto.DOUBLE,
}
Case = tuple[Path, Path, Adapter]
Cases = Callable[..., Case]


def save_model(path: Path, *, dtype: str = "float32", storage: str = "one", seed: int = 0) -> Path:
    """Three layers of (96, 96), embedded, in one data file, or in one for each tensor in a folder of its own."""
    import ml_dtypes

    kind = np.dtype(ml_dtypes.bfloat16 if dtype == "bfloat16" else dtype)
    random = np.random.default_rng(seed)
    names = ["a.weight", "b.weight", "c.weight"]
    weights = {name: (random.standard_normal((WIDTH, WIDTH)) * 0.02).astype(kind) for name in names}
    values = ["x", "h", "i", "y"]
    proto = helper.make_model(
        helper.make_graph(
            [helper.make_node("MatMul", [values[i], name], [values[i + 1]]) for i, name in enumerate(names)],
            "g",
            [helper.make_tensor_value_info("x", TYPES[dtype], ["n", WIDTH])],
            [helper.make_tensor_value_info("y", TYPES[dtype], ["n", WIDTH])],
            [numpy_helper.from_array(array, name) for name, array in weights.items()],
        ),
        opset_imports=[helper.make_opsetid("", 20)],
        ir_version=10,
    )
    options: dict[str, Any] = {"save_as_external_data": storage != "inside", "size_threshold": 0}
    if storage == "one":
        options["location"] = "weights.bin"
    path.parent.mkdir(parents=True, exist_ok=True)
    onnx.save(proto, path, **options, all_tensors_to_one_file=storage == "one")
    return path
