"""An exported graph on disk, cleaned of what the exporter tells about this machine."""

from __future__ import annotations

import ast
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import onnx_ir as ir

from lora_registry.onnx.scope import SCOPES
from lora_registry.runtime.export_place import data_path

ONE_FILE_BYTES = 16 << 20
"""Weights up to this size stand in the ``.onnx`` itself; larger ones in ``<name>.onnx.data`` beside it."""


def clean(model: ir.Model, inner: str = "") -> None:
    """Drop stack traces and the exporter's notes, and take the wrapper's attribute name off all names.

    Stack traces hold paths and user names of the machine that exported. Only the module path of each node
    stays, since it is what tools without a manifest find weights by.

    Args:
        model: changed in place.
        inner: attribute under which the traced module held the real one; "" where there is no wrapper.
    """
    _strip(model)
    for graph in [model.graph, *(function.graph for function in model.functions.values())]:
        _strip(graph)
        for value in [*graph.inputs, *graph.outputs]:
            _strip(value)
    for name, value in list(model.graph.initializers.items()):
        _strip(value)
        if inner and name.startswith(f"{inner}."):
            new = name.removeprefix(f"{inner}.")
            value.name = new
            if value.const_value is not None:
                value.const_value.name = new
    nodes = [
        *model.graph.all_nodes(),
        *(node for function in model.functions.values() for node in function.all_nodes()),
    ]
    for node in nodes:
        scopes = node.metadata_props.get(SCOPES)
        _strip(node)
        if scopes is not None:
            node.metadata_props[SCOPES] = repr(_unwrapped(ast.literal_eval(scopes), inner))
        for value in node.outputs:
            _strip(value)


def _strip(thing: Any) -> None:
    thing.metadata_props.clear()
    thing.doc_string = None


def _unwrapped(scopes: list[str], inner: str) -> list[str]:
    if not inner:
        return scopes
    # ['', 'wrapped', 'wrapped.model', 'linear'] -> ['', 'model', 'linear']
    kept = scopes[1:] if scopes[1:2] == [inner] else scopes
    return ["" if scope == inner else scope.removeprefix(f"{inner}.") for scope in kept]


def save(model: ir.Model, path: Path) -> None:
    """Save ``model``, with its weights beside it where they are large; the folder must be one that nobody reads yet.

    Raises:
        OSError: the disk is full, or failed.
    """
    external = _weight_bytes(model.graph.initializers.values()) > ONE_FILE_BYTES
    ir.save(model, path, external_data=data_path(path).name if external else None)


def _weight_bytes(values: Iterable[Any]) -> int:
    return sum(value.const_value.nbytes for value in values if value.const_value is not None)
