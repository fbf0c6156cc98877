"""Content-addressed files."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from lora_registry.digest import Digest
from lora_registry.errors import IntegrityError, NotAllowedError, NotFoundError
from lora_registry.store.blobs import BlobStore


@pytest.fixture
def blobs(tmp_path: Path) -> BlobStore:
    return BlobStore(tmp_path / "blobs", tmp_path / "tmp")


def test_a_blob_is_stored_under_its_digest_and_cannot_be_written(blobs: BlobStore) -> None:
    """The path follows from the digest, and the mode is 0444."""
    digest = blobs.put([b"hello ", memoryview(b"world")])
    assert digest == Digest.of(b"hello world")
    path = blobs.locate(digest)
    assert path == blobs.folder / "sha256" / digest.hex[:2] / digest.hex
    assert path.read_bytes() == blobs.read(digest) == b"hello world"
    assert stat.S_IMODE(path.stat().st_mode) == 0o444
    assert path.stat().st_nlink == 1
    assert list(blobs) == [digest]


def test_the_same_bytes_are_stored_once_and_touched(blobs: BlobStore) -> None:
    """A second put leaves the file alone, and makes it young again for garbage collection."""
    digest = blobs.put([b"x"])
    path = blobs.path(digest)
    os.utime(path, (0, 0))
    inode = path.stat().st_ino
    assert blobs.put([b"x"]) == digest
    assert path.stat().st_ino == inode
    assert path.stat().st_mtime > 0
    assert list(blobs.temporary.iterdir()) == []


@pytest.mark.parametrize("damaged", [b"y", b"", b"xx"])
def test_putting_the_same_bytes_again_mends_a_damaged_blob(blobs: BlobStore, damaged: bytes) -> None:
    """A put that returns says that the bytes are there."""
    digest = blobs.put([b"x"])
    path = blobs.path(digest)
    path.chmod(0o644)
    path.write_bytes(damaged)
    assert not blobs.verify(digest)
    with pytest.raises(IntegrityError, match="do not have the digest"):
        blobs.read(digest)
    blobs.put([b"x"])
    assert blobs.verify(digest)


def test_chunks_that_fail_leave_nothing(blobs: BlobStore) -> None:
    """An error half-way through leaves neither a blob nor a temporary file."""

    def broken() -> Iterator[bytes]:
        yield b"half"
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        blobs.put(broken())
    assert list(blobs.files()) == []
    assert list(blobs.temporary.iterdir()) == []


def test_what_is_staged_and_not_published_is_gone(blobs: BlobStore) -> None:
    """A staged blob can be looked at, and has no name until it is published."""
    with blobs.stage([b"x"]) as staged:
        assert staged.path.read_bytes() == b"x"
        assert (staged.digest, staged.size) == (Digest.of(b"x"), 1)
        assert not blobs.verify(staged.digest)
    assert not staged.path.exists()
    assert list(blobs) == []


def test_foreign_files_are_not_blobs(blobs: BlobStore) -> None:
    """A file in the wrong folder, with another name, or that is a link is no blob, and is listed apart."""
    digest = blobs.put([b"x"])
    wrong = blobs.folder / "sha256" / "zz" / digest.hex
    wrong.parent.mkdir()
    wrong.write_bytes(b"x")
    link = blobs.path(Digest("ab" * 32))
    link.parent.mkdir(exist_ok=True)
    link.symlink_to(wrong)
    note = blobs.folder / "README"
    note.write_text("hello")
    assert list(blobs) == [digest]
    assert set(blobs.foreign()) == {wrong, link, note}


def test_a_deleted_blob_is_gone(blobs: BlobStore) -> None:
    """Deleting twice is no error; locating what is not there is."""
    digest = blobs.put([b"x"])
    blobs.delete(digest)
    blobs.delete(digest)
    with pytest.raises(NotFoundError, match=str(digest)):
        blobs.locate(digest)


def test_a_folder_that_may_not_be_written_is_named(blobs: BlobStore) -> None:
    """What the operating system refuses comes out as an error of loreg."""
    blobs.temporary.mkdir(mode=0o555)
    root = os.geteuid() == 0  # whom no mode stops
    if root:
        os.seteuid(65534)
    try:
        with pytest.raises(NotAllowedError, match="not allowed"):
            blobs.put([b"x"])
    finally:
        if root:
            os.seteuid(0)
    assert list(blobs.files()) == []
