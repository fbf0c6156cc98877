"""Is the merged model base + adapter? Both are run on the same inputs and their outputs compared.

The reference never sees a merged weight: PyTorch computes the base with the adapter beside it
(:mod:`lora_registry.runtime.adapted`). A decoder is also asked to go on from its KV cache.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lora_registry.adapter import Adapter, Json
from lora_registry.errors import InconclusiveError, UnsupportedError, UsageError
from lora_registry.onnx.manifest import Manifest
from lora_registry.runtime.packages import require

if TYPE_CHECKING:
    import numpy as np

    from lora_registry.ops.tied import TiedPolicy
    from lora_registry.runtime.compare import Agreement
    from lora_registry.runtime.samples import Samples
    from lora_registry.runtime.torch_model import TorchModel

    Outputs = dict[str, np.ndarray[Any, Any]]

TOLERANCES: Mapping[str, float] = {"F64": 1e-4, "F32": 1e-4, "F16": 1e-2, "BF16": 5e-2}
"""Largest max |got - wanted| / max |wanted| that still holds, by element type of the merged weights.

The reference computes in float32. Weights and activations that are rounded to 11 (F16) or 8 (BF16) bits
lose about that much over the depth of a model.
"""

CACHED = "logits from the cache"
_NEW = 1  # tokens that a decoder is given after its cache is filled


@dataclass(frozen=True, slots=True, kw_only=True)
class VerifyReport:
    """What :func:`verify` found.

    Attributes:
        holds: whether every output is within the tolerance.
        provider: where the merged model ran: ONNX Runtime's name, or ``torch``.
        dtype: element type of the merged weights.
        tolerance: largest relative error that holds.
        samples: number of sequences.
        seed: they were drawn with.
        outputs: one record an output.
        absent: outputs of the base that the merged model does not have, and that were not compared.
    """

    holds: bool
    provider: str
    dtype: str
    tolerance: float
    samples: int
    seed: int
    outputs: tuple[Agreement, ...]
    absent: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Json]:
        """The report as a JSON object."""
        return {
            "holds": self.holds,
            "provider": self.provider,
            "dtype": self.dtype,
            "tolerance": self.tolerance,
            "samples": self.samples,
            "seed": self.seed,
            "outputs": [output.to_json() for output in self.outputs],
            "absent": list(self.absent),
        }

    def lines(self) -> list[str]:
        """A line an output and a verdict, for people."""
        verdict = "holds" if self.holds else "does not hold"
        where = f"{self.samples} samples, {self.dtype}, {self.provider}"
        absent = [f"{name}: not compared, the merged model does not have it" for name in self.absent]
        return [*map(str, self.outputs), *absent, f"{verdict}: tolerance {self.tolerance:.0e} relative ({where})"]


def verify(
    merged: Path,
    base: Path,
    adapter: Adapter | None,
    *,
    provider: str = "cpu",
    samples: int = 4,
    seed: int = 0,
    tolerance: float | None = None,
    tied: TiedPolicy = "untie",
) -> VerifyReport:
    """Compare a merged model with base + unmerged adapter.

    Args:
        merged: an ``.onnx`` file, a folder that ``loreg export`` wrote, or a Hugging Face folder.
        base: the Hugging Face folder of the base.
        adapter: what was merged; None to compare with the base itself, as after an export.
        provider: where an ONNX file runs, a key of :data:`lora_registry.runtime.ort.PROVIDERS`.
        samples: number of random sequences.
        seed: they are drawn with; equal seeds draw equal sequences.
        tolerance: overrides that of the element type.
        tied: what a target on a tied tensor changes, as in the merge.

    Raises:
        InconclusiveError: the adapter changes nothing that could be seen, a target's module never ran, or
            the reference is not finite.
        UsageError: fewer than one sample, or a tolerance that is not positive.
        UnsupportedError: the merged model is quantized and no tolerance is given; the adapter has a gate or grows the
            vocabulary, or the two models have no comparable inputs and outputs.
        InvalidInputError: the adapter does not fit the base, or a file is broken.
        MachineError: the provider does not run here.
        MissingPackageError: torch, transformers, numpy or onnxruntime is not installed.
    """
    if samples < 1 or (tolerance is not None and not tolerance > 0):
        raise UsageError("verify needs at least one sample and a tolerance above 0")
    for package in ("torch", "transformers"):
        require(package, "export")
    from lora_registry.ops.mergeable import check_applicable
    from lora_registry.runtime.compare import agreement
    from lora_registry.runtime.quantized import refuse_quantized
    from lora_registry.runtime.samples import draw
    from lora_registry.runtime.torch_model import load

    if adapter is not None:
        check_applicable(adapter, "no merged model can be like it")
    if tolerance is None:
        refuse_quantized(merged)
    subject = _subject(merged, provider)
    model = load(base)
    rows = [row for target in adapter or () for row in target.rows]
    drawn = draw(model, samples, seed, rows=rows)
    plain = None if adapter is None else _run_torch(model, drawn)
    wanted = _run_torch(model, drawn) if adapter is None else _reference(model, adapter, drawn, tied)
    del model
    got = subject.run(drawn, tuple(wanted))
    limit = tolerance or TOLERANCES[subject.dtype]
    outputs = tuple(
        agreement(name, wanted[name], got[name], None if plain is None else plain[name])
        for name in wanted
        if name in got
    )
    _check_conclusive(outputs, limit, has_adapter=adapter is not None)
    return VerifyReport(
        holds=all(output.max_rel <= limit for output in outputs),
        provider=subject.provider,
        dtype=subject.dtype,
        tolerance=limit,
        samples=samples,
        seed=seed,
        outputs=outputs,
        absent=tuple(name for name in wanted if name not in got),
    )


def _check_conclusive(outputs: tuple[Agreement, ...], limit: float, *, has_adapter: bool) -> None:
    if not outputs:
        raise UnsupportedError("the merged model has none of the outputs of the base")
    if not has_adapter:
        return
    effect = max(output.effect or 0.0 for output in outputs)
    if effect <= limit:
        raise InconclusiveError(
            f"the adapter changes the outputs by {effect:.1e} relative, which the tolerance of {limit:.1e} cannot see"
        )


def _reference(model: TorchModel, adapter: Adapter, drawn: Samples, tied: TiedPolicy) -> Outputs:
    import numpy as np

    from lora_registry.runtime.adapted import Adapted

    with Adapted(model.module, adapter, tied=tied) as adapted:
        outputs = _run_torch(model, drawn)
        unused = adapted.unused
    if unused:
        raise InconclusiveError(f"the model never ran the module of {unused[0]} ({len(unused)} targets unused)")
    if not all(np.isfinite(output).all() for output in outputs.values()):
        raise InconclusiveError("base + adapter gives values that are not finite")
    return outputs


def _run_torch(model: TorchModel, drawn: Samples) -> Outputs:
    """All outputs of a torch model as float32 (rows, width), without padding; a decoder's without its cache."""
    import torch

    from lora_registry.runtime.torch_model import Task

    known = drawn.inputs
    names = (*model.inputs, "decoder_input_ids") if model.task is Task.ENCODER_DECODER else model.inputs
    feeds: dict[str, Any] = {name: torch.from_numpy(known[name]) for name in names}
    decodes = model.task in (Task.DECODER, Task.ENCODER_DECODER)
    if decodes:
        feeds["use_cache"] = False
    with torch.no_grad():
        result = model.module(**feeds)
    arrays = {name: result[name].float().numpy() for name in model.outputs}
    if not decodes:
        return {name: _rows(array, drawn.mask) for name, array in arrays.items()}
    return _split(arrays["logits"], drawn.tokens)


def _split(logits: Any, mask: Any) -> Outputs:
    """A decoder's logits, those of the prompt and those of the tokens that are fed after it."""
    return {
        "logits": _rows(logits[:, :-_NEW], mask[:, :-_NEW]),
        CACHED: _rows(logits[:, -_NEW:], mask[:, -_NEW:]),
    }


def _rows(array: Any, mask: Any) -> Any:
    """(rows, width): of each token that is not padding, or of each sequence."""
    return array[mask == 1] if array.shape[:2] == mask.shape and array.ndim == 3 else array


def _subject(merged: Path, provider: str) -> _Folder | _OnnxFile | _Pair:
    from lora_registry.runtime.encoder_decoder import is_pair
    from lora_registry.runtime.export_place import is_export

    if not merged.is_dir():
        return _OnnxFile(merged, provider)
    if not is_export(merged):
        return _Folder(merged)
    return _Pair(merged, provider) if is_pair(merged) else _OnnxFile(merged / "model.onnx", provider)


class _Folder:
    """A merged Hugging Face folder."""

    provider = "torch"

    def __init__(self, folder: Path) -> None:
        from lora_registry.merge.bases.base import open_base

        self._folder = folder
        checkpoint = open_base(folder)
        self.dtype = _commonest([checkpoint.dtype(name) for name in checkpoint.names()])

    def run(self, drawn: Samples, names: tuple[str, ...]) -> Outputs:
        from lora_registry.runtime.torch_model import load

        outputs = _run_torch(load(self._folder), drawn)
        return {name: outputs[name] for name in names if name in outputs}


class _OnnxFile:
    """A merged ONNX file in a session whose provider is proved."""

    def __init__(self, path: Path, provider: str) -> None:
        from lora_registry.runtime import ort

        self._session = ort.open_session(path, provider=provider)
        self.provider = ort.provider_name(provider)
        manifest = Manifest.of(self._session.get_modelmeta().custom_metadata_map)
        self.dtype = (manifest.dtype if manifest else None) or _weights_dtype(path)

    def run(self, drawn: Samples, names: tuple[str, ...]) -> Outputs:
        from lora_registry.runtime import ort

        inputs = {value.name for value in self._session.get_inputs()}
        if any(name.startswith("past_key_values.") for name in inputs):
            return self._decode(drawn)
        known = drawn.inputs
        if inputs - known.keys():
            raise UnsupportedError(f"verify does not know the input {min(inputs - known.keys())}")
        result = ort.run(self._session, _fed(self._session, known))
        if CACHED in names and "logits" in result:
            return _split(result["logits"], drawn.mask)
        return {name: _rows(array, drawn.mask) for name, array in result.items() if name in names}

    def _decode(self, drawn: Samples) -> Outputs:
        from lora_registry.runtime.generate import Decoder

        decoder = Decoder(self._session)
        prompt, cache = decoder.step(drawn.ids[:, :-_NEW], decoder.empty(len(drawn.ids)), drawn.mask[:, :-_NEW])
        cached, _ = decoder.step(drawn.ids[:, -_NEW:], cache, drawn.mask[:, -_NEW:])
        return {
            "logits": _rows(prompt, drawn.mask[:, :-_NEW]),
            CACHED: _rows(cached, drawn.mask[:, -_NEW:]),
        }


class _Pair:
    """The two files of an exported encoder-decoder."""

    def __init__(self, folder: Path, provider: str) -> None:
        from lora_registry.runtime import ort
        from lora_registry.runtime.encoder_decoder import DECODER, EncoderDecoder

        self._pair = EncoderDecoder(folder, provider=provider)
        self.provider = ort.provider_name(provider)
        manifest = Manifest.of(self._pair.decoder.get_modelmeta().custom_metadata_map)
        self.dtype = (manifest.dtype if manifest else None) or _weights_dtype(folder / f"{DECODER}.onnx")

    def run(self, drawn: Samples, names: tuple[str, ...]) -> Outputs:
        if drawn.decoded is None:
            raise UnsupportedError(f"an encoder and a decoder do not give {', '.join(names)}")
        memory = self._pair.encode(_fed(self._pair.encoder, drawn.inputs))
        prompt, memory = self._pair.step(drawn.decoded[:, :-_NEW], memory)
        cached, _ = self._pair.step(drawn.decoded[:, -_NEW:], memory)
        return {
            "logits": _rows(prompt, drawn.tokens[:, :-_NEW]),
            CACHED: _rows(cached, drawn.tokens[:, -_NEW:]),
        }


def _fed(session: Any, known: Mapping[str, Any]) -> dict[str, Any]:
    """The inputs of a session, of images and spectra in its element type."""
    return {
        value.name: known[value.name].astype("float16") if value.type == "tensor(float16)" else known[value.name]
        for value in session.get_inputs()
    }


def _weights_dtype(path: Path) -> str:
    """Element type that most float initializers of a file without a manifest have."""
    from lora_registry.dtypes import BY_ONNX

    ir = require("onnx_ir", "onnx")
    values = ir.load(path).graph.initializers.values()
    numbers = [int(value.dtype) for value in values if value.dtype is not None]
    return _commonest([BY_ONNX[number].name for number in numbers if number in BY_ONNX])


def _commonest(names: list[str]) -> str:
    floats = [name for name in names if name in TOLERANCES]
    if not floats:
        raise UnsupportedError("the merged model has no float weights")
    return max(sorted(set(floats)), key=floats.count)
