"""The graph as the resolver likes it: no functions, and weights as initializers. It computes the same.

A function of the model hides what it does with a weight that it is given, so calls are replaced by its nodes. A
weight may be the value of a Constant node as well, as some exporters write them; that is an initializer by another
name. Graphs of IR version 3 are left as they are: there, every initializer has to be an input, too.
"""

from __future__ import annotations

import onnx_ir as ir
from onnx_ir.passes.common import InlinePass

from lora_registry.dtypes import BY_ONNX, DTYPES

_OLDEST = 4
"""IR version from which initializers need not be inputs."""


def normalize(model: ir.Model) -> None:
    """Inline the functions of ``model``, and let floating-point vectors and matrices be initializers."""
    if model.functions:
        InlinePass()(model)
    if model.ir_version >= _OLDEST:
        for graph in model.graphs():
            _lift(graph)


def _lift(graph: ir.Graph) -> None:
    for node in list(graph):
        if node.op_type != "Constant" or node.domain not in ("", "ai.onnx"):
            continue
        attribute, output = node.attributes.get("value"), node.outputs[0]
        if attribute is None or attribute.is_ref() or attribute.type != ir.AttributeType.TENSOR:
            continue
        tensor, name = attribute.as_tensor(), str(output.name)
        if not _is_weight(tensor) or output.is_graph_output() or name in graph.initializers:
            continue
        lifted = ir.Value(
            name=name, type=ir.TensorType(tensor.dtype), shape=ir.Shape(tensor.shape.numpy()), const_value=tensor
        )
        lifted.metadata_props.update(output.metadata_props)
        output.name = None
        graph.register_initializer(lifted)
        for use in list(output.uses()):
            use.node.replace_input_with(use.idx, lifted)
        graph.remove(node, safe=True)


def _is_weight(tensor: ir.TensorProtocol) -> bool:
    dtype = BY_ONNX.get(int(tensor.dtype))
    return dtype is not None and DTYPES[dtype.name].is_wide_float and len(tensor.shape) > 0
