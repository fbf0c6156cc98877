"""The grammar of references."""

from __future__ import annotations

import subprocess
import sys
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lora_registry.digest import Digest
from lora_registry.errors import UsageError
from lora_registry.store.reference import NAME_LENGTH, TAG_LENGTH, Reference

COMPONENT = st.from_regex(r"[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*", fullmatch=True).filter(lambda text: len(text) < 40)
REPOSITORY = st.lists(COMPONENT, min_size=1, max_size=4).map("/".join)
# A first component that can only be a host is read as one, so a repository cannot begin with it.
LOCAL = REPOSITORY.filter(lambda text: "/" not in text or not {"."} & set(text.partition("/")[0]))
LOCAL = LOCAL.filter(lambda text: not text.startswith("localhost/"))
TAG = st.from_regex(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,127}", fullmatch=True)
DIGEST = st.binary(max_size=4).map(Digest.of)
HOST = st.sampled_from(["localhost", "localhost:5000", "ghcr.io", "registry.example.com:443", "h:80", "[::1]:5000"])


@given(LOCAL, st.none() | TAG, st.none() | DIGEST, st.none() | HOST)
def test_what_is_printed_is_read_back(
    repository: str, tag: str | None, digest: Digest | None, host: str | None
) -> None:
    """Every reference reads back as itself."""
    reference = Reference(repository, tag, digest, host)
    assert Reference.parse(str(reference), default_tag=None) == reference


@given(st.text(max_size=40))
def test_any_text_is_read_or_refused(text: str) -> None:
    """Whatever somebody types is a reference that prints as it was typed, or a usage error; never a crash."""
    with suppress(UsageError):
        assert str(Reference.parse(text, default_tag=None)) == text


def test_the_tag_is_latest_unless_something_else_is_said() -> None:
    """Neither tag nor digest means ``latest``; a digest alone has no tag."""
    assert Reference.parse("support/tone").tag == "latest"
    digest = Digest.of(b"x")
    assert Reference.parse(f"support/tone@{digest}") == Reference("support/tone", None, digest)
    assert Reference.parse("support/tone", default_tag=None).tag is None


@pytest.mark.parametrize(
    ("text", "host", "repository"),
    [
        ("localhost/a", "localhost", "a"),
        ("ghcr.io/a/b", "ghcr.io", "a/b"),
        ("host:5000/a", "host:5000", "a"),
        ("a.b", None, "a.b"),
        ("host/a", None, "host/a"),
    ],
)
def test_a_host_has_a_dot_a_colon_or_is_localhost(text: str, host: str | None, repository: str) -> None:
    """The first of several components is a host where it looks like one, as for every OCI client."""
    reference = Reference.parse(text)
    assert (reference.host, reference.repository) == (host, repository)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "repository is missing"),
        (":1", "repository is missing"),
        ("Support/tone", "upper-case"),
        ("a//b", "empty path component"),
        ("a/", "empty path component"),
        ("../a", "is not letters"),
        ("a/..", "is not letters"),
        ("a..b", "is not letters"),
        ("a b", "is not letters"),
        ("a\n", "is not letters"),
        ("a:", "tag is empty"),
        ("a:-1", "is not a tag"),
        ("a:b:c", "is not a tag"),
        ("a:1\n", "is not a tag"),
        ("a:" + "t" * (TAG_LENGTH + 1), "longer"),
        ("a:sha256-" + "0" * 64, "reserved"),
        ("a" * (NAME_LENGTH + 1), "longer"),
        ("a@sha256:12", "not a digest"),
        ("a@", "not a digest"),
        ("a@md5:" + "0" * 32, "not a digest"),
        ("a_.b/c", "not a host name"),
        ("h:port/a", "not a host name"),
        ("[0]:0/a", "not a host name"),
        ("[1.2]/a", "not a host name"),
        ("[]:1/a", "not a host name"),
        ("[0]/a", "is not letters"),
    ],
)
def test_what_is_no_reference_is_refused_with_the_reason(text: str, reason: str) -> None:
    """The error says what is wrong, in one line."""
    with pytest.raises(UsageError, match=reason) as caught:
        Reference.parse(text)
    assert "\n" not in str(caught.value)


def test_another_tag_of_the_same_repository() -> None:
    """``with_tag`` checks the tag and forgets the digest."""
    reference = Reference.parse(f"a/b:1@{Digest.of(b'')}")
    assert str(reference.with_tag("prod")) == "a/b:prod"
    with pytest.raises(UsageError, match="is not a tag"):
        reference.with_tag("not/a/tag")
    with pytest.raises(UsageError, match="reserved"):
        reference.with_tag("sha256-" + "e" * 64)


@pytest.mark.parametrize(
    "tag", ["sha256-" + "0" * 63, "sha256-" + "0" * 65, "sha256-" + "A" * 64, "v-sha256-" + "0" * 64]
)
def test_only_the_tags_that_servers_need_are_reserved(tag: str) -> None:
    """A tag that merely looks like a digest is as good as any other."""
    assert Reference.parse(f"a:{tag}").tag == tag


def test_references_cost_no_heavy_import() -> None:
    """References are standard library only, so that everything may import them."""
    code = (
        "import sys, lora_registry.store.reference;"
        "print(sorted({'sqlalchemy', 'numpy', 'mmap', 'sqlite3'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
