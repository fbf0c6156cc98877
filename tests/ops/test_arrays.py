"""Arrays and tensors: nothing is copied, nothing is rounded twice."""

from __future__ import annotations

from fractions import Fraction

import ml_dtypes
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lora_registry.adapter import Tensor
from lora_registry.dtypes import DTYPES
from lora_registry.errors import UnsupportedError
from lora_registry.ops.arrays import from_array, numpy_dtype, round_to, to_array


@pytest.mark.parametrize("name", DTYPES)
def test_every_dtype_goes_there_and_back(name: str) -> None:
    """Bytes, shape and dtype survive, for empty tensors and scalars too."""
    for shape in ((2, 3), (0, 4), ()):
        tensor = Tensor(name, shape, bytes(DTYPES[name].size * int(np.prod(shape))))
        array = to_array(tensor)
        again = from_array(array)
        assert (again.dtype, again.shape, bytes(again.data)) == (name, shape, bytes(tensor.data))


def test_arrays_are_windows() -> None:
    """An array shares the tensor's bytes and cannot change them."""
    data = bytearray(8)
    array = to_array(Tensor("F32", (2,), memoryview(data)))
    data[:4] = np.float32(3).tobytes()
    assert array[0] == 3


def test_views_and_other_byte_orders_become_plain_tensors() -> None:
    """A transposed or big-endian array is put in order."""
    array = np.arange(6, dtype=">f4").reshape(2, 3).T
    assert np.array_equal(to_array(from_array(array)), array)


def test_types_without_a_place_are_refused() -> None:
    """safetensors knows no complex numbers here."""
    with pytest.raises(UnsupportedError, match="complex64"):
        from_array(np.zeros(2, np.complex64))


@given(st.floats(width=64, allow_nan=False, allow_infinity=False))
def test_float64_is_rounded_once_to_bfloat16(value: float) -> None:
    """No bfloat16 is nearer than the one that was chosen, and ties go to the even one."""
    rounded = round_to(np.array([value]), "BF16")
    bits = int(rounded.view(np.uint16)[0])
    neighbors = np.array([(bits - 1) % 65536, bits + 1 & 0xFFFF], np.uint16).view(ml_dtypes.bfloat16)
    if not np.isfinite(rounded.astype(np.float64))[0]:
        assert abs(value) > 3.38e38
        return
    distance = abs(Fraction(value) - Fraction(float(rounded[0])))
    for other in neighbors.astype(np.float64):
        if np.isfinite(other):
            step = abs(Fraction(value) - Fraction(float(other)))
            assert distance < step or (distance == step and bits % 2 == 0) or other == float(rounded[0])


@pytest.mark.parametrize("name", ["BF16", "F16", "F8_E4M3", "F8_E5M2"])
def test_float32_is_rounded_as_torch_rounds(name: str) -> None:
    """The independent implementation agrees bit for bit."""
    values = np.random.default_rng(0).normal(size=20000).astype(np.float32) * 3
    theirs = torch.from_numpy(values).to(getattr(torch, DTYPES[name].torch)).view(torch.uint8).numpy()
    assert np.array_equal(round_to(values, name).view(np.uint8), theirs)


def test_the_same_type_is_the_same_array() -> None:
    """Rounding to what it is costs nothing."""
    array = np.zeros(3, numpy_dtype("F32"))
    assert round_to(array, "F32") is array
