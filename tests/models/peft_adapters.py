"""PEFT adapters that change something: every trainable number is random, B and magnitudes included."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from peft import PeftConfig, PeftMixedModel, PeftModel, get_peft_model
from safetensors.numpy import load_file, save_file


def edit_saved(folder: Path, edit: Callable[[Any, Any], object]) -> None:
    """Let ``edit`` change the tensors and the configuration of a saved adapter, in place."""
    weights, settings = folder / "adapter_model.safetensors", folder / "adapter_config.json"
    tensors, config = load_file(weights), json.loads(settings.read_text())
    edit(tensors, config)
    save_file(tensors, weights)
    settings.write_text(json.dumps(config))


def make_peft_adapter(
    model: torch.nn.Module, config: PeftConfig, folder: Path, *, seed: int = 0, size: float = 0.2
) -> PeftModel | PeftMixedModel:
    """Wrap ``model``, make each trained tensor random, save to ``folder``, and return the wrapped model.

    Args:
        model: the base; PEFT changes it in place.
        config: any PEFT configuration, ``LoraConfig`` as a rule.
        folder: where ``adapter_config.json`` and ``adapter_model.safetensors`` go.
        seed: the same seed gives the same adapter.
        size: standard deviation of what is added to each trained tensor.
    """
    with peft_warnings_off(), torch.random.fork_rng():
        torch.manual_seed(seed)  # PEFT draws A from the global generator
        wrapped = get_peft_model(model, config)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in wrapped.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn(parameter.shape, generator=generator) * size)
    wrapped.peft_config["default"].base_model_name_or_path = "tests/tiny"
    with peft_warnings_off():
        wrapped.save_pretrained(folder, save_embedding_layers=False)
    return wrapped.eval()


def merged_model(wrapped: PeftModel | PeftMixedModel) -> torch.nn.Module:
    """What PEFT's own ``merge_and_unload`` makes of the base; ``wrapped`` is used up."""
    with peft_warnings_off():
        return wrapped.merge_and_unload()


def arrays(model: torch.nn.Module) -> dict[str, np.ndarray]:
    """A copy of the ``state_dict`` and of all buffers; tied tensors stand in it under each of their names.

    Buffers that are not saved today may be in older checkpoints, as MiniLM's ``embeddings.position_ids`` is.
    """
    return {
        name: tensor.numpy().copy() for name, tensor in {**dict(model.named_buffers()), **model.state_dict()}.items()
    }


@contextmanager
def peft_warnings_off() -> Iterator[None]:
    """PEFT warns about tied layers and Conv1D as it goes; the tests know."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
