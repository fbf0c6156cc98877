"""From the names that an adapter uses to the tensors of a loaded module."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from lora_registry.adapter import Target
from lora_registry.errors import InvalidInputError
from lora_registry.ops.prefix import Prefix, uniform_prefix
from lora_registry.runtime.names import named_tensors


def resolve(targets: Iterable[Target], module: Any) -> dict[str, str]:
    """Target name to the module's name of the tensor.

    Names count as they are, or with one prefix that is added to, or taken off, all of them.

    Raises:
        InvalidInputError: a target has no tensor, or one of another shape.
        InconclusiveError: the names fit under several prefixes.
    """
    targets = tuple(targets)
    tensors = named_tensors(module)
    prefix = uniform_prefix([target.name for target in targets], tensors.keys()) or Prefix()
    found = {}
    missing = []
    for target in targets:
        name = prefix.find(target.name, tensors.keys())
        if name is None:
            missing.append(target.name)
            continue
        shape = tuple(tensors[name].shape)
        if target.shape is not None and shape != target.shape:
            raise InvalidInputError(
                f"{target.name} is {list(target.shape)} in the adapter's base and {list(shape)} in this model"
            )
        found[target.name] = name
    if missing:
        raise InvalidInputError(
            f"the model has no tensor {missing[0]} ({len(missing)} of {len(targets)} targets match nothing)"
        )
    return found
