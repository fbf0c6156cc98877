"""The resolver's rules that go by names: each reads one kind of note that an exporter left in the graph.

============== ====================================================================================
manifest       loreg's own exporter wrote it (:mod:`lora_registry.onnx.manifest`)
initializer    the initializer has the parameter's own name
folded-from    ``pkg.onnxscript.optimizer.folded_from``: onnxscript's optimizer folded the parameter into it
node-scope     the operator that reads it came from the parameter's module (:mod:`lora_registry.onnx.scope`)
builder        onnxruntime-genai's model builder calls it so (:mod:`lora_registry.onnx.builder`)
============== ====================================================================================

Behavior of the exporters as of torch 2.13 and onnxscript 0.7.
"""

from __future__ import annotations

import ast
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping

import onnx_ir as ir

from lora_registry.onnx.builder import builder_hits
from lora_registry.onnx.hit import Hit
from lora_registry.onnx.manifest import Manifest
from lora_registry.onnx.model import FLOATING, OnnxModel, dtype_of, shape_of
from lora_registry.onnx.scope import scope_of
from lora_registry.onnx.sites import PARAMETER, QUANTIZED_OPERATORS, Read, Site, sites_of

FOLDED_FROM = "pkg.onnxscript.optimizer.folded_from"

REWRITTEN_BY = "pkg.onnxscript.rewriter.rule_name"

_FOLDING_RULES = ("FuseBatchNorm", "AffineConvFusion", "ConvAffineFusion")
"""onnxscript's rewrites that put other values under a weight's own name."""

_TORCHSCRIPT_FOLDED = "onnx::Conv_"
"""TorchScript's name for a kernel with a BatchNorm folded in; kernels that are as they were keep their names."""

_QUANTIZED_SUFFIXES = ("_DQ_Q4", "_DQ_Q8", "_Q4", "_Q8", "_quantized")  # onnxruntime.quantization 1.32


class Names:
    """What the names in one graph say.

    Attributes:
        sites: name of every initializer to its uses.
        manifest: tensor name to hits, by loreg's own note.
        tenants: initializer to the number of tensors that it holds by that note.
        exporter: tensor name to hits, by the rules that read an exporter's notes.
        computed: tensor name to the constants into which an optimizer folded it together with other tensors.
        quantized: tensor name to the operator that holds it in quantized form.
        open_gemms: module to its Gemm nodes that have no bias.
        known: every name that an exporter left, also of tensors that can only be refused.
        quantized_operators: the quantized operators that occur in the graph.
    """

    def __init__(self, model: OnnxModel) -> None:
        self.model = model
        self.sites: Mapping[str, tuple[Site, ...]] = {
            name: sites_of(value) for name, value in model.initializers.items()
        }
        self.manifest = _by_name(manifest_hits(model))
        self.tenants = Counter(str(hit.value.name) for hits in self.manifest.values() for hit in hits)
        self.exporter = _by_name(hit for rule in EXPORTER_RULES for hit in rule(model, self.sites))
        self.computed = _computed(model, self.sites)
        self.quantized = _quantized(self.sites)
        self.known = frozenset((*self.exporter, *self.computed, *self.quantized))
        self.open_gemms: dict[str, list[ir.Node]] = defaultdict(list)
        self.quantized_operators: set[str] = set()
        for node in ir.traversal.RecursiveGraphIterator(model.ir.graph):
            if node.op_type in QUANTIZED_OPERATORS:
                self.quantized_operators.add(node.op_type)
            scope = scope_of(node)
            if node.op_type == "Gemm" and scope is not None and (len(node.inputs) < 3 or node.inputs[2] is None):
                self.open_gemms[scope.module].append(node)


def manifest_hits(model: OnnxModel) -> Iterator[tuple[str, Hit]]:
    """The lines of loreg's own note whose initializer is still there."""
    manifest = Manifest.of(model.ir.metadata_props)
    for name, place in manifest.tensors.items() if manifest is not None else ():
        value = model.initializers.get(place.initializer)
        if value is not None:
            yield name, Hit("manifest", value, place.transposed)


def initializer_hits(model: OnnxModel, _sites: Mapping[str, tuple[Site, ...]]) -> Iterator[tuple[str, Hit]]:
    """Initializers that kept their parameter's name. Exporters rename what they transpose."""
    for name, value in _floating(model):
        yield name, Hit("initializer", value)


def folded_hits(model: OnnxModel, _sites: Mapping[str, tuple[Site, ...]]) -> Iterator[tuple[str, Hit]]:
    """Initializers that an optimizer made from one parameter alone."""
    for _, value in _floating(model):
        origins = _origins(value)
        if len(origins) == 1:
            yield origins[0], Hit("folded-from", value)


def scope_hits(model: OnnxModel, sites: Mapping[str, tuple[Site, ...]]) -> Iterator[tuple[str, Hit]]:
    """Initializers that an operator of a module reads as PyTorch's modules read ``weight`` and ``bias``."""
    for name, value in _floating(model):
        seen: set[tuple[str, bool]] = set()
        for site in sites[name]:
            parameter = PARAMETER.get(site.read)
            if parameter is None or site.scope is None or site.axes is None or not shape_of(value):
                continue
            seen.add((f"{site.scope.module}.{parameter}".lstrip("."), False))
            if site.scope.repeats is not None:
                seen.add((f"{site.scope.repeats}.{parameter}", True))
        for tensor, repeated in sorted(seen):
            yield tensor, Hit("node-scope", value, only_extends=repeated)


Rule = Callable[[OnnxModel, Mapping[str, "tuple[Site, ...]"]], Iterator["tuple[str, Hit]"]]

EXPORTER_RULES: tuple[Rule, ...] = (initializer_hits, folded_hits, scope_hits, builder_hits)


def _floating(model: OnnxModel) -> Iterator[tuple[str, ir.Value]]:
    return ((name, value) for name, value in model.initializers.items() if dtype_of(value) in FLOATING)


def _by_name(pairs: Iterator[tuple[str, Hit]]) -> dict[str, list[Hit]]:
    hits: dict[str, list[Hit]] = {}
    for name, hit in pairs:
        hits.setdefault(name, []).append(hit)
    return hits


def _origins(value: ir.Value) -> list[str]:
    """The names from which an optimizer folded ``value``."""
    written = value.metadata_props.get(FOLDED_FROM)
    if written is None:
        return []
    try:
        origins = ast.literal_eval(written)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return []
    return [origin for origin in origins if isinstance(origin, str)] if isinstance(origins, list) else []


def _computed(model: OnnxModel, sites: Mapping[str, tuple[Site, ...]]) -> dict[str, list[str]]:
    computed: dict[str, list[str]] = defaultdict(list)
    for name, value in model.initializers.items():
        origins = _origins(value)
        for origin in origins if len(origins) > 1 else ():
            computed[origin].append(name)
        for site in sites[name]:
            rewritten = site.path[-1][0].metadata_props.get(REWRITTEN_BY, "") if site.path else ""
            if site.read in PARAMETER and any(rule in rewritten for rule in _FOLDING_RULES):
                computed[name].append(name)
            elif name.startswith(_TORCHSCRIPT_FOLDED) and site.read in PARAMETER and site.scope is not None:
                computed[f"{site.scope.module}.{PARAMETER[site.read]}".lstrip(".")].append(name)
    return computed


def _quantized(sites: Mapping[str, tuple[Site, ...]]) -> dict[str, str]:
    quantized: dict[str, str] = {}
    for name, uses in sites.items():
        for site in uses:
            if site.read is not Read.QUANTIZED:
                continue
            operator = site.path[-1][0].op_type
            if site.scope is not None:
                quantized.setdefault(f"{site.scope.module}.weight", operator)
            for suffix in _QUANTIZED_SUFFIXES:
                if name.endswith(suffix):
                    quantized.setdefault(name.removesuffix(suffix), operator)
                    break
    return quantized
