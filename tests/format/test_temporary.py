"""What writers that were killed leave goes with the next write to the same place, and nothing else goes."""

from __future__ import annotations

import errno
import fcntl
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from lora_registry.format.files import atomic_write, staging_folder
from lora_registry.format.temporary import temporary

KILLED = {
    "file": "with atomic_write(path) as stream:\n    stream.write(b'half'); stream.flush()",
    "folder": "with staging_folder(path) as folder:\n    (folder / 'model.safetensors').write_bytes(b'half')",
}


def hidden(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.name.startswith("."))


def killed(path: Path, what: str) -> str:
    """Let another process be killed in the middle of writing ``path``; the name of what it leaves."""
    before = hidden(path.parent)
    code = (
        "import os, signal, sys\nfrom pathlib import Path\n"
        "from lora_registry.format.files import atomic_write, staging_folder\n"
        f"path = Path(sys.argv[1])\n{KILLED[what]}; os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    assert subprocess.run([sys.executable, "-c", code, path], check=False).returncode == -signal.SIGKILL
    (left,) = set(hidden(path.parent)) - set(before)
    return left


@pytest.mark.parametrize("left", KILLED)
@pytest.mark.parametrize("later", KILLED)
def test_the_next_write_removes_what_a_killed_one_left(tmp_path: Path, left: str, later: str) -> None:
    """Files and folders, by either kind of write; what was left for another name stays."""
    killed(tmp_path / "out", left)
    other = killed(tmp_path / "another", left)
    assert len(hidden(tmp_path)) == 2
    with atomic_write(tmp_path / "out") if later == "file" else staging_folder(tmp_path / "out"):
        assert len(hidden(tmp_path)) == 2
    assert hidden(tmp_path) == [other]


def test_what_a_living_writer_writes_stays(tmp_path: Path) -> None:
    """Of two writers to one place at once each keeps its own; the second to finish finds the name taken or free."""
    out = tmp_path / "out"
    with staging_folder(out) as folder, atomic_write(out, overwrite=True) as first:
        with atomic_write(out) as second:
            second.write(b"second")
        assert out.read_bytes() == b"second"
        assert folder.is_dir()
        first.write(b"first")
    assert out.read_bytes() == b"first"
    assert hidden(tmp_path) == []


@pytest.mark.parametrize("name", [".out.tmp", ".out.notes.tmp", ".out.0123456789AB.tmp", "out.0123456789ab.tmp"])
def test_files_of_the_user_stay(tmp_path: Path, name: str) -> None:
    """Only names that this program makes are looked at."""
    (tmp_path / name).write_text("mine")
    with atomic_write(tmp_path / "out"):
        pass
    assert (tmp_path / name).read_text() == "mine"


def test_what_a_link_leads_to_stays(tmp_path: Path) -> None:
    """A link under such a name is not followed."""
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis").write_text("years of work")
    (tmp_path / ".out.0123456789ab.tmp").symlink_to(tmp_path / "mine")
    with atomic_write(tmp_path / "out"):
        pass
    assert (tmp_path / "mine" / "thesis").exists()


def test_without_locks_nothing_is_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Some file systems have none; writing works there, and nobody knows who lives."""
    left = killed(tmp_path / "out", "folder")

    def refuse(_descriptor: int, _how: int) -> None:
        raise OSError(errno.ENOTSUP, os.strerror(errno.ENOTSUP))

    monkeypatch.setattr(fcntl, "flock", refuse)
    with atomic_write(tmp_path / "out") as stream:
        stream.write(b"whole")
    assert (tmp_path / "out").read_bytes() == b"whole"
    assert hidden(tmp_path) == [left]


@pytest.mark.parametrize("moment", ["before it is opened", "before it is locked", "while it is locked"])
def test_what_is_swept_before_it_is_locked_is_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    """Between making and locking, another writer can take it for a left-over; nobody writes to what has no name."""
    made: list[Path] = []
    flock = fcntl.flock

    def make(name: Path) -> None:
        name.mkdir()
        made.append(name)
        if len(made) == 1 and moment == "before it is opened":
            name.rmdir()

    def lock(descriptor: int, how: int) -> None:
        if len(made) == 1 and moment == "before it is locked":
            made[0].rmdir()
        if len(made) == 1 and moment == "while it is locked":
            raise BlockingIOError
        flock(descriptor, how)

    monkeypatch.setattr(fcntl, "flock", lock)
    with temporary(tmp_path / "out", make) as folder:
        assert folder == made[1]
        assert folder.is_dir()
    assert len(made) == 2
