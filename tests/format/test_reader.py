"""Reading looks at the header only, and what it reads is what every safetensors reader reads."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import ml_dtypes  # noqa: F401  (gives numpy the bfloat16 that the reference library asks it for)
import numpy as np
import pytest
import safetensors
from safetensors.numpy import load_file, save_file

from lora_registry.adapter import Adapter, Kind, Target, Tensor
from lora_registry.dtypes import DTYPES
from lora_registry.errors import InvalidInputError, NotFoundError
from lora_registry.format.container import open_container
from lora_registry.format.identity import content_digest
from lora_registry.format.reader import SUFFIX, check_file, is_native, read_adapter
from lora_registry.format.writer import write_adapter


@pytest.fixture
def native(adapter: Adapter, tmp_path: Path) -> Path:
    """The sample adapter as a native file."""
    path = tmp_path / f"sample{SUFFIX}"
    write_adapter(adapter, path)
    return path


def test_tensors_outlive_the_container_and_the_name(native: Path) -> None:
    """A tensor stays readable when its container is gone and its file has been unlinked."""
    with open_container(native) as container:
        tensor = container.tensor("norm.weight/value")
    before = bytes(tensor.data)
    del container
    native.unlink()
    assert bytes(tensor.data) == before
    assert isinstance(tensor.data, memoryview)
    assert tensor.data.readonly


def test_the_reference_library_reads_native_files(native: Path, adapter: Adapter) -> None:
    """The public safetensors package opens a native file and gives the same arrays."""
    arrays = load_file(native)
    expected = {f"{target.name}/{role}": tensor for target in adapter for role, tensor in target.tensors.items()}
    assert set(arrays) == set(expected)
    for key, tensor in expected.items():
        assert arrays[key].dtype == np.dtype(DTYPES[tensor.dtype].numpy)
        assert arrays[key].shape == tensor.shape
        assert arrays[key].tobytes() == bytes(tensor.data)
    with safetensors.safe_open(native, framework="numpy") as opened:
        assert set(opened.metadata()) == {"loreg"}


def test_a_file_written_by_the_reference_library(native: Path, tmp_path: Path) -> None:
    """Rewritten by the safetensors package, bytes and header order differ and the content digest does not."""
    container = open_container(native)
    other = tmp_path / "other.safetensors"
    save_file(load_file(native), other, metadata=container.metadata)
    assert other.read_bytes() != native.read_bytes()
    assert list(open_container(other).entries) != list(container.entries)
    assert check_file(other) == []
    assert content_digest(read_adapter(other)) == content_digest(read_adapter(native))


def test_tensors_in_any_order(native: Path, tmp_path: Path) -> None:
    """Header and data in the opposite order, and white space in the header, are the same adapter."""
    container = open_container(native)
    header: dict[str, object] = {}
    data = b""
    for key in reversed(container.entries):
        tensor = container.tensor(key)
        offsets = [len(data), len(data) + tensor.nbytes]
        data += bytes(tensor.data)
        header[key] = {"shape": tensor.shape, "data_offsets": offsets, "dtype": tensor.dtype}
    header["__metadata__"] = container.metadata
    text = json.dumps(header, indent=1).encode()
    other = tmp_path / f"reversed{SUFFIX}"
    other.write_bytes(len(text).to_bytes(8, "little") + text + data)
    assert check_file(other) == []
    assert content_digest(read_adapter(other)) == content_digest(read_adapter(native))


def test_every_flipped_byte_of_the_data_is_found(native: Path) -> None:
    """check_file finds one changed byte anywhere in the data, and says in which tensor; read_adapter does not look."""
    sound = native.read_bytes()
    start = open_container(native).data_start
    for position in range(start, len(sound), 7):
        native.write_bytes(sound[:position] + bytes([sound[position] ^ 1]) + sound[position + 1 :])
        (finding,) = check_file(native)
        assert finding.rule == "R-035"
        assert finding.place.startswith("targets/")
        read_adapter(native)


def test_findings_of_a_broken_container(native: Path) -> None:
    """check_file returns findings where read_adapter raises them."""
    native.write_bytes(native.read_bytes()[:-1])
    assert [finding.rule for finding in check_file(native)] == ["R-003"]
    with pytest.raises(InvalidInputError, match="R-003"):
        read_adapter(native)


def test_is_native(native: Path, tmp_path: Path, make_file: Callable[..., Path]) -> None:
    """Native is what has loreg's metadata key, also where its tensors are broken; without a header the name counts."""
    assert is_native(native)
    cut = tmp_path / "cut.safetensors"
    cut.write_bytes(native.read_bytes()[:-1])
    assert is_native(cut)
    foreign = make_file(None, {"t": Tensor("U8", (1,), b"1")}, metadata={"format": "pt"})
    assert not is_native(foreign)
    broken = tmp_path / f"broken{SUFFIX}"
    broken.write_bytes(b"broken")
    assert is_native(broken)
    assert not is_native(broken.rename(tmp_path / "broken.safetensors"))
    assert not is_native(tmp_path)
    assert not is_native(tmp_path / "none")


def test_missing_file(tmp_path: Path) -> None:
    """A file that is not there is not found, which is not the same as invalid."""
    for function in (read_adapter, check_file):
        with pytest.raises(NotFoundError):
            function(tmp_path / "none")


def test_unknown_fields_survive(make_file: Callable[..., Path], tmp_path: Path) -> None:
    """Fields of a later minor version are kept when a file is read and written back."""
    value = Tensor("F32", (1,), bytes(4))
    record = {"kind": "full", "shape": [1], "tensors": {"value": str(value.digest())}, "later": {"x": [1, None]}}
    document = {"loreg": 1, "targets": {"w": record}, "later": 0.5, "base": {"name": "b", "later": "y"}}
    adapter = read_adapter(make_file(document, {"w/value": value}))
    assert (adapter.extra, adapter.base.extra) == ({"later": 0.5}, {"later": "y"})
    assert adapter.target("w").extra == {"later": {"x": [1, None]}}
    path = tmp_path / "again.safetensors"
    write_adapter(adapter, path)
    assert json.loads(open_container(path).metadata["loreg"]) == document


def test_kind_and_layout_are_read(native: Path) -> None:
    """What is read says the same as what was written, field by field."""
    target = read_adapter(native).target("conv.weight")
    assert (target.kind, target.layout, target.shape) == (Kind.CONV, ("out", "in", "k", "k"), (4, 3, 3, 3))
    assert (target.groups, target.rank, target.scale) == (2, 2, 1.0)
    assert isinstance(target, Target)
