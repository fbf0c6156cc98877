"""What torch's exporter (2.13) gets wrong, put right: graphs that no runtime would load."""

from __future__ import annotations

import onnx_ir as ir


def repair(model: ir.Model) -> None:
    """Put right what is known to be wrong in a graph that was just exported without the optimizer.

    In torch ``squeeze(dim)`` leaves an axis that is not of size 1 alone, where ONNX's Squeeze refuses it; the exporter
    writes the one for the other (PixArt's transformer in diffusers has one). Such a node becomes an Identity.

    Args:
        model: changed in place.
    """
    for node in model.graph.all_nodes():
        if node.op_type == "Squeeze" and node.domain == "" and _is_idle(node):
            node.op_type = "Identity"
            node.resize_inputs(1)


def _is_idle(node: ir.Node) -> bool:
    """Whether none of the axes of a Squeeze can be taken away, by their known sizes."""
    values, axes = node.inputs[0], node.inputs[1] if len(node.inputs) > 1 else None
    constant = None if axes is None else ir.convenience.get_const_tensor(axes)
    if values is None or values.shape is None or constant is None:
        return False
    sizes = [values.shape[int(axis)] for axis in constant.numpy().reshape(-1)]
    return all(isinstance(size, int) and size != 1 for size in sizes)
