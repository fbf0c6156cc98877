"""An exported encoder-decoder under ONNX Runtime: two sessions, numpy in, numpy out.

What the two files take and give is said in :mod:`lora_registry.runtime.signature_pair`.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from lora_registry.errors import NotFoundError, UnsupportedError
from lora_registry.runtime import ort

ENCODER = "encoder_model"
DECODER = "decoder_with_past_model"
"""Names of the files, without ``.onnx``."""

MASK = "encoder_attention_mask"

_OWN = re.compile(r"past_key_values\.(\d+\.decoder\..+)")
_CROSS = re.compile(r"past_key_values\.(\d+\.encoder\..+)")
_FLOATS = {"tensor(float)": np.float32, "tensor(float16)": np.float16}


@dataclass(frozen=True, slots=True)
class Memory:
    """What the decoder needs beside the next tokens.

    Attributes:
        fixed: of the encoder: its keys and values, and its mask where there is one.
        past: of the decoder's own tokens.
    """

    fixed: Mapping[str, Any]
    past: Mapping[str, Any]


class EncoderDecoder:
    """The two files of an exported encoder-decoder.

    Args:
        folder: what ``loreg export`` wrote.
        provider: a key of :data:`lora_registry.runtime.ort.PROVIDERS`.

    Raises:
        NotFoundError: one of the files is missing.
        UnsupportedError: the cache has an element type or a free axis that is not known here.
        InvalidInputError, MachineError, MissingPackageError: as :func:`lora_registry.runtime.ort.open_session`.
    """

    def __init__(self, folder: Path, *, provider: str = "cpu") -> None:
        self.encoder = ort.open_session(folder / f"{ENCODER}.onnx", provider=provider)
        self.decoder = ort.open_session(folder / f"{DECODER}.onnx", provider=provider)
        inputs = {value.name: value for value in self.decoder.get_inputs()}
        self._own = {name: value for name, value in inputs.items() if _OWN.fullmatch(name)}
        self._cross = [name for name in inputs if _CROSS.fullmatch(name)]
        self._masked = MASK in inputs
        for name, value in self._own.items():
            known = isinstance(value.shape[1], int) and isinstance(value.shape[3], int)
            if value.type not in _FLOATS or not known:
                raise UnsupportedError(f"the cache {name} is {value.type} {value.shape}")

    def encode(self, feeds: Mapping[str, Any]) -> Memory:
        """Run the encoder.

        Args:
            feeds: ``input_ids`` and ``attention_mask`` (batch, sequence) int64, or ``input_features``.
        """
        result = ort.run(self.encoder, {value.name: feeds[value.name] for value in self.encoder.get_inputs()})
        fixed = {name: result[_CROSS.sub(r"present.\1", name)] for name in self._cross}
        if self._masked:
            fixed[MASK] = feeds["attention_mask"]
        batch = len(result["last_hidden_state"])
        past = {
            name: np.zeros((batch, value.shape[1], 0, value.shape[3]), dtype=_FLOATS[value.type])
            for name, value in self._own.items()
        }
        return Memory(fixed, past)

    def step(self, ids: np.ndarray[Any, Any], memory: Memory) -> tuple[Any, Memory]:
        """Feed tokens to the decoder.

        Args:
            ids: int64 (batch, sequence), without padding.
            memory: what the encoder or an earlier step gave.

        Returns:
            Logits (batch, sequence, vocabulary) and the memory with these tokens in it.
        """
        result = ort.run(self.decoder, {"input_ids": ids, **memory.fixed, **memory.past})
        past = {name: result[_OWN.sub(r"present.\1", name)] for name in self._own}
        return result["logits"], Memory(memory.fixed, past)

    def generate(
        self, feeds: Mapping[str, Any], *, start: int, max_new_tokens: int, stop: Collection[int] = ()
    ) -> list[int]:
        """Greedy decoding of one sequence.

        Args:
            feeds: as of :meth:`encode`, of batch 1.
            start: the token that the decoder begins with, ``decoder_start_token_id`` of the configuration.
            max_new_tokens: how many to add at most.
            stop: token ids that end the text; the one that does is part of the result.

        Returns:
            The new token ids, without ``start``.
        """
        memory = self.encode(feeds)
        new: list[int] = []
        token = start
        while len(new) < max_new_tokens and (not new or token not in stop):
            logits, memory = self.step(np.asarray([[token]], dtype=np.int64), memory)
            token = int(logits[0, -1].argmax())
            new.append(token)
        return new


def is_pair(folder: Path) -> bool:
    """Whether a folder holds an exported encoder-decoder.

    Raises:
        NotFoundError: it holds one of the two files.
    """
    held = [name for name in (ENCODER, DECODER) if (folder / f"{name}.onnx").is_file()]
    if len(held) == 1:
        missing = DECODER if held == [ENCODER] else ENCODER
        raise NotFoundError(f"{folder} holds {held[0]}.onnx and no {missing}.onnx")
    return bool(held)
