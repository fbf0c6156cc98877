"""The tree of errors is the one that its module draws."""

from __future__ import annotations

import inspect
import re

import pytest

from lora_registry import errors
from lora_registry.findings import Finding, Severity

TREE = {
    name: kind
    for name, kind in vars(errors).items()
    if inspect.isclass(kind) and issubclass(kind, errors.LoregError) and kind.__module__ == errors.__name__
}


def drawn() -> dict[str, tuple[str, int | None]]:
    """Each class in the drawing with the class above it and its exit code."""
    found: dict[str, tuple[str, int | None]] = {}
    above: list[str] = []
    for line in str(errors.__doc__).splitlines():
        match = re.fullmatch(r"(?P<indent>[ │├└─]*)(?P<name>\w+Error) +(?P<rest>exit|\d+.*)", line)
        if match is None:
            continue
        depth = (len(match["indent"]) - 4) // 4
        del above[depth:]
        code = re.match(r"\d+", match["rest"])
        found[match["name"]] = (above[-1] if above else "Exception", int(code[0]) if code else None)
        above.append(match["name"])
    return found


def test_the_drawing_is_the_tree() -> None:
    """Every class stands in the drawing under its parent with its exit code, and nothing else does."""
    root = errors.LoregError.__name__
    actual = {
        name: (kind.__bases__[0].__name__, None if name == root else kind.exit_code) for name, kind in TREE.items()
    }
    assert drawn() == actual


def test_codes_are_unique() -> None:
    """A program can tell the errors apart by their code."""
    codes = [kind.code for kind in TREE.values()]
    assert len(set(codes)) == len(codes)


def test_exit_codes_are_free() -> None:
    """No error exits as a success or as a command with findings; each branch has an exit code of its own."""
    branches = errors.LoregError.__subclasses__()
    assert len({kind.exit_code for kind in branches}) == len(branches)
    assert not {0, errors.EXIT_FINDINGS} & {kind.exit_code for kind in TREE.values()}


@pytest.mark.parametrize("kind", errors.LoregError.__subclasses__(), ids=lambda kind: kind.__name__)
def test_a_branch_shares_its_exit_code(kind: type[errors.LoregError]) -> None:
    """A more precise error of a kind exits as the kind does."""
    assert {below.exit_code for below in kind.__subclasses__()} <= {kind.exit_code}


def test_invalid_input_carries_its_findings() -> None:
    """The message is one line with the first problem in full; the others are counted and carried."""
    findings = [Finding("R-001", "header", "is short"), Finding("R-002", "", "is no JSON")]
    error = errors.UnsupportedError.from_findings("a.safetensors", findings)
    assert isinstance(error, errors.UnsupportedError)
    assert str(error) == "a.safetensors: R-001 at header: is short (and 1 more)"
    assert error.findings == tuple(findings)
    assert str(errors.InvalidInputError.from_findings("a", findings[1:])) == "a: R-002: is no JSON"


@pytest.mark.parametrize(
    ("rules", "kind"),
    [
        (["R-015"], errors.UnsupportedError),
        (["R-014", "R-013"], errors.UnsupportedError),
        (["R-035", "R-015"], errors.UnsupportedError),
        (["R-029"], errors.InvalidInputError),
        (["R-035", "R-045"], errors.InvalidInputError),
        (["R-035", "R-035"], errors.IntegrityError),
    ],
)
def test_a_refusal_is_of_the_first_kind_that_applies(rules: list[str], kind: type[errors.LoregError]) -> None:
    """The table in section 15 of the specification; a reader that sees no data raises the same."""
    findings = [Finding(rule, "there", "is wrong") for rule in rules]
    assert type(errors.refusal("a", findings)) is kind
    if kind is not errors.IntegrityError:
        assert type(errors.InvalidInputError.from_findings("a", findings)) is kind
    assert str(errors.refusal("a", findings)).startswith(f"a: {rules[0]} at there")


def test_missing_package_says_how_to_get_it() -> None:
    """The error carries the line that installs what is missing."""
    error = errors.MissingPackageError("onnx", "onnx")
    assert (error.package, error.extra) == ("onnx", "onnx")
    assert "pip install 'loreg[onnx]'" in str(error)


def test_finding_as_data() -> None:
    """A finding is four fields; its severity is an error unless said otherwise."""
    finding = Finding("A-001", "targets/w", "is odd", Severity.WARNING)
    assert finding.to_json() == {"rule": "A-001", "severity": "warning", "place": "targets/w", "message": "is odd"}
    assert Finding("R-001", "", "").severity is Severity.ERROR


def test_finding_for_a_terminal() -> None:
    """A finding about a name with escape sequences is printable; as data it keeps the name as it is."""
    finding = Finding("R-009", "w\x1b[31m\u202e", "is no name")
    assert str(finding) == r"R-009 at w\x1b[31m\u202e: is no name"
    assert finding.to_json()["place"] == "w\x1b[31m\u202e"
    assert str(Finding("R-026", "w", "has no \x1b[31m")) == r"R-026 at w: has no \x1b[31m"


def test_finding_about_a_megabyte() -> None:
    """A finding that quotes a megabyte out of a file is still a line for people; as data it is complete."""
    finding = Finding("R-009", "w" * 1_000_000, "x" * 1_000_000)
    assert len(str(finding)) < 2000
    assert len(finding.to_json()["place"]) == len(finding.to_json()["message"]) == 1_000_000
