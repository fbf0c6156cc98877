"""How two models are compared: the weights by name, and what they compute."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import torch

from lora_registry.onnx.manifest import Manifest
from lora_registry.runtime import ort
from lora_registry.runtime.generate import Decoder

TOLERANCE = 1e-5
"""Largest difference allowed in float32, relative to the largest number of the tensor."""


def first_output(model: torch.nn.Module, inputs: dict[str, torch.Tensor]) -> np.ndarray:
    with torch.no_grad():
        result = model(**inputs)
    return (result if isinstance(result, torch.Tensor) else result[0]).numpy()


def onnx_output(path: Path, inputs: dict[str, np.ndarray]) -> np.ndarray:
    """First output of an ONNX file; a decoder gets an empty cache, an encoder token types of zero."""
    session = ort.open_session(path)
    names = {value.name for value in session.get_inputs()}
    if any(name.startswith("past_key_values.") for name in names):
        decoder = Decoder(session)
        logits, _ = decoder.step(inputs["input_ids"], decoder.empty(len(inputs["input_ids"])))
        return logits
    feeds = dict(inputs)
    if "token_type_ids" in names:
        feeds["token_type_ids"] = np.zeros_like(inputs["input_ids"])
    first = session.get_outputs()[0].name
    return ort.run(session, feeds, [first])[first]


def onnx_weights(path: Path) -> dict[str, np.ndarray]:
    """Name in the base checkpoint to its values in an ONNX file, as loreg's manifest in the file places them."""
    model = onnx.load(path)
    manifest = Manifest.of({entry.key: entry.value for entry in model.metadata_props})
    assert manifest is not None
    initializers = {value.name: onnx.numpy_helper.to_array(value) for value in model.graph.initializer}
    found = {name: (initializers[place.initializer], place.transposed) for name, place in manifest.tensors.items()}
    return {name: values.T if transposed else values for name, (values, transposed) in found.items()}


def relative_error(actual: np.ndarray, wanted: np.ndarray) -> float:
    assert actual.shape == wanted.shape
    return float(np.abs(actual.astype(np.float64) - wanted).max() / max(np.abs(wanted).max(), 1e-30))


def worst(actual: dict[str, np.ndarray], wanted: dict[str, np.ndarray]) -> tuple[float, str]:
    """The largest relative error over the tensors of ``actual``, and the tensor that has it."""
    return max((relative_error(values, wanted[name]), name) for name, values in actual.items())
