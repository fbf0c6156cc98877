"""A quantized checkpoint as the tensors that it stands for."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from lora_registry.errors import InvalidInputError
from lora_registry.ops.arrays import Array
from lora_registry.quantized.weight import Quantization, QuantizedWeight, Scheme, Tensors, elements, row_count


class Dequantized:
    """The view: quantized weights under the names that they have unquantized, and everything else as it is stored.

    A weight has the element type that the scheme's own implementation dequantizes to, and the same bits. Nothing is
    computed before it is asked for.

    Args:
        stored: the checkpoint as it is.
        quantization: what was recognized in it.

    Raises:
        InvalidInputError: a weight is stored quantized and unquantized.
    """

    def __init__(self, stored: Tensors, quantization: Quantization) -> None:
        self._stored = stored
        self.scheme: Scheme = quantization.scheme
        self.weights: Mapping[str, QuantizedWeight] = quantization.weights
        self._written = quantization.written
        hidden = set(quantization.dropped)
        at = {}
        for name, weight in quantization.weights.items():
            hidden.update(weight.parts)
            at[weight.parts[0]] = name
        self._places = {at.get(name, name): name for name in stored.names() if name in at or name not in hidden}
        for name, weight in quantization.weights.items():
            if self._places.get(name) != weight.parts[0]:
                raise InvalidInputError(f"{name} is there quantized and unquantized; which one is the model's?")

    def names(self) -> Iterable[str]:
        """Names of the tensors, each where its first part is stored."""
        return self._places

    def place(self, name: str) -> str:
        """Name of the stored tensor that ``name`` takes the place of."""
        return self._places[name]

    def shape(self, name: str) -> tuple[int, ...]:
        """Axis lengths."""
        weight = self.weights.get(name)
        return self._stored.shape(name) if weight is None else weight.shape

    def dtype(self, name: str) -> str:
        """Element type by safetensors' name."""
        weight = self.weights.get(name)
        return self._stored.dtype(name) if weight is None else weight.dtype

    def written_dtype(self, name: str) -> str:
        """The element type that a merge writes unless it is told another."""
        return self._written.get(name, self.dtype(name))

    def elements(self, name: str, start: int, stop: int) -> Array:
        """Elements of a quantized weight from number ``start`` to before ``stop``, flat."""
        return elements(self.weights[name], start, stop)

    def array(self, name: str) -> Array:
        """The elements: computed, or as a window of the file."""
        weight = self.weights.get(name)
        if weight is None:
            return self._stored.array(name)
        return elements(weight, 0, row_count(weight) * weight.shape[-1]).reshape(weight.shape)
