"""Edits on an opened graph: new values for an initializer, or a copy of it for some of its uses.

Nothing is written here; :mod:`lora_registry.onnx.save` turns the edited graph into files. Values come from
*makers*, called once each and only when the bytes are needed, so that one tensor at a time is in memory.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import TypeAlias

import onnx_ir as ir

from lora_registry.onnx.manifest import KEY as MANIFEST_KEY
from lora_registry.onnx.manifest import Manifest, Place
from lora_registry.onnx.model import OnnxModel, shape_of
from lora_registry.onnx.resolution import Resolution
from lora_registry.onnx.sites import Hop, Site, sites_of
from lora_registry.ops.arrays import Array

Maker: TypeAlias = "Callable[[], Array]"
"""Makes the new elements, in the orientation and the dtype of the initializer."""


class Patch:
    """The edits of one merge.

    Attributes:
        model: the graph, which is edited at once.
        makers: every initializer that changes, or is new, to the maker of its values.
    """

    def __init__(self, model: OnnxModel) -> None:
        self.model = model
        self.makers: dict[ir.Value, Maker] = {}
        self._taken = _names_in_use(model.ir)

    def replace(self, value: ir.Value, maker: Maker) -> None:
        """Give the initializer ``value`` new elements of the same shape and dtype."""
        self.makers[value] = maker

    def clone(self, value: ir.Value, sites: Iterable[Site], name: str, maker: Maker) -> ir.Value:
        """Give ``sites`` an initializer of their own; all other uses of ``value`` stay as they are.

        Returns:
            The new initializer, called ``name`` or, where that is taken, something close to it.
        """
        tensor = value.const_value
        assert tensor is not None
        clone = self.add(_graph_of(value), name, tensor.dtype, shape_of(value), maker)
        self._redirect(value, clone, [site.path for site in sites], sites_of(value))
        if not value.uses() and not value.is_graph_output() and not value.is_graph_input():
            _graph_of(value).initializers.pop(str(value.name))
        return clone

    def add_bias(self, gemms: Sequence[ir.Node], name: str, length: int, maker: Maker) -> ir.Value:
        """Give Gemm nodes without a bias one of ``length`` elements in the dtype of their matrix."""
        matrix = gemms[0].inputs[1]
        assert matrix is not None
        assert matrix.const_value is not None
        graph = gemms[0].graph
        assert isinstance(graph, ir.Graph)
        bias = self.add(graph, name, matrix.const_value.dtype, (length,), maker)
        for gemm in gemms:
            gemm.resize_inputs(3)
            gemm.replace_input_with(2, bias)
        return bias

    def annotate(self, metadata: Mapping[str, str]) -> None:
        """Write ``metadata`` into the model's ``metadata_props``."""
        self.model.ir.metadata_props.update(metadata)

    def keep_manifest_true(self, resolution: Resolution, holder: ir.Value, transposed: bool) -> None:
        """Let loreg's own note, if there is one that names the target, say where the target is now."""
        manifest = Manifest.of(self.model.ir.metadata_props)
        if manifest is None or resolution.target.name not in manifest.tensors:
            return
        tensors = {**manifest.tensors, resolution.target.name: Place(str(holder.name), transposed)}
        self.model.ir.metadata_props[MANIFEST_KEY] = replace(manifest, tensors=tensors).encode()

    def add(self, graph: ir.Graph, name: str, dtype: ir.DataType, shape: tuple[int, ...], maker: Maker) -> ir.Value:
        """Add an initializer, called ``name`` or something close to it, that nothing reads yet."""
        name = self.free(name)
        tensor = ir.LazyTensor(lambda: ir.tensor(maker(), name=name), dtype=dtype, shape=ir.Shape(shape), name=name)
        value = ir.Value(name=name, type=ir.TensorType(dtype), shape=ir.Shape(shape), const_value=tensor)
        graph.register_initializer(value)
        self.makers[value] = maker
        return value

    def _redirect(
        self, old: ir.Value, new: ir.Value, wanted: Sequence[tuple[Hop, ...]], all_sites: Sequence[Site]
    ) -> None:
        """Let the operators at the end of the ``wanted`` paths read ``new``, copying shared nodes on the way."""
        for hop in dict.fromkeys(path[0] for path in wanted):
            node, index = hop
            onward = [path[1:] for path in wanted if path[0] == hop]
            others = [site for site in all_sites if site.path and site.path[0] == hop]
            if len(onward) == len(others):
                node.replace_input_with(index, new)
                continue
            copied = self._copy(node, index, new)
            rest = [replace(site, path=site.path[1:]) for site in others]
            self._redirect(node.outputs[0], copied, onward, rest)

    def _copy(self, node: ir.Node, index: int, value: ir.Value) -> ir.Value:
        """A copy of a node that passes an initializer on, reading ``value`` instead; returns its output."""
        inputs = [value if place == index else held for place, held in enumerate(node.inputs)]
        copy = ir.Node(
            node.domain,
            node.op_type,
            inputs,
            list(node.attributes.values()),
            overload=node.overload,
            version=node.version,
            name=self.free(f"{node.name or node.op_type}_loreg"),
            metadata_props=dict(node.metadata_props),
        )
        output, held = copy.outputs[0], node.outputs[0]
        output.name = self.free(f"{held.name}_loreg")
        output.type, output.shape = held.type, held.shape
        assert node.graph is not None
        node.graph.insert_before(node, copy)
        return output

    def free(self, name: str) -> str:
        """Take ``name``, or the first of ``name_1``, ``name_2`` … that nothing in the model has."""
        candidate, count = name, 0
        while candidate in self._taken:
            count += 1
            candidate = f"{name}_{count}"
        self._taken.add(candidate)
        return candidate


def _graph_of(value: ir.Value) -> ir.Graph:
    graph = value.graph
    assert isinstance(graph, ir.Graph)
    return graph


def _names_in_use(model: ir.Model) -> set[str]:
    """Names of all values and nodes, in subgraphs too; one set, so that a new name is new everywhere."""
    taken: set[str] = set()
    for graph in model.graphs():
        taken.update(graph.initializers)
        taken.update(str(value.name) for value in graph.inputs)
    for node in ir.traversal.RecursiveGraphIterator(model.graph):
        taken.add(str(node.name))
        taken.update(str(value.name) for value in node.outputs)
    return taken
