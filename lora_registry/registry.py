"""The registry: keep adapters under names, find them, and hand them out again.

Importing this module is cheap; the database is loaded by the first method that needs it.
"""

from __future__ import annotations

import getpass
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from lora_registry.errors import ConflictError, IntegrityError, InvalidInputError, NotFoundError, UsageError
from lora_registry.store.layout import Layout
from lora_registry.store.location import registry_folder
from lora_registry.store.record import Record
from lora_registry.store.reference import Reference

if TYPE_CHECKING:
    from lora_registry.adapter import Adapter
    from lora_registry.digest import Digest
    from lora_registry.findings import Finding
    from lora_registry.format.reader import NativeFile
    from lora_registry.store.catalogue import Entry
    from lora_registry.store.events import Event
    from lora_registry.store.gc import Swept
    from lora_registry.store.reindex import Rebuilt
    from lora_registry.store.store import Store

GRACE = 24 * 3600.0
"""Seconds that garbage collection leaves alone what has no name."""


class Registry:
    """A folder of adapters; made by the first push.

    Every method may raise ConflictError where another process keeps the registry for too long or a newer
    loreg made it, NotAllowedError where the folder may not be used, IntegrityError where the catalogue is
    damaged, and MachineError where the disk is full or failed.

    Attributes:
        root: the folder, which need not exist.
    """

    def __init__(self, root: Path) -> None:
        self.root = root

    @classmethod
    def open(cls, location: str | Path | None = None) -> Registry:
        """The registry in ``location``, else in ``$LOREG_HOME``, else where this system keeps a user's data.

        Raises:
            UsageError: a URL; databases other than the folder's own SQLite are not supported.
        """
        return cls(registry_folder(location))

    def push(self, adapter: Adapter, reference: str, *, move: bool = False, actor: str | None = None) -> Record:
        """Validate and store ``adapter`` and point a tag at it.

        The native file, its metadata and the manifest become blobs first; one transaction then names them. A
        crash in between leaves blobs that nobody needs, and nothing else.

        Args:
            adapter: what to store.
            reference: ``repository[:tag]``.
            move: whether a tag that points elsewhere may move.
            actor: who does it, for the log; the user who runs this where None.

        Raises:
            InvalidInputError: the adapter breaks its format; carries every finding. Nothing is stored.
            ConflictError: the tag points to something else, and ``move`` is false.
            NotAllowedError: the tag is immutable and points to something else.
            UsageError: the reference is none, or names a digest or a remote.
        """
        from lora_registry.store.events import Action

        target = _tagged(reference)
        store = self._store
        store.prepare()
        with store.lock.shared():
            entry = self._put(adapter, target, move=move)
            with store.transaction(actor or _user()) as writer:
                writer.add_entry(entry)
                changed = writer.point(target, entry.digest, Action.PUSH, move=move)
                return replace(writer.resolve(target), unchanged=not changed)

    def _put(self, adapter: Adapter, target: Reference, *, move: bool) -> Entry:
        """Store the blobs of ``adapter``, checked as a reader will find them, unless ``target`` is taken."""
        from lora_registry.digest import Digest
        from lora_registry.format.canonical import encode
        from lora_registry.format.document import to_document
        from lora_registry.format.reader import open_native
        from lora_registry.format.writer import encode_adapter
        from lora_registry.store.catalogue import Catalogue
        from lora_registry.store.entries import read_entry
        from lora_registry.store.manifest import Blob, Manifest

        encoded = encode_adapter(adapter)
        store = self._store
        with store.blobs.stage(encoded.chunks()) as staged:
            try:
                stored = open_native(staged.path)
            except InvalidInputError as error:
                raise IntegrityError(f"what was written cannot be read back: {error}") from error
            if encode(to_document(stored.adapter)) != stored.document:
                raise IntegrityError("what was written says something else than the adapter; nothing was stored")
            manifest = Manifest.of(stored, Blob(staged.digest, staged.size)).encode()
            with store.database.reading() as connection:  # refused now, a push leaves nothing behind
                Catalogue(connection).would_change(target, Digest.of(manifest), move=move)
            store.blobs.publish(staged)
        store.blobs.put([encoded.document])
        return read_entry(store.blobs, store.blobs.put([manifest]))

    def resolve(self, reference: str) -> Record:
        """What the registry knows about an adapter; its file is not opened.

        Raises:
            NotFoundError: nothing has that name.
            UsageError: the reference is none, or names a remote.
        """
        return self._resolve(_local(reference))

    def _resolve(self, reference: Reference) -> Record:
        self._require(reference)
        with self._store.reading() as catalogue:
            return catalogue.resolve(reference)

    def path(self, reference: str) -> Path:
        """Where the native file lies: a read-only blob, which must not be changed.

        Raises:
            NotFoundError: nothing has that name.
            IntegrityError: the blob is missing or has another size; see :meth:`fsck`.
        """
        return self._path(self.resolve(reference))

    def _path(self, record: Record) -> Path:
        path = self._store.blobs.path(record.blob)
        size = path.stat().st_size if path.is_file() else None
        if size != record.size:
            what = "is missing" if size is None else f"has {size} bytes instead of {record.size}"
            raise IntegrityError(f"the blob of {record.reference} {what}: {path}; see `loreg fsck`")
        return path

    def load(self, reference: str, *, verify: bool = False) -> Adapter:
        """The adapter; its header is read now, its tensors when they are looked at.

        Args:
            reference: which.
            verify: read all of the file first and compare its digest.

        Raises:
            NotFoundError: nothing has that name.
            IntegrityError: the file is not what was stored.
            ConflictError: it was stored by a loreg before the release, and is to be pushed again.
        """
        record = self.resolve(reference)
        path = self._path(record)
        if verify and not self._store.blobs.verify(record.blob):
            raise IntegrityError(f"the bytes of {path} do not have the digest in its name; see `loreg fsck`")
        return self._native(record).adapter

    def _native(self, record: Record) -> NativeFile:
        """The native file of ``record``, whose size is right; refused where its manifest is another than that."""
        from lora_registry.store.entries import open_layer
        from lora_registry.store.manifest import Blob

        return open_layer(self._store.blobs, record.digest, Blob(record.blob, record.size))

    def pull(self, reference: str, out: Path) -> Path:
        """Copy the native file out, verified on the way; whole or not at all, and never over something.

        Args:
            reference: which.
            out: a file where it ends in ``.safetensors``, else a folder, which is made if it is missing.

        Returns:
            The file that was written.

        Raises:
            NotFoundError: nothing has that name.
            ConflictError: the file exists, or was stored by a loreg before the release.
            IntegrityError: the blob is not what was stored.
        """
        from lora_registry.store.copying import copy_out

        record = self.resolve(reference)
        blob = self._path(record)
        self._native(record)
        with _place(out, record) as file:
            copy_out(blob, record.blob, file)
        return file

    def list(self, pattern: str | None = None) -> Sequence[Record]:
        """Every tag, by repository and name.

        Args:
            pattern: shell pattern of the repositories to list, such as ``support/*``.
        """
        if not self._exists:
            return []
        with self._store.reading() as catalogue:
            return [*catalogue.list(pattern)]

    def tag(
        self,
        source: str,
        new_tag: str,
        *,
        move: bool = False,
        immutable: bool = False,
        expect: str | None = None,
        actor: str | None = None,
    ) -> Record:
        """Let another tag point to an adapter that is there.

        Args:
            source: which adapter.
            new_tag: a tag of the same repository, or ``repository:tag``.
            move: whether a tag that points elsewhere may move.
            immutable: never let the tag move or go again; also for a tag that points there already.
            expect: digest of the manifest that the tag must point to now; it may move from there. Of two who
                expect the same, one wins.
            actor: who does it, for the log; the user who runs this where None.

        Raises:
            NotFoundError: ``source`` is not there.
            ConflictError: the tag points elsewhere and may not move, or not to what was expected.
            NotAllowedError: the tag is immutable.
        """
        from lora_registry.store.events import Action

        origin = _local(source)
        target = _tagged(new_tag) if {":", "/"} & set(new_tag) else origin.with_tag(new_tag)
        expected = None if expect is None else _digest(expect)
        self._require(origin)
        with self._store.writing(actor or _user()) as writer:
            manifest = writer.resolve(origin).digest
            changed = writer.point(target, manifest, Action.TAG, move=move, immutable=immutable, expect=expected)
            return replace(writer.resolve(target), unchanged=not changed)

    def remove(self, reference: str, *, actor: str | None = None) -> Record:
        """Remove a tag, which must be spelled out. The adapter stays until :meth:`gc` finds it without a tag.

        Returns:
            What the tag pointed to.

        Raises:
            NotFoundError: there is no such tag.
            NotAllowedError: the tag is immutable.
        """
        target = _tagged(reference, default_tag=None)
        self._require(target)
        with self._store.writing(actor or _user()) as writer:
            record = writer.resolve(target)
            writer.untag(target)
        return record

    def log(self, reference: str | None = None, *, limit: int | None = None) -> Sequence[Event]:
        """What was done, the newest first.

        Args:
            reference: a repository, or ``repository:tag``; everything where None.
            limit: at most so many events.
        """
        which = None if reference is None else _local(reference, default_tag=None)
        if not self._exists:
            return []
        with self._store.reading() as catalogue:
            catalogue.check()
            if which is None:
                return catalogue.events(limit=limit, newest=True)
            return catalogue.events(which.repository, which.tag, limit=limit, newest=True)

    def gc(self, *, grace: float = GRACE, dry_run: bool = False, actor: str | None = None) -> Swept:
        """Take away what has had no tag for ``grace`` seconds, and blobs that nothing needs.

        Raises:
            NotFoundError: there is no registry.
        """
        from lora_registry.store.gc import collect

        self._require()
        return collect(self._store, actor or _user(), grace=grace, dry_run=dry_run)

    def fsck(self) -> Sequence[Finding]:
        """Rehash every blob, and check rows, events and journal against each other. Changes nothing.

        Raises:
            NotFoundError: there is no registry.
        """
        from lora_registry.store.fsck import check

        self._require()
        return check(self._store)

    def reindex(self, *, actor: str | None = None) -> Rebuilt:
        """Make the catalogue again from blobs and journal; the old one is kept in ``backups/``.

        Raises:
            NotFoundError: there is no registry.
            IntegrityError: what is left contradicts itself; nothing is changed.
        """
        from lora_registry.store.reindex import rebuild

        self._require()
        return rebuild(self._store, actor or _user())

    @property
    def _exists(self) -> bool:
        return Layout(self.root).exists()

    def _require(self, reference: Reference | None = None) -> None:
        """Refuse where there is no registry yet, and so not what ``reference`` names."""
        if not self._exists:
            so = "" if reference is None else f", so no {reference}"
            raise NotFoundError(f"no registry in {self.root}{so}")

    @cached_property
    def _store(self) -> Store:
        from lora_registry.store.store import Store

        return Store(self.root)


def _user() -> str:
    """The user who runs this, by name where there is one that can be shown."""
    try:
        name = getpass.getuser()
    except (KeyError, OSError):
        name = ""
    return name if name and name.isprintable() else f"uid:{os.getuid()}"


def _local(text: str, *, default_tag: str | None = "latest") -> Reference:
    """A reference into this registry.

    Raises:
        UsageError: it is none, or names a remote, which this version does not reach.
    """
    reference = Reference.parse(text, default_tag=default_tag)
    if reference.host is not None:
        raise UsageError(f"{text!r} names the remote registry {reference.host!r}; this version reaches none")
    return reference


def _tagged(text: str, *, default_tag: str | None = "latest") -> Reference:
    """A reference to a tag, and to nothing else."""
    reference = _local(text, default_tag=default_tag)
    if reference.digest is not None:
        raise UsageError(f"{text!r} names a digest, which cannot be given or taken away; name a tag")
    if reference.tag is None:
        raise UsageError(f"{text!r} names a whole repository; name a tag, such as {text}:latest")
    return reference


def _digest(text: str) -> Digest:
    from lora_registry.digest import Digest

    try:
        return Digest.parse(text)
    except ValueError as error:
        raise UsageError(str(error)) from None


@contextmanager
def _place(out: Path, record: Record) -> Iterator[Path]:
    """The file to write; a folder that was made for it goes again where writing fails."""
    from lora_registry.format.files import storage_errors
    from lora_registry.format.reader import SUFFIX

    if out.suffix == ".safetensors" and not out.is_dir():
        yield out
        return
    made = not out.exists()
    if not made and not out.is_dir():
        raise ConflictError(f"{out} exists and is no folder")
    with storage_errors(out):
        out.mkdir(exist_ok=True)
    try:
        yield out / f"{record.reference.name}-{record.reference.tag or record.digest.short}{SUFFIX}"
    except BaseException:
        if made:
            out.rmdir()
        raise
