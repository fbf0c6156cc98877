"""Every error that loreg raises on purpose, split by what the reader can do about it.

::

    LoregError                     exit
    ├── UsageError                  2    the request itself cannot be understood
    ├── NotFoundError               3    nothing has that name
    ├── ConflictError               4    the name is taken, the tag moved, the output exists
    ├── NotAllowedError             5    permissions, policy, an immutable tag
    ├── NetworkError                6    a remote did not answer as a registry answers
    ├── IntegrityError              7    bytes or results are not what they claim to be
    ├── InvalidInputError           8    the file breaks its format; carries every finding
    │   └── UnsupportedError        8    the file is sound, but says what loreg cannot carry
    ├── InconclusiveError           9    could not be decided, which is not the same as fine
    └── MachineError               10    the machine: disk full, no memory, a package missing
        └── MissingPackageError    10    carries the line that installs it

Exit code 1 is not an error: it says that a command ran and has findings to show.
"""

from __future__ import annotations

from collections.abc import Iterable

from lora_registry.findings import Finding

EXIT_FINDINGS = 1

_UNSUPPORTED = frozenset({"R-013", "R-015"})  # another major version, an unknown feature
_INTEGRITY = "R-035"  # bytes that do not have their digest


class LoregError(Exception):
    """Root of the tree: one clear line for a person, one ``code`` for a program."""

    exit_code = 70
    code = "error"


class UsageError(LoregError):
    """The request cannot be understood."""

    exit_code = 2
    code = "usage"


class NotFoundError(LoregError):
    """Nothing has the name that was asked for."""

    exit_code = 3
    code = "not-found"


class ConflictError(LoregError):
    """Something else already has the name, or changed while this request was under way."""

    exit_code = 4
    code = "conflict"


class NotAllowedError(LoregError):
    """Understood and refused: permissions, policy, or an immutable tag."""

    exit_code = 5
    code = "not-allowed"


class NetworkError(LoregError):
    """A remote could not be reached, or did not answer as a registry answers."""

    exit_code = 6
    code = "network"


class IntegrityError(LoregError):
    """Bytes do not have the digest they claim, or a result does not hold."""

    exit_code = 7
    code = "integrity"


class InvalidInputError(LoregError):
    """A file breaks the rules of its format.

    Args:
        message: one line that names the file and the first problem.
        findings: every problem that was found, not only the first.
    """

    exit_code = 8
    code = "invalid-input"

    def __init__(self, message: str, findings: Iterable[Finding] = ()) -> None:
        super().__init__(message)
        self.findings: tuple[Finding, ...] = tuple(findings)

    @classmethod
    def from_findings(cls, what: str, findings: Iterable[Finding]) -> InvalidInputError:
        """Sum up ``findings`` about ``what`` in one line: the first in full, the others counted.

        Of a file that this version cannot know the rules of, it is an :class:`UnsupportedError` (spec section 15).
        """
        found = tuple(findings)
        unknown = cls is InvalidInputError and any(finding.rule in _UNSUPPORTED for finding in found)
        return (UnsupportedError if unknown else cls)(_summary(what, found), found)


class UnsupportedError(InvalidInputError):
    """The input is sound, but says something that loreg cannot carry without changing its meaning."""

    code = "unsupported"


class InconclusiveError(LoregError):
    """The question could not be decided; never to be mistaken for a yes."""

    exit_code = 9
    code = "inconclusive"


class MachineError(LoregError):
    """The machine could not do it: the disk is full, memory ran out, a file cannot be written."""

    exit_code = 10
    code = "machine"


class MissingPackageError(MachineError):
    """A command needs a package that is not installed.

    Args:
        package: import name of what is missing.
        extra: the extra of loreg that brings it.
    """

    code = "missing-package"

    def __init__(self, package: str, extra: str) -> None:
        super().__init__(f"this needs the package {package!r}: pip install 'loreg[{extra}]'")
        self.package = package
        self.extra = extra


def refusal(what: str, findings: Iterable[Finding]) -> LoregError:
    """The error of a reader that refuses ``what`` for its findings, by the table in section 15 of the spec."""
    found = tuple(findings)
    if all(finding.rule == _INTEGRITY for finding in found):
        return IntegrityError(_summary(what, found))
    return InvalidInputError.from_findings(what, found)


def _summary(what: str, found: tuple[Finding, ...]) -> str:
    more = f" (and {len(found) - 1} more)" if len(found) > 1 else ""
    return f"{what}: {found[0]}{more}"
