"""The tensors of a PEFT file, sorted by the place in the base model that they belong to."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from lora_registry.adapter import Tensor
from lora_registry.findings import Finding
from loreg_converters._peft.config import Config, suffixes
from loreg_converters._peft.keys import Key, Part, parse_key, without_base_layers
from loreg_converters._peft.problems import broken, unsupported

_ORIGINAL = ".original_module."
_WRAPPED = ".token_adapter."


@dataclass(slots=True)
class Site:
    """One module with low-rank tensors.

    Attributes:
        module: its path in the base model.
        levels: nesting level of the wrapper to its tensors; 0 is outermost.
        inside: the MultiheadAttention that the module lies in, for its out_proj.
    """

    module: str
    inside: str | None = None
    levels: dict[int, dict[Part, Tensor]] = field(default_factory=dict)


@dataclass(slots=True)
class Sorted:
    """Everything in a file.

    Attributes:
        sites: module to its low-rank tensors.
        values: path of a base tensor to the tensor that stands in for it.
        tokens: embedding module to its trained rows.
        training: keys that only training needs.
        originals: keys of the base's own tensors, for which saved ones stand in.
        noise: what was stripped from keys that PEFT's own files do not have.
        findings: what is wrong with the keys.
    """

    sites: dict[str, Site] = field(default_factory=dict)
    values: dict[str, Tensor] = field(default_factory=dict)
    tokens: dict[str, Tensor] = field(default_factory=dict)
    training: list[str] = field(default_factory=list)
    originals: list[str] = field(default_factory=list)
    noise: set[str] = field(default_factory=set)
    findings: list[Finding] = field(default_factory=list)


def sort_tensors(tensors: Mapping[str, Tensor], config: Config) -> Sorted:
    """Give every tensor its place; a key that no rule knows becomes a finding, never a gap."""
    result = Sorted()
    adapters: set[str] = set()
    for text in sorted(tensors, key=_is_original):
        key, tensor = parse_key(text), tensors[text]
        if key is None:
            result.findings.append(broken(text, "is a tensor of another method, or of an unknown LoRA variant"))
            continue
        if 0 in tensor.shape:
            result.findings.append(broken(text, f"is empty, shape {list(tensor.shape)}: a shard was not gathered"))
        result.noise.update(key.noise)
        if key.adapter is not None:
            adapters.add(key.adapter)
        _place(result, key, tensor, config)
    if len(adapters) > 1:
        result.findings.append(unsupported("keys", f"several adapters in one file: {', '.join(sorted(adapters))}"))
    return result


def _place(result: Sorted, key: Key, tensor: Tensor, config: Config) -> None:
    match key.part:
        case Part.PLAIN:
            _place_value(result, key, tensor, config)
        case Part.TOKENS:
            _set(result, result.tokens, key.module, key, tensor)
        case Part.TRAINING:
            result.training.append(key.text)
        case part:
            site = result.sites.setdefault(key.module, Site(key.module, key.inside))
            if site.inside != key.inside:
                result.findings.append(broken(key.text, "lies in two places of the model"))
            level = site.levels.setdefault(key.depth, {})
            if part in level:
                result.findings.append(broken(key.text, "is there twice, under two spellings"))
            level[part] = tensor


def _place_value(result: Sorted, key: Key, tensor: Tensor, config: Config) -> None:
    path = without_base_layers(key.module)
    if _is_original(key.text) and path.replace(_ORIGINAL, ".") in result.values and _WRAPPED not in path:
        # With bias="all" PEFT also saves biases of the module that modules_to_save put another in the place of.
        result.originals.append(key.text)
        return
    copied = False
    for wrapper in (_WRAPPED, _ORIGINAL):  # a resized embedding under a TrainableTokensWrapper
        if wrapper in path:
            path, copied = path.replace(wrapper, "."), True
    if path in result.values and _same(result.values[path], tensor):
        return
    if key.depth or copied or config.saves(path):
        _set(result, result.values, path, key, tensor)
    else:
        reason = "no rule knows this key: neither LoRA, nor modules_to_save, nor bias, nor an embedding"
        result.findings.append(broken(key.text, reason))


def _is_original(text: str) -> bool:
    return _ORIGINAL in text


def _same(first: Tensor, second: Tensor) -> bool:
    return (first.dtype, first.shape) == (second.dtype, second.shape) and first.digest() == second.digest()


def _set(result: Sorted, where: dict[str, Tensor], name: str, key: Key, tensor: Tensor) -> None:
    if name in where:
        result.findings.append(broken(key.text, "is there twice, under two spellings"))
    where[name] = tensor


def unmatched(names: Iterable[str], modules: Iterable[str]) -> list[str]:
    """Those of ``names`` that no module has, or ends in."""
    present = {suffix for module in modules for suffix in suffixes(module)}
    return sorted(set(names) - present)
