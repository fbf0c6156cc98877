"""The registry as its users see it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from small_adapters import small_adapter

from lora_registry.adapter import Adapter, Kind, Target, Tensor
from lora_registry.digest import Digest
from lora_registry.errors import (
    ConflictError,
    IntegrityError,
    InvalidInputError,
    LoregError,
    NotFoundError,
    UsageError,
)
from lora_registry.format.identity import content_digest
from lora_registry.format.reader import read_adapter
from lora_registry.registry import Registry


@pytest.fixture
def registry(tmp_path: Path) -> Registry:
    return Registry.open(tmp_path / "registry")


def test_importing_the_facade_is_cheap() -> None:
    """Neither the database nor numpy is loaded by importing, opening, or looking at a folder that is not there."""
    code = (
        "import sys; from lora_registry.registry import Registry; r = Registry.open('/nonexistent'); r.list(); r.log();"
        "print(sorted({'sqlalchemy', 'numpy', 'platformdirs', 'torch', 'sqlite3'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_location_is_the_argument_then_the_variable_then_the_users_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An empty variable counts as none; nothing is made by opening."""
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("LOREG_HOME", str(tmp_path / "home"))
    assert Registry.open(tmp_path / "argument").root == tmp_path / "argument"
    assert Registry.open("~/argument").root == tmp_path / "argument"
    assert Registry.open().root == tmp_path / "home"
    monkeypatch.setenv("LOREG_HOME", "")
    assert Registry.open().root == tmp_path / "data" / "loreg"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("location", ["postgresql://db/loreg", "s3://bucket/x", "sqlite:///x.sqlite"])
def test_what_is_no_folder_is_refused_by_name(location: str) -> None:
    """A URL is not half understood."""
    with pytest.raises(UsageError, match=location.partition(":")[0]):
        Registry.open(location)


def test_what_is_pushed_comes_back(registry: Registry, tmp_path: Path) -> None:
    """By tag and by digest, lazily and as a file, with the same meaning and the same bytes."""
    adapter = small_adapter(1)
    record = registry.push(adapter, "support/tone:1")
    assert record.content == content_digest(adapter)
    assert not record.unchanged
    assert registry.resolve(f"support/tone@{record.digest}").blob == record.blob
    loaded = registry.load("support/tone:1", verify=True)
    assert content_digest(loaded) == record.content
    assert isinstance(loaded.targets[0].tensors["A"].data, memoryview)
    out = registry.pull("support/tone:1", tmp_path / "out")
    assert out == tmp_path / "out" / "tone-1.loreg.safetensors"
    assert Digest.of_file(out) == record.blob
    assert content_digest(read_adapter(out)) == record.content
    assert registry.path("support/tone:1").read_bytes() == out.read_bytes()


def test_the_record_tells_what_lists_show(registry: Registry) -> None:
    """Everything is in the rows, and in the JSON."""
    record = registry.push(small_adapter(1), "a", actor="Zoë")
    assert str(record.reference) == "a:latest"
    summary = record.summary
    assert (summary.targets, summary.parameters, summary.ranks) == (2, 32, (2,))
    assert (summary.kinds, summary.dtypes) == (("linear",), ("F32",))
    assert (summary.base, summary.license, summary.title) == ("example/base", "MIT", "number 1")
    document = record.to_json()
    assert document["digest"] == str(record.digest)
    assert document["summary"] == summary.to_json()
    assert registry.log()[0].actor == "Zoë"


def test_pushing_the_same_again_says_so_and_changes_nothing(registry: Registry) -> None:
    """No event, no new generation."""
    first = registry.push(small_adapter(1), "a:1")
    second = registry.push(small_adapter(1), "a:1", move=True)
    assert second.unchanged
    assert second.generation == first.generation == 1
    assert len(registry.log()) == 1


def test_listing_opens_no_adapter(registry: Registry) -> None:
    """With the blobs gone, lists are what they were; loading says what is missing."""
    registry.push(small_adapter(1), "support/tone:1")
    registry.push(small_adapter(2), "support/tone:2")
    registry.push(small_adapter(2), "art/style:latest")
    everything = registry.list()
    assert [str(record.reference) for record in everything] == ["art/style:latest", "support/tone:1", "support/tone:2"]
    registry.path("support/tone:1").unlink()
    assert registry.list() == everything
    assert registry.list("support/*") == everything[1:]
    assert registry.list("nothing*") == []
    with pytest.raises(IntegrityError, match="is missing"):
        registry.load("support/tone:1")


def test_a_pull_never_writes_over_something(registry: Registry, tmp_path: Path) -> None:
    """Neither over a file nor into one that stands where a folder should; a second pull is a conflict."""
    registry.push(small_adapter(1), "a:1")
    target = tmp_path / "x.safetensors"
    assert registry.pull("a:1", target) == target
    with pytest.raises(ConflictError, match="exists"):
        registry.pull("a:1", target)
    (tmp_path / "file").write_text("mine")
    with pytest.raises(ConflictError, match="no folder"):
        registry.pull("a:1", tmp_path / "file")
    assert (tmp_path / "file").read_text() == "mine"


def test_a_pull_is_verified_and_leaves_nothing_when_it_fails(registry: Registry, tmp_path: Path) -> None:
    """A flipped bit in the blob: no file, no folder, and the copy is never a hard link to the blob."""
    registry.push(small_adapter(1), "a:1")
    blob = registry.path("a:1")
    assert registry.pull("a:1", tmp_path / "good").stat().st_ino != blob.stat().st_ino
    assert blob.stat().st_nlink == 1
    data = bytearray(blob.read_bytes())
    data[-1] ^= 1
    blob.chmod(0o644)
    blob.write_bytes(data)
    with pytest.raises(IntegrityError, match="nothing was written"):
        registry.pull("a:1", tmp_path / "bad")
    assert not (tmp_path / "bad").exists()
    with pytest.raises(IntegrityError, match="do not have the digest"):
        registry.load("a:1", verify=True)
    registry.push(small_adapter(1), "a:1")
    assert registry.load("a:1", verify=True).targets, "pushing the same adapter again mends its blob"


def test_an_adapter_that_breaks_its_format_is_not_stored(registry: Registry) -> None:
    """Every finding is carried, and the registry has no blob of it."""
    tensors = {"A": Tensor("F32", (2, 4), bytes(32)), "B": Tensor("F32", (4, 3), bytes(48))}
    target = Target(name="w", kind=Kind.LINEAR, layout=("out", "in"), shape=(4, 4), tensors=tensors)
    with pytest.raises(InvalidInputError) as caught:
        registry.push(Adapter(targets=(target,)), "a:1")
    assert {finding.rule for finding in caught.value.findings} == {"R-029"}
    assert registry.list() == []
    assert list((registry.root / "blobs").rglob("*")) == []


def test_tags_of_other_repositories(registry: Registry) -> None:
    """A bare tag stays in the repository; ``repository:tag`` goes where it says."""
    first = registry.push(small_adapter(1), "a/b:1")
    assert str(registry.tag("a/b:1", "prod").reference) == "a/b:prod"
    assert str(registry.tag("a/b:1", "c/d:x").reference) == "c/d:x"
    assert registry.resolve("c/d:x").digest == first.digest
    with pytest.raises(NotFoundError, match=r"no tag '2' in 'a/b'; it has 1, prod"):
        registry.tag("a/b:2", "prod", move=True)


def test_rm_takes_the_tag_and_nothing_else(registry: Registry) -> None:
    """The tag must be spelled out, and the record says what it was."""
    record = registry.push(small_adapter(1), "a")
    with pytest.raises(UsageError, match="whole repository"):
        registry.remove("a")
    with pytest.raises(UsageError, match="names a digest"):
        registry.remove(f"a@{record.digest}")
    assert registry.remove("a:latest").digest == record.digest
    with pytest.raises(NotFoundError):
        registry.remove("a:latest")
    assert registry.resolve(f"a@{record.digest}").size == record.size


def test_the_log_is_newest_first_and_can_be_narrowed(registry: Registry) -> None:
    """By repository, by tag, and to so many events."""
    registry.push(small_adapter(1), "a:1")
    registry.push(small_adapter(1), "a:2")
    registry.push(small_adapter(1), "b:1")
    assert [event.reference for event in registry.log()] == ["b:1", "a:2", "a:1"]
    assert [event.reference for event in registry.log("a")] == ["a:2", "a:1"]
    assert [event.reference for event in registry.log("a:1")] == ["a:1"]
    assert [event.sequence for event in registry.log(limit=1)] == [3]


@pytest.mark.parametrize("reference", ["ghcr.io/a/b:1", "localhost:5000/a"])
def test_remotes_are_refused_by_name(registry: Registry, reference: str) -> None:
    """They are understood, and not half done."""
    for use in (registry.resolve, registry.load, registry.remove, registry.log):
        with pytest.raises(UsageError, match=reference.partition("/")[0]):
            use(reference)
    with pytest.raises(UsageError, match="remote"):
        registry.push(small_adapter(1), reference)


def test_nothing_is_made_by_asking(registry: Registry) -> None:
    """A registry that is not there is empty to readers, and stays not there."""
    assert registry.list() == []
    assert registry.log() == []
    for use in (registry.resolve, registry.remove, registry.load):
        with pytest.raises(NotFoundError, match="no registry in"):
            use("a:1")
    for maintain in (registry.gc, registry.fsck, registry.reindex):
        with pytest.raises(LoregError, match="no registry in"):
            maintain()
    assert not registry.root.exists()


@pytest.mark.parametrize("name", ["evil\x1b[31m", "two\nlines"])
def test_a_user_name_that_cannot_be_shown_is_recorded_as_a_number(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The environment names the user, and may say anything; the log gets the uid then."""
    monkeypatch.setenv("LOGNAME", name)
    registry = Registry(tmp_path / "home")
    registry.push(small_adapter(1), "a/b:1")
    assert registry.log()[0].actor == f"uid:{os.getuid()}"
