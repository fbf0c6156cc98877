"""Secrets, paths and people in the metadata: rules A-030 to A-034.

Every string is looked at, keys and names of targets included. Secrets are told by the shapes that their
issuers document, so an unusual one passes. No finding repeats the secret that it found.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping

from lora_registry.adapter import Json
from lora_registry.audit.rules import found
from lora_registry.findings import Finding
from lora_registry.text import printable

CONTROL = re.compile(
    r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f]"  # C0 and C1 controls, ESC among them, except tab and line feed
    r"|\r(?!\n)"  # a carriage return alone overwrites the line before it
    "|[\u2028\u2029]"  # line and paragraph separators
    "|[\u202a-\u202e\u2066-\u2069]"  # overrides and isolates that reorder what is read (CVE-2021-42574)
)
"""A character that makes a terminal do something other than show text."""


# Every repetition is bounded or over one class of characters, so that no text makes a pattern slow.
_SECRETS: Mapping[str, re.Pattern[str]] = {
    "a Hugging Face token": re.compile(r"\bhf_[A-Za-z0-9]{30,}"),
    "an API key of the form sk-": re.compile(r"\bsk-(?=[A-Za-z_-]{0,100}[0-9])[A-Za-z0-9_-]{20,}"),
    "an AWS access key": re.compile(r"\b(?:AKIA|ASIA)[0-9A-Z]{16}\b"),
    "a GitHub token": re.compile(r"\b(?:gh[pousr]_[A-Za-z0-9]{36,}|github_pat_[A-Za-z0-9_]{22,})"),
    "a GitLab token": re.compile(r"\bglpat-[A-Za-z0-9_-]{20,}"),
    "a Slack token": re.compile(r"\bxox[abeoprs]-[A-Za-z0-9-]{10,}"),
    "a Google API key": re.compile(r"\bAIza[0-9A-Za-z_-]{35}"),
    "a PyPI token": re.compile(r"\bpypi-AgE[A-Za-z0-9_-]{50,}"),
    "an npm token": re.compile(r"\bnpm_[A-Za-z0-9]{36}\b"),
    "a JSON web token": re.compile(r"\beyJ[A-Za-z0-9_-]{10,4096}\.eyJ[A-Za-z0-9_-]{10,4096}\.[A-Za-z0-9_-]{10,}"),
    "a private key": re.compile(r"-----BEGIN [A-Z ]{0,40}PRIVATE KEY-----"),
    "a password in a URL": re.compile(r"://[^\s/:@]{1,128}:[^\s/@]{1,128}@"),
    "a signed URL": re.compile(r"[?&](?:X-Amz-Signature|X-Goog-Signature|sig)=[A-Za-z0-9%+/=]{20,}"),
}
_SECRET_KEY = re.compile(
    r"(?:^|[_.-])(?:api_?key|access_?key|secret_?key|secret|access_?token|auth_?token|hf_token|password|passwd)$",
    re.IGNORECASE,
)
"""Names of fields that hold a secret whatever it looks like. ``pad_token`` and its kin do not match."""

_ROOTS = (
    "Applications|Users|Volumes|cluster|content|data|dbfs|dev|etc|export|gpfs|home|kaggle|lustre|media|mnt|nfs|opt|"
    "private|proc|project|projects|raid|root|run|scratch|shared|srv|storage|tmp|usr|var|workspace"
)
_PATHS = (
    re.compile(r"\bfile:/[^\s\"'<>]*", re.IGNORECASE),
    re.compile(r"(?<![A-Za-z0-9])[A-Za-z]:(?:/(?!/)|\\(?![nrt\"'](?:[^a-z]|$)))[^\s\"'<>|?*]*"),  # not "Q:\n"
    re.compile(r"(?<![\\\w])\\\\[A-Za-z0-9._$-]{1,64}\\[^\s\"'<>|?*]*"),
    re.compile(rf"(?<![\w./~])/(?:{_ROOTS})/[^\s\"'<>]*"),
    re.compile(r"(?<![\w./~-])~(?:[A-Za-z_][A-Za-z0-9_-]{0,31})?/[^\s\"'<>]*"),
)
_WHOLE_PATH = re.compile(r"\.{1,2}[\\/]\S*|\.\.|/[^\s/<>]+/\S*")
"""A string that is nothing but a path: relative to some folder, or absolute below a root of any name."""

_USER = re.compile(r"(?:/home/|/Users/|[\\/]Users[\\/])([^\\/\s]{1,64})", re.IGNORECASE)
_ADDRESS = re.compile(r"(?<![A-Za-z0-9._%+-])[A-Za-z0-9._%+-]{1,64}@[A-Za-z0-9-]{1,63}(?:\.[A-Za-z0-9-]{1,63}){1,8}")
_NO_PERSON = frozenset({"git", "hg", "svn"})
"""The accounts of code hosts: ``git@github.com:owner/name`` is the address of a repository."""

_ACCOUNT_KEYS = frozenset(
    {"username", "user_name", "login", "hostname", "host_name", "computer_name", "machine_name", "nodename"}
)
_AUTHORS = "info/authors"
_NO_TEXT = frozenset({"kind", "layout", "tensors", "fingerprint"})
"""Fields of a target's record whose values the format's rules limit to known words and digests."""


def strings(document: Mapping[str, Json]) -> Iterator[tuple[str, str, str]]:
    """Every string of the metadata: its place, the key it stands under, and the text. Keys come as texts too.

    Args:
        document: the adapter's JSON document, :func:`lora_registry.format.document.to_document`.
    """
    for part, value in document.items():
        if part != "targets":
            yield from _strings("", part, value)
    targets = document.get("targets")
    for name, record in targets.items() if isinstance(targets, dict) else ():
        fields = record if isinstance(record, dict) else {}
        yield from _strings("targets", name, {key: value for key, value in fields.items() if key not in _NO_TEXT})


def _strings(parent: str, key: str, value: Json) -> Iterator[tuple[str, str, str]]:
    place = f"{parent}/{printable(key, 256)}" if parent else printable(key, 256)
    yield place, "", key
    yield from _values(place, key, value)


def _values(place: str, key: str, value: Json) -> Iterator[tuple[str, str, str]]:
    if isinstance(value, str):
        yield place, key, value
    elif isinstance(value, dict):
        for name, item in value.items():
            yield from _strings(place, name, item)
    elif isinstance(value, list):
        for number, item in enumerate(value):
            yield from _values(f"{place}/{number}", key, item)


def check_text(place: str, key: str, text: str) -> Iterator[Finding]:
    """A-030 to A-034 on one string; each rule speaks at most once about it.

    Args:
        place: where it stands, already printable.
        key: the key it stands under; empty where it is a key itself.
        text: the string.
    """
    yield from _secret(place, key, text)
    control = CONTROL.search(text)
    if control:
        message = f"U+{ord(control[0]):04X} at character {control.start()}: {printable(text, 80)}"
        yield found("A-031", place, message)
    path = local_path(text)
    if path:
        user = _USER.search(path)
        whose = f" (names the user {printable(user[1], 80)})" if user else ""
        yield found("A-032", place, f"{printable(path, 80)}{whose}")
    if place != _AUTHORS and not place.startswith(f"{_AUTHORS}/") and "@" in text:
        for address in _ADDRESS.finditer(text):
            if address[0].partition("@")[0] not in _NO_PERSON:
                yield found("A-033", place, printable(address[0], 80))
                break
    if key.lower() in _ACCOUNT_KEYS and text:
        yield found("A-034", place, printable(text, 80))


def _secret(place: str, key: str, text: str) -> Iterator[Finding]:
    for what, pattern in _SECRETS.items():
        match = pattern.search(text)
        if match:
            yield found("A-030", place, f"looks like {what}: {len(match[0])} characters at {match.start()}, not shown")
            return
    if len(text) >= 8 and _SECRET_KEY.search(key):
        yield found("A-030", place, f"{len(text)} characters under a key that is named for a secret, not shown")


def local_path(text: str) -> str | None:
    """The first part of ``text`` that is a path of some machine; None where there is none."""
    if _WHOLE_PATH.fullmatch(text):
        return text
    matches = (pattern.search(text) for pattern in _PATHS)
    return next((match[0] for match in matches if match), None)
