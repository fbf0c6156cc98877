"""What a target does (sections 5 and 5.1 to 5.3, and the registered kinds), in torch: its own operators."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

Tensors = Mapping[str, Tensor]


def change(record: Mapping[str, Any], tensors: Tensors) -> Tensor:
    """What is added to W, in the order in which W is stored; float32."""
    return _unscaled(record, tensors).mul(record["scale"])


def _unscaled(record: Mapping[str, Any], tensors: Tensors) -> Tensor:
    transposed = record.get("layout", [])[-2:] == ["in", "out"]
    match record["kind"]:
        case "bias":
            return tensors["delta"]
        case "sparse":
            flat = torch.zeros(record["shape"]).flatten()
            return flat.scatter(0, tensors["index"], tensors["delta"]).unflatten(0, record["shape"])
        case "conv":
            # B convolved over A, whose inputs stand in for a batch; a grouped B is a grouped convolution.
            a, b = tensors["A"], tensors["B"]
            convolve = {1: functional.conv1d, 2: functional.conv2d, 3: functional.conv3d}[a.ndim - 2]
            return convolve(a.transpose(0, 1), b, groups=record.get("groups", 1)).transpose(0, 1)
        case "loha":
            a1, a2 = tensors["A1"], tensors["A2"]
            flat = torch.mm(tensors["B1"], a1.flatten(1)) * torch.mm(tensors["B2"], a2.flatten(1))
            logical = flat.unflatten(1, a1.shape[1:])
        case "lokr":
            logical = torch.kron(
                _side("1", tensors)[(..., *(None,) * (len(record["layout"]) - 2))], _side("2", tensors)
            )
        case _ if transposed:
            return torch.matmul(tensors["A"].mT, tensors["B"].mT)
        case _:
            return torch.matmul(tensors["B"], tensors["A"])
    return logical.mT if transposed else logical


def _side(number: str, tensors: Tensors) -> Tensor:
    if f"C{number}" in tensors:
        return tensors[f"C{number}"]
    a = tensors[f"A{number}"]
    return torch.mm(tensors[f"B{number}"], a.flatten(1)).unflatten(1, a.shape[1:])


def result(record: Mapping[str, Any], tensors: Tensors, weight: Tensor) -> Tensor:
    """W' for W = ``weight``, as stored; float32."""
    if record["kind"] == "full":
        return tensors["value"]
    if record["kind"] == "tokens":
        return weight.index_copy(0, torch.tensor(record["rows"]), tensors["value"])
    total = torch.add(tensors.get("value", weight), change(record, tensors))
    if "magnitude" not in tensors:
        return total
    out = record["layout"].index("out")
    outputs = total.movedim(out, 0)
    unit = functional.normalize(outputs.flatten(1), dim=1).reshape(outputs.shape)
    return unit.movedim(0, -1).mul(tensors["magnitude"]).movedim(-1, out)
