"""Which encoder writes a weight again."""

from __future__ import annotations

from lora_registry.errors import UnsupportedError
from lora_registry.quantized.encode_four_bit import FourBitEncoder
from lora_registry.quantized.encode_fp8 import Fp8Encoder
from lora_registry.quantized.encode_int8 import Int8Encoder
from lora_registry.quantized.encoding import Encoder
from lora_registry.quantized.four_bit import FourBitWeight
from lora_registry.quantized.fp8 import Fp8Weight
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
    raise UnsupportedError(f"{name}: nothing here quantizes it again; without --requantize it is written as BF16")
