"""From the names that an adapter uses to the tensors of a loaded module."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Any

from lora_registry.adapter import Target
from lora_registry.errors import InvalidInputError
from lora_registry.runtime.names import named_tensors


def resolve(targets: Iterable[Target], module: Any) -> dict[str, str]:
    """Target name to the module's name of the tensor.

    Names count as they are, or with one prefix that is added to, or taken off, all of them.

    Raises:
        InvalidInputError: a target has no tensor, or one of another shape.
    """
    targets = tuple(targets)
    tensors = named_tensors(module)
    names = [target.name for target in targets]
    found = _by_prefix(names, tensors.keys())
    for target in targets:
        shape = tuple(tensors[found[target.name]].shape)
        if target.shape is not None and shape != target.shape:
            raise InvalidInputError(
                f"{target.name} is {list(target.shape)} in the adapter's base and {list(shape)} in this model"
            )
    return found


def _by_prefix(names: list[str], known: Collection[str]) -> dict[str, str]:
    missing = [name for name in names if name not in known]
    if not missing:
        return {name: name for name in names}
    first = missing[0]
    added = {other.removesuffix(first) for other in known if other.endswith(f".{first}")}
    removed = {first.removesuffix(other) for other in known if first.endswith(f".{other}")}
    candidates = [{name: prefix + name for name in names} for prefix in sorted(added)]
    candidates += [
        {name: name.removeprefix(prefix) for name in names}
        for prefix in sorted(removed)
        if all(name.startswith(prefix) for name in names)
    ]
    fitting = [found for found in candidates if all(name in known for name in found.values())]
    if len(fitting) == 1:
        return fitting[0]
    raise InvalidInputError(f"the model has no tensor {first} ({len(missing)} of {len(names)} targets match nothing)")
