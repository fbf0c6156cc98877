"""A session runs where it was asked to run, or there is no session."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from exported_models import Exported

from lora_registry.errors import InvalidInputError, MachineError, MissingPackageError, NotFoundError, UsageError
from lora_registry.runtime import ort
from lora_registry.runtime.packages import require
from lora_registry.runtime.probe_model import matmul_model

Get = Callable[[str], Exported]


def test_the_probe_is_a_valid_model() -> None:
    """The bytes that are written without the onnx package are what the onnx package calls a model."""
    onnx.checker.check_model(onnx.load_from_string(matmul_model()), full_check=True)


def test_the_cpu_provider_is_proved() -> None:
    """The CPU provider passes the proof that every provider must pass."""
    ort.prove("CPUExecutionProvider")


@pytest.mark.skipif(
    "CUDAExecutionProvider" in onnxruntime.get_available_providers(), reason="this wheel has the provider"
)
def test_cuda_without_the_wheel_is_refused(exported: Get) -> None:
    """Asked for CUDA, a CPU-only wheel is an error with the line that mends it, never a slow success."""
    with pytest.raises(MachineError, match=r"no CUDAExecutionProvider; pip install 'loreg\[gpu\]'"):
        ort.open_session(exported("bert").path, provider="cuda")


def test_a_provider_that_falls_back_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """A wheel that lists a provider which then does not start is found out (a GPU wheel without a GPU does this)."""
    available = [*onnxruntime.get_available_providers(), "CUDAExecutionProvider"]
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: available)
    if "CUDAExecutionProvider" in onnxruntime.InferenceSession(matmul_model()).get_providers():
        pytest.skip("CUDA runs here")
    with pytest.raises(MachineError, match="does not run on this machine"):
        ort.prove("CUDAExecutionProvider")


def test_unknown_providers_are_named() -> None:
    """A provider that loreg does not know is a usage error that lists those it knows."""
    with pytest.raises(UsageError, match="no provider 'tpu'; there is cpu and cuda"):
        ort.open_session(Path("any.onnx"), provider="tpu")


def test_missing_and_broken_files(tmp_path: Path) -> None:
    """No file and no model are two different errors, one line each."""
    with pytest.raises(NotFoundError, match="no such file"):
        ort.open_session(tmp_path / "none.onnx")
    (tmp_path / "junk.onnx").write_bytes(b"junk")
    with pytest.raises(InvalidInputError, match=r"junk\.onnx: ONNX Runtime cannot load it"):
        ort.open_session(tmp_path / "junk.onnx")


def test_wrong_feeds_are_invalid_input(exported: Get) -> None:
    """What ONNX Runtime refuses at run time comes as loreg's error."""
    session = ort.open_session(exported("bert").path, threads=1)
    with pytest.raises(InvalidInputError, match="ONNX Runtime"):
        ort.run(session, {"input_ids": np.zeros((1, 2), dtype=np.float32)})


def test_a_missing_package_names_its_extra() -> None:
    """An absent package is reported with the line that installs it."""
    with pytest.raises(MissingPackageError, match=r"pip install 'loreg\[ort\]'"):
        require("a_package_that_is_not_there", "ort")
