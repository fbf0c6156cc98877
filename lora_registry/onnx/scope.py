"""Which module of the original model a node came from, where the exporter wrote it down.

Two notations are read: ``pkg.torch.onnx.name_scopes`` of torch's dynamo exporter (a list whose last entry is
the operation and whose last but one is the module path), and the node names of the TorchScript exporter
(``/encoder/layer.0/query/MatMul``). Both as torch 2.13 writes them.
"""

from __future__ import annotations

import ast
import re
from dataclasses import dataclass

import onnx_ir as ir

SCOPES = "pkg.torch.onnx.name_scopes"
"""Node metadata of the dynamo exporter: the module path of a node, as the text of a Python list."""

_REPEAT = re.compile(r"(.+)_\d+")


@dataclass(frozen=True, slots=True)
class Scope:
    """A module path.

    Attributes:
        module: dotted path, ``model.layers.0.self_attn.q_proj``; empty for the outermost module.
        repeats: the module that ``module`` may be a further call of, where the notation does not tell: the
            TorchScript exporter names the second call of ``query`` as ``query_1``.
    """

    module: str
    repeats: str | None = None

    def is_of(self, module: str) -> bool:
        """Whether a node of this scope may belong to ``module``."""
        return module in (self.module, self.repeats)


def scope_of(node: ir.Node) -> Scope | None:
    """The module that ``node`` came from; None where the exporter did not say."""
    written = node.metadata_props.get(SCOPES)
    if written is not None:
        return _from_list(written)
    return _from_path(node)


def _from_list(written: str) -> Scope | None:
    try:
        scopes = ast.literal_eval(written)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return None
    if isinstance(scopes, list) and len(scopes) >= 2 and isinstance(scopes[-2], str):
        return Scope(scopes[-2])
    return None


def _from_path(node: ir.Node) -> Scope | None:
    name = node.name or ""
    parts = name.split("/")
    if parts[0] or len(parts) < 2 or not parts[-1].startswith(node.op_type):
        return None
    modules = parts[1:-1]
    if not modules:
        return Scope("")
    path = ".".join(modules)
    again = _REPEAT.fullmatch(modules[-1])
    repeats = ".".join((*modules[:-1], again[1])) if again else None
    return Scope(path, repeats)
