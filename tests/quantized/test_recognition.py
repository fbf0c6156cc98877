"""Which scheme a checkpoint is quantized by, and what is refused by name."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from golden_vectors import Stored, vector

from lora_registry.errors import InvalidInputError, UnsupportedError
from lora_registry.ops.arrays import from_array, numpy_dtype
from lora_registry.quantized.agreement import agrees, said_of
from lora_registry.quantized.recognition import recognize, without_quantization
from lora_registry.quantized.view import Dequantized
from lora_registry.quantized.weight import Scheme


@pytest.mark.parametrize(
    ("name", "view"),
    [
        ("nf4-double", {"scheme": "nf4", "block": 64, "double": True}),
        ("fp4-double", {"scheme": "fp4", "block": 64, "double": True}),
        ("int8", {"scheme": "int8"}),
        ("gptq-4", {"scheme": "gptq", "bits": 4, "group": 32}),
        ("awq", {"scheme": "awq", "bits": 4, "group": 32}),
        ("fp8", {"scheme": "fp8", "block": [32, 32]}),
        ("compressed-int4", {"scheme": "compressed-tensors", "format": "pack-quantized", "weights": "int4"}),
    ],
)
def test_a_scheme_is_said_in_the_words_of_a_view(name: str, view: dict[str, Any]) -> None:
    """Section 9.2 of the specification; the parameters are those that change the values."""
    stored, config, _ = vector(name)
    found = recognize(stored, config)
    assert found is not None
    assert found.scheme.to_json() == view


@pytest.mark.parametrize("name", ["nf4", "int8", "fp8"])
def test_what_the_tensors_say_needs_no_configuration(name: str) -> None:
    """A single file has none."""
    stored, _, _ = vector(name)
    found = recognize(stored, {})
    assert found is not None
    assert "m.weight" in found.weights


@pytest.mark.parametrize("method", ["aqlm", "hqq", "mxfp4", "quanto", "torchao", "eetq", "bitnet", "vptq", "higgs"])
def test_an_unknown_method_is_left_as_it_is_stored(method: str) -> None:
    """What a target would change there, the fit refuses; what no target changes may stay."""
    stored, _, _ = vector("gptq-4")
    assert recognize(stored, {"quantization_config": {"quant_method": method}}) is None


def test_a_checkpoint_that_is_not_quantized_is_none() -> None:
    """Whatever its configuration says."""
    plain = Stored({"m.weight": from_array(np.ones((4, 4), np.float32))})
    for method in ("bitsandbytes", "gptq", "awq", "fp8", "compressed-tensors", None):
        assert recognize(plain, {"quantization_config": {"quant_method": method}}) is None


REFUSED = [
    ("gptq-4", {"checkpoint_format": "marlin"}, {}, "GPTQ weights in the format 'marlin'"),
    ("gptq-4", {"checkpoint_format": "gptq_p"}, {}, "GPTQ weights in the format 'gptq_p'"),
    ("awq", {"version": "gemv"}, {}, "AWQ weights in the version 'gemv'"),
    ("awq", {"bits": 8}, {}, "AWQ weights of 8 bits"),
    ("compressed-int4", {"format": "nvfp4-pack-quantized"}, {}, "format 'nvfp4-pack-quantized'"),
    ("compressed-int4", {"sparsity_config": {"format": "sparse-24-bitmask"}}, {}, "sparsity 'sparse-24-bitmask'"),
    ("compressed-int4", {"transform_config": {"config_groups": {"R1": {}}}}, {}, "the weights are rotated"),
    ("nf4", {}, {"model_type": "gpt2"}, "a quantized gpt2"),
]


@pytest.mark.parametrize(("name", "settings", "others", "message"), REFUSED)
def test_a_form_that_is_not_read_is_refused_by_its_name(
    name: str, settings: dict[str, Any], others: dict[str, Any], message: str
) -> None:
    """Rather than read as another one."""
    stored, config, _ = vector(name)
    config = {**config, **others, "quantization_config": {**config["quantization_config"], **settings}}
    with pytest.raises(UnsupportedError, match=message):
        recognize(stored, config)


def test_groups_out_of_order_are_refused_in_compressed_tensors() -> None:
    """Releases disagree on what they mean."""
    stored, config, _ = vector("compressed-int4")
    tensors = {**stored.tensors, "m.weight_g_idx": from_array(np.zeros(96, np.int32))}
    with pytest.raises(UnsupportedError, match=r"m: its inputs are in groups out of order"):
        recognize(Stored(tensors), config)


def test_other_number_types_are_refused_by_name() -> None:
    """A scale of integers, packed words of another size."""
    stored, config, _ = vector("fp8")
    scale = from_array(np.ones((2, 3), np.uint8))
    with pytest.raises(UnsupportedError, match=r"m.weight_scale_inv holds U8"):
        recognize(Stored({**stored.tensors, "m.weight_scale_inv": scale}), config)
    stored, config, _ = vector("awq")
    words = from_array(np.zeros((96, 6), np.int64))
    with pytest.raises(UnsupportedError, match=r"m.qweight holds I64"):
        recognize(Stored({**stored.tensors, "m.qweight": words}), config)


def test_a_float8_matrix_without_a_scale_is_refused() -> None:
    """Nobody knows what it is to be multiplied by."""
    values = from_array(np.ones((4, 4), np.float32).astype(numpy_dtype("F8_E4M3")))
    with pytest.raises(UnsupportedError, match=r"m.weight is float8 without a scale"):
        recognize(Stored({"m.weight": values}), {})


def test_one_weight_in_two_forms_is_refused() -> None:
    """Quantized and unquantized under one name: which one is the model's is not for loreg to say."""
    stored, config, _ = vector("gptq-4")
    tensors = {**stored.tensors, "m.weight": from_array(np.ones((64, 128), np.float16))}
    found = recognize(Stored(tensors), config)
    assert found is not None
    with pytest.raises(InvalidInputError, match=r"m.weight is there quantized and unquantized"):
        Dequantized(Stored(tensors), found)


def test_scales_of_activations_go_with_the_quantization() -> None:
    """An unquantized model has no use for them, and transformers would complain."""
    stored, config, _ = vector("fp8")
    found = recognize(stored, config)
    assert found is not None
    assert found.dropped == {"m.activation_scale"}
    assert list(Dequantized(stored, found).names()) == ["m.weight"]


def test_blocks_at_the_end_may_be_cut_off() -> None:
    """As DeepSeek's kernels have it: 200 x 300 has 2 x 3 blocks of 128."""
    rng = np.random.default_rng(0)
    values = rng.standard_normal((200, 300)).astype(np.float32).astype(numpy_dtype("F8_E4M3"))
    scales = rng.random((2, 3), np.float32)
    stored = Stored({"m.weight": from_array(values), "m.weight_scale_inv": from_array(scales)})
    settings = {"quant_method": "fp8", "weight_block_size": [128, 128]}
    found = recognize(stored, {"dtype": "float32", "quantization_config": settings})
    assert found is not None
    expected = values.astype(np.float32) * np.kron(scales, np.ones((128, 128), np.float32))[:200, :300]
    assert np.array_equal(Dequantized(stored, found).array("m.weight"), expected)


@pytest.mark.parametrize("shape", [(), (1,), (1, 1), (6,), (6, 1)])
def test_one_scale_is_for_a_tensor_or_for_each_row(shape: tuple[int, ...]) -> None:
    """By either name of the scale."""
    rng = np.random.default_rng(0)
    values = rng.standard_normal((6, 8)).astype(np.float32).astype(numpy_dtype("F8_E5M2"))
    scales = rng.random(shape, np.float32) + np.float32(0.5)
    expected = values.astype(np.float32) * np.asarray(scales, np.float32).reshape(-1, 1)
    for name in ("m.weight_scale", "m.weight_scale_inv"):
        stored = Stored({"m.weight": from_array(values), name: from_array(np.asarray(scales, np.float32))})
        found = recognize(stored, {"dtype": "float32"})
        assert found is not None
        assert np.array_equal(Dequantized(stored, found).array("m.weight"), expected)


def test_the_configuration_loses_the_quantization_and_nothing_else() -> None:
    """In the part for the text of a multi-modal model too."""
    config = {"a": 1, "quantization_config": {}, "text_config": {"b": 2, "quantization_config": {}}}
    assert without_quantization(config) == {"a": 1, "text_config": {"b": 2}}


NF4 = Scheme("nf4", {"block": 64, "double": True})


@pytest.mark.parametrize(
    ("view", "same", "said"),
    [
        ({"scheme": "nf4"}, True, "trained on a base in nf4 (block 64, double True), as this one is"),
        ({"scheme": "nf4", "double": True, "compute": "bf16"}, True, "as this one is"),
        ({"scheme": "nf4", "double": False}, False, "trained on a base in nf4, double False, and this one is in nf4"),
        ({"scheme": "gptq", "bits": 4}, False, "trained on a base in gptq, bits 4, and this one is in nf4"),
        (None, False, "nothing says that the adapter was trained on it so"),
    ],
)
def test_the_view_of_an_adapter_is_held_against_the_scheme_of_the_base(view: Any, same: bool, said: str) -> None:
    """P-049: members that both have must be equal, others are no matter."""
    assert agrees(view, NF4) is same
    assert said in said_of(view, NF4)
