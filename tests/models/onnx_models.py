"""Tiny models as three exporters write them, hand-made graphs, and adapters read straight from PEFT's layers."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import tiny_models
import torch
from onnx import TensorProto, helper, numpy_helper

from lora_registry.adapter import Adapter, Kind, Target, Tensor

EXPORTERS = ("raw", "optimized", "torchscript")

_CONV_LAYOUTS = {3: ("out", "in", "k"), 4: ("out", "in", "k", "k"), 5: ("out", "in", "k", "k", "k")}


def tensor_of(values: torch.Tensor) -> Tensor:
    """A float32 torch tensor as loreg holds it."""
    array = values.detach().to(torch.float32).contiguous().numpy()
    return Tensor("F32", tuple(array.shape), array.tobytes())


def adapter_of(wrapped: torch.nn.Module, name: str = "default") -> Adapter:
    """The adapter that PEFT's layers hold: low-rank targets, and modules that are saved whole."""
    targets: list[Target] = []
    for path, layer in wrapped.base_model.model.named_modules():
        if hasattr(layer, "lora_A") and hasattr(layer, "get_base_layer"):
            targets.append(_low_rank(path, layer, name))
        elif hasattr(layer, "modules_to_save"):
            targets.extend(
                Target(
                    name=f"{path}.{parameter}",
                    kind=Kind.FULL,
                    layout=(),
                    shape=tuple(values.shape),
                    tensors={"value": tensor_of(values)},
                )
                for parameter, values in layer.modules_to_save[name].named_parameters()
            )
    return Adapter(targets=tuple(targets))


def _low_rank(path: str, layer: torch.nn.Module, name: str) -> Target:
    base = layer.get_base_layer()
    shape = tuple(base.weight.shape)
    if name in layer.lora_embedding_A:
        a, b = layer.lora_embedding_A[name], layer.lora_embedding_B[name]
        kind, layout = Kind.EMBEDDING, ("in", "out")
    else:
        a, b = layer.lora_A[name].weight, layer.lora_B[name].weight
        kind = Kind.LINEAR if len(shape) == 2 else Kind.CONV
        fan_in_first = type(base).__name__ == "Conv1D"
        layout = _CONV_LAYOUTS.get(len(shape), ("in", "out") if fan_in_first else ("out", "in"))
    tensors = {"A": tensor_of(a), "B": tensor_of(b)}
    if name in layer.lora_magnitude_vector:
        tensors["magnitude"] = tensor_of(layer.lora_magnitude_vector[name].weight.reshape(-1))
    return Target(
        name=f"{path}.weight", kind=kind, layout=layout, shape=shape, tensors=tensors, scale=float(layer.scaling[name])
    )


class Traced(torch.nn.Module):
    """A model as exporters see it: tensors in, the first output out. Puts ``model.`` before every name."""

    def __init__(self, model: torch.nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, *inputs: torch.Tensor) -> torch.Tensor:
        if len(inputs) == 1 or hasattr(self.model, "image_shape"):
            result = self.model(*inputs)
            return result if isinstance(result, torch.Tensor) else result[0]
        options = {"use_cache": False} if hasattr(self.model, "lm_head") else {}
        return self.model(input_ids=inputs[0], attention_mask=inputs[1], **options)[0]


def export(model: torch.nn.Module, how: str, path: Path, *, external: bool = False) -> Path:
    """Export ``model`` to ``path`` as one of :data:`EXPORTERS` does, with fixed shapes."""
    examples = tiny_models.inputs(model)
    options = {"dynamo": False} if how == "torchscript" else {"dynamo": True, "optimize": how == "optimized"}
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            Traced(model).eval(),
            tuple(examples.values()),
            str(path),
            input_names=list(examples),
            output_names=["output"],
            external_data=external,
            verbose=False,
            **options,
        )
    return path


def run_onnx(path: Path, inputs: dict[str, torch.Tensor]) -> np.ndarray:
    """The first output of an ONNX file under ONNX Runtime on the CPU."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    taken = {each.name for each in session.get_inputs()}
    return session.run(None, {name: values.numpy() for name, values in inputs.items() if name in taken})[0]


def run_torch(model: torch.nn.Module, inputs: dict[str, torch.Tensor]) -> np.ndarray:
    """The first output of a torch model."""
    with torch.no_grad():
        return Traced(model).eval()(*inputs.values()).numpy()


def linear_adapter(
    name: str, shape: tuple[int, int], *, layout: tuple[str, str] = ("out", "in"), rank: int = 2
) -> Target:
    """A random low-rank change of one matrix of the given shape, as stored."""
    random = np.random.default_rng(len(name))
    out, width = shape if layout == ("out", "in") else shape[::-1]
    a = torch.from_numpy(random.standard_normal((rank, width)).astype(np.float32))
    b = torch.from_numpy(random.standard_normal((out, rank)).astype(np.float32))
    return Target(
        name=name,
        kind=Kind.LINEAR,
        layout=layout,
        shape=shape,
        tensors={"A": tensor_of(a), "B": tensor_of(b)},
        scale=0.5,
    )


def graph(
    nodes: Sequence[onnx.NodeProto],
    weights: dict[str, np.ndarray],
    *,
    inputs: dict[str, Sequence[int | str]],
    output_shape: Sequence[int | str] = ("rows", "columns"),
    path: Path | None = None,
    external: bool = False,
) -> onnx.ModelProto:
    """A model of float32 inputs and the float32 output ``y``; saved to ``path`` where one is given."""
    proto = helper.make_model(
        helper.make_graph(
            list(nodes),
            "g",
            [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in inputs.items()],
            [helper.make_tensor_value_info("y", TensorProto.FLOAT, output_shape)],
            [numpy_helper.from_array(array, name) for name, array in weights.items()],
        ),
        opset_imports=[helper.make_opsetid("", 20), helper.make_opsetid("com.microsoft", 1)],
        ir_version=10,
    )
    if path is not None:
        location = f"{path.name}.data" if external else None
        onnx.save(proto, path, save_as_external_data=external, location=location, size_threshold=0)
    return proto
