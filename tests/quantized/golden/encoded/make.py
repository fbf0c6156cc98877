"""Makes the vectors of this folder with the packages that own the formats; see ../README.md.

    python make.py AUTO_GPTQ_FOLDER AUTO_AWQ_FOLDER LIBGGML

The folders are those of the packages ``auto_gptq`` and ``awq``, of which single files are used; the library is
llama.cpp's ``ggml-quants.c``, compiled with ``-O2 -ffp-contract=off``.
"""

from __future__ import annotations

import ast
import ctypes
import json
import runpy
import sys
from pathlib import Path
from types import SimpleNamespace

import bitsandbytes.functional as bnb
import numpy as np
import torch
from compressed_tensors.compressors.naive_quantized.base import NaiveQuantizationCompressor
from compressed_tensors.compressors.pack_quantized.base import PackedQuantizationCompressor
from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme
from compressed_tensors.quantization.utils import calculate_qparams
from safetensors.torch import save_file
from transformers.integrations.finegrained_fp8 import Fp8Quantize

HERE = Path(__file__).parent


def save(
    name: str, made_with: str, settings: dict, weight: torch.Tensor, stored: dict, dtype: str = "bfloat16"
) -> None:
    tensors = {f"stored.m.{key}".replace("m..", "m."): value.contiguous() for key, value in stored.items()}
    config = json.dumps({"dtype": dtype, "quantization_config": settings})
    save_file(
        {**tensors, "weight": weight.float().contiguous()},
        HERE / f"{name}.safetensors",
        {"config": config, "made_with": made_with},
    )


def bitsandbytes() -> None:
    for kind, double in (("nf4", False), ("nf4", True), ("fp4", False)):
        weight = torch.randn(24, 96)
        packed, state = bnb.quantize_4bit(weight, blocksize=64, quant_type=kind, compress_statistics=double)
        stored = {"weight": packed, **{f"weight.{key}": value for key, value in state.as_dict(packed=True).items()}}
        name = f"{kind}{'-double' if double else ''}"
        save(name, "bitsandbytes 0.50.2", {"quant_method": "bitsandbytes"}, weight, stored, "float32")
    weight = torch.randn(24, 40).half()
    codes, scales, _ = bnb.int8_vectorwise_quant(weight)
    stored = {"weight": codes, "SCB": scales}
    save("int8", "bitsandbytes 0.50.2", {"quant_method": "bitsandbytes"}, weight, stored, "float32")


def gptq(folder: Path) -> None:
    quantizer_class = runpy.run_path(str(folder / "quantization/quantizer.py"))["Quantizer"]
    layer_class = runpy.run_path(str(folder / "nn_modules/qlinear/qlinear_cuda.py"))["QuantLinear"]
    inputs, outputs, group = 128, 64, 32
    for bits, symmetric in ((4, True), (4, False), (8, False), (3, True)):
        weight = torch.randn(outputs, inputs)
        groups = (torch.arange(inputs) // group)[torch.randperm(inputs)]
        scales, zeros = [], []
        for number in range(inputs // group):
            quantizer = quantizer_class()
            quantizer.configure(bits, perchannel=True, sym=symmetric)
            quantizer.find_params(weight[:, groups == number], weight=True)
            scales.append(quantizer.scale)
            zeros.append(quantizer.zero)
        linear = torch.nn.Linear(inputs, outputs, bias=False)
        linear.weight.data = weight
        scale, zero = torch.cat(scales, 1), torch.cat(zeros, 1)
        limit = (2**bits - 1 - zero[:, groups]) * scale[:, groups]  # what clamps the codes, which pack() does not
        linear.weight.data = torch.minimum(torch.maximum(weight, -zero[:, groups] * scale[:, groups]), limit)
        layer = layer_class(bits, group, inputs, outputs, False)
        layer.pack(linear, scale, zero, groups.to(torch.int32))
        name = f"gptq-{bits}{'-sym' if symmetric else ''}"
        settings = {"quant_method": "gptq", "bits": bits, "group_size": group, "desc_act": True}
        save(name, "auto_gptq 0.7.1", settings, weight, dict(layer.state_dict()), "float16")


def function(path: Path, name: str, **names: object) -> object:
    """One function of a file that cannot be imported."""
    found = next(node for node in ast.walk(ast.parse(path.read_text())) if getattr(node, "name", None) == name)
    found.decorator_list = []
    module = ast.fix_missing_locations(ast.Module([found], []))
    names |= {"torch": torch, "nn": torch.nn}
    exec(compile("from __future__ import annotations\n" + ast.unparse(module), str(path), "exec"), names)
    return names[name]


def awq(folder: Path) -> None:
    inputs, outputs, group = 96, 64, 32
    pseudo = function(folder / "quantize/quantizer.py", "pseudo_quantize_tensor")
    pack = function(folder / "modules/linear/gemm.py", "from_linear", get_best_device=lambda: "cpu")
    unit = 2.0 ** -torch.randint(3, 7, (outputs, inputs // group, 1))  # scales that float16 holds
    levels = torch.randint(0, 16, (outputs, inputs // group, group)).float() + (torch.rand(1, 1, group) - 0.5) * 0.8
    levels[..., 0], levels[..., 1] = 0, 15
    weight = ((levels.clamp(0, 15) - torch.randint(3, 12, unit.shape)) * unit).reshape(outputs, inputs)
    _, scales, zeros = pseudo(SimpleNamespace(group_size=group, zero_point=True, w_bit=4), weight)
    layer = SimpleNamespace(w_bit=4, in_features=inputs)
    linear = SimpleNamespace(in_features=inputs, out_features=outputs, bias=None, weight=weight)
    pack(lambda *_: layer, linear, 4, group, False, scales.T.contiguous(), zeros.T.contiguous())
    settings = {"quant_method": "awq", "bits": 4, "group_size": group, "version": "gemm"}
    stored = {"qweight": layer.qweight, "qzeros": layer.qzeros, "scales": layer.scales}
    save("awq", "autoawq 0.2.9", settings, weight, stored, "float16")


def fp8() -> None:
    weight = torch.randn(64, 96)
    for name, fmt in (("fp8", None), ("fp8-powers", "ue8m0")):
        quantizer = SimpleNamespace(quantization_config=SimpleNamespace(weight_block_size=[32, 32], scale_fmt=fmt))
        made = Fp8Quantize(quantizer)._quantize_one("m.weight", weight)
        stored = {key.removeprefix("m."): value for key, value in made.items()}
        stored["weight_scale_inv"] = stored["weight_scale_inv"].float()
        settings = {"quant_method": "fp8", "weight_block_size": [32, 32]}
        save(name, "transformers 5.23.0", settings, weight, stored)


def compressed() -> None:
    group = {"type": "int", "group_size": 32, "strategy": "group"}
    for name, form, weights in (
        ("compressed-int4", "pack-quantized", {**group, "num_bits": 4, "symmetric": True}),
        ("compressed-int4-zeros", "pack-quantized", {**group, "num_bits": 4, "symmetric": False}),
        ("compressed-int8", "int-quantized", {"type": "int", "num_bits": 8, "strategy": "channel", "symmetric": True}),
        (
            "compressed-fp8",
            "float-quantized",
            {"type": "float", "num_bits": 8, "strategy": "channel", "symmetric": True},
        ),
    ):
        compressor = PackedQuantizationCompressor if form == "pack-quantized" else NaiveQuantizationCompressor
        arguments = QuantizationArgs(**weights)
        weight = torch.randn(32, 96)
        parts = weight.reshape(32, -1, 32) if weights["strategy"] == "group" else weight.reshape(32, 1, 96)
        scale, zero = calculate_qparams(parts.amin(-1), parts.amax(-1), arguments)
        state = {
            "weight": weight,
            "weight_scale": scale,
            **({} if weights["symmetric"] else {"weight_zero_point": zero}),
        }
        stored = compressor.compress(state, QuantizationScheme(targets=["Linear"], weights=arguments))
        settings = {
            "quant_method": "compressed-tensors",
            "format": form,
            "config_groups": {"group_0": {"targets": ["Linear"], "weights": weights}},
        }
        save(name, "compressed-tensors 0.20.0", settings, weight, dict(stored), "float32")


def k_quants(library: str) -> None:
    ggml = ctypes.CDLL(library)
    rng = np.random.default_rng(0)
    rows = rng.standard_normal((12, 256)) * 10 ** rng.uniform(-4, 1, (12, 1))
    special = np.stack([np.zeros(256), np.ones(256), -np.ones(256), np.abs(rows[0]), rng.integers(-3, 3, 256) / 2])
    weight = np.concatenate((rows, special)).astype(np.float32)
    made = {"weight": torch.from_numpy(weight)}
    for kind, size in (("q2_K", 84), ("q3_K", 110), ("q4_K", 144), ("q5_K", 176), ("q6_K", 210)):
        blocks = np.zeros((len(weight), size), np.uint8)
        getattr(ggml, f"quantize_row_{kind}_ref")(
            weight.ctypes.data_as(ctypes.c_void_p), blocks.ctypes.data_as(ctypes.c_void_p), ctypes.c_int64(weight.size)
        )
        made[kind.upper()] = torch.from_numpy(blocks)
    save_file(made, HERE / "k-quants.safetensors", {"made_with": "llama.cpp, as in llama-cpp-python 0.3.36"})


if __name__ == "__main__":
    torch.manual_seed(0)
    bitsandbytes()
    gptq(Path(sys.argv[1]))
    awq(Path(sys.argv[2]))
    fp8()
    compressed()
    k_quants(sys.argv[3])
