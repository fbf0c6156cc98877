"""Every encoder against what the package that owns the scheme makes of the same weight (golden/encoded)."""

from __future__ import annotations

import json
from pathlib import Path

import gguf
import numpy as np
import pytest
from gguf import GGMLQuantizationType as Ggml
from golden_vectors import NAMES, Stored, vector
from hypothesis import given, settings
from hypothesis import strategies as st

from lora_registry.adapter import Tensor
from lora_registry.errors import UnsupportedError
from lora_registry.format.container import open_container
from lora_registry.ops.arrays import from_array, to_array
from lora_registry.quantized.awq import outputs, words
from lora_registry.quantized.encoding import gguf_blocks as encode_gguf_blocks
from lora_registry.quantized.encoding import gguf_k_blocks as encode_gguf_k_blocks
from lora_registry.quantized.encoding.choice import encoder_for
from lora_registry.quantized.encoding.encoder import Codebook, Encoder
from lora_registry.quantized.gguf_file import TYPES
from lora_registry.quantized.recognition import recognize
from lora_registry.quantized.weight import QuantizedWeight, elements, row_count

ENCODED = sorted(path.stem for path in (Path(__file__).parent / "golden" / "encoded").glob("*.safetensors"))
SCHEMES = [name for name in ENCODED if name != "k-quants"]
K_QUANTS = ("Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K")
SCALES = ("absmax", "SCB", "scales", "weight_scale_inv", "weight_scale")


def encoded(name: str) -> tuple[Stored, dict, np.ndarray]:
    """What upstream stores, the configuration, and the weight that it was made from."""
    container = open_container(Path(__file__).parent / "golden" / "encoded" / f"{name}.safetensors")
    stored = {
        key.removeprefix("stored."): container.tensor(key) for key in container.entries if key.startswith("stored.")
    }
    return Stored(stored), json.loads(container.metadata["config"]), to_array(container.tensor("weight"))


def weight_of(stored: Stored, config: dict) -> QuantizedWeight:
    found = recognize(stored, config)
    assert found is not None
    return found.weights["m.weight"]


def view(weight: QuantizedWeight) -> np.ndarray:
    """What a merge sees, as float32."""
    flat = elements(weight, 0, row_count(weight) * weight.shape[-1])
    return flat.astype(np.float32).reshape(-1, weight.shape[-1])


def written(encoder: Encoder, stored: Stored, before: np.ndarray, wanted: np.ndarray, runs: int = 1) -> Stored:
    """The stored tensors after encoding all rows in ``runs`` pieces, the last first."""
    arrays = {
        name: np.zeros(tensor.nbytes, np.uint8) for name, tensor in stored.tensors.items() if name in encoder.parts
    }
    encoder.prepare()
    if encoder.needs_range:
        encoder.cover(float(wanted.min()), float(wanted.max()))
    step = max(1, -(-len(wanted) // encoder.step // runs)) * encoder.step
    pieces = []
    for first in reversed(range(0, len(wanted), step)):
        last = min(first + step, len(wanted))
        made, shown = encoder.encode(first, last, before[first:last], wanted[first:last])
        assert shown.shape == wanted[first:last].shape
        pieces += made
    for piece in [*pieces, *encoder.rest()]:
        data = np.ascontiguousarray(piece.data).reshape(-1).view(np.uint8)
        arrays[piece.part][piece.begin : piece.begin + data.size] = data
    tensors = {
        name: Tensor(tensor.dtype, tensor.shape, arrays[name].data) if name in arrays else tensor
        for name, tensor in stored.tensors.items()
    }
    return Stored(tensors)


def assert_same(made: Stored, expected: Stored) -> None:
    for name, tensor in expected.tensors.items():
        assert bytes(made.tensors[name].data) == bytes(tensor.data), name


def without_negative_zeros(stored: Stored) -> Stored:
    """fp4 has two codes for 0, and bitsandbytes takes the one or the other by how its sort happens to go."""
    octets = to_array(stored.tensors["m.weight"])
    low, high = octets & 15, octets >> 4
    changed = np.where(low == 8, 0, low) | np.where(high == 8, 0, high) << 4
    return Stored({**stored.tensors, "m.weight": from_array(changed.astype(np.uint8))})


@pytest.mark.parametrize("name", [name for name in SCHEMES if not name.endswith("-double")])
def test_a_weight_is_encoded_as_its_own_package_does(name: str) -> None:
    """Codes, scales and zero points are the same bytes; the base that is written over stands for zeros."""
    stored, config, wanted = encoded(name)
    blank = {
        key: Tensor(tensor.dtype, tensor.shape, bytes(tensor.nbytes)) if key.endswith(SCALES) else tensor
        for key, tensor in stored.tensors.items()
    }
    weight = weight_of(Stored(blank), config)
    before = view(weight)
    assert not before.any()
    made = written(encoder_for(weight, "m.weight"), Stored(blank), before, wanted, runs=2)
    if name == "fp8-powers":  # with scales of zero, nothing tells that they are powers of two
        assert not np.array_equal(
            to_array(made.tensors["m.weight_scale_inv"]), to_array(stored.tensors["m.weight_scale_inv"])
        )
        return
    if name == "fp4":
        made, stored = without_negative_zeros(made), without_negative_zeros(stored)
    if name == "fp8":  # torch divides by multiplying with the reciprocal, which rounds once more
        theirs, ours = (to_array(each.tensors["m.weight_scale_inv"]) for each in (stored, made))
        assert np.abs(theirs.view(np.int32) - ours.view(np.int32)).max() <= 1
        made = Stored({**made.tensors, "m.weight_scale_inv": stored.tensors["m.weight_scale_inv"]})
    if name.endswith("-sym"):  # the largest lie between two codes, and AutoGPTQ adds the zero point before it rounds
        ours, theirs = (np.abs(view(weight_of(each, config)) - wanted) for each in (made, stored))
        assert np.allclose(ours, theirs, rtol=0, atol=1e-5)
        made = Stored({**made.tensors, "m.qweight": stored.tensors["m.qweight"]})
    assert_same(made, stored)


def test_scales_that_are_powers_of_two_stay_powers_of_two() -> None:
    """Larger ones where the values need them: what upstream makes of the same weight (``scale_fmt: ue8m0``)."""
    stored, config, wanted = encoded("fp8-powers")
    small = to_array(stored.tensors["m.weight_scale_inv"]) / np.float32(1024)
    blank = Stored({**stored.tensors, "m.weight_scale_inv": from_array(small)})
    weight = weight_of(blank, config)
    assert_same(written(encoder_for(weight, "m.weight"), blank, view(weight), wanted), stored)


def test_scales_that_are_quantized_themselves_are_rounded_to_what_they_can_be() -> None:
    """Of a block, the scale is the one there was or the nearest that the kept offset and factors can express."""
    stored, config, wanted = encoded("nf4-double")
    other = np.roll(to_array(stored.tensors["m.weight.absmax"]), 7)
    base = Stored({**stored.tensors, "m.weight.absmax": from_array(other)})
    weight = weight_of(base, config)
    made = written(encoder_for(weight, "m.weight"), base, view(weight), wanted)
    codes, upstream = (to_array(each.tensors["m.weight.absmax"]) for each in (made, stored))
    assert ((codes == upstream) | (codes == other)).all()
    assert np.count_nonzero(codes == upstream) > len(codes) // 2
    after = view(weight_of(made, config))
    theirs = view(weight_of(stored, config))
    assert np.square(after - wanted).sum() <= 1.01 * np.square(theirs - wanted).sum()


@pytest.mark.parametrize("kind", K_QUANTS)
def test_k_quants_have_the_bits_of_llama_cpp(kind: str) -> None:
    """Blocks of noise of every size, of zeros, of one value, of positive ones, of a few values."""
    container = open_container(Path(__file__).parent / "golden" / "encoded" / "k-quants.safetensors")
    values = to_array(container.tensor("weight"))
    fresh = getattr(encode_gguf_k_blocks, f"fresh_{kind.lower()}")
    assert np.array_equal(fresh(values), to_array(container.tensor(kind)))


@pytest.mark.parametrize("kind", ["Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0"])
def test_blocks_of_32_have_the_bits_of_the_gguf_package(kind: str) -> None:
    """Blocks of noise of every size, and halves between two codes."""
    rng = np.random.default_rng(0)
    values = (rng.standard_normal((500, 32)) * 10 ** rng.uniform(-4, 2, (500, 1))).astype(np.float32)
    values[:50] = rng.integers(-3, 4, (50, 32)) / 2
    values[0] = 0
    fresh = getattr(encode_gguf_blocks, f"fresh_{kind.lower()}")
    assert np.array_equal(fresh(values), gguf.quantize(values, Ggml[kind]).reshape(500, -1))


@pytest.mark.parametrize("kind", ["Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", *K_QUANTS])
def test_with_the_scales_that_are_there_values_come_back_as_they_were(kind: str) -> None:
    """What blocks stand for is encoded to the same values; to the same codes too, unless a scale of 0 makes them mean
    nothing."""
    rng = np.random.default_rng(1)
    type_ = next(each for each in TYPES.values() if each.name == kind)
    module = encode_gguf_k_blocks if kind in K_QUANTS else encode_gguf_blocks
    fresh, kept = (getattr(module, f"{way}_{kind.lower()}") for way in ("fresh", "kept"))
    blocks = fresh(rng.standard_normal((200, type_.elements)).astype(np.float32))
    values = type_.decode(blocks)
    again = kept(blocks, values)
    assert np.array_equal(type_.decode(again), values)
    assert np.count_nonzero((again != blocks).any(axis=1)) <= 60


ROUND = [*NAMES]


@pytest.mark.parametrize("name", ROUND)
@given(data=st.data())
@settings(max_examples=15)
def test_only_groups_that_a_change_touches_get_other_bytes(name: str, data: st.DataObject) -> None:
    """No change, no other byte; a change of one element leaves every row but its own (or its block's) as it was."""
    stored, config, _ = vector(name)
    weight = weight_of(stored, config)
    before = view(weight)
    runs = data.draw(st.integers(1, 3))
    assert_same(written(encoder_for(weight, "m.weight"), stored, before, before, runs), stored)
    row = data.draw(st.integers(0, len(before) - 1))
    column = data.draw(st.integers(0, before.shape[1] - 1))
    wanted = before.copy()
    wanted[row, column] += np.abs(before).max() / 2
    after = view(weight_of(written(encoder_for(weight, "m.weight"), stored, before, wanted, runs), config))
    others = np.ones(len(before), bool)
    others[row // 32 * 32 : (row // 32 + 1) * 32] = False  # blocks of float8 have 32 rows
    others[max(0, row - 1) : row + 2] = False  # blocks of nf4 go over from one row to the next
    assert np.array_equal(after[others], before[others])
    assert abs(after[row, column] - wanted[row, column]) <= abs(before[row, column] - wanted[row, column])


@pytest.mark.parametrize("name", ROUND)
def test_encoding_again_what_was_encoded_changes_nothing(name: str) -> None:
    """A second merge of a change of nothing into the result finds it as it is; the error is that of one rounding."""
    stored, config, _ = vector(name)
    weight = weight_of(stored, config)
    before = view(weight)
    rng = np.random.default_rng(0)
    wanted = before + (rng.standard_normal(before.shape) * np.abs(before).mean() / 3).astype(np.float32)
    first = written(encoder_for(weight, "m.weight"), stored, before, wanted)
    again = weight_of(first, config)
    assert np.square(view(again) - wanted).sum() < np.square(before - wanted).sum()
    assert_same(written(encoder_for(again, "m.weight"), first, view(again), view(again)), first)


@pytest.mark.parametrize("name", ROUND)
def test_a_group_never_comes_out_worse_than_with_the_scale_it_had(name: str) -> None:
    """However small the change: what is lost of it is at most all of it, but for the rounding of the view."""
    stored, config, _ = vector(name)
    weight = weight_of(stored, config)
    before = view(weight)
    wanted = before + (np.random.default_rng(2).standard_normal(before.shape) * np.abs(before).mean() / 200).astype(
        np.float32
    )
    made = weight_of(written(encoder_for(weight, "m.weight"), stored, before, wanted), config)
    error = np.square(made.rows(0, row_count(made)).astype(np.float64) - wanted).sum()
    lost = np.square(weight.rows(0, row_count(weight)).astype(np.float64) - wanted).sum()
    assert error <= lost * (1 + 1e-5)


@given(st.integers(1, 5), st.integers(1, 40), st.randoms(use_true_random=False))
def test_words_of_awq_are_taken_apart_as_they_were_put_together(count: int, rows: int, random: object) -> None:
    """Any outputs by eights, any number of rows."""
    numbers = np.array([[random.randrange(16) for _ in range(rows)] for _ in range(8 * count)], np.int16)  # type: ignore[attr-defined]
    assert np.array_equal(outputs(words(numbers), 0, 8 * count), numbers)


@pytest.mark.parametrize("name", ["gptq-2", "gptq-3", "gptq-4", "gptq-4-v2", "gptq-8"])
def test_zero_points_of_gptq_are_packed_as_they_were(name: str) -> None:
    """In both forms: with one taken off, and as they are."""
    stored, config, _ = vector(name)
    weight = weight_of(stored, config)
    packed = weight.packed_zeros(weight.zero_points(0, weight.shape[0]).astype(np.uint8))  # type: ignore[attr-defined]
    assert np.array_equal(packed, weight.zeros)  # type: ignore[attr-defined]


def test_a_codebook_gives_the_nearest_value() -> None:
    """Of equal values the first, between two the lower one, beyond all the outermost."""
    codes = Codebook(np.array([0.0, 1.0, -1.0, 0.5, -0.0], np.float32))
    assert codes.nearest(np.array([0.1, 0.25, 0.26, 9.0, -9.0, -0.0], np.float32)).tolist() == [0, 0, 3, 1, 2, 0]


@pytest.mark.parametrize(("largest", "kept"), [(448.0, True), (463.0, True), (465.0, False)])
def test_one_scale_for_all_is_kept_while_it_reaches_far_enough(largest: float, kept: bool) -> None:
    """What is less than half a step beyond the largest float8 still rounds to it; every row then has another scale."""
    values = np.linspace(-400, 400, 32).astype(np.float32).reshape(4, 8)
    tensors = {
        "m.weight": from_array(np.asarray(values).astype("float8_e4m3fn")),
        "m.weight_scale": from_array(np.ones(1, np.float32)),
    }
    stored = Stored(tensors)
    weight = weight_of(stored, {"dtype": "float32"})
    before = view(weight)
    wanted = before.copy()
    wanted[3, 7] = largest
    made = written(encoder_for(weight, "m.weight"), stored, before, wanted, runs=4)
    scale = float(to_array(made.tensors["m.weight_scale"])[0])
    assert scale == (1.0 if kept else np.float32(largest) / np.float32(448))
    after = view(weight_of(made, {"dtype": "float32"}))
    assert np.abs(after - wanted).max() <= 16 * scale
    if kept:
        assert np.array_equal(after[:3], before[:3])


def test_what_nothing_encodes_is_refused_by_name() -> None:
    """float8 with zero points are read; nothing writes them."""
    stored, config, _ = vector("compressed-fp8")
    zeros = from_array(np.ones((24, 1), np.int8))
    weight = weight_of(Stored({**stored.tensors, "m.weight_zero_point": zeros}), config)
    with pytest.raises(UnsupportedError, match=r"^m\.weight: nothing here quantizes it again"):
        encoder_for(weight, "m.weight")
