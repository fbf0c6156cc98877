"""Texts that go into the document as the command line gives them: refused there where the format has rules."""

from __future__ import annotations

from pathlib import PurePath
from typing import Any

import click

from lora_registry.audit.licenses import looks_like_spdx


class License(click.ParamType[str]):
    """An SPDX license expression (spec rule P-048)."""

    name = "spdx"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """The expression, or a usage error that says how a license without identifier is written."""
        if not looks_like_spdx(value):
            self.fail(
                f"{value!r} is no SPDX expression; write LicenseRef-<name> for what SPDX does not list", param, ctx
            )
        return str(value)


class Name(click.ParamType[str]):
    """What people call something; never a path of this machine (spec rule P-053)."""

    name = "name"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """The name, or a usage error where it is a path."""
        path = PurePath(value)
        if path.is_absolute() or value.startswith(("./", "../", "~", "\\")) or path.drive:
            self.fail(f"{value!r} is a path: say what people call it, such as organization/model", param, ctx)
        return str(value)


LICENSE = License()
NAME = Name()
