"""Writing is all or nothing, and only what can be read is written."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import cast

import pytest

from lora_registry.adapter import Adapter, Base, Json, Kind, Target, Tensor
from lora_registry.digest import Digest
from lora_registry.errors import (
    ConflictError,
    IntegrityError,
    InvalidInputError,
    LoregError,
    MachineError,
    NotAllowedError,
    NotFoundError,
)
from lora_registry.format.canonical import decode, encode
from lora_registry.format.container import open_container
from lora_registry.format.files import atomic_write
from lora_registry.format.limits import HEADER_BYTES, TENSORS
from lora_registry.format.reader import read_adapter
from lora_registry.format.writer import write_adapter

BIG = Adapter(
    targets=(
        Target(
            name="w",
            kind=Kind.FULL,
            layout=(),
            shape=(1 << 20,),
            tensors={"value": Tensor("U8", (1 << 20,), bytes(1 << 20))},
        ),
    )
)
"""An adapter of 1 MiB, for disks that hold less."""


def names(folder: Path) -> list[str]:
    """Everything in a folder, hidden files included."""
    return sorted(path.name for path in folder.iterdir())


def test_file_is_whole_and_alone(adapter: Adapter, tmp_path: Path) -> None:
    """After writing there is one file, and its digest is the one that was returned."""
    path = tmp_path / "a.loreg.safetensors"
    assert write_adapter(adapter, path) == Digest.of_file(path)
    assert names(tmp_path) == [path.name]


def test_writing_twice_gives_the_same_file(adapter: Adapter, tmp_path: Path) -> None:
    """Equal adapters are equal files."""
    assert write_adapter(adapter, tmp_path / "a") == write_adapter(adapter, tmp_path / "b")


def test_bytes_are_canonical(adapter: Adapter, tmp_path: Path) -> None:
    """Header and document are canonical JSON, data begins at a multiple of 8, nothing is empty (P-019, P-020)."""
    path = tmp_path / "a"
    write_adapter(replace(adapter, info={}, base=Base()), path)
    container = open_container(path)
    header, document = container.header_bytes.rstrip(b" "), container.metadata["loreg"].encode()
    assert encode(decode(header)) == header
    assert container.data_start % 8 == 0
    assert encode(decode(document)) == document
    assert set(cast("dict[str, Json]", decode(document))) == {"loreg", "targets"}


def test_existing_file_is_kept(adapter: Adapter, tmp_path: Path) -> None:
    """A name that is taken is a conflict, and what has it is untouched; overwriting is asked for by name."""
    path = tmp_path / "a"
    path.write_bytes(b"mine")
    with pytest.raises(ConflictError, match="exists"):
        write_adapter(adapter, path)
    assert path.read_bytes() == b"mine"
    assert names(tmp_path) == ["a"]
    write_adapter(adapter, path, overwrite=True)
    assert len(read_adapter(path)) == len(adapter)
    assert names(tmp_path) == ["a"]


def test_dangling_link_is_taken(adapter: Adapter, tmp_path: Path) -> None:
    """A symbolic link that leads nowhere is something that exists, and nothing is written through it."""
    (tmp_path / "a").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ConflictError):
        write_adapter(adapter, tmp_path / "a")
    assert not (tmp_path / "elsewhere").exists()


def test_name_taken_meanwhile(tmp_path: Path) -> None:
    """Of two writers of one name the second is told, and the first one's file stays."""
    path = tmp_path / "a"
    with pytest.raises(ConflictError):  # noqa: PT012, SIM117  (the conflict shows when the block ends)
        with atomic_write(path) as stream:
            stream.write(b"late")
            path.write_bytes(b"early")
    assert path.read_bytes() == b"early"
    assert names(tmp_path) == ["a"]


def test_nothing_under_the_name_until_the_end(tmp_path: Path) -> None:
    """While a file is being written its name is free, also when it overwrites."""
    path = tmp_path / "a"
    path.write_bytes(b"old")
    with atomic_write(path, overwrite=True) as stream:
        stream.write(b"new")
        stream.flush()
        assert path.read_bytes() == b"old"
    assert path.read_bytes() == b"new"


@pytest.mark.parametrize("failure", [RuntimeError("bug"), KeyboardInterrupt(), InvalidInputError("bad")])
def test_failure_leaves_nothing(failure: BaseException, tmp_path: Path) -> None:
    """Whatever goes wrong halfway, no file is left, and the error is the one that was raised (P-031)."""
    with pytest.raises(type(failure)) as caught:  # noqa: PT012, SIM117  (what raises is the block)
        with atomic_write(tmp_path / "a") as stream:
            stream.write(bytes(1 << 16))
            raise failure
    assert caught.value is failure
    assert names(tmp_path) == []


def test_kill_leaves_no_file_under_the_name(tmp_path: Path) -> None:
    """A process that dies without a word leaves the name free (P-031)."""
    program = (
        "import os, sys; from pathlib import Path; from lora_registry.format.files import atomic_write\n"
        "with atomic_write(Path(sys.argv[1])) as stream:\n"
        "    stream.write(bytes(1 << 20)); stream.flush(); os.kill(os.getpid(), 9)\n"
    )
    done = subprocess.run([sys.executable, "-c", program, str(tmp_path / "a")], check=False)
    assert done.returncode == -9
    assert not (tmp_path / "a").exists()
    (left,) = names(tmp_path)
    assert left.endswith(".tmp")


@contextmanager
def small_files(_: Path) -> Iterator[None]:
    """This process may write files of at most 256 KiB; beyond, the system answers much as a full disk does."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 18, hard))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@contextmanager
def small_disk(folder: Path) -> Iterator[None]:
    """A file system of 256 KiB in ``folder``."""
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(folder)], check=True)
    yield
    subprocess.run(["umount", str(folder)], check=True)


def may_mount() -> bool:
    """Whether this process has CAP_SYS_ADMIN, bit 21 of its effective capabilities (capabilities(7))."""
    status = Path("/proc/self/status")
    lines = status.read_text().splitlines() if status.exists() else []
    return any(line.startswith("CapEff:") and int(line.split()[1], 16) >> 21 & 1 for line in lines)


@pytest.mark.parametrize("limit", [small_files, small_disk] if may_mount() else [small_files])
def test_full_disk(limit: Callable[[Path], AbstractContextManager[None]], adapter: Adapter, tmp_path: Path) -> None:
    """On a full disk nothing is left and what was there is intact, also when it was to be overwritten."""
    with limit(tmp_path):
        path = tmp_path / "a"
        before = write_adapter(adapter, path)
        for target, overwrite in ((path, True), (tmp_path / "b", False)):
            with pytest.raises(MachineError, match="was not written") as caught:
                write_adapter(BIG, target, overwrite=overwrite)
            assert caught.value.exit_code == 10
            assert "\n" not in str(caught.value)
            assert names(tmp_path) == ["a"]
            assert Digest.of_file(path) == before


def test_no_folder(adapter: Adapter, tmp_path: Path) -> None:
    """Folders are not made up."""
    with pytest.raises(NotFoundError):
        write_adapter(adapter, tmp_path / "none" / "a")


@contextmanager
def forbidden(path: Path) -> Iterator[None]:
    """Nobody may read or write ``path``; root, whom that does not stop, is nobody for a while."""
    user = os.geteuid()
    path.chmod(0o000)
    if user == 0:
        os.seteuid(65534)
    yield
    os.seteuid(user)
    path.chmod(0o700)


def test_folder_that_may_not_be_written(adapter: Adapter, tmp_path: Path) -> None:
    """A folder without permission to write is not allowed, rather than broken."""
    with forbidden(tmp_path), pytest.raises(NotAllowedError):
        write_adapter(adapter, tmp_path / "a")


def test_file_that_may_not_be_read(adapter: Adapter, tmp_path: Path) -> None:
    """A file without permission to read is not allowed, rather than invalid."""
    path = tmp_path / "a"
    write_adapter(adapter, path)
    with forbidden(path), pytest.raises(NotAllowedError):
        read_adapter(path)


def refused(adapter: Adapter, folder: Path) -> LoregError:
    """The error with which ``adapter`` is refused; nothing has been written."""
    with pytest.raises(InvalidInputError) as caught:
        write_adapter(adapter, folder / "a")
    assert names(folder) == []
    return caught.value


def change(adapter: Adapter, **fields: object) -> Adapter:
    """``adapter`` with other fields in its first target."""
    first, *others = adapter
    return replace(adapter, targets=(replace(first, **fields), *others))  # type: ignore[arg-type]


def test_stated_digest_that_is_wrong(adapter: Adapter, tmp_path: Path) -> None:
    """A digest that an adapter claims for a tensor is checked before it is written down."""
    claim = change(adapter, digests={"A": Digest.of(b"something else")})
    with pytest.raises(IntegrityError, match="R-035"):
        write_adapter(claim, tmp_path / "a")
    assert list(tmp_path.iterdir()) == []


def test_digest_of_a_tensor_that_is_gone(adapter: Adapter, tmp_path: Path) -> None:
    """A digest that was stated for a tensor which has been dropped since is no claim any more."""
    target = adapter.target("layers.0.q_proj.weight")
    kept = {role: target.tensors[role] for role in ("A", "B")}
    smaller = Adapter(targets=(replace(target, tensors=kept, digests={"value": Digest.of(b"")}),))
    write_adapter(smaller, tmp_path / "a")
    assert set(read_adapter(tmp_path / "a").targets[0].digests) == {"A", "B"}


def test_two_targets_of_one_name(adapter: Adapter, tmp_path: Path) -> None:
    """Two targets of one name are refused, rather than the last one taken."""
    twice = replace(adapter, targets=(*adapter, adapter.targets[0]))
    assert f"targets/{adapter.targets[0].name}" in str(refused(twice, tmp_path))


@pytest.mark.parametrize("value", [float("nan"), 1 << 60, 1e18, b"bytes", "\ud800", {1: 2}])
def test_what_json_cannot_hold(value: object, adapter: Adapter, tmp_path: Path) -> None:
    """A value without a JSON form, anywhere in the description, is refused by rule."""
    described = replace(adapter, info={"x": [value]})  # type: ignore[list-item]
    assert "R-012" in str(refused(described, tmp_path))


@pytest.mark.parametrize("scale", [float("nan"), float("inf"), True, "1", None])
def test_scale_that_is_no_number(scale: object, adapter: Adapter, tmp_path: Path) -> None:
    """A scale that no reader would take is not written."""
    assert "R-025" in str(refused(change(adapter, scale=scale), tmp_path))


def test_ranks_that_differ(adapter: Adapter, tmp_path: Path) -> None:
    """Factors that do not share their rank are not written."""
    target = adapter.target("embed.weight")
    tensors = {**target.tensors, "B": Tensor("F32", (4, 3), bytes(48))}
    assert "R-029" in str(refused(Adapter(targets=(replace(target, tensors=tensors),)), tmp_path))


def test_unknown_requirement(adapter: Adapter, tmp_path: Path) -> None:
    """A file that this version could not read is not written by it."""
    assert "R-015" in str(refused(replace(adapter, requires_read=frozenset({"x"})), tmp_path))


def test_more_tensors_than_a_reader_takes(tmp_path: Path) -> None:
    """The limit on the number of tensors holds for the writer."""
    one = Tensor("U8", (1,), b"1")
    crowd = Adapter(
        targets=tuple(
            Target(name=f"{number}", kind=Kind.FULL, layout=(), shape=(1,), tensors={"value": one})
            for number in range(TENSORS + 1)
        )
    )
    assert "R-010" in str(refused(crowd, tmp_path))


def test_longer_header_than_a_reader_takes(adapter: Adapter, tmp_path: Path) -> None:
    """The limit on the header holds for the writer."""
    assert "R-001" in str(refused(replace(adapter, info={"text": "x" * HEADER_BYTES}), tmp_path))
