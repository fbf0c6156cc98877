"""An adapter merged into graphs on export: each file is what ``loreg merge`` makes of the plain export."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import onnx_ir as ir

from lora_registry.adapter import Adapter
from lora_registry.errors import InvalidInputError
from lora_registry.merge.onnx.model import merge_onnx
from lora_registry.ops.tied import TiedPolicy
from lora_registry.runtime.names import named_tensors
from lora_registry.runtime.onnx_write import save
from lora_registry.runtime.resolve import resolve


class GraphMerge:
    """The merge into each graph of an export.

    Of several graphs each gets those targets whose tensors it holds, and its receipt names the adapter of these
    targets alone; a tensor that two graphs hold, the shared embedding of an encoder-decoder, is changed in both.

    Args:
        adapter: what is merged.
        module: that is exported.
        graphs: how many graphs it is.
        tied: see :func:`~lora_registry.merge.onnx.model.merge_onnx`.

    Raises:
        InvalidInputError: a target has no tensor, or one of another shape.
        InconclusiveError: the names fit under several prefixes.
    """

    def __init__(self, adapter: Adapter, module: Any, graphs: int, tied: TiedPolicy) -> None:
        self._adapter = adapter
        self._tied = tied
        tensors = named_tensors(module)
        same: dict[int, set[str]] = {}
        for name, tensor in tensors.items():
            same.setdefault(id(tensor), set()).add(name)
        found = resolve(adapter.targets, module) if graphs > 1 else {}
        self._names = {target: same[id(tensors[name])] for target, name in found.items()}
        self._left = set(self._names)

    def save(self, graph: ir.Model, path: Path) -> None:
        """Write the graph with its part of the adapter merged, and the receipt beside it.

        Raises:
            UnsupportedError, InvalidInputError, IntegrityError, InconclusiveError: as
                :func:`~lora_registry.merge.onnx.model.merge_onnx`.
        """
        part = self._part(graph)
        if not part.targets:
            save(graph, path)
            return
        base = path.parent.with_name("base") / path.name
        base.parent.mkdir(exist_ok=True)
        save(graph, base)
        merge_onnx(part, base, path, tied=self._tied, durable=False)
        for file in base.parent.iterdir():
            file.unlink()

    def _part(self, graph: ir.Model) -> Adapter:
        if not self._names:
            return self._adapter
        held = graph.graph.initializers.keys()
        names = {target for target, same in self._names.items() if same & held}
        self._left -= names
        return replace(self._adapter, targets=tuple(target for target in self._adapter if target.name in names))

    def require_all(self) -> None:
        """Refuse an export into which not all targets went.

        Raises:
            InvalidInputError: no graph holds the tensor of a target.
        """
        if self._left:
            raise InvalidInputError(f"no graph holds {min(self._left)} ({len(self._left)} targets match nothing)")
