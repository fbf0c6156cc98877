"""Is a protobuf message a graph that can be worked on? Asked before onnx_ir reads it.

Protobuf accepts much that is no model: texts that are no UTF-8 (it hands out bytes), attributes without a
type, names that nothing defines. What is checked here is what later code relies on, not all that ONNX demands.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

import onnx

from lora_registry.errors import InvalidInputError


def check(path: Path, model: onnx.ModelProto) -> None:
    """Raise InvalidInputError, with the first problem in one line, if ``model`` cannot be worked on."""
    if not model.HasField("graph") or not model.ir_version:
        raise InvalidInputError(f"{path}: not an ONNX model: it holds no graph")
    for problem in _problems(model):
        raise InvalidInputError(f"{path}: the graph is broken: {problem}")


def _problems(model: onnx.ModelProto) -> Iterator[str]:
    yield from _texts("metadata", (text for entry in model.metadata_props for text in (entry.key, entry.value)))
    yield from _texts("model", (model.producer_name, model.producer_version, model.domain, model.doc_string))
    yield from _texts("opset", (opset.domain for opset in model.opset_import))
    yield from _graph(model.graph, frozenset())
    for function in model.functions:
        yield from _texts("function", (function.name, function.domain, *function.input, *function.output))
        yield from _nodes(function.node, frozenset(function.input))


def _graph(graph: onnx.GraphProto, outer: frozenset[str]) -> Iterator[str]:
    values = (*graph.input, *graph.output, *graph.value_info)
    yield from _texts("graph", (graph.name, graph.doc_string))
    yield from _texts("value", (text for value in values for text in (value.name, value.doc_string)))
    for value in values:
        yield from _texts(value.name, (text for entry in value.metadata_props for text in (entry.key, entry.value)))
    for tensor in graph.initializer:
        yield from _tensor(tensor)
    defined = outer.union(
        (value.name for value in graph.input),
        (tensor.name for tensor in graph.initializer),
        (tensor.values.name for tensor in graph.sparse_initializer),
    )
    yield from _nodes(graph.node, defined)
    known = defined.union(output for node in graph.node for output in node.output)
    for value in graph.output:
        if value.name not in known:
            yield f"nothing defines the output {value.name!r}"


def _nodes(nodes: Iterable[onnx.NodeProto], outer: frozenset[str]) -> Iterator[str]:
    nodes = list(nodes)
    for node in nodes:
        metadata = (text for entry in node.metadata_props for text in (entry.key, entry.value))
        yield from _texts(
            "node", (node.name, node.op_type, node.domain, node.doc_string, *node.input, *node.output, *metadata)
        )
        if not node.op_type:
            yield f"the node {node.name!r} has no operator"
    known = outer.union(output for node in nodes for output in node.output)
    for node in nodes:
        for name in node.input:
            if name and name not in known:
                yield f"nothing defines {name!r}, which {node.op_type} {node.name!r} reads"
        for attribute in node.attribute:
            yield from _attribute(node, attribute, known)


def _attribute(node: onnx.NodeProto, attribute: onnx.AttributeProto, known: frozenset[str]) -> Iterator[str]:
    yield from _texts(f"attribute of {node.op_type}", (attribute.name, attribute.ref_attr_name))
    if attribute.type == onnx.AttributeProto.UNDEFINED:
        yield f"the attribute {attribute.name!r} of {node.op_type} {node.name!r} has no type"
    for tensor in (*([attribute.t] if attribute.HasField("t") else []), *attribute.tensors):
        yield from _tensor(tensor)
    for graph in (*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs):
        yield from _graph(graph, known)


def _tensor(tensor: onnx.TensorProto) -> Iterator[str]:
    yield from _texts("tensor", (tensor.name, tensor.doc_string))
    if any(length < 0 for length in tensor.dims):
        yield f"the tensor {tensor.name!r} has the shape {list(tensor.dims)}"
    for entry in tensor.external_data:
        yield from _texts(f"external data of {tensor.name!r}", (entry.key, entry.value))
        is_number = entry.value.isascii() and entry.value.isdecimal()
        if entry.key in ("offset", "length") and not is_number:
            yield f"the external data of {tensor.name!r} has {entry.key} {entry.value!r}"
    if tensor.data_location == onnx.TensorProto.EXTERNAL:
        if not any(entry.key == "location" for entry in tensor.external_data):
            yield f"the external data of {tensor.name!r} has no location"
        if tensor.data_type in (onnx.TensorProto.UNDEFINED, onnx.TensorProto.STRING):
            yield f"the external data of {tensor.name!r} has no element type"


def _texts(what: str, texts: Iterable[object]) -> Iterator[str]:
    for text in texts:
        if not isinstance(text, str):
            yield f"{what}: {text!r} is not UTF-8"
