"""A session with adapters merged at load: nothing is written, and one base file serves any number of variants.

``SessionOptions.add_external_initializers`` lets a value in memory take the place of one in a data file; ONNX Runtime
borrows the value, and the session that is given back holds it. What lies in the graph itself is replaced there, in
the copy that the session is made from.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from lora_registry.adapter import SCALED, Adapter, Target
from lora_registry.errors import UnsupportedError, UsageError
from lora_registry.runtime.ort import open_session, value_of
from lora_registry.runtime.sources import Source, read_source

if TYPE_CHECKING:
    import onnx_ir as ir


def session(
    base: str | Path,
    adapters: Mapping[str | Path, float] | Iterable[tuple[Source, float]] = (),
    *,
    provider: str = "cpu",
    threads: int | None = None,
    checkpoint: str | Path | None = None,
) -> Any:
    """Open a model with adapters merged into it, each with a weight: W' = W + Σ weight · s · B · A.

    Computed and rounded as `loreg merge` computes and rounds: one adapter of weight 1 gives the merged file's bits.

    Args:
        base: an ``.onnx`` file of any exporter; never changed.
        adapters: paths of adapters, or adapters, with their weights.
        provider: a key of :data:`lora_registry.runtime.ort.PROVIDERS`; it runs there, or there is no session.
        threads: threads within an operator; None for ONNX Runtime's choice.
        checkpoint: what ``base`` was exported from; finds tensors by their values where the graph has no names.

    Returns:
        An ``onnxruntime.InferenceSession``.

    Raises:
        UsageError: a weight that is no finite number; no such provider.
        UnsupportedError: a change that has no weight but 1, or is no sum and meets another; a quantized target; a gate.
        InvalidInputError: a target was not found or does not fit; carries a finding for each.
        NotFoundError: no such file.
        MachineError: the provider does not run here, or left heavy operators to the CPU.
        MissingPackageError: no onnxruntime wheel, or no onnx, is installed.
    """
    pairs = list(adapters.items() if isinstance(adapters, Mapping) else adapters)
    path = Path(base)
    whole = weighted_sum([(read_source(source), float(weight)) for source, weight in pairs])
    if whole is None:
        return open_session(path, provider=provider, threads=threads)
    graph, arrays = _merged(whole, path, checkpoint)
    values = {name: value_of(array) for name, array in arrays.items()}
    return open_session(path, provider=provider, threads=threads, graph=graph, initializers=values)


def weighted_sum(parts: Sequence[tuple[Adapter, float]]) -> Adapter | None:
    """One adapter that makes the weighted changes of all; None where there is none.

    Several are put beside each other (their ranks add up), so that nothing is approximated.

    Raises:
        UsageError: a weight that is no finite number.
        UnsupportedError: a change that has no weight but 1, or that cannot be added to another.
    """
    if not all(np.isfinite(weight) for _, weight in parts):
        raise UsageError("an adapter has a weight that is no finite number")
    if len(parts) < 2:
        return _weighted(*parts[0]) if parts else None
    from lora_registry.algebra.combine import Weighted, combine
    from lora_registry.algebra.lineage import Parent
    from lora_registry.algebra.recipe import Method, Recipe

    shares = [Weighted(Parent(adapter), weight) for adapter, weight in parts]
    return combine(shares, Recipe(method=Method.CAT)).adapter


def _weighted(adapter: Adapter, weight: float) -> Adapter:
    return adapter if weight == 1 else replace(adapter, targets=tuple(_scaled(each, weight) for each in adapter))


def _scaled(target: Target, weight: float) -> Target:
    if target.kind not in SCALED or {"magnitude", "value"} & target.tensors.keys():
        raise UnsupportedError(f"{target.name}: a {target.kind} target that is no sum has no weight but 1")
    return replace(target, scale=target.scale * weight)


def _merged(adapter: Adapter, path: Path, checkpoint: str | Path | None) -> tuple[bytes | None, dict[str, Any]]:
    """The edited graph, if it is another one, and the new values of initializers that lie in data files."""
    import onnx_ir as ir

    from lora_registry.merge.bases.base import open_base
    from lora_registry.merge.fitting.fit import fit
    from lora_registry.merge.onnx.edits import Edits
    from lora_registry.onnx.model import OnnxModel
    from lora_registry.onnx.resolution import ResolvedBase
    from lora_registry.onnx.resolve import resolve
    from lora_registry.ops.mergeable import check_mergeable

    check_mergeable(adapter)
    model = OnnxModel.open(path)
    resolutions = resolve(model, adapter, base=open_base(checkpoint) if checkpoint is not None else None)
    fit(adapter, ResolvedBase(model, resolutions)).require(f"adapter and {path}")
    edits = Edits(model, resolutions)
    is_edited, arrays = edits.structural, {}
    for edit in edits.all:
        name, array = str(edit.value.name), np.ascontiguousarray(edits.elements(edit))
        if isinstance(edit.before, ir.ExternalTensor):
            edit.value.const_value = _renamed(edit.before, name)  # what is new stands where the old one does
            arrays[name] = array
        else:
            edit.value.const_value = ir.tensor(array, name=name)
            is_edited = True
    return ir.serde.serialize_model(model.ir).SerializeToString() if is_edited else None, arrays


def _renamed(tensor: ir.ExternalTensor, name: str) -> ir.ExternalTensor:
    import onnx_ir as ir

    return ir.ExternalTensor(
        tensor.location,
        tensor.offset,
        tensor.length,
        tensor.dtype,
        shape=tensor.shape,
        name=name,
        base_dir=tensor.base_dir,
    )
