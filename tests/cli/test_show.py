"""``loreg show`` tells everything that a document says."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner

from lora_registry.cli import main

VALID = Path(__file__).resolve().parents[2] / "spec" / "vectors" / "valid"


@pytest.mark.parametrize(
    ("vector", "told"),
    [
        ("lineage", ["made by     combine of tone", "parameters  weights=[1, 0.5]"]),
        ("tokenizer", ["tokenizer      sha256:0000", "chat template  sha256:0123", "added tokens"]),
        ("training", ["trained with  t 2.1", "trained on    d (CC-BY-4.0), e"]),
        ("segments-interleave", ["segments q k v in 4 blocks"]),
        ("segments-rows", ["segments gate up in 3 blocks"]),
    ],
)
def test_what_the_document_says_is_shown(vector: str, told: list[str]) -> None:
    """Parameters of the lineage, licenses of datasets, digests of the tokenizer, and how fused rows lie."""
    shown = CliRunner().invoke(main, ["show", str(VALID / f"{vector}.safetensors")])
    assert shown.exit_code == 0
    for text in told:
        assert text in shown.output
