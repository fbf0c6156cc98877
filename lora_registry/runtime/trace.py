"""A module as an ONNX graph in memory, and where its tensors are in it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import onnx_ir as ir
import torch

from lora_registry.errors import IntegrityError, UnsupportedError
from lora_registry.onnx.manifest import Place
from lora_registry.runtime.graph_repairs import repair
from lora_registry.runtime.names import named_tensors
from lora_registry.runtime.onnx_write import clean
from lora_registry.runtime.quiet import quiet
from lora_registry.runtime.signature import INNER, Signature
from lora_registry.runtime.torch_model import first_line

_BFLOAT16_OPSET = 22
"""The first in which convolutions may be bfloat16; the exporter's own choice for other types is older."""


def trace_model(signature: Signature, what: str) -> ir.Model:
    """The graph of a signature, cleaned.

    Raises:
        UnsupportedError: as :func:`trace`.
    """
    graph = trace(
        signature.view.eval(),
        signature.examples,
        signature.input_names,
        signature.output_names,
        signature.dynamic_shapes,
        what=what,
    )
    clean(graph, INNER)
    return graph


def trace(
    module: torch.nn.Module,
    examples: tuple[Any, ...],
    input_names: Sequence[str],
    output_names: Sequence[str],
    dynamic_shapes: Sequence[Any] | None,
    *,
    what: str,
) -> ir.Model:
    """Run torch's exporter without its optimizer.

    Args:
        module: in evaluation mode.
        examples: positional inputs.
        input_names: names of the graph's inputs, flat.
        output_names: names of the graph's outputs, flat.
        dynamic_shapes: the free axes of each input, as ``torch.export`` takes them; None for fixed shapes.
        what: the module, for the error.

    Raises:
        UnsupportedError: the exporter cannot trace the module.
    """
    try:
        with quiet(), torch.no_grad():
            program = torch.onnx.export(
                module,
                examples,
                dynamo=True,
                optimize=False,
                verbose=False,
                opset_version=_BFLOAT16_OPSET if _has_bfloat16(module) else None,
                input_names=list(input_names),
                output_names=list(output_names),
                dynamic_shapes=None if dynamic_shapes is None else tuple(dynamic_shapes),
            )
    except (torch.onnx.errors.OnnxExporterError, RuntimeError, ValueError, TypeError, AttributeError) as error:
        raise UnsupportedError(f"{what} cannot be exported: {first_line(error.__cause__ or error)}") from error
    assert program is not None
    repair(program.model)
    return program.model


def places(graph: ir.Model, module: torch.nn.Module, checkpoint: Mapping[str, str]) -> dict[str, Place]:
    """Where each tensor of the checkpoint is in the graph; ties share a place, unused ones have none.

    What transformers makes on loading and the checkpoint does not have (the other name of a tied tensor,
    experts stacked into one) is placed under the module's name for it, which is the name adapters use.

    Args:
        graph: whose initializers bear the names of the module's tensors.
        module: it was traced from.
        checkpoint: name in the checkpoint to name in the module.

    Raises:
        IntegrityError: an initializer has not the values of the tensor of its name.
    """
    tensors = named_tensors(module)
    initializers = graph.graph.initializers
    holder = {id(tensor): name for name, tensor in tensors.items() if name in initializers}
    made = (module.state_dict().keys() & tensors.keys()) - set(checkpoint.values())
    found = {}
    for base_name, name in {**{name: name for name in sorted(made)}, **checkpoint}.items():
        initializer = holder.get(id(tensors[name]))
        if initializer is None:
            continue
        value = initializers[initializer].const_value
        if value is None or value.tobytes() != _bytes(tensors[name]):
            raise IntegrityError(f"the exporter changed {name}: the initializer {initializer} has other values")
        found[base_name] = Place(initializer)
    return found


def _has_bfloat16(module: torch.nn.Module) -> bool:
    return any(parameter.dtype is torch.bfloat16 for parameter in module.parameters())


def _bytes(tensor: torch.Tensor) -> bytes:
    """Row-major, in the order of this machine, which has to be little-endian; numpy has no bfloat16 to compare by."""
    flat = tensor.detach().contiguous().reshape(-1)
    content: bytes = flat.view(torch.uint8).numpy().tobytes()
    return content
