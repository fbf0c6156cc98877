"""``loreg conformance`` as people and programs meet it: claims, failures, exit codes."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from lora_registry.cli import main
from lora_registry.conformance.vectors import find, load

Run = Callable[..., Result]

READER = """
import json, sys
for line in sys.stdin:
    request = json.loads(line)
    if request["op"] == "hello":
        answer = {"name": "yes\\x1b[31m", "version": "0", "format": "1.0", "classes": CLASSES, "features": []}
    else:
        answer = {"rules": []}
    print(json.dumps(answer), flush=True)
"""


@pytest.fixture
def run() -> Run:
    return lambda *arguments: CliRunner().invoke(main, ["conformance", *(str(argument) for argument in arguments)])


@pytest.fixture
def yes(tmp_path: Path) -> Callable[..., str]:
    """The command line of a validator that finds every file sound."""

    def command(*classes: str) -> str:
        script = tmp_path / "yes.py"
        script.write_text(READER.replace("CLASSES", repr(list(classes))))
        return f"{sys.executable} -S '{script}'"

    return command


def test_loreg_is_asked_where_no_program_is_named(run: Run) -> None:
    """The claim of a class, and no more, on success."""
    total = len(load(find()).expecting("validate"))
    result = run("--class", "validator")
    assert result.exit_code == 0
    name, claim = result.stdout.splitlines()
    assert name.startswith("loreg ")
    assert claim == f"Validator 1.0, vectors {load(find()).version}, {total}/{total}"


def test_a_wrong_program_exits_with_1_and_its_failures_are_shown(run: Run, yes: Callable[..., str]) -> None:
    """The first ones with the vector, what it is about, and what was wrong; then their number."""
    result = run("--entrypoint", yes("validator"))
    assert result.exit_code == 1
    lines = result.stdout.splitlines()
    assert lines[0] == "yes\\x1b[31m 0"
    passed, total = (int(number) for number in lines[1].rpartition(" ")[2].split("/"))
    assert 0 < passed < total
    assert lines[2].startswith("failed  validator ")
    assert lines[3].startswith("        the rules: expected ['R-")
    assert len([line for line in lines if line.startswith("failed")]) == 20
    assert lines[-2] == f"… and {total - passed - 20} more; --json lists them all"
    assert lines[-1] == f"{total - passed} failures"


def test_all_failures_as_json(run: Run, yes: Callable[..., str]) -> None:
    """Each with what was expected and what came."""
    result = run("--entrypoint", yes("validator"), "--json")
    shown = json.loads(result.stdout)
    assert (result.exit_code, shown["holds"]) == (1, False)
    [claim] = shown["claims"]
    assert claim["class"] == "validator"
    assert claim["total"] - claim["passed"] == len(shown["failures"])
    for failure in shown["failures"]:
        assert failure["got"] == {"rules": []}
        assert failure["expected"]["rules"]
        assert failure["reason"].startswith("the rules: expected")


def test_a_program_that_claims_nothing_fails(run: Run, yes: Callable[..., str]) -> None:
    """No question was asked, which is no success."""
    result = run("--entrypoint", yes())
    assert result.exit_code == 1
    assert "claims no class" in result.stdout


def test_a_class_that_it_does_not_claim_fails(run: Run, yes: Callable[..., str]) -> None:
    """Asking for a merger among validators."""
    result = run("--entrypoint", yes("validator"), "--class", "merger")
    assert result.exit_code == 1
    assert "does not claim the class merger" in result.stdout


@pytest.mark.parametrize(
    ("arguments", "exit_code", "message"),
    [
        (("--entrypoint", "/no/such/program"), 10, "/no/such/program: cannot be started: No such file or directory"),
        (("--entrypoint", "'"), 2, "cannot be read"),
        (("--entrypoint", ""), 2, "the command is empty"),
        (("--vectors", "/nowhere"), 3, "no vectors here: /nowhere/index.json"),
        (("--class", "magician"), 2, "'magician' is not one of"),
    ],
)
def test_what_cannot_be_asked_is_one_line(run: Run, arguments: tuple[str, ...], exit_code: int, message: str) -> None:
    """No claim is printed, and the exit code says whose fault it is."""
    result = run(*arguments)
    assert (result.exit_code, result.stdout) == (exit_code, "")
    assert message in result.stderr


def test_the_last_words_of_a_program_are_shown_and_all_of_them_on_request(
    run: Run, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """A program that does not start says why on its standard error, which is otherwise kept quiet."""
    script = tmp_path / "broken.py"
    script.write_text("import sys\nprint('\\x1b[31mstarting', file=sys.stderr)\nimport no_such_module\n")
    result = run("--entrypoint", f"{sys.executable} -S '{script}'")
    assert result.exit_code == 1
    lines = result.stdout.splitlines()
    assert lines[1] == "        ended with exit code 1"
    assert lines[2] == "        | \\x1b[31mstarting"
    assert lines[-2] == "        | ModuleNotFoundError: No module named 'no_such_module'"
    assert capfd.readouterr().err == ""
    assert "no_such_module" not in run("--entrypoint", f"{sys.executable} -S '{script}'", "--verbose").stdout
    assert "No module named 'no_such_module'" in capfd.readouterr().err
