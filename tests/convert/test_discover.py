"""Which converters are there: a plugin that is broken, or takes a name, does not disturb the others."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner

from lora_registry.cli import main
from lora_registry.convert.discover import converter, converters, detect, installed
from lora_registry.errors import MachineError, UnsupportedError, UsageError

MODULE = "loreg_test_plugin"


@pytest.fixture
def plugin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A distribution with two converters, ``broken`` and ``peft``, whose module raises; the folder it is in."""
    (tmp_path / f"{MODULE}.py").write_text("raise RuntimeError('no such device')\n")
    information = tmp_path / f"{MODULE}-1.dist-info"
    information.mkdir()
    (information / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {MODULE}\nVersion: 1\n")
    points = f"[loreg.converters]\nbroken = {MODULE}:converter\npeft = {MODULE}:converter\n"
    (information / "entry_points.txt").write_text(points)
    monkeypatch.syspath_prepend(tmp_path)
    installed.cache_clear()
    yield tmp_path
    installed.cache_clear()


@pytest.mark.usefixtures("plugin")
def test_a_broken_plugin_leaves_the_built_in_converters_alone(tmp_path: Path) -> None:
    """PEFT goes on working; who asks for the plugin, or for what it might have read, is told why it is not there."""
    assert list(converters()) == ["onnx-adapter", "peft"]
    assert type(converter("peft")).__module__ == "loreg_converters.peft"
    with pytest.raises(MachineError, match="RuntimeError: no such device"):
        converter("broken")
    (tmp_path / "what").write_text("?")
    with pytest.raises(UnsupportedError, match="'broken' could not be asked"):
        detect(tmp_path / "what")
    assert "no such device" in CliRunner().invoke(main, ["formats"]).output


@pytest.mark.usefixtures("plugin")
def test_plugins_can_be_switched_off(monkeypatch: pytest.MonkeyPatch) -> None:
    """With LOREG_PLUGINS empty, or naming others, a plugin is not even loaded."""
    for switch in ("", "another"):
        monkeypatch.setenv("LOREG_PLUGINS", switch)
        installed.cache_clear()
        assert (list(converters()), installed().broken) == (["onnx-adapter", "peft"], {})
        with pytest.raises(UsageError, match="no converter is called 'broken'"):
            converter("broken")
