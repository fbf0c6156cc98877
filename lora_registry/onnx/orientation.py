"""Whether an initializer holds a tensor as the checkpoint does, or with its two last axes swapped."""

from __future__ import annotations

from lora_registry.adapter import Kind, Target
from lora_registry.onnx.candidate import Candidate
from lora_registry.onnx.model import OnnxModel, dtype_of
from lora_registry.onnx.refusal import DISAGREE, OPAQUE, SHAPE, RefusalError
from lora_registry.onnx.sites import Read, Site
from lora_registry.onnx.values import cast, oriented, same_values, swap
from lora_registry.ops.arrays import Array


def is_transposed(model: OnnxModel, target: Target, candidate: Candidate, known: Array | None) -> bool:
    """The candidate's orientation by the operators at its sites, checked against the target's shape.

    Args:
        model: the graph.
        target: what is to change.
        candidate: with its sites chosen.
        known: the tensor in the base checkpoint, if at hand; needed for square ones without axes that were renamed.

    Raises:
        RefusalError: the operators do not tell, contradict a note or each other, or give another shape.
    """
    shape = candidate.shape
    if len(shape) < 2:
        told = {False}
    elif not target.layout:
        told = set(candidate.told) or _without_axes(model, target, candidate, known)
    else:
        told = candidate.told | {_by_operator(target, site) for site in candidate.mine}
    if len(told) != 1:
        raise RefusalError(DISAGREE, f"{candidate.place} is said to hold it both as stored and transposed")
    (transposed,) = told
    actual = swap(shape) if transposed else shape
    if target.shape is not None and actual != target.shape:
        raise RefusalError(
            SHAPE, f"{candidate.place} is read as {list(actual)}; the adapter changes {list(target.shape)}"
        )
    if target.kind is Kind.TOKENS and target.rows and target.rows[-1] >= actual[0]:
        raise RefusalError(SHAPE, f"{candidate.place} has {actual[0]} rows; the adapter replaces row {target.rows[-1]}")
    return transposed


def is_transposed_table(site: Site) -> bool:
    """Whether an initializer at ``site`` is the transpose of an embedding table (vocabulary, width)."""
    return site.read is Read.MATRIX and site.axes == ("in", "out")


def _by_operator(target: Target, site: Site) -> bool:
    if site.axes == target.layout:
        return False
    if site.axes is not None and (*site.axes[:-2], site.axes[-1], site.axes[-2]) == target.layout:
        return True
    read = "unknown axes" if site.axes is None else "x".join(site.axes)
    raise RefusalError(OPAQUE, f"{site.operator} reads {read}; the adapter's layout is {'x'.join(target.layout)}")


def _without_axes(model: OnnxModel, target: Target, candidate: Candidate, known: Array | None) -> set[bool]:
    """A whole tensor, or a sparse change, has no axes of its own: the shape decides, then the name, then the values."""
    shape = candidate.shape
    if shape != swap(shape):
        return {shape != target.shape}
    if "initializer" in candidate.rules:
        return {False}  # exporters rename what they transpose
    if known is None:
        raise RefusalError(
            OPAQUE, f"{candidate.place} is square, and nothing says whether it was transposed; give the base"
        )
    held, wanted = candidate.held(model), cast(known, dtype_of(candidate.value))
    return {swapped for swapped in (False, True) if same_values(oriented(held, swapped), wanted)}
