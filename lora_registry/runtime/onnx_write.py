"""An exported graph on disk: cleaned of what the exporter tells about this machine, whole or not at all."""

from __future__ import annotations

import ast
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import onnx_ir as ir

from lora_registry.errors import NotFoundError
from lora_registry.format.files import refuse_existing, staging_folder, storage_errors, sync_folder
from lora_registry.onnx.scope import SCOPES

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


def data_path(path: Path) -> Path:
    """Where the weights of ``path`` go when they do not stand in it."""
    return path.with_name(f"{path.name}.data")


def check_free(path: Path, *, overwrite: bool) -> None:
    """Refuse, before any work, to write over what exists or where nothing can be written.

    Raises:
        NotFoundError: the folder of ``path`` does not exist.
        ConflictError: the file or its data file exists, and ``overwrite`` is false.
    """
    if not path.parent.is_dir():
        raise NotFoundError(f"no such folder: {path.parent}")
    if not overwrite:
        refuse_existing(path, data_path(path))


def write(model: ir.Model, path: Path, *, overwrite: bool = False) -> list[Path]:
    """Save ``model``; its data file, if it has one, is in place before the model that points to it.

    Returns:
        The files written: the model, then the data file.

    Raises:
        ConflictError: a file exists and ``overwrite`` is false.
        NotFoundError: the folder of ``path`` does not exist.
        NotAllowedError: the folder may not be written.
        MachineError: the disk is full, or failed.
    """
    check_free(path, overwrite=overwrite)
    external = _weight_bytes(model.graph.initializers.values()) > ONE_FILE_BYTES
    # Both files bear their final names in the staging folder, so that the location inside the model is right.
    with storage_errors(path), staging_folder(path) as staging:
        ir.save(model, staging / path.name, external_data=data_path(path).name if external else None)
        names = [data_path(path).name, path.name] if external else [path.name]
        for name in names:
            _sync(staging / name)
        if not external:
            data_path(path).unlink(missing_ok=True)  # of the model that is overwritten
        for name in names:
            (staging / name).replace(path.with_name(name))
        sync_folder(path.parent)
    return [path, data_path(path)] if external else [path]


def _weight_bytes(values: Iterable[Any]) -> int:
    return sum(value.const_value.nbytes for value in values if value.const_value is not None)


def _sync(path: Path) -> None:
    with path.open("rb") as stream:
        os.fsync(stream.fileno())
