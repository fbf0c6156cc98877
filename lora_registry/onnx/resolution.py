"""What resolving finds out about one target, with the evidence for it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from lora_registry.adapter import Json, Target
from lora_registry.onnx.model import OnnxModel, dtype_of, shape_of
from lora_registry.onnx.sites import Site
from lora_registry.onnx.values import oriented, swap
from lora_registry.onnx.window import Window, windowed
from lora_registry.ops.arrays import Array


@dataclass(frozen=True, slots=True)
class Carrier:
    """One initializer that holds the tensor of a target.

    Attributes:
        value: the initializer.
        transposed: whether its two last axes are swapped, compared with the checkpoint.
        sites: the uses that the target changes.
        shared: whether it has other uses, which must go on reading the old values.
        window: the part of it that is the target's tensor; None where it is all of it.
    """

    value: ir.Value
    transposed: bool
    sites: tuple[Site, ...]
    shared: bool
    window: Window | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        """Axis lengths of the part, as stored."""
        whole = shape_of(self.value)
        return whole if self.window is None else self.window.shape(whole)


@dataclass(frozen=True, slots=True)
class Resolution:
    """Where the tensor of a target is in the graph.

    Attributes:
        target: the target.
        carriers: the initializers that hold it, all with the same values; none for a bias that an optimizer
            removed because it was zero.
        open_gemms: the Gemm nodes that get that bias as a new input.
        rules: ids of the rules that agree.
        tied: whether the tensor is also read in its other role, as embedding rows or as the head's matrix.
    """

    target: Target
    carriers: tuple[Carrier, ...]
    open_gemms: tuple[ir.Node, ...]
    rules: tuple[str, ...]
    tied: bool

    def evidence(self) -> dict[str, Json]:
        """What people and receipts are told: initializers, orientation, uses, rules."""
        return {
            "rules": list(self.rules),
            "tied": self.tied,
            "initializers": [
                {
                    "name": carrier.value.name,
                    "transposed": carrier.transposed,
                    "shared": carrier.shared,
                    "sites": [{"node": site.node, "operator": site.operator} for site in carrier.sites],
                    **({} if carrier.window is None else {"slice": carrier.window.to_json()}),
                }
                for carrier in self.carriers
            ]
            + [
                {
                    "name": None,
                    "transposed": False,
                    "shared": False,
                    "sites": [{"node": node.name, "operator": "Gemm input 2"}],
                }
                for node in self.open_gemms
            ],
        }


class ResolvedBase:
    """The tensors that an adapter touches, as a checkpoint would show them: by target name, in its orientation.

    A :class:`~lora_registry.ops.base_model.BaseModel`.
    """

    def __init__(self, model: OnnxModel, resolutions: tuple[Resolution, ...]) -> None:
        self._model = model
        self._resolutions = {resolution.target.name: resolution for resolution in resolutions}
        self.ties: dict[str, str] = {}

    def names(self) -> tuple[str, ...]:
        """Names of the resolved targets."""
        return tuple(self._resolutions)

    def shape(self, name: str) -> tuple[int, ...]:
        """Axis lengths in the checkpoint's orientation."""
        resolution = self._resolutions[name]
        if not resolution.carriers:
            return _bias_shape(resolution)
        carrier = resolution.carriers[0]
        return swap(carrier.shape) if carrier.transposed else carrier.shape

    def dtype(self, name: str) -> str:
        """Name, as safetensors has it, of the element type."""
        resolution = self._resolutions[name]
        if not resolution.carriers:
            return dtype_of(_matrix(resolution))
        return dtype_of(resolution.carriers[0].value)

    def array(self, name: str) -> Array:
        """The elements in the checkpoint's orientation; a view of the mapped file where there is one."""
        resolution = self._resolutions[name]
        if not resolution.carriers:
            return np.zeros(_bias_shape(resolution), _matrix(resolution).const_value.dtype.numpy())
        carrier = resolution.carriers[0]
        return oriented(windowed(self._model.elements(carrier.value), carrier.window), carrier.transposed)


def _matrix(resolution: Resolution) -> ir.Value:
    return resolution.open_gemms[0].inputs[1]


def _bias_shape(resolution: Resolution) -> tuple[int, ...]:
    gemm = resolution.open_gemms[0]
    swapped = gemm.attributes.get("transB")
    return (shape_of(_matrix(resolution))[0 if swapped is not None and swapped.as_int() else 1],)
