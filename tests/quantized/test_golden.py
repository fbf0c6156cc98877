"""Every scheme against what the package that owns it dequantizes to, bit by bit (golden/README.md)."""

from __future__ import annotations

import numpy as np
import pytest
from golden_vectors import NAMES, Stored, vector
from hypothesis import given
from hypothesis import strategies as st

from lora_registry.adapter import Tensor
from lora_registry.errors import InvalidInputError
from lora_registry.ops.arrays import as_bytes, to_array
from lora_registry.quantized.recognition import recognize
from lora_registry.quantized.view import Dequantized


def view(name: str) -> tuple[Dequantized, Tensor]:
    stored, config, expected = vector(name)
    found = recognize(stored, config)
    assert found is not None
    return Dequantized(stored, found), expected


@pytest.mark.parametrize("name", NAMES)
def test_a_weight_has_the_bits_that_its_own_package_dequantizes_to(name: str) -> None:
    """Name, shape, element type and every bit."""
    seen, expected = view(name)
    assert list(seen.names()) == ["m.weight"] or set(seen.names()) == {"m.weight", "m.bias"}
    assert (seen.dtype("m.weight"), seen.shape("m.weight")) == (expected.dtype, expected.shape)
    assert bytes(as_bytes(seen.array("m.weight"))) == bytes(expected.data)


@pytest.mark.parametrize("name", NAMES)
@given(data=st.data())
def test_any_run_of_elements_is_that_of_the_whole(name: str, data: st.DataObject) -> None:
    """Blocks, groups and words may begin and end anywhere in the run."""
    seen, expected = view(name)
    whole = to_array(expected).reshape(-1)
    start = data.draw(st.integers(0, whole.size))
    stop = data.draw(st.integers(start, whole.size))
    assert np.array_equal(seen.elements("m.weight", start, stop), whole[start:stop])


OPTIONAL = {"m.weight_format", "m.bias", "m.activation_scale", "m.g_idx", "m.weight_zero_point"}
"""Parts without which a weight is another one, or the same."""


@pytest.mark.parametrize("name", NAMES)
def test_without_any_of_its_parts_a_weight_is_refused_or_was_never_one(name: str) -> None:
    """It is not read as something else; the message names the module."""
    stored, config, _ = vector(name)
    for missing in set(stored.names()) - OPTIONAL:
        rest = Stored({key: tensor for key, tensor in stored.tensors.items() if key != missing})
        if missing in LANDMARKS:
            assert recognize(rest, config) is None
        else:
            with pytest.raises(InvalidInputError, match=r"m\."):
                recognize(rest, config)


LANDMARKS = {
    "m.qweight",
    "m.SCB",
    "m.weight_scale",
    "m.weight.quant_state.bitsandbytes__nf4",
    "m.weight.quant_state.bitsandbytes__fp4",
}
"""The parts by which a weight is found."""


@pytest.mark.parametrize("name", NAMES)
def test_a_part_of_half_the_length_is_refused(name: str) -> None:
    """The shapes do not fit together, and the message names the module."""
    stored, config, _ = vector(name)
    for part, tensor in stored.tensors.items():
        if not tensor.shape or tensor.shape[0] < 2 or "quant_state" in part or part == "m.bias":
            continue
        shape = (tensor.shape[0] // 2, *tensor.shape[1:])
        size = tensor.nbytes // tensor.shape[0]
        cut = Stored({**stored.tensors, part: Tensor(tensor.dtype, shape, tensor.data[: size * shape[0]])})
        with pytest.raises(InvalidInputError, match=r"^m"):
            recognize(cut, config)
