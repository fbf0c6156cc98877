"""The documentation is held against the program: commands, options, examples, and the README's session."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from lora_registry.cli import main
from lora_registry.cli._command import Command

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text()


def leaves(group: click.Group) -> dict[str, Command]:
    """The commands that do something, by what is typed after ``loreg``: ``merge``, ``onnx map``."""
    found: dict[str, Command] = {}
    for name, member in group.commands.items():
        if isinstance(member, click.Group):
            found.update({f"{name} {rest}": leaf for rest, leaf in leaves(member).items()})
        else:
            assert isinstance(member, Command)
            found[name] = member
    return found


LEAVES = leaves(main)
COMMANDS = sorted(LEAVES)


def command(name: str) -> Command:
    return LEAVES[name]


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_is_in_the_readme(name: str) -> None:
    """A command that the README does not show does not exist for a newcomer."""
    assert re.search(rf"\bloreg {name}\b", README)


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_and_option_has_help(name: str) -> None:
    """Help is a sentence, for the command and for each of its options."""
    assert (command(name).help or "").split("\n")[0].endswith(".")
    for parameter in command(name).params:
        if isinstance(parameter, click.Option):
            assert parameter.help, parameter.name


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_speaks_json(name: str) -> None:
    """Programs get one JSON document from every command that prints anything but a script."""
    if name != "completion":
        assert any(parameter.name == "as_json" for parameter in command(name).params)


@pytest.mark.parametrize("name", COMMANDS)
def test_help_prints_and_its_examples_parse(name: str) -> None:
    """Every example in a help text is a command line that the program accepts."""
    words = name.split()
    result = CliRunner().invoke(main, [*words, "--help"])
    assert result.exit_code == 0
    lines = (command(name).epilog or "").strip().splitlines()
    assert lines
    for line in lines:
        assert line in result.output
        typed = shlex.split(line.split(" | ")[0].split(" >")[0])
        assert typed[: len(words) + 1] == ["loreg", *words]
        command(name).make_context(name, typed[len(words) + 1 :])


def test_the_help_lists_every_command_once() -> None:
    """The sections of the root's help cover the commands."""
    output = CliRunner().invoke(main, ["--help"]).output
    for name in main.commands:
        assert len(re.findall(rf"^  {name} ", output, re.MULTILINE)) == 1


@pytest.mark.parametrize(
    "name", sorted(name for name, member in main.commands.items() if isinstance(member, click.Group))
)
def test_every_group_has_help_and_lists_its_commands(name: str) -> None:
    """A group says in a sentence what its commands are about, and lists them."""
    assert (main.commands[name].help or "").endswith(".")
    output = CliRunner().invoke(main, [name, "--help"]).output
    for leaf in COMMANDS:
        if leaf.startswith(f"{name} "):
            assert re.search(rf"^  {leaf.split()[1]} ", output, re.MULTILINE)


def test_the_readme_is_short_and_its_links_resolve() -> None:
    """A README is read to its end, and its links lead somewhere."""
    assert len(README.splitlines()) <= 160
    for link in re.findall(r"\]\(([^)#]+)", README):
        if not link.startswith("http"):
            assert (ROOT / link).exists(), link


def test_every_folder_in_the_code_map_exists() -> None:
    """The map of the code names places that are there."""
    block = README.split("## Reading the code")[1].split("```")[1]
    for line in block.strip().splitlines():
        for place in re.findall(r"[\w/]+(?:/|\.py)", line.split("  ")[0]):
            assert (ROOT / place).exists(), place
