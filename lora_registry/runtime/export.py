"""PyTorch to ONNX with names that stay: ``torch.onnx.export(dynamo=True, optimize=False)``.

The exporter's optimizer folds weights into transposed copies under new names, merges equal ones and drops
zero biases. Without it each parameter is one initializer of the same name; ONNX Runtime folds when it loads.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lora_registry import __version__
from lora_registry.dtypes import BY_TORCH
from lora_registry.errors import UsageError
from lora_registry.onnx.manifest import KEY, Manifest
from lora_registry.runtime.export_place import check_free, is_folder, publishing
from lora_registry.runtime.export_report import ExportReport
from lora_registry.runtime.names import named_tensors, proven_names
from lora_registry.runtime.packages import require
from lora_registry.runtime.torch_model import DTYPES, load

if TYPE_CHECKING:
    import torch

    from lora_registry.adapter import Adapter
    from lora_registry.ops.tied import TiedPolicy

__all__ = ["ExportReport", "Say", "export_model", "export_module"]

Say = Callable[[str], None]
"""Told in a word what is going on: torch does not tell how far a trace is, so there is nothing to count."""

_TOOL = f"loreg {__version__}"

_BFLOAT16 = "runs on CUDA alone: ONNX Runtime's CPU provider has no bfloat16 kernels"


def export_model(
    folder: Path,
    out: Path,
    *,
    dtype: str = "float32",
    adapter: Adapter | None = None,
    tied: TiedPolicy = "untie",
    overwrite: bool = False,
    progress: Say | None = None,
) -> ExportReport:
    """Export a Hugging Face folder.

    Decoders take ``input_ids``, ``attention_mask`` (over past and new tokens), ``position_ids`` and
    ``past_key_values.{i}.key``/``.value``, and give ``logits`` and ``present.{i}.key``/``.value``; encoders
    and classifiers take ``input_ids``, ``attention_mask`` and, where they have types, ``token_type_ids``; vision
    models take ``pixel_values``. Batch, sequence and past lengths are free; past may be 0. Encoder-decoders are two
    graphs, see :mod:`lora_registry.runtime.signature_pair`.

    Args:
        folder: ``config.json`` and safetensors.
        out: the ``.onnx`` to write; large weights go to ``<out>.data`` beside it. Or, where the name does not end so,
            a folder: the graphs, the model's configuration and tokenizer, and for a decoder the
            ``genai_config.json`` of onnxruntime-genai.
        dtype: one of :data:`lora_registry.runtime.torch_model.DTYPES`.
        adapter: merged by :func:`lora_registry.merge.onnx.model.merge_onnx`: graphs and receipts are those of an
            export and a merge.
        tied: what happens to a target on a tied tensor, as in the merge.
        overwrite: whether ``out`` may exist; a folder must then be one that an export made.
        progress: called with a word on what is being done.

    Raises:
        ConflictError: ``out`` exists and ``overwrite`` is false.
        UnsupportedError: the model is none that loreg or the exporter handles; the adapter cannot be merged.
        UsageError: the model is two graphs, and ``out`` is one file.
        InvalidInputError, NotFoundError: the folder is broken or missing; the adapter does not fit.
        MissingPackageError: torch, transformers, onnxscript or onnx-ir is not installed.
        MachineError: the files cannot be written.
    """
    for package in ("torch", "transformers", "onnxscript", "onnx_ir"):
        require(package, "export")
    from lora_registry.runtime.export_folder import write_companions
    from lora_registry.runtime.export_merge import GraphMerge
    from lora_registry.runtime.onnx_write import save
    from lora_registry.runtime.signature import signatures_of
    from lora_registry.runtime.trace import places, trace_model

    say = progress or (lambda _: None)
    check_free(out, overwrite=overwrite)
    say("loading")
    model = load(folder, dtype=dtype)
    signatures = signatures_of(model)
    if len(signatures) > 1 and not is_folder(out):
        raise UsageError(f"{out}: {model.architecture} is {len(signatures)} graphs; give a folder, not an .onnx file")
    merge = None if adapter is None else GraphMerge(adapter, model.module, len(signatures), tied)
    say("comparing weights")
    checkpoint, unused = proven_names(folder, model.module)
    placed: set[str] = set()
    with publishing(out) as made:
        for signature in signatures:
            say("tracing")
            graph = trace_model(signature, f"{folder}: {model.architecture}")
            held = places(graph, model.module, checkpoint)
            placed |= held.keys()
            graph.metadata_props[KEY] = Manifest(
                tensors=held, task=model.task, dtype=DTYPES[dtype], tool=_TOOL
            ).encode()
            say("writing")
            path = made / (f"{signature.name}.onnx" if is_folder(out) else out.name)
            if merge is None:
                save(graph, path)
            else:
                merge.save(graph, path)
        if merge is not None:
            merge.require_all()
        if is_folder(out):
            write_companions(model, made)
        sizes = _sizes(made)
    return ExportReport(
        files=_places_of(sizes, out),
        task=model.task,
        dtype=DTYPES[dtype],
        inputs=_union(signature.input_names for signature in signatures),
        outputs=_union(signature.output_names for signature in signatures),
        tensors=len(placed),
        merged=0 if adapter is None else len(adapter.targets),
        unused=(*unused, *sorted(checkpoint.keys() - placed)),
        nbytes=sum(sizes.values()),
        notes=(_BFLOAT16,) if DTYPES[dtype] == "BF16" else (),
    )


def export_module(
    module: torch.nn.Module,
    examples: Sequence[Any],
    out: Path,
    *,
    input_names: Sequence[str],
    output_names: Sequence[str],
    dynamic_shapes: Sequence[Any] | None = None,
    overwrite: bool = False,
) -> ExportReport:
    """Export any module, the UNet or transformer of a diffusion model for example.

    The names of its base tensors are those of its ``state_dict``; where those are diffusers' names, so are the
    targets of adapters that diffusers and PEFT write.

    Args:
        module: traced in evaluation mode; its outputs must be tensors, or tuples and dataclasses of tensors.
        examples: positional inputs to trace with.
        out: the ``.onnx`` to write.
        input_names: names of the graph's inputs.
        output_names: names of the graph's outputs.
        dynamic_shapes: the free axes of each input, as ``torch.export`` takes them; None for fixed shapes.
        overwrite: whether ``out`` may exist.

    Raises:
        ConflictError: ``out`` exists and ``overwrite`` is false.
        UnsupportedError: the exporter cannot trace the module.
        UsageError: ``out`` is no name of an ``.onnx`` file.
        MissingPackageError: torch, onnxscript or onnx-ir is not installed.
        MachineError: the files cannot be written.
    """
    for package in ("torch", "onnxscript", "onnx_ir"):
        require(package, "export")
    from lora_registry.runtime.onnx_write import clean, save
    from lora_registry.runtime.trace import places, trace

    if is_folder(out):
        raise UsageError(f"{out}: a module is one graph; give a name that ends in .onnx")
    check_free(out, overwrite=overwrite)
    training = module.training
    try:
        graph = trace(
            module.eval(), tuple(examples), input_names, output_names, dynamic_shapes, what=type(module).__name__
        )
    finally:
        module.train(training)
    clean(graph)
    held = places(graph, module, {name: name for name in named_tensors(module)})
    dtype = BY_TORCH[str(next(module.parameters()).dtype).removeprefix("torch.")].name
    graph.metadata_props[KEY] = Manifest(tensors=held, dtype=dtype, tool=_TOOL).encode()
    with publishing(out) as made:
        save(graph, made / out.name)
        sizes = _sizes(made)
    return ExportReport(
        files=_places_of(sizes, out),
        task=None,
        dtype=dtype,
        inputs=tuple(str(value.name) for value in graph.graph.inputs),
        outputs=tuple(str(value.name) for value in graph.graph.outputs),
        tensors=len(held),
        unused=(),
        nbytes=sum(sizes.values()),
    )


def _sizes(folder: Path) -> dict[str, int]:
    """The files of a folder and their sizes: by name, so that a graph comes before its data."""
    return {path.name: path.stat().st_size for path in sorted(folder.iterdir())}


def _places_of(names: Iterable[str], out: Path) -> tuple[Path, ...]:
    return tuple((out if is_folder(out) else out.parent) / name for name in names)


def _union(groups: Iterable[Sequence[str]]) -> tuple[str, ...]:
    """Each name once, where it came first."""
    return tuple(dict.fromkeys(name for group in groups for name in group))
