"""adapter_model.bin: read without torch, and without running anything in it."""

from __future__ import annotations

import io
import os
import pickle
import subprocess
import sys
import zipfile
from collections import OrderedDict
from pathlib import Path

import pytest
import torch
from loreg_converters.peft import converter
from safetensors.torch import load_file

from lora_registry.convert.pickled import read_pickled
from lora_registry.errors import InvalidInputError, UnsupportedError


@pytest.fixture
def as_bin(saved: Path) -> Path:
    """The saved adapter with its tensors in a .bin file."""
    tensors = load_file(saved / "adapter_model.safetensors")
    torch.save(OrderedDict(tensors), saved / "adapter_model.bin")
    return saved


def test_bin_is_the_same_adapter_as_safetensors(as_bin: Path) -> None:
    """The same targets with the same bytes; where both files are there, PEFT's preference is kept and told."""
    plain, report = converter.read(as_bin)
    assert [entry.subject for entry in report.entries] == ["adapter_model.bin"]
    (as_bin / "adapter_model.safetensors").unlink()
    adapter, _ = converter.read(as_bin)
    assert [target.name for target in adapter] == [target.name for target in plain]
    for target in adapter:
        for role, tensor in target.tensors.items():
            assert bytes(tensor.data) == bytes(plain.target(target.name).tensors[role].data)


@pytest.mark.parametrize(
    "dtype",
    [
        torch.float64,
        torch.float32,
        torch.float16,
        torch.bfloat16,
        torch.float8_e4m3fn,
        torch.int64,
        torch.uint8,
        torch.bool,
    ],
)
def test_every_dtype_and_any_strides(tmp_path: Path, dtype: torch.dtype) -> None:
    """Views, transposes, shared storages and parameters come out as torch would give them."""
    whole = (torch.rand(4, 6) * 3).to(dtype)
    state: dict[str, torch.Tensor] = {"whole": whole, "part": whole[1:3], "turned": whole.T, "some": whole[::2, 1]}
    if dtype is torch.float32:
        state["parameter"] = torch.nn.Parameter(whole)
    torch.save(state, tmp_path / "a.bin")
    read = read_pickled(tmp_path / "a.bin")
    for name, tensor in state.items():
        flat = tensor.detach().contiguous().view(torch.uint8).numpy().tobytes()
        assert (read[name].shape, bytes(read[name].data)) == (tuple(tensor.shape), flat)


class Evil:
    """Pickles to a call."""

    def __init__(self, call: object, *arguments: object) -> None:
        self.call = call
        self.arguments = arguments

    def __reduce__(self) -> tuple[object, tuple[object, ...]]:
        return self.call, self.arguments


def zipped(path: Path, program: bytes, compression: int = zipfile.ZIP_STORED, **members: bytes) -> Path:
    """A zip file laid out as torch does it."""
    with zipfile.ZipFile(path, "w", compression) as archive:
        archive.writestr("archive/data.pkl", program)
        for name, data in members.items():
            archive.writestr(f"archive/{name}", data)
    return path


@pytest.mark.parametrize("zip_it", [True, False])
def test_os_system_is_refused_and_not_run(saved: Path, tmp_path: Path, zip_it: bool) -> None:
    """A pickle that wants to run a command is one clear line, and the command is not run."""
    (saved / "adapter_model.safetensors").unlink()
    mark = tmp_path / "ran"
    program = pickle.dumps({"x": Evil(os.system, f"touch {mark}")})
    if zip_it:
        zipped(saved / "adapter_model.bin", program)
    else:
        (saved / "adapter_model.bin").write_bytes(program)
    with pytest.raises(InvalidInputError, match=r"posix\.system|nothing in it was run") as caught:
        converter.read(saved)
    assert "\n" not in str(caught.value)
    assert not mark.exists()


@pytest.mark.parametrize(
    "call",
    [eval, getattr, __import__, subprocess.Popen, sys.exit, pickle.loads, torch.load, torch.tensor, Path],
)
def test_no_other_name_can_be_called(tmp_path: Path, call: object) -> None:
    """Only the names of a state dict exist; not even torch's other functions do."""
    with pytest.raises(InvalidInputError, match="wants to call"):
        read_pickled(zipped(tmp_path / "a.bin", pickle.dumps({"x": Evil(call, "1")})))


@pytest.mark.parametrize("program", [bytearray(b"x"), b"bytes", {1, 2}, 1 << 3000, pickle.PickleBuffer(b"x")])
def test_other_opcodes_are_refused_before_anything_runs(tmp_path: Path, program: object) -> None:
    """A state dict needs a few dozen opcodes; a damaged one of the others can upset the interpreter itself."""
    with pytest.raises(InvalidInputError, match="which no state dict does"):
        read_pickled(zipped(tmp_path / "a.bin", pickle.dumps({"x": program}, 5)))


def test_format_from_before_torch_1_6_is_refused_by_name(tmp_path: Path) -> None:
    """The old format is a bare sequence of pickles."""
    torch.save({"x": torch.zeros(2)}, tmp_path / "a.bin", _use_new_zipfile_serialization=False)
    with pytest.raises(UnsupportedError, match=r"before 1\.6"):
        read_pickled(tmp_path / "a.bin")


def test_compressed_members_are_refused(tmp_path: Path) -> None:
    """torch stores members as they are; anything else could be a bomb."""
    program = pickle.dumps({"x": "0" * 100_000})
    with pytest.raises(InvalidInputError, match="compressed"):
        read_pickled(zipped(tmp_path / "a.bin", program, zipfile.ZIP_DEFLATED))


def rebuilt(offset: object, size: object, stride: object, count: int = 4) -> bytes:
    """The program of a state dict with one tensor of those lengths over a storage of four floats."""
    stub = Evil(torch._utils._rebuild_tensor_v2, None, offset, size, stride, False, OrderedDict())

    class Pickler(pickle.Pickler):
        def persistent_id(self, value: object) -> object:
            return ("storage", torch.FloatStorage, "0", "cpu", count) if value is None else None

    stream = io.BytesIO()
    Pickler(stream, 2).dump({"x": stub})
    return stream.getvalue()


@pytest.mark.parametrize(
    ("offset", "size", "stride"),
    [
        (0, (5,), (1,)),
        (1, (4,), (1,)),
        (0, (1000000, 1000000), (0, 0)),
        (0, (2, 2), (1,)),
        (-1, (1,), (1,)),
        (0, (2,), (-1,)),
        ("0", (2,), (1,)),
        (0, 7, (1,)),
        (0, (1,) * 9, (1,) * 9),
        (0, (2**62,), (2**62,)),
    ],
)
def test_tensors_beyond_their_storage_are_refused(tmp_path: Path, offset: object, size: object, stride: object) -> None:
    """Lengths, offsets and strides are checked against the bytes that are there."""
    data = {"data/0": bytes(16)}
    assert bytes(read_pickled(zipped(tmp_path / "ok.bin", rebuilt(0, (4,), (1,)), **data))["x"].data) == bytes(16)
    with pytest.raises(InvalidInputError, match="damaged"):
        read_pickled(zipped(tmp_path / "a.bin", rebuilt(offset, size, stride), **data))


def over_floats(path: Path, state: object) -> Path:
    """A file with ``state``, in which None as an argument stands for one storage of 1024 floats."""

    class Pickler(pickle.Pickler):
        def persistent_id(self, value: object) -> object:
            return ("storage", torch.FloatStorage, "0", "cpu", 1024) if value is None else None

    stream = io.BytesIO()
    Pickler(stream, 2).dump(state)
    return zipped(path, stream.getvalue(), zipfile.ZIP_STORED, **{"data/0": bytes(4096)})


def row(stride: int) -> Evil:
    """What torch pickles for 1024 floats, or for as many that reach over the storage with that stride."""
    return Evil(torch._utils._rebuild_tensor_v2, None, 0, (1024 // stride,), (stride,), False, OrderedDict())


class Altered(Evil):
    """Pickles to a call whose result is then given other fields."""

    state: object = ["F32", (1 << 31, 1 << 31), "bytes"]

    def __reduce__(self) -> tuple[object, ...]:  # type: ignore[override]
        return self.call, self.arguments, self.state


class Robbed(Altered):
    """Pickles to a mapping of one tensor that loses its methods afterwards."""

    state = {"keys": 1, "items": 1}  # noqa: RUF012

    def __reduce__(self) -> tuple[object, ...]:  # type: ignore[override]
        return OrderedDict, ([("x", row(1))],), self.state


def test_fields_cannot_be_set_from_outside(tmp_path: Path) -> None:
    """A pickle cannot give a checked tensor another shape, nor take the methods of the mapping away."""
    tensor = row(1)
    with pytest.raises(InvalidInputError, match="set from outside"):
        read_pickled(over_floats(tmp_path / "a.bin", {"x": Altered(tensor.call, *tensor.arguments)}))
    assert read_pickled(over_floats(tmp_path / "b.bin", Robbed(OrderedDict)))["x"].shape == (1024,)


@pytest.mark.parametrize("state", [[row(1)] * 100, [row(1) for _ in range(100)], [row(2) for _ in range(100)]])
def test_few_bytes_do_not_become_many(tmp_path: Path, state: list[Evil]) -> None:
    """Thousands of tensors over one storage, shared or copied, would take as many times the memory."""
    named = {str(number): tensor for number, tensor in enumerate(state)}
    with pytest.raises(InvalidInputError, match="8 times the bytes of the file"):
        read_pickled(over_floats(tmp_path / "a.bin", named))


@pytest.mark.parametrize(
    "program",
    [
        b"",
        b".",
        b"}",
        b"garbage",
        b"\x80\x02}q\x00X\xff\xff\xff\xff",
        b"\x80\x02}r\xff\xff\xff\x7f.",
        b"(" * 100_000 + b".",
        pickle.dumps([1]),
        pickle.dumps({"a": 1}),
    ],
)
def test_damaged_pickles_are_invalid(tmp_path: Path, program: bytes) -> None:
    """Truncated, garbled or of something else: an error of one line."""
    with pytest.raises(InvalidInputError):
        read_pickled(zipped(tmp_path / "a.bin", program))


def test_damaged_zip_files_are_invalid(tmp_path: Path) -> None:
    """Cut anywhere, it is refused."""
    torch.save({"x": torch.zeros(200)}, tmp_path / "whole.bin")
    data = (tmp_path / "whole.bin").read_bytes()
    for end in range(0, len(data) - 1, 97):
        (tmp_path / "cut.bin").write_bytes(data[:end])
        with pytest.raises(InvalidInputError):
            read_pickled(tmp_path / "cut.bin")


def test_torch_is_not_imported(as_bin: Path) -> None:
    """Reading a .bin file needs no torch."""
    (as_bin / "adapter_model.safetensors").unlink()
    program = (
        "import sys; from pathlib import Path; from loreg_converters.peft import converter; "
        f"converter.read(Path({str(as_bin)!r})); print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
