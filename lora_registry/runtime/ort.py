"""ONNX Runtime sessions that run where they were asked to run, or not at all.

Asked for CUDA on a machine without, ONNX Runtime logs a line and computes on the CPU. :func:`open_session`
proves the provider first (one MatMul with the fallback switched off) and looks at the placement after.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from lora_registry.errors import InvalidInputError, MachineError, NotFoundError, UnsupportedError, UsageError
from lora_registry.runtime.packages import require
from lora_registry.runtime.probe_model import SIDE, matmul_model
from lora_registry.runtime.quiet import quiet
from lora_registry.runtime.torch_model import first_line

PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}
"""What users say, and what ONNX Runtime calls it."""

_OPTIONS: dict[str, dict[str, str]] = {
    # float32 means float32: TensorFloat-32 keeps 10 bits of mantissa and misses every float32 tolerance
    "CUDAExecutionProvider": {"use_tf32": "0"},
}

BFLOAT16 = 16  # onnx.TensorProto.BFLOAT16

_HEAVY = frozenset(
    {
        "Attention",
        "Conv",
        "ConvTranspose",
        "Einsum",
        "Gemm",
        "GroupQueryAttention",
        "LayerNormalization",
        "MatMul",
        "MatMulInteger",
        "MatMulNBits",
        "MultiHeadAttention",
        "Softmax",
    }
)
"""Operators that must not be left to the CPU when another provider was asked for. Shape arithmetic may be."""

_ERRORS = (
    "EPFail",
    "EngineError",
    "Fail",
    "InvalidArgument",
    "InvalidGraph",
    "InvalidProtobuf",
    "NoSuchFile",
    "NotImplemented",
    "RuntimeException",
)


def onnxruntime() -> Any:
    """The module, with CUDA's libraries found where pip puts them.

    Raises:
        MissingPackageError: no onnxruntime wheel is installed.
        MachineError: what is installed is the empty shell that removing one of two wheels leaves.
    """
    module = require("onnxruntime", "ort")
    if not hasattr(module, "InferenceSession"):
        raise MachineError(
            "onnxruntime is an empty folder: one of two wheels was removed; "
            "pip install --force-reinstall --no-deps onnxruntime-gpu (or onnxruntime)"
        )
    return module


def errors_of(module: Any) -> tuple[type[Exception], ...]:
    """The exceptions that ``onnxruntime`` raises; they share no base but Exception."""
    state = module.capi.onnxruntime_pybind11_state
    return tuple(getattr(state, name) for name in _ERRORS if hasattr(state, name))


def open_session(
    path: Path,
    *,
    provider: str = "cpu",
    threads: int | None = None,
    graph: bytes | None = None,
    initializers: Mapping[str, Any] = MappingProxyType({}),
) -> Any:
    """Open an ONNX file on a provider that provably runs.

    Args:
        path: the ``.onnx`` file.
        provider: a key of :data:`PROVIDERS`.
        threads: threads within an operator; None for ONNX Runtime's choice.
        graph: a serialized model to run instead of the one in the file; its external data are those of the file.
        initializers: name to the ``OrtValue`` that takes the place of an initializer with external data. (ONNX Runtime
            1.32 also has ``add_initializer`` for those in the graph itself; where an optimizer folds one, into its
            transpose for example, it folds the old values, and the new ones are ignored in silence.)

    Returns:
        An ``onnxruntime.InferenceSession``. On CUDA, float32 is computed as float32, without TF32. It keeps
        ``initializers``, which ONNX Runtime borrows.

    Raises:
        UsageError: no such provider.
        NotFoundError: no such file.
        InvalidInputError: ONNX Runtime cannot load the file.
        MachineError: the provider does not run here, or left heavy operators to the CPU.
        MissingPackageError: no onnxruntime wheel is installed.
    """
    name = provider_name(provider)
    ort = onnxruntime()
    if not path.is_file():
        raise NotFoundError(f"no such file: {path}")
    if provider != "cpu":
        prove(name)
    options = _options(ort, threads=threads)
    options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
    if graph is not None:
        folder = str(path.resolve().parent)
        options.add_session_config_entry("session.model_external_initializers_file_folder_path", folder)
    if initializers:
        options.add_external_initializers(list(initializers), list(initializers.values()))
    try:
        session = _session(ort, str(path) if graph is None else graph, options, name)
        session.loreg_holds = tuple(initializers.values())
    except errors_of(ort) as error:
        raise InvalidInputError(f"{path}: ONNX Runtime cannot load it: {first_line(error)}") from error
    if session.get_providers()[0] != name:
        raise MachineError(f"{path}: asked for {name}, got {session.get_providers()[0]}")
    left = _heavy_on_cpu(session) if provider != "cpu" else []
    if left:
        raise MachineError(
            f"{path}: {name} left {len(left)} heavy operators to the CPU: {', '.join(sorted(set(left)))}"
        )
    return session


def provider_name(provider: str) -> str:
    """ONNX Runtime's name of a provider.

    Raises:
        UsageError: loreg knows no such provider.
    """
    if provider not in PROVIDERS:
        raise UsageError(f"no provider {provider!r}; there is {' and '.join(PROVIDERS)}")
    return PROVIDERS[provider]


def prove(name: str) -> None:
    """Run one MatMul on a provider with no way out, and compare the result.

    Args:
        name: ONNX Runtime's name of the provider.

    Raises:
        MachineError: it is not in the installed wheel, does not start, or computes something else.
        MissingPackageError: no onnxruntime wheel is installed.
    """
    ort = onnxruntime()
    import numpy as np

    if name not in ort.get_available_providers():
        hint = "; pip install 'loreg[gpu]'" if name == PROVIDERS["cuda"] else ""
        raise MachineError(f"onnxruntime {ort.__version__} has no {name}{hint}")
    options = _options(ort, threads=1)
    if name != PROVIDERS["cpu"]:
        options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
    x = np.arange(SIDE * SIDE, dtype=np.float32).reshape(SIDE, SIDE)
    try:
        session = _session(ort, matmul_model(), options, name)
        (y,) = session.run(None, {"x": x})
    except errors_of(ort) as error:
        raise MachineError(f"{name} does not run on this machine: {first_line(error)}") from error
    if session.get_providers()[0] != name:
        raise MachineError(f"{name} does not run on this machine: ONNX Runtime fell back to the CPU")
    if not np.allclose(y, x @ x, rtol=1e-5):
        raise MachineError(f"{name} computes wrongly on this machine: one MatMul is off by {np.abs(y - x @ x).max()}")


def run(session: Any, feeds: dict[str, Any], names: list[str] | None = None) -> dict[str, Any]:
    """Run a session; outputs by name.

    Args:
        session: what :func:`open_session` gave.
        feeds: numpy arrays by input name.
        names: outputs to compute; None for all.

    Raises:
        InvalidInputError: the feeds do not fit the model, or an operator failed.
        UnsupportedError: a kernel is missing in this provider.
    """
    ort = onnxruntime()
    refusals: tuple[type[Exception], ...] = (ValueError, *errors_of(ort))  # ValueError: an input is missing
    names = names or [output.name for output in session.get_outputs()]
    try:
        return dict(zip(names, session.run(names, feeds), strict=True))
    except ort.capi.onnxruntime_pybind11_state.NotImplemented as error:
        raise UnsupportedError(f"ONNX Runtime has no kernel: {first_line(error)}") from error
    except refusals as error:
        raise InvalidInputError(f"ONNX Runtime: {first_line(error)}") from error


def value_of(array: Any, *, provider: str = "cpu") -> Any:
    """An ``OrtValue`` with the elements of a numpy array, on the device of a provider.

    Args:
        array: in row-major order; bfloat16 by ml_dtypes. On the CPU its memory is used, not copied.
        provider: a key of :data:`PROVIDERS`.
    """
    ort = onnxruntime()
    if array.dtype.name == "bfloat16":  # numpy has no such type, and only the CPU's maker takes the number of ONNX's
        return ort.OrtValue.ortvalue_from_numpy_with_onnx_type(array, BFLOAT16)
    return ort.OrtValue.ortvalue_from_numpy(array, provider, 0)


def _options(ort: Any, *, threads: int | None) -> Any:
    options = ort.SessionOptions()
    options.log_severity_level = 4  # what matters is raised; the rest is noise on stderr
    if threads is not None:
        options.intra_op_num_threads = threads
    return options


def _session(ort: Any, model: str | bytes, options: Any, name: str) -> Any:
    if name == PROVIDERS["cuda"] and hasattr(ort, "preload_dlls"):
        with quiet():
            ort.preload_dlls()  # prints what it misses; the session says it better
    with quiet():
        return ort.InferenceSession(model, options, providers=[(name, _OPTIONS.get(name, {}))])


def _heavy_on_cpu(session: Any) -> list[str]:
    """Operator types of the nodes that ONNX Runtime placed on the CPU; empty where the version does not tell."""
    if not hasattr(session, "get_provider_graph_assignment_info"):
        return []
    cpu = [part for part in session.get_provider_graph_assignment_info() if part.ep_name == PROVIDERS["cpu"]]
    return [node.op_type for part in cpu for node in part.get_nodes() if node.op_type in _HEAVY]
