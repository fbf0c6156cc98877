"""The picture of an adapter says which layers it changes and how much."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner
from small_adapters import small_adapter

from lora_registry.cli import main
from lora_registry.cli._picture import draw, family, layer
from lora_registry.format.writer import write_adapter


def test_a_line_for_each_family_and_a_cell_for_each_layer() -> None:
    """Shades are relative to the largest change; layers that are left alone are dots."""
    norms = {"h.0.q.weight": 1.0, "h.1.q.weight": 0.5, "h.3.q.weight": 0.0, "h.0.up.weight": 0.21}
    assert draw(norms) == [
        "h.*.q.weight   █▒·   0 to 1",  # layer 3 changes by nothing: blank
        "h.*.up.weight  ░···  0.21 to 0.21",
    ]


@pytest.mark.parametrize(
    ("name", "family_name", "number"),
    [("model.layers.11.q_proj.weight", "model.layers.*.q_proj.weight", 11), ("lm_head.weight", "lm_head.weight", 0)],
)
def test_names_are_grouped_by_their_numbers(name: str, family_name: str, number: int) -> None:
    """The first number is the layer; every number is left out of the family."""
    assert family(name) == family_name
    assert layer(name) == number


def test_nothing_to_draw_is_nothing() -> None:
    """An adapter of whole tensors has no norms of changes."""
    assert draw({}) == []


def test_show_draws_the_norms(tmp_path: Path) -> None:
    """``loreg show --norms`` prints the picture, and --json the numbers."""
    path = tmp_path / "a.loreg.safetensors"
    write_adapter(small_adapter(1), path)
    result = CliRunner().invoke(main, ["show", str(path), "--norms"])
    assert result.exit_code == 0, result.output
    assert "layers.*.q_proj.weight  " in result.output.splitlines()[-1]
    assert '"norms"' in CliRunner().invoke(main, ["show", str(path), "--norms", "--json"]).output
