"""``.onnx_adapter`` files: ours are onnxruntime's, onnxruntime's are read, and broken ones are one clear error."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

import ml_dtypes
import numpy as np
import onnxruntime
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lora_registry.adapter import Tensor
from lora_registry.dtypes import DTYPES
from lora_registry.errors import ConflictError, InvalidInputError, LoregError, UnsupportedError
from lora_registry.onnx.slots.adapter_file import AdapterFile
from lora_registry.ops.arrays import from_array, to_array

RANDOM = np.random.default_rng(0)
SHAPES = {"a": (3, 2), "a.longer.name/B": (2, 5), "empty": (4, 0), "ünïcode": (1, 2, 3)}


def parameters(dtype: type | str = np.float32) -> dict[str, Tensor]:
    """Tensors of several shapes."""
    return {name: from_array(RANDOM.standard_normal(shape).astype(dtype)) for name, shape in SHAPES.items()}


@pytest.mark.parametrize("dtype", [np.float64, np.float32, np.float16, ml_dtypes.bfloat16, np.int64, np.int8, np.uint8])
def test_what_is_written_is_read_back(tmp_path: Path, dtype: type) -> None:
    """Names, shapes, element types, bytes and versions survive, and equal content gives equal bytes."""
    file = AdapterFile(parameters=parameters(dtype), model_version=77, adapter_version=2**31 - 1)
    for name in ("one", "two"):
        file.write(tmp_path / name)
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()
    again = AdapterFile.read(tmp_path / "one")
    assert (again.model_version, again.adapter_version) == (77, 2**31 - 1)
    assert again.checksum == file.checksum
    assert list(again.parameters) == list(file.parameters)
    for name, tensor in file.parameters.items():
        read = again.parameters[name]
        assert (read.dtype, read.shape, bytes(read.data)) == (tensor.dtype, tensor.shape, bytes(tensor.data))


@pytest.mark.parametrize("dtype", ["float64", "float32", "float16", "int64"])
def test_onnxruntime_reads_what_is_written(tmp_path: Path, dtype: str) -> None:
    """onnxruntime's own reader finds the same versions and tensors, aligned as it asks for."""
    file = AdapterFile(parameters=parameters(dtype), model_version=5, adapter_version=6)
    path = tmp_path / "x.onnx_adapter"
    file.write(path)
    read = onnxruntime.AdapterFormat.read_adapter(str(path))
    assert (read.get_format_version(), read.get_model_version(), read.get_adapter_version()) == (1, 5, 6)
    found = read.get_parameters()
    assert found.keys() == file.parameters.keys()
    for name, tensor in file.parameters.items():
        np.testing.assert_array_equal(found[name].numpy(), to_array(tensor))
    onnxruntime.LoraAdapter().Load(str(path))


def test_what_onnxruntime_writes_is_read(tmp_path: Path) -> None:
    """A file of onnxruntime's own writer, bfloat16 included, comes out as it went in."""
    arrays = {"one": RANDOM.standard_normal((3, 4)).astype(np.float32), "two": np.arange(6, dtype=np.float16)}
    values = {name: onnxruntime.OrtValue.ortvalue_from_numpy(array) for name, array in arrays.items()}
    arrays["three"] = RANDOM.standard_normal((2, 2)).astype(ml_dtypes.bfloat16)
    values["three"] = onnxruntime.OrtValue.ortvalue_from_numpy_with_onnx_type(arrays["three"], DTYPES["BF16"].onnx)
    theirs = onnxruntime.AdapterFormat()
    theirs.set_adapter_version(11)
    theirs.set_model_version(12)
    theirs.set_parameters(values)
    theirs.export_adapter(str(tmp_path / "x.onnx_adapter"))
    file = AdapterFile.read(tmp_path / "x.onnx_adapter")
    assert (file.adapter_version, file.model_version) == (11, 12)
    assert {name: to_array(tensor).tobytes() for name, tensor in file.parameters.items()} == {
        name: array.tobytes() for name, array in arrays.items()
    }


def test_an_existing_file_stays(tmp_path: Path) -> None:
    """Nothing is written over."""
    path = tmp_path / "x.onnx_adapter"
    path.write_bytes(b"mine")
    with pytest.raises(ConflictError):
        AdapterFile(parameters=parameters()).write(path)
    assert path.read_bytes() == b"mine"


def test_other_files_are_named(tmp_path: Path) -> None:
    """Noise, a later version and a type that safetensors lacks are one line each."""
    path = tmp_path / "x.onnx_adapter"
    for content in (b"", b"\x0c\x00\x00\x00TOR", bytes(64)):
        path.write_bytes(content)
        with pytest.raises(InvalidInputError, match=r"x\.onnx_adapter: not an \.onnx_adapter file"):
            AdapterFile.read(path)
    path.unlink()
    AdapterFile(parameters={"a": from_array(np.zeros((2, 3), np.float32))}).write(path)
    sound = path.read_bytes()
    path.write_bytes(sound[: 20 + 4] + b"\x02" + sound[25:])
    with pytest.raises(UnsupportedError, match="format version 2"):
        AdapterFile.read(path)


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_damage_is_an_error_or_another_file(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    """Cut or changed anywhere, a file is read as some file or refused with one of loreg's errors; nothing else."""
    folder = tmp_path_factory.getbasetemp()
    path = folder / "sound.onnx_adapter"
    if not path.exists():
        AdapterFile(parameters=parameters(), model_version=1, adapter_version=2).write(path)
    content = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 3))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    cut = data.draw(st.integers(0, len(content)))
    damaged = folder / "damaged.onnx_adapter"
    damaged.write_bytes(bytes(content[:cut] if data.draw(st.booleans()) else content))
    with suppress(LoregError):
        AdapterFile.read(damaged)
