"""Secrets, paths, people and control characters in metadata: what is told and what passes."""

from __future__ import annotations

from dataclasses import replace

import pytest

from lora_registry.adapter import Adapter
from lora_registry.audit.engine import audit
from lora_registry.audit.privacy import check_text, local_path, strings
from lora_registry.format.document import to_document

RANDOM = "a1B2c3D4" * 8  # secrets are put together here, so that no scanner of repositories takes them for some

SECRETS = {
    "Hugging Face": "hf_" + RANDOM[:34],
    "OpenAI": "sk-proj-" + RANDOM[:40],
    "AWS": "AKIA" + "Q1W2" * 4,
    "GitHub classic": "ghp_" + RANDOM[:36],
    "GitHub fine-grained": "github_pat_" + RANDOM[:50],
    "GitLab": "glpat-" + RANDOM[:20],
    "Slack": "xoxb-" + RANDOM[:30],
    "Google": "AIza" + RANDOM[:35],
    "PyPI": "pypi-AgE" + RANDOM[:60],
    "npm": "npm_" + RANDOM[:36],
    "JWT": f"eyJ{RANDOM[:20]}.eyJ{RANDOM[:20]}.{RANDOM[:20]}",
    "private key": "-----BEGIN RSA " + "PRIVATE KEY-----",
    "password in a URL": "https://bob:" + "pass1@example.org/x",
    "signed URL": "https://bucket.example.org/x?X-Amz-Signature=" + "0f" * 32,
}

PATHS = [
    "/home/bob/models/llama",
    "trained on /home/bob/data.jsonl yesterday",
    "--data=/mnt/nfs/x",
    "dir:/workspace/out",
    "/opt/models",
    "/anything/at/all",
    "/Users/Bob Builder/x",
    "C:\\Users\\bob\\llama",
    "saved to D:/models/x",
    "C:\\new folder",
    "\\\\server\\share\\x",
    "file:///etc/passwd",
    "../llama",
    "./out/checkpoint-100",
    "..",
    "~/models",
    "~bob/models",
    '{"dir": "/scratch/x"}',
]

NO_PATHS = [
    "HuggingFaceTB/SmolLM2-135M-Instruct",
    "https://example.org/home/bob",
    "https://example.org:8080/data/x",
    "s3://bucket/data/x",
    "and/or",
    "either / or",
    "</s>",
    "/think",
    "about ~5/10 of them",
    r"model\.layers\.\d+\.self_attn\.(q|v)_proj",
    r"Q:\nA:",
    "10:30",
    "ratio a:b",
    "1.0...",
    "",
]


def rules(text: str, key: str = "note", place: str = "info/note") -> set[str]:
    return {finding.rule for finding in check_text(place, key, text)}


@pytest.mark.parametrize("kind", SECRETS)
def test_secret(kind: str) -> None:
    """A secret is told inside other text, and the finding does not repeat it."""
    findings = list(check_text("origin/config/note", "note", f"used {SECRETS[kind]} for it"))
    assert [finding.rule for finding in findings if finding.rule != "A-033"] == ["A-030"]
    assert SECRETS[kind][-12:] not in str(findings)


@pytest.mark.parametrize("key", ["api_key", "WANDB_API_KEY", "password", "hf_token", "client.secret"])
def test_secret_by_the_name_of_its_field(key: str) -> None:
    """A field that is named for a secret holds one, whatever it looks like."""
    assert rules("correct horse battery", key) == {"A-030"}


@pytest.mark.parametrize(
    ("key", "text"),
    [
        ("pad_token", "<|endoftext|>"),
        ("eos_token", "<|im_end|>"),
        ("password", ""),
        ("note", "risk-assessment-of-everything-and-more-1"),
        ("note", "sk-learn-compatible-estimators-only"),
        ("note", "hf_transfer"),
        ("revision", "7e27bd9f95328f0f3b08261d1252705110c806f8"),
    ],
)
def test_no_secret(key: str, text: str) -> None:
    """Tokens of a vocabulary, commits and words with dashes are no secrets."""
    assert rules(text, key) == set()


@pytest.mark.parametrize("text", PATHS)
def test_path(text: str) -> None:
    """Paths of Unix, Windows, UNC shares, file URLs and relative ones are told, alone and inside text."""
    assert rules(text) == {"A-032"}


@pytest.mark.parametrize("text", NO_PATHS)
def test_no_path(text: str) -> None:
    """Names on a hub, URLs, regular expressions and prose are no paths."""
    assert local_path(text) is None


@pytest.mark.parametrize("text", ["/home/bob/x", "/Users/bob/x", "C:\\Users\\bob\\x", "file:///home/bob"])
def test_path_names_its_user(text: str) -> None:
    """A home folder names a person, and the finding says so."""
    (finding,) = check_text("base/name", "name", text)
    assert "names the user bob" in finding.message


@pytest.mark.parametrize(
    "text", ["a\x1b[31mb", "a\x07", "a\x00", "a\x7f", "a\x9b2J", "a\rb", "a\u202eb", "a\u2066b", "a\u2028b"]
)
def test_control_character(text: str) -> None:
    """Escapes, lone carriage returns and reordering are told, and the finding itself is harmless."""
    (finding,) = check_text("info/title", "title", text)
    assert finding.rule == "A-031"
    assert finding.message.isprintable()


def test_authors_may_have_addresses() -> None:
    """info/authors is where addresses are meant to be; everywhere else they are told."""
    assert rules("Ada <ada@example.org>", "authors", "info/authors/0") == set()
    assert rules("Ada <ada@example.org>", "authors", "origin/authors/0") == {"A-033"}


@pytest.mark.parametrize("text", ["a" * 300_000, "a@" * 150_000, "/home" * 60_000, "eyJ" * 100_000, "sk-" * 100_000])
def test_hostile_text_is_looked_at_in_full(text: str) -> None:
    """Long text that almost matches is worked through, and what stands at its end is found."""
    assert "A-031" in rules(text + "\x1b")


def test_every_string_is_seen(clean: Adapter) -> None:
    """Keys, lists, nested objects, extensions, unknown fields and names of targets are all looked at."""
    adapter = replace(
        clean,
        extensions={"org.example.x": {"deep": [{"er": "seen-1"}]}},
        extra={"seen-2": 1},
        base=replace(clean.base, extra={"more": "seen-3"}),
        targets=(replace(clean.targets[0], extra={"seen-4": ["seen-5"]}), *clean.targets[1:]),
    )
    seen = {text: place for place, _, text in strings(to_document(adapter))}
    assert seen["seen-1"] == "extensions/org.example.x/deep/0/er"
    assert {"seen-2", "seen-3", "seen-4", "seen-5", clean.targets[0].name} <= set(seen)
    assert seen["seen-5"] == f"targets/{clean.targets[0].name}/seen-4/0"


def test_places_are_harmless(clean: Adapter) -> None:
    """A key with an escape in it is a finding whose place and message carry none."""
    result = audit(replace(clean, info={**clean.info, "\x1b[2J": {"path": "/home/bob/x"}}))
    assert {finding.rule for finding in result.findings} == {"A-031", "A-032"}
    assert all(finding.place.isprintable() and finding.message.isprintable() for finding in result.findings)
