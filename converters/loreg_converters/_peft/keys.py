"""The keys of PEFT's tensors, taken apart (``save_and_load.py`` and ``tuners/lora/layer.py``, PEFT 0.21.2).

A key is a prefix, the path of a module, and what the tensor is for that module. Wrappers leave traces in
the path (``base_layer``, ``_orig_mod``, the name of the adapter) that the base checkpoint does not have.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import StrEnum

PREFIX = "base_model.model."
_WRAPPERS = re.compile(r"(?<![^.])(?:_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")
_PREFIXES = re.compile(r"(?:module\.)?((?:base_model\.model\.)+)")


class Part(StrEnum):
    """What a tensor is for its module."""

    A = "A"
    B = "B"
    EMBEDDING_A = "embedding A"
    EMBEDDING_B = "embedding B"
    B_BIAS = "bias of B"
    MAGNITUDE = "magnitude"
    TOKENS = "tokens"
    TRAINING = "training state"
    PLAIN = "plain"


_TAILS = (
    (re.compile(r"\.lora_(?P<factor>[AB])(?:\.(?P<adapter>[^.]+))?\.weight"), None),
    (re.compile(r"\.lora_B(?:\.(?P<adapter>[^.]+))?\.bias"), Part.B_BIAS),
    (re.compile(r"\.lora_embedding_(?P<factor>[AB])(?:\.(?P<adapter>[^.]+))?"), None),
    (re.compile(r"\.lora_magnitude_vector(?:\.(?P<adapter>(?!weight$)[^.]+))?(?:\.weight)?"), Part.MAGNITUDE),
    (re.compile(r"\.token_adapter\.trainable_tokens_delta(?:\.(?P<adapter>[^.]+))?"), Part.TOKENS),
    (re.compile(r"\.lora_velora_embed(?:\.(?P<adapter>[^.]+))?"), Part.TRAINING),
    (re.compile(r"\.lora_monteclora_sampler(?:\.(?P<adapter>[^.]+))?\..+"), Part.TRAINING),
)
_COMPOSED = re.compile(
    r"(?P<module>.+)\.(?P<role>hada_w[12]_[ab]|hada_t[12]|lokr_w[12](?:_[ab])?|lokr_t2)(?:\.(?P<adapter>[^.]+))?"
)
_TUNER = re.compile(r"\.(lora_[^.]*|hada_[^.]*|lokr_[^.]*|ia3_[^.]*|vera_[^.]*|oft_[^.]*|boft_[^.]*|ranknum)(\.|$)")
_MARK = re.compile(r"\.(?:lora_|token_adapter\.trainable)")


@dataclass(frozen=True, slots=True)
class Key:
    """A key, taken apart.

    Attributes:
        text: as it stands in the file.
        part: what the tensor is.
        module: path of the module in the base model, every ``base_layer`` removed; for plain tensors the
            path of the tensor itself.
        depth: how many ``base_layer`` the path ends in: the level of a nested parameter wrapper.
        inside: path before a ``base_layer`` in the middle of the module's, which only MultiheadAttention has.
        adapter: name of the adapter, where the key still has it.
        noise: what was stripped that PEFT's own files do not have.
    """

    text: str
    part: Part
    module: str
    depth: int = 0
    inside: str | None = None
    adapter: str | None = None
    noise: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class ComposedKey:
    """A key of LoHa or LoKr, taken apart.

    Attributes:
        module: path of the module in the base model.
        role: what PEFT calls the tensor, ``hada_w1_a``.
        noise: what was stripped that PEFT's own files do not have.
    """

    module: str
    role: str
    noise: tuple[str, ...]


def parse_key(text: str) -> Key | None:
    """Take a key apart; None where its tail is of another method than LoRA."""
    path, noise = _strip(text)
    mark = _MARK.search(path)
    if mark is not None:
        for pattern, part in _TAILS:
            for start in (match.start() for match in _MARK.finditer(path)):
                if found := pattern.fullmatch(path, start):
                    return _adapted(text, path[:start], part or _factor(found), found["adapter"], noise)
        return None
    if _TUNER.search(path):
        return None
    saved = re.fullmatch(r"(.+?)\.modules_to_save\.(?:([^.]+)\.)?(.+)", path)  # a save strips some of the names
    if saved:
        name = "" if saved[2] is None else f"{saved[2]}."
        path, noise = f"{saved[1]}.{saved[3]}", (*noise, f"modules_to_save.{name}")
    return Key(text, Part.PLAIN, path, depth=1 if ".base_layer." in path else 0, noise=noise)


def parse_composed(text: str) -> ComposedKey | None:
    """Take a key of LoHa's or LoKr's tensors apart; None for any other key."""
    path, noise = _strip(text)
    found = _COMPOSED.fullmatch(path)
    if found is None:
        return None
    if found["adapter"] is not None:
        noise = (*noise, f".{found['adapter']}.")
    return ComposedKey(found["module"], found["role"], noise)


def _factor(match: re.Match[str]) -> Part:
    embedding = ".lora_embedding_" in match[0]
    if match["factor"] == "A":
        return Part.EMBEDDING_A if embedding else Part.A
    return Part.EMBEDDING_B if embedding else Part.B


def _strip(text: str) -> tuple[str, tuple[str, ...]]:
    noise: list[str] = []
    path = _WRAPPERS.sub(lambda match: noise.append(match[0]) or "", text)  # type: ignore[func-returns-value]
    prefix = _PREFIXES.match(path)
    if prefix is None:
        noise.append(f"no prefix {PREFIX}")
    else:
        path = path[prefix.end() :]
        if prefix[0] != PREFIX:
            noise.append(prefix[0])
    return path, tuple(noise)


def _adapted(text: str, module: str, part: Part, adapter: str | None, noise: tuple[str, ...]) -> Key:
    depth = 0
    while module.endswith(".base_layer"):
        module = module.removesuffix(".base_layer")
        depth += 1
    inside = None
    if ".base_layer." in module:
        inside = module.partition(".base_layer.")[0]
        module = module.replace(".base_layer.", ".")
    if adapter is not None:
        noise = (*noise, f".{adapter}.")
    return Key(text, part, module, depth, inside, adapter, noise)


def without_base_layers(path: str) -> str:
    """A tensor's path as the base checkpoint has it."""
    while ".base_layer." in path:
        path = path.replace(".base_layer.", ".")
    return path
