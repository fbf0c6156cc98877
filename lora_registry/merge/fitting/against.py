"""An adapter held against a base of any form: a checkpoint, or an ONNX model."""

from __future__ import annotations

from pathlib import Path

from lora_registry.adapter import Adapter
from lora_registry.errors import InvalidInputError
from lora_registry.merge.bases.quantized import open_view
from lora_registry.merge.fitting.fit import Fit, Verdict, fit
from lora_registry.ops.base_model import BaseModel


def hold_against(adapter: Adapter, path: Path) -> tuple[Fit, BaseModel | None]:
    """How ``adapter`` fits the base in ``path``, which is written nowhere; a quantized one by what it stands for.

    Returns:
        The fit, and the base; None for an ONNX model in which not every target was found.

    Raises:
        NotFoundError: there is nothing at ``path``.
        InvalidInputError: the base is broken.
        InconclusiveError: the adapter's names fit an ONNX model in several ways.
        MissingPackageError: the base is an ONNX model, and onnx-ir is not installed.
    """
    if path.suffix != ".onnx":
        checkpoint = open_view(path, adapter)
        fitted = fit(
            adapter,
            checkpoint,
            config=checkpoint.config,
            scheme=checkpoint.scheme,
            computed=checkpoint.is_computed,
        )
        return fitted, checkpoint
    from lora_registry.onnx.model import OnnxModel
    from lora_registry.onnx.resolution import ResolvedBase
    from lora_registry.onnx.resolve import resolve

    model = OnnxModel.open(path)
    try:
        base = ResolvedBase(model, resolve(model, adapter))
    except InvalidInputError as error:
        if not error.findings:
            raise
        return Fit(Verdict.DOES_NOT_FIT, {}, (), error.findings), None
    return fit(adapter, base), base
