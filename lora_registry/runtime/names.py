"""Which parameter of a loaded module is which tensor of its checkpoint; every claim is proved by the values.

transformers renames on loading: a prefix comes or goes (``bert.``), ``gamma`` becomes ``weight``. Adapters
name tensors as the checkpoint does, so the manifest of an exported model must too.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lora_registry.adapter import Tensor
from lora_registry.dtypes import DTYPES

if TYPE_CHECKING:
    import torch

_LEGACY = {"gamma": "weight", "beta": "bias"}  # names of LayerNorm's parameters in TensorFlow checkpoints


def as_torch(tensor: Tensor) -> torch.Tensor:
    """A copy as a torch tensor of the same shape and element type."""
    import torch

    dtype = getattr(torch, DTYPES[tensor.dtype].torch)
    if not tensor.nbytes:
        return torch.empty(tensor.shape, dtype=dtype)
    return torch.frombuffer(bytearray(tensor.data), dtype=dtype).reshape(tensor.shape)


def named_tensors(module: Any) -> dict[str, torch.Tensor]:
    """Parameters and buffers under all their names: a tied one appears once a name."""
    return {
        **dict(module.named_parameters(remove_duplicate=False)),
        **dict(module.named_buffers(remove_duplicate=False)),
    }


def proven_names(folder: Path, module: Any) -> tuple[dict[str, str], tuple[str, ...]]:
    """Match the tensors of a checkpoint with those of the module that was loaded from it.

    A likely name counts when the values agree. A tensor without one counts when its values are those of
    exactly one tensor of the module that is left over.

    Returns:
        Checkpoint name to module name, and the checkpoint names that the module does not use, ascending.

    Raises:
        InvalidInputError, UnsupportedError: as :func:`lora_registry.merge.bases.base.open_base`.
    """
    from lora_registry.merge.bases.base import open_base

    tensors = named_tensors(module)
    prefix = f"{getattr(module, 'base_model_prefix', '')}."
    checkpoint = open_base(folder)
    matched: dict[str, str] = {}
    for name in checkpoint.names():
        equal = _equal(checkpoint.tensor(name), tensors, _likely(name, prefix))
        if equal:
            matched[name] = equal[0]
    unused = []
    for name in sorted(set(checkpoint.names()) - matched.keys()):
        left = tensors.keys() - set(matched.values())
        equal = _equal(checkpoint.tensor(name), tensors, sorted(left))
        if len(equal) == 1:
            matched[name] = equal[0]
        else:
            unused.append(name)
    return matched, tuple(unused)


def _likely(name: str, prefix: str) -> list[str]:
    """Names under which transformers' modules hold the checkpoint's ``name``, the likeliest first."""
    head, _, last = name.rpartition(".")
    spellings = [name, f"{head}.{_LEGACY[last]}"] if last in _LEGACY else [name]
    return [variant for each in spellings for variant in (each, prefix + each, each.removeprefix(prefix))]


def _equal(stored: Tensor, tensors: Mapping[str, torch.Tensor], candidates: Iterable[str]) -> list[str]:
    """Those of the candidates that hold the stored values, rounded to the module's element type."""
    import torch

    fitting = [name for name in candidates if name in tensors and tuple(tensors[name].shape) == stored.shape]
    if not fitting:
        return []
    values = as_torch(stored)
    return [name for name in fitting if torch.equal(tensors[name], values.to(tensors[name].dtype))]
