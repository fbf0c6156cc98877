"""Makes the vectors of this folder with the packages that own the formats; see README.md.

    python make.py AWQ_PACKING_UTILS AUTO_GPTQ_QLINEAR

The two arguments are the files ``awq/utils/packing_utils.py`` of AutoAWQ and
``auto_gptq/nn_modules/qlinear/qlinear_cuda.py`` of AutoGPTQ, which cannot be imported as packages beside current
releases of transformers. ``auto_gptq`` need not be installed: the file only uses torch, numpy and transformers.
"""

from __future__ import annotations

import json
import runpy
import sys
from pathlib import Path

import bitsandbytes.functional as bnb
import torch
from compressed_tensors.compressors.naive_quantized.base import NaiveQuantizationCompressor
from compressed_tensors.compressors.pack_quantized.base import PackedQuantizationCompressor
from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme
from compressed_tensors.quantization.utils import calculate_qparams
from safetensors.torch import save_file
from transformers.integrations.finegrained_fp8 import Fp8Dequantize

HERE = Path(__file__).parent


def save(
    name: str, made_with: str, settings: dict, stored: dict, expected: torch.Tensor, dtype: str = "bfloat16"
) -> None:
    tensors = {f"stored.{key}": value.contiguous() for key, value in stored.items()}
    config = {"dtype": dtype, **({"quantization_config": settings} if settings else {})}
    save_file(
        {**tensors, "expected.m.weight": expected.contiguous()},
        HERE / f"{name}.safetensors",
        {"config": json.dumps(config), "made_with": made_with},
    )


def bitsandbytes() -> None:
    for kind, double, dtype in (
        ("nf4", True, torch.bfloat16),
        ("nf4", False, torch.float16),
        ("fp4", True, torch.float32),
    ):
        weight = torch.randn(24, 128).to(dtype)
        packed, state = bnb.quantize_4bit(weight, blocksize=64, quant_type=kind, compress_statistics=double)
        stored = {"m.weight": packed, **{f"m.weight.{key}": value for key, value in state.as_dict(packed=True).items()}}
        name = f"{kind}{'-double' if double else ''}"
        save(name, "bitsandbytes 0.50.2", {"quant_method": "bitsandbytes"}, stored, bnb.dequantize_4bit(packed, state))
    codes, scales, _ = bnb.int8_vectorwise_quant(torch.randn(24, 40).half())
    stored = {"m.weight": codes, "m.SCB": scales, "m.weight_format": torch.tensor(0, dtype=torch.uint8)}
    expected = bnb.int8_vectorwise_dequant(codes, scales)
    save("int8", "bitsandbytes 0.50.2", {"quant_method": "bitsandbytes"}, stored, expected, "float32")


def gptq(source: str) -> None:
    layer_class = runpy.run_path(source)["QuantLinear"]
    inputs, outputs, group = 128, 64, 32
    for bits in (2, 3, 4, 8):
        groups = (torch.arange(inputs) // group)[torch.randperm(inputs)]
        scales = torch.rand(outputs, inputs // group) * 0.02 + 0.01
        zeros = torch.randint(1, 2**bits, (outputs, inputs // group)).float()
        layer = layer_class(bits, group, inputs, outputs, False)
        layer.pack(torch.nn.Linear(inputs, outputs, bias=False).half(), scales, zeros, groups.to(torch.int32))
        stored = {f"m.{key}": value for key, value in layer.state_dict().items()}
        settings = {"quant_method": "gptq", "bits": bits, "group_size": group, "desc_act": True}
        save(f"gptq-{bits}", "auto_gptq 0.7.1", settings, stored, layer(torch.eye(inputs).half()).T, "float16")
        if bits == 4:
            zeros_as_they_are = (stored["m.qzeros"].to(torch.int64) + 0x11111111).to(torch.int32)
            settings["checkpoint_format"] = "gptq_v2"
            stored["m.qzeros"] = zeros_as_they_are
            save("gptq-4-v2", "auto_gptq 0.7.1", settings, stored, layer(torch.eye(inputs).half()).T, "float16")


def awq(source: str) -> None:
    dequantize = runpy.run_path(source)["dequantize_gemm"]
    inputs, outputs, group = 96, 48, 32
    words = (-(2**31), 2**31 - 1)
    codes = torch.randint(*words, (inputs, outputs // 8), dtype=torch.int32)
    zeros = torch.randint(*words, (inputs // group, outputs // 8), dtype=torch.int32)
    scales = (torch.rand(inputs // group, outputs) * 0.05).half()
    settings = {"quant_method": "awq", "bits": 4, "group_size": group, "version": "gemm"}
    stored = {"m.qweight": codes, "m.qzeros": zeros, "m.scales": scales}
    save("awq", "autoawq 0.2.9", settings, stored, dequantize(codes, zeros, scales, 4, group).T, "float16")


def fp8() -> None:
    weight, scales = torch.randn(64, 96).to(torch.float8_e4m3fn), torch.rand(2, 3)
    expected = Fp8Dequantize(None)._dequantize_one(weight, scales, torch.bfloat16)
    settings = {"quant_method": "fp8", "weight_block_size": [32, 32]}
    stored = {"m.weight": weight, "m.weight_scale_inv": scales, "m.activation_scale": torch.ones(())}
    save("fp8", "transformers 5.23.0", settings, stored, expected)


def compressed() -> None:
    integers = {"type": "int", "group_size": 32, "strategy": "group"}
    for name, form, weights in (
        ("compressed-int4", "pack-quantized", {**integers, "num_bits": 4, "symmetric": True}),
        ("compressed-int4-zeros", "pack-quantized", {**integers, "num_bits": 4, "symmetric": False}),
        ("compressed-int3-zeros", "pack-quantized", {**integers, "num_bits": 3, "symmetric": False}),
        ("compressed-int8", "int-quantized", {"type": "int", "num_bits": 8, "strategy": "channel", "symmetric": True}),
        (
            "compressed-fp8",
            "float-quantized",
            {"type": "float", "num_bits": 8, "strategy": "channel", "symmetric": True},
        ),
    ):
        compressor = PackedQuantizationCompressor if form == "pack-quantized" else NaiveQuantizationCompressor
        arguments = QuantizationArgs(**weights)
        scheme = QuantizationScheme(targets=["Linear"], weights=arguments)
        weight = torch.randn(24, 96).to(torch.bfloat16)
        parts = weight.reshape(24, -1, 32) if weights["strategy"] == "group" else weight.reshape(24, 1, 96)
        scale, zero = calculate_qparams(parts.amin(-1), parts.amax(-1), arguments)
        state = {"weight": weight, "weight_scale": scale}
        if not weights["symmetric"]:
            state["weight_zero_point"] = zero
        packed = compressor.compress(state, scheme)
        expected = compressor.decompress(dict(packed), scheme)["weight"]
        settings = {
            "quant_method": "compressed-tensors",
            "format": form,
            "config_groups": {"group_0": {"targets": ["Linear"], "weights": weights}},
        }
        stored = {f"m.{key}": value for key, value in packed.items()}
        save(name, "compressed-tensors 0.20.0", settings, stored, expected)


if __name__ == "__main__":
    torch.manual_seed(0)
    bitsandbytes()
    gptq(sys.argv[2])
    awq(sys.argv[1])
    fp8()
    compressed()
