"""How people name an adapter: ``[host/]repository[:tag][@sha256:…]``.

The grammar of repositories, tags and digests is that of the OCI distribution specification, so that every
name here is a name that a remote registry takes.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

from lora_registry.digest import Digest
from lora_registry.errors import UsageError

DEFAULT_TAG = "latest"

TAG_LENGTH = 128
"""Longest tag, in characters (OCI distribution specification, "Pulling manifests")."""

NAME_LENGTH = 255
"""Longest host and repository together, in characters; many registries take no more (same place)."""

_COMPONENT = re.compile(r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*", re.ASCII)
_TAG = re.compile(rf"[A-Za-z0-9_][A-Za-z0-9._-]{{0,{TAG_LENGTH - 1}}}", re.ASCII)
_RESERVED = re.compile(r"sha256-[0-9a-f]{64}", re.ASCII)
"""Tags where servers without the referrers end point keep their lists (same specification, "Referrers Tag Schema")."""
_LABEL = r"[A-Za-z0-9](?:[A-Za-z0-9-]*[A-Za-z0-9])?"
_HOST = re.compile(rf"(?:{_LABEL}(?:\.{_LABEL})*|\[[0-9A-Fa-f]*:[0-9A-Fa-f:.]*\])(?::[0-9]{{1,5}})?", re.ASCII)


@dataclass(frozen=True, slots=True)
class Reference:
    """The name of an adapter. ``Reference.parse(str(reference)) == reference`` for every one with a tag or digest.

    Attributes:
        repository: path of lower-case components, ``support/tone``.
        tag: a name that may move; None where only a digest is given, or a whole repository is meant.
        digest: digest of a manifest. It decides; the tag beside it is then a remark for people.
        host: the remote registry; None for the local one.
    """

    repository: str
    tag: str | None = None
    digest: Digest | None = None
    host: str | None = None

    @classmethod
    def parse(cls, text: str, *, default_tag: str | None = DEFAULT_TAG) -> Reference:
        """Read a reference.

        Args:
            text: what the user typed.
            default_tag: the tag of a reference that has neither tag nor digest.

        Raises:
            UsageError: the text does not follow the grammar; says where.
        """
        rest, at, digest_text = text.partition("@")
        try:
            digest = Digest.parse(digest_text) if at else None
        except ValueError as error:
            raise _broken(text, str(error)) from None
        host, rest = _split_host(rest)
        if host is not None and not _HOST.fullmatch(host):
            raise _broken(text, f"{host!r} is not a host name with an optional port")
        repository, colon, tag = rest.partition(":")
        if reason := _repository_problem(repository):
            raise _broken(text, reason)
        if len(repository) + (len(host) + 1 if host else 0) > NAME_LENGTH:
            raise _broken(text, f"host and repository are longer than {NAME_LENGTH} characters")
        if colon and (reason := _tag_problem(tag)):
            raise _broken(text, reason)
        if not colon:
            return cls(repository, None if digest else default_tag, digest, host)
        return cls(repository, tag, digest, host)

    @property
    def name(self) -> str:
        """The last component of the repository, ``tone`` of ``support/tone``."""
        return self.repository.rpartition("/")[2]

    def with_tag(self, tag: str) -> Reference:
        """The same repository under another tag, without a digest.

        Raises:
            UsageError: ``tag`` is no tag.
        """
        if reason := _tag_problem(tag):
            raise _broken(tag, reason)
        return replace(self, tag=tag, digest=None)

    def __str__(self) -> str:
        host = f"{self.host}/" if self.host else ""
        tag = f":{self.tag}" if self.tag else ""
        digest = f"@{self.digest}" if self.digest else ""
        return f"{host}{self.repository}{tag}{digest}"


def _broken(text: str, reason: str) -> UsageError:
    return UsageError(f"not a reference: {text!r}: {reason}")


def _split_host(text: str) -> tuple[str | None, str]:
    """Take off the first component where it can only be a host: a dot, a colon, or ``localhost``."""
    first, slash, rest = text.partition("/")
    if slash and first not in {".", ".."} and ("." in first or ":" in first or first == "localhost"):
        return first, rest
    return None, text


def _repository_problem(repository: str) -> str | None:
    if not repository:
        return "the repository is missing"
    for component in repository.split("/"):
        if not component:
            return "the repository has an empty path component"
        if component.lower() != component:
            return f"{component!r} has upper-case letters; repositories are lower case"
        if not _COMPONENT.fullmatch(component):
            return f"{component!r} is not letters and digits with single '.', '_', '__' or dashes between them"
    return None


def _tag_problem(tag: str) -> str | None:
    if not tag:
        return "the tag is empty"
    if len(tag) > TAG_LENGTH:
        return f"the tag is longer than {TAG_LENGTH} characters"
    if _RESERVED.fullmatch(tag):
        return f"the tag {tag!r} is reserved for the list of what refers to that digest"
    if not _TAG.fullmatch(tag):
        return f"{tag!r} is not a tag: letters, digits, '_', '.' and '-', beginning with none of the last two"
    return None
