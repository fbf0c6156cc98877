"""Which encoder writes a weight again."""

from __future__ import annotations

from lora_registry.errors import UnsupportedError
from lora_registry.quantized.awq import AwqWeight
from lora_registry.quantized.compressed import CompressedWeight
from lora_registry.quantized.encoding.awq import AwqEncoder
from lora_registry.quantized.encoding.compressed import CompressedEncoder
from lora_registry.quantized.encoding.encoder import Encoder
from lora_registry.quantized.encoding.four_bit import FourBitEncoder
from lora_registry.quantized.encoding.fp8 import Fp8Encoder
from lora_registry.quantized.encoding.gguf import GgufEncoder
from lora_registry.quantized.encoding.gptq import GptqEncoder
from lora_registry.quantized.encoding.int8 import Int8Encoder
from lora_registry.quantized.four_bit import FourBitWeight
from lora_registry.quantized.fp8 import Fp8Weight
from lora_registry.quantized.gguf_file import GgufWeight
from lora_registry.quantized.gptq import GptqWeight
from lora_registry.quantized.int8 import Int8Weight
from lora_registry.quantized.weight import QuantizedWeight


def encoder_for(weight: QuantizedWeight, name: str) -> Encoder:
    """A new encoder of ``weight``, which nothing has been encoded by.

    Args:
        weight: what is stored.
        name: of the weight, for the message.

    Raises:
        UnsupportedError: nothing encodes it.
    """
    match weight:
        case FourBitWeight():
            return FourBitEncoder(weight)
        case Int8Weight():
            return Int8Encoder(weight)
        case Fp8Weight():
            return Fp8Encoder(weight)
        case GgufWeight():
            return GgufEncoder(weight)
        case GptqWeight():
            return GptqEncoder(weight)
        case AwqWeight():
            return AwqEncoder(weight)
        case CompressedWeight() if weight.stored.dtype.kind == "i":
            return CompressedEncoder(weight)
        case CompressedWeight() if weight.zeros is None or not weight.zeros.values.any():
            plain = Fp8Weight(weight.dtype, weight.parts[:2], weight.stored, weight.scales, weight.scale_dtype)
            return Fp8Encoder(plain, "compressed-tensors")
    raise UnsupportedError(f"{name}: nothing here quantizes it again; without --requantize it is written as BF16")
