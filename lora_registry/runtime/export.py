"""PyTorch to ONNX with names that stay: ``torch.onnx.export(dynamo=True, optimize=False)``.

The exporter's optimizer folds weights into transposed copies under new names, merges equal ones and drops
zero biases. Without it each parameter is one initializer of the same name; ONNX Runtime folds when it loads.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lora_registry import __version__
from lora_registry.adapter import Json
from lora_registry.dtypes import BY_TORCH
from lora_registry.errors import IntegrityError, UnsupportedError
from lora_registry.onnx.manifest import KEY, Manifest, Place
from lora_registry.runtime.names import named_tensors, proven_names
from lora_registry.runtime.packages import require
from lora_registry.runtime.quiet import quiet
from lora_registry.runtime.torch_model import DTYPES, first_line, load

if TYPE_CHECKING:
    import onnx_ir as ir
    import torch

Say = Callable[[str], None]
"""Told in a word what is going on: torch does not tell how far a trace is, so there is nothing to count."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportReport:
    """What an export wrote.

    Attributes:
        files: the ``.onnx``, then its data file if it has one.
        task: what the model computes; None for a bare module.
        dtype: element type of the weights, safetensors name.
        inputs: names of the graph's inputs.
        outputs: names of the graph's outputs.
        tensors: number of base tensors that the manifest places.
        unused: tensors of the checkpoint that no initializer holds as they are: heads that the model does not
            have, or experts that transformers stacks.
        nbytes: size of the files together.
    """

    files: tuple[Path, ...]
    task: str | None
    dtype: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    tensors: int
    unused: tuple[str, ...]
    nbytes: int

    def to_json(self) -> dict[str, Json]:
        """The report as a JSON object."""
        plain = asdict(self)
        return {
            key: [str(item) for item in value] if isinstance(value, tuple) else value for key, value in plain.items()
        }

    def lines(self) -> list[tuple[str, object]]:
        """Name and value of what people want to know."""
        return [
            ("files", ", ".join(path.name for path in self.files)),
            ("bytes", self.nbytes),
            ("task", self.task),
            ("dtype", self.dtype),
            ("inputs", _shortened(self.inputs)),
            ("outputs", _shortened(self.outputs)),
            ("base tensors", self.tensors),
            ("not placed", _counted(self.unused)),
        ]


def _shortened(names: tuple[str, ...]) -> str:
    """The names, with those of the KV cache counted."""
    plain = [name for name in names if not name.startswith(("past_key_values.", "present."))]
    cache = len(names) - len(plain)
    return ", ".join(plain) + (f" and {cache} of the KV cache" if cache else "")


def _counted(names: tuple[str, ...]) -> str:
    """The first name, and how many follow."""
    return f"{names[0]} ({len(names)} in all)" if len(names) > 1 else "".join(names)


def export_model(
    folder: Path, out: Path, *, dtype: str = "float32", overwrite: bool = False, progress: Say | None = None
) -> ExportReport:
    """Export a Hugging Face folder.

    Decoders take ``input_ids``, ``attention_mask`` (over past and new tokens), ``position_ids`` and
    ``past_key_values.{i}.key``/``.value``, and give ``logits`` and ``present.{i}.key``/``.value``; encoders
    and classifiers take ``input_ids``, ``attention_mask`` and, where they have types, ``token_type_ids``.
    Batch, sequence and past lengths are free; past may be 0.

    Args:
        folder: ``config.json`` and safetensors.
        out: the ``.onnx`` to write; large weights go to ``<out>.data`` beside it.
        dtype: one of :data:`lora_registry.runtime.torch_model.DTYPES`.
        overwrite: whether ``out`` may exist.
        progress: called with a word on what is being done.

    Raises:
        ConflictError: ``out`` exists and ``overwrite`` is false.
        UnsupportedError: the model is none that loreg or the exporter handles.
        InvalidInputError, NotFoundError: the folder is broken or missing.
        MissingPackageError: torch, transformers, onnxscript or onnx-ir is not installed.
        MachineError: the files cannot be written.
    """
    for package in ("torch", "transformers", "onnxscript", "onnx_ir"):
        require(package, "export")
    from lora_registry.runtime import onnx_write
    from lora_registry.runtime.signature import INNER, signature_of

    say = progress or (lambda _: None)
    onnx_write.check_free(out, overwrite=overwrite)
    say("loading")
    model = load(folder, dtype=dtype)
    signature = signature_of(model)
    say("tracing")
    graph = _trace(
        signature.view.eval(),
        signature.examples,
        signature.input_names,
        signature.output_names,
        signature.dynamic_shapes,
        what=f"{folder}: {model.architecture}",
    )
    onnx_write.clean(graph, INNER)
    say("comparing weights")
    checkpoint, unused = proven_names(folder, model.module)
    places = _places(graph, model.module, checkpoint)
    unused += tuple(sorted(checkpoint.keys() - places.keys()))
    manifest = Manifest(tensors=places, task=model.task, dtype=DTYPES[dtype], tool=_tool())
    say("writing")
    return _finish(graph, out, manifest, unused=unused, overwrite=overwrite)


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
    """Export any module; the names of its base tensors are those of its ``state_dict``.

    Args:
        module: traced in evaluation mode.
        examples: positional inputs to trace with.
        out: the ``.onnx`` to write.
        input_names: names of the graph's inputs.
        output_names: names of the graph's outputs.
        dynamic_shapes: the free axes of each input, as ``torch.export`` takes them; None for fixed shapes.
        overwrite: whether ``out`` may exist.

    Raises:
        ConflictError: ``out`` exists and ``overwrite`` is false.
        UnsupportedError: the exporter cannot trace the module.
        MissingPackageError: torch, onnxscript or onnx-ir is not installed.
        MachineError: the files cannot be written.
    """
    for package in ("torch", "onnxscript", "onnx_ir"):
        require(package, "export")
    from lora_registry.runtime import onnx_write

    onnx_write.check_free(out, overwrite=overwrite)
    training = module.training
    try:
        graph = _trace(
            module.eval(), tuple(examples), input_names, output_names, dynamic_shapes, what=type(module).__name__
        )
    finally:
        module.train(training)
    onnx_write.clean(graph)
    places = _places(graph, module, {name: name for name in named_tensors(module)})
    dtype = str(next(module.parameters()).dtype).removeprefix("torch.")
    manifest = Manifest(tensors=places, dtype=BY_TORCH[dtype].name, tool=_tool())
    return _finish(graph, out, manifest, unused=(), overwrite=overwrite)


def _trace(
    module: torch.nn.Module,
    examples: tuple[Any, ...],
    input_names: Sequence[str],
    output_names: Sequence[str],
    dynamic_shapes: Any,
    *,
    what: str,
) -> ir.Model:
    import torch

    try:
        with quiet(), torch.no_grad():
            program = torch.onnx.export(
                module,
                examples,
                dynamo=True,
                optimize=False,
                verbose=False,
                input_names=list(input_names),
                output_names=list(output_names),
                dynamic_shapes=None if dynamic_shapes is None else tuple(dynamic_shapes),
            )
    except (torch.onnx.errors.OnnxExporterError, RuntimeError, ValueError, TypeError, AttributeError) as error:
        raise UnsupportedError(f"{what} cannot be exported: {first_line(error.__cause__ or error)}") from error
    assert program is not None
    return program.model


def _places(graph: ir.Model, module: torch.nn.Module, checkpoint: Mapping[str, str]) -> dict[str, Place]:
    """Where each tensor of the checkpoint is in the graph; ties share a place, unused ones have none.

    What transformers makes on loading and the checkpoint does not have (the other name of a tied tensor,
    experts stacked into one) is placed under the module's name for it, which is the name adapters use.
    """
    import torch

    tensors = named_tensors(module)
    initializers = graph.graph.initializers
    holder = {id(tensor): name for name, tensor in tensors.items() if name in initializers}
    made = (module.state_dict().keys() & tensors.keys()) - set(checkpoint.values())
    places = {}
    for base_name, name in {**{name: name for name in sorted(made)}, **checkpoint}.items():
        initializer = holder.get(id(tensors[name]))
        if initializer is None:
            continue
        value = initializers[initializer].const_value
        if value is None or not torch.equal(torch.from_numpy(value.numpy().copy()), tensors[name].detach()):
            raise IntegrityError(f"the exporter changed {name}: the initializer {initializer} has other values")
        places[base_name] = Place(initializer)
    return places


def _finish(
    graph: ir.Model, out: Path, manifest: Manifest, *, unused: tuple[str, ...], overwrite: bool
) -> ExportReport:
    from lora_registry.runtime import onnx_write

    graph.metadata_props[KEY] = manifest.encode()
    files = tuple(onnx_write.write(graph, out, overwrite=overwrite))
    assert manifest.dtype is not None
    return ExportReport(
        files=files,
        task=manifest.task,
        dtype=manifest.dtype,
        inputs=tuple(str(value.name) for value in graph.graph.inputs),
        outputs=tuple(str(value.name) for value in graph.graph.outputs),
        tensors=len(manifest.tensors),
        unused=unused,
        nbytes=sum(path.stat().st_size for path in files),
    )


def _tool() -> str:
    return f"loreg {__version__}"
