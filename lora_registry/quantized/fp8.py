"""float8 weights with scales: one for each block of 128 x 128 (DeepSeek-V3), for each row, or for all of a tensor.

The scale is ``W_scale_inv`` or ``W_scale``; by both names it is what the float8 is multiplied by. Element = W · scale
in float32, cast to the dtype of the model (transformers 5.23, ``Fp8Dequantize``; DeepSeek-V3, ``weight_dequant``).
Blocks at the end of an axis may be cut off, as DeepSeek's kernels have it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from lora_registry.adapter import Json
from lora_registry.errors import InvalidInputError, UnsupportedError
from lora_registry.ops.arrays import Array
from lora_registry.quantized.grid import Grid
from lora_registry.quantized.weight import Quantization, Scheme, Tensors

FLOAT8 = ("F8_E4M3", "F8_E5M2")
_SCALES = ("_scale_inv", "_scale")
_ACTIVATIONS = ("input_scale", "activation_scale", "input_scale_ub", "output_scale")


@dataclass(frozen=True, slots=True, eq=False)
class Fp8Weight:
    """A weight in float8.

    Attributes:
        dtype: of the model.
        parts: names of the stored tensors.
        values: float8, of the shape of the weight.
        scales: float32.
        scale_dtype: element type that the scales are stored in, by safetensors' name.
    """

    dtype: str
    parts: tuple[str, ...]
    values: Array
    scales: Grid
    scale_dtype: str = "F32"

    @property
    def shape(self) -> tuple[int, ...]:
        """That of the float8."""
        return tuple(self.values.shape)

    def rows(self, first: int, last: int) -> Array:
        """Rows of outputs."""
        part = self.values.reshape(-1, self.shape[-1])[first:last]
        result: Array = part.astype(np.float32) * self.scales.rows(first, last)
        return result


def _block(settings: Mapping[str, Json]) -> tuple[int, int] | None:
    """Rows and columns of a block, as the configuration says them."""
    size = settings.get("weight_block_size")
    if size is None:
        return None
    if not isinstance(size, list) or len(size) != 2 or not all(isinstance(each, int) and each > 0 for each in size):
        raise InvalidInputError(f"quantization_config: weight_block_size {size} is not two lengths")
    return int(str(size[0])), int(str(size[1]))


def _equal_parts(shape: tuple[int, ...], grid: tuple[int, ...]) -> list[tuple[int, int]]:
    """The block that the shapes themselves show, where the configuration says none and nothing is cut off."""
    if len(grid) < 2 or not all(grid) or shape[-2] % grid[-2] or shape[-1] % grid[-1]:
        return []
    return [(shape[-2] // grid[-2], shape[-1] // grid[-1])]


def find(tensors: Tensors, settings: Mapping[str, Json], dtype: str) -> Quantization | None:
    """The float8 weights that have a scale; None where there are none.

    Raises:
        InvalidInputError: a scale does not fit its weight.
        UnsupportedError: a float8 matrix has no scale, or scales are no floating-point numbers.
    """
    known = frozenset(tensors.names())
    configured = _block(settings)
    weights = {}
    for name in sorted(known):
        if tensors.dtype(name) not in FLOAT8 or len(tensors.shape(name)) < 2:
            continue
        scale = next((name + suffix for suffix in _SCALES if name + suffix in known), None)
        if scale is None:
            raise UnsupportedError(f"{name} is float8 without a scale beside it")
        if tensors.dtype(scale) not in ("F32", "BF16", "F16"):
            raise UnsupportedError(f"{scale} holds {tensors.dtype(scale)}; loreg reads scales in F32, BF16 or F16")
        values = tensors.array(scale).astype(np.float32)
        blocks = [configured] if configured is not None else _equal_parts(tensors.shape(name), values.shape)
        grid = Grid.over(tensors.shape(name), values, blocks)
        if grid is None:
            raise InvalidInputError(
                f"{scale}: shape {list(tensors.shape(scale))} does not fit a weight of {list(tensors.shape(name))}"
            )
        weights[name] = Fp8Weight(dtype, (name, scale), tensors.array(name), grid, tensors.dtype(scale))
    orphans = sorted(
        name for name in known if name.endswith(_SCALES[0]) and name.removesuffix(_SCALES[0]) not in weights
    )
    if orphans:
        raise InvalidInputError(f"{orphans[0]} is there, and no float8 weight beside it")
    if not weights:
        return None
    modules = {name.rpartition(".")[0] for name in weights}
    dropped = {f"{module}.{each}" for module in modules for each in _ACTIVATIONS} & known
    sizes = {weight.scales.block for weight in weights.values() if weight.scales.block != weight.shape[-2:]}
    parameters: dict[str, Json] = {"block": list(sizes.pop())} if len(sizes) == 1 else {}
    return Quantization(Scheme("fp8", parameters), weights, frozenset(dropped))
