"""Texts that go into the document as the command line gives them: refused there where the format has rules."""

from __future__ import annotations

from pathlib import PurePosixPath, PureWindowsPath
from typing import Any

import click


class License(click.ParamType[str]):
    """An SPDX license expression (spec rule P-048)."""

    name = "spdx"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """The expression as SPDX writes it, or a usage error that says how a license without identifier is written."""
        from lora_registry.audit.licenses import as_spdx

        found = as_spdx(value)
        if found is None:
            self.fail(
                f"{value!r} is no SPDX expression; write LicenseRef-<name> for what SPDX does not list", param, ctx
            )
        return found


class Word(click.ParamType[str]):
    """A text of at least one character: what a shell makes of a variable that is not set is no statement."""

    name = "text"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """The text, or a usage error where nothing stands in it."""
        if not value.strip():
            self.fail("nothing stands there; leave the option away to say nothing", param, ctx)
        return str(value)


class Name(Word):
    """What people call something; never a path of this machine (spec rule P-053)."""

    name = "name"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """The name, or a usage error where it is a path."""
        posix, windows = PurePosixPath(value), PureWindowsPath(value)
        if posix.is_absolute() or windows.drive or "\\" in value or value.startswith((".", "~")):
            self.fail(f"{value!r} is a path: say what people call it, such as organization/model", param, ctx)
        return super().convert(value, param, ctx)


LICENSE = License()
NAME = Name()
WORD = Word()
