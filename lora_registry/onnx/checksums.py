"""The optional ``checksum`` of external data: by onnx's documentation, the SHA-1 of the whole file at ``location``."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

import onnx


def checksums(model: onnx.ModelProto) -> list[onnx.StringStringEntryProto]:
    """Every entry of the graph that is one."""
    return [entry for tensor in _external(model) for entry in tensor.external_data if entry.key == "checksum"]


def update_checksums(model: onnx.ModelProto, digest: Callable[[str], str]) -> None:
    """Let every checksum be that of the file as it is now.

    Args:
        model: the graph, which is changed.
        digest: gives the SHA-1 of the file at a location, in hexadecimal; asked once for each.
    """
    known: dict[str, str] = {}
    for tensor in _external(model):
        location = next(entry.value for entry in tensor.external_data if entry.key == "location")
        for entry in tensor.external_data:
            if entry.key == "checksum":
                if location not in known:
                    known[location] = digest(location)
                entry.value = known[location]


def _external(model: onnx.ModelProto) -> Iterator[onnx.TensorProto]:
    for tensor in _of_graph(model.graph):
        if tensor.data_location == onnx.TensorProto.EXTERNAL:
            yield tensor
    for function in model.functions:
        for tensor in _of_nodes(function.node):
            if tensor.data_location == onnx.TensorProto.EXTERNAL:
                yield tensor


def _of_graph(graph: onnx.GraphProto) -> Iterator[onnx.TensorProto]:
    yield from graph.initializer
    yield from _of_nodes(graph.node)


def _of_nodes(nodes: Iterable[onnx.NodeProto]) -> Iterator[onnx.TensorProto]:
    for node in nodes:
        for attribute in node.attribute:
            if attribute.HasField("t"):
                yield attribute.t
            yield from attribute.tensors
            for graph in (*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs):
                yield from _of_graph(graph)
