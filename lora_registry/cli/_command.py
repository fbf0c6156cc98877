"""What every command does alike: ``--json``, errors as one line with an exit code, examples in the help."""

from __future__ import annotations

import json
import os
import re
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any, Never, TypeVar

import click

from lora_registry.errors import InvalidInputError, LoregError, MachineError
from lora_registry.format.files import from_os_error
from lora_registry.text import printable

INTERRUPTED = 130  # 128 + SIGINT, what shells expect
TERMINATED = 143  # 128 + SIGTERM
PIPE_CLOSED = 141  # 128 + SIGPIPE, what `git log | head` ends with too
_NOT_ASCII = re.compile(r"[^\x00-\x7e]")  # json itself escapes the controls below the space
_SHOWN = 20  # findings printed under an error; --json has them all

Function = TypeVar("Function", bound=Callable[..., Any])


class Terminated(KeyboardInterrupt):
    """SIGTERM came, as it does from timeout, docker stop and batch systems: clean up and go."""


class Command(click.Command):
    """A click command that turns :class:`LoregError` into one line on stderr and an exit code."""

    def invoke(self, ctx: click.Context) -> None:
        """Run the command; see ``spec/adapter-format.md``, section 15, for the exit codes."""
        try:
            with _termination_cleans_up():
                super().invoke(ctx)
            return
        except LoregError as error:
            failed = error
        except MemoryError:
            failed = MachineError("memory ran out")
        except Terminated:
            click.echo("terminated", err=True)
            ctx.exit(TERMINATED)
        except KeyboardInterrupt:
            click.echo("interrupted", err=True)
            ctx.exit(INTERRUPTED)
        except BrokenPipeError:
            # The reader of a pipe went away (`loreg list | head`), which is its right; but 0 would say that there
            # are no findings, to a script with `set -o pipefail` that runs `loreg probe A B | head -1`.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            ctx.exit(PIPE_CLOSED)
        except OSError as error:
            failed = from_os_error(error)
        show_error(failed, as_json=bool(ctx.params.get("as_json")))
        ctx.exit(failed.exit_code)

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Print the examples as they are typed, unwrapped."""
        if self.epilog:
            with formatter.section("Examples"):
                formatter.write_text("\b\n" + self.epilog.strip())


@contextmanager
def _termination_cleans_up() -> Iterator[None]:
    """Let SIGTERM end the block as Ctrl-C does, so that no half-made output stays behind, hidden and large."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, _terminate)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _terminate(number: int, frame: FrameType | None) -> Never:
    raise Terminated


def command(name: str, *, examples: str) -> Callable[[Function], Command]:
    """Declare a command of loreg; ``examples`` are shell lines for the end of its help."""
    return click.command(name, cls=Command, epilog=examples, short_help=None)


def json_option(function: Function) -> Function:
    """Add ``--json`` as the parameter ``as_json``."""
    return click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")(function)


def registry_option(function: Function) -> Function:
    """Add ``--registry`` as the parameter ``registry_home``."""
    return click.option(
        "--registry",
        "registry_home",
        metavar="FOLDER",
        help="The registry to use.  [env: LOREG_HOME; default: the user's data folder]",
    )(function)


def show_error(error: LoregError, *, as_json: bool) -> None:
    """Print an error to stderr, findings below it."""
    findings = error.findings if isinstance(error, InvalidInputError) else ()
    if as_json:
        record = {
            "error": error.code,
            "exit": error.exit_code,
            "message": str(error),
            "findings": [finding.to_json() for finding in findings],
        }
        click.echo(json_text(record), err=True)
        return
    click.echo(f"{click.style('error:', fg='red', bold=True)} {printable(str(error))}", err=True)
    if len(findings) > 1:
        for finding in findings[:_SHOWN]:
            click.echo(f"  {printable(str(finding))}", err=True)
        if len(findings) > _SHOWN:
            click.echo(f"  … and {len(findings) - _SHOWN} more; --json lists them all", err=True)


def json_text(value: Any, *, indent: int | None = None) -> str:
    """``value`` as JSON in which what does not show is escaped, for JSON ends up on terminals too."""
    return _NOT_ASCII.sub(_escaped, json.dumps(value, ensure_ascii=False, indent=indent))


def _escaped(found: re.Match[str]) -> str:
    letter = found[0]
    if letter.isprintable():
        return letter
    return f"\\u{ord(letter):04x}" if letter <= "\uffff" else json.dumps(letter)[1:-1]
