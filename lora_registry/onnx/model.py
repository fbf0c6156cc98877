"""An ONNX model opened for reading: the graph in memory, the large tensors where they lie.

Heavy tensors are windows of memory-mapped data files, so that opening a model of many gigabytes costs the
graph alone. Shapes and dtypes are those of the initializer; the orientation in which a checkpoint stores
the same tensor is the business of :mod:`lora_registry.onnx.resolve`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import MappingProxyType

from lora_registry.dtypes import BY_ONNX, DTYPES
from lora_registry.errors import InvalidInputError, MissingPackageError, NotFoundError
from lora_registry.format.files import storage_errors

try:
    import onnx
    import onnx_ir as ir
except ModuleNotFoundError as missing:
    raise MissingPackageError(missing.name or "onnx", "onnx") from missing

from google.protobuf.message import DecodeError  # type: ignore[import-untyped]

from lora_registry.onnx import wellformed
from lora_registry.onnx.external import DataFiles
from lora_registry.onnx.normal_form import normalize
from lora_registry.ops.arrays import Array

_BROKEN = (ir.serde.SerdeError, ir.passes.InvariantError)

FLOATING = frozenset(name for name, dtype in DTYPES.items() if dtype.is_wide_float)
"""Storage dtypes that a merge writes into; everything else is a quantized form."""


class OnnxModel:
    """A graph and its initializers, read lazily.

    Attributes:
        path: the ``.onnx`` file.
        ir: the graph as onnx_ir holds it. Patching edits it, so a model that was patched is not opened twice.
        data: the external data files.
        initializers: name to value, of the main graph and of subgraphs (If, Loop, Scan). A name that two
            branches use for two values is left out: it does not say which of them is meant.
    """

    def __init__(self, path: Path, model: ir.Model, data: DataFiles) -> None:
        self.path = path
        self.ir = model
        self.data = data
        count = Counter(str(value.name) for value in self.values())
        self.initializers: Mapping[str, ir.Value] = MappingProxyType(
            {str(value.name): value for value in self.values() if count[str(value.name)] == 1}
        )

    @classmethod
    def open(cls, path: str | Path) -> OnnxModel:
        """Read the graph at ``path`` and check every external range; no tensor is read.

        Raises:
            NotFoundError: there is no such file.
            InvalidInputError: not an ONNX model, truncated, or its external data are missing, too short or
                outside the model's folder.
        """
        path = Path(path)
        if not path.is_file():
            raise NotFoundError(f"no such file: {path}")
        with storage_errors(path):
            try:
                proto = onnx.load(path, format="protobuf", load_external_data=False)
            except DecodeError:
                raise InvalidInputError(f"{path}: not an ONNX model, or cut short") from None
            wellformed.check(path, proto)
            try:
                model = ir.serde.deserialize_model(proto)
                normalize(model)
            except (*_BROKEN, ValueError, TypeError, KeyError, NotImplementedError) as error:
                raise InvalidInputError(f"{path}: the graph cannot be read: {_reason(error)}") from error
            data = DataFiles(path)
            for tensor in external_tensors(model):
                data.check(tensor)
        return cls(path, model, data)

    def files(self) -> tuple[Path, ...]:
        """The ``.onnx`` and the data files that it points to."""
        data = {self.data.path(tensor) for tensor in external_tensors(self.ir)}
        return (self.path, *sorted(data))

    def array(self, name: str) -> Array:
        """The elements of the initializer ``name``; a window of its file where it is external."""
        return self.elements(self.initializers[name])

    def values(self) -> Iterator[ir.Value]:
        """Every initializer of every graph, those without a name of their own too."""
        for graph in self.ir.graphs():
            yield from graph.initializers.values()

    def elements(self, value: ir.Value) -> Array:
        """The elements of the initializer ``value``."""
        tensor = value.const_value
        if tensor is None:
            raise InvalidInputError(f"{self.path}: the initializer {value.name!r} has no data")
        if isinstance(tensor, ir.ExternalTensor):
            return self.data.array(tensor)
        try:
            array: Array = tensor.numpy()
        except (ValueError, TypeError) as error:
            raise InvalidInputError(f"{self.path}: the data of {value.name!r} do not fit its shape") from error
        return array


def _reason(error: BaseException) -> str:
    """The first line of the exception that started a chain: onnx_ir wraps each in what it was doing."""
    while error.__cause__ is not None:
        error = error.__cause__
    return (str(error).splitlines() or [type(error).__name__])[0]


def external_tensors(model: ir.Model) -> Iterator[ir.ExternalTensor]:
    """Every tensor of ``model`` whose data lie in another file: initializers and tensors in attributes."""
    for graph in model.graphs():
        for value in graph.initializers.values():
            if isinstance(value.const_value, ir.ExternalTensor):
                yield value.const_value
    for scope in (model.graph, *model.functions.values()):
        for node in ir.traversal.RecursiveGraphIterator(scope):
            for attribute in node.attributes.values():
                if attribute.is_ref():
                    continue
                if attribute.type == ir.AttributeType.TENSOR and isinstance(attribute.value, ir.ExternalTensor):
                    yield attribute.value
                elif attribute.type == ir.AttributeType.TENSORS:
                    yield from (tensor for tensor in attribute.value if isinstance(tensor, ir.ExternalTensor))


def shape_of(value: ir.Value) -> tuple[int, ...]:
    """Axis lengths of an initializer."""
    tensor = value.const_value
    return tuple(int(length) for length in tensor.shape.numpy()) if tensor is not None else ()


def dtype_of(value: ir.Value) -> str:
    """Name, as safetensors has it, of an initializer's element type, or its ONNX name where safetensors has none."""
    tensor = value.const_value
    if tensor is None:
        return "UNDEFINED"
    known = BY_ONNX.get(int(tensor.dtype))
    return known.name if known is not None else str(tensor.dtype.name)
