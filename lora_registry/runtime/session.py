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

    from lora_registry.onnx.model import OnnxModel


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
    """The edited graph, where tensors had to be taken apart, and the new values of initializers that were not."""
    import onnx_ir as ir

    from lora_registry.merge.base import open_base
    from lora_registry.merge.fit import fit
    from lora_registry.merge.onnx_model import Merging
    from lora_registry.onnx.model import OnnxModel
    from lora_registry.onnx.resolution import ResolvedBase
    from lora_registry.onnx.resolve import resolve
    from lora_registry.ops.mergeable import check_mergeable

    check_mergeable(adapter)
    model = OnnxModel.open(path)
    stored = frozenset(model.values())
    resolutions = resolve(model, adapter, base=open_base(checkpoint) if checkpoint is not None else None)
    view = ResolvedBase(model, resolutions)
    fit(adapter, view).require(f"adapter and {path}")
    merging = Merging(model, view)
    for resolution in resolutions:
        merging.apply(resolution)
    arrays: dict[str, Any] = {}
    is_edited = not merging.patch.makers.keys() <= stored
    for value, make in merging.patch.makers.items():
        array = np.ascontiguousarray(make())
        place = value.const_value if value in stored else _standing_in(model, value)
        if isinstance(place, ir.ExternalTensor):
            value.const_value = place
            arrays[str(value.name)] = array
        else:
            value.const_value = ir.tensor(array, name=str(value.name))
            is_edited = True
    return ir.serde.serialize_model(model.ir).SerializeToString() if is_edited else None, arrays


def _standing_in(model: OnnxModel, value: ir.Value) -> ir.ExternalTensor | None:
    """For an initializer that is new: bytes of its shape and type in a data file, so that its own can be given too.

    None where there are none; its values then stand in the graph.
    """
    import onnx_ir as ir

    from lora_registry.onnx.model import external_tensors

    for other in external_tensors(model.ir):
        if other.dtype == value.const_value.dtype and other.shape == value.const_value.shape:
            return ir.ExternalTensor(
                other.location,
                other.offset,
                other.length,
                other.dtype,
                shape=other.shape,
                name=str(value.name),
                base_dir=other.base_dir,
            )
    return None
