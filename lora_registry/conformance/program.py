"""A program in any language, asked over its standard input and output: one line of JSON each way."""

from __future__ import annotations

import json
import os
import selectors
import shlex
import signal
import subprocess
from collections.abc import Mapping, Sequence
from contextlib import suppress
from time import monotonic
from types import TracebackType
from typing import Never, Self

from lora_registry.adapter import Json
from lora_registry.conformance.stderr import Tail
from lora_registry.errors import MachineError, UsageError

TIMEOUT = 10.0
"""Seconds that a program has for an answer, its start included where it was not running."""

_LONGEST = 1 << 24  # bytes of an answer; the largest right one has a few thousand
_PATIENCE = 1.0  # seconds that a program has to end when its input does


class NoAnswerError(Exception):
    """The program did not answer as the protocol says.

    Args:
        reason: what it did instead.
        stderr: the last lines that it wrote to its standard error; none where they were shown.
    """

    def __init__(self, reason: str, stderr: tuple[str, ...] = ()) -> None:
        super().__init__(reason)
        self.stderr = stderr


def split(command: str) -> list[str]:
    """The words of a command line, as a shell reads them.

    Raises:
        UsageError: a quote is not closed, or there are no words.
    """
    try:
        words = shlex.split(command)
    except ValueError as error:
        raise UsageError(f"the command {command!r} cannot be read: {error}") from None
    if not words:
        raise UsageError("the command is empty")
    return words


class Program:
    """A running program; started when it is first asked something, and again after each misbehavior.

    Args:
        command: the program and its arguments; run without a shell.
        timeout: seconds for an answer.
        verbose: its standard error is that of this process; otherwise the last lines are kept for when it fails.
    """

    def __init__(self, command: Sequence[str], timeout: float = TIMEOUT, *, verbose: bool = False) -> None:
        self.command = list(command)
        self._timeout = timeout
        self._verbose = verbose
        self._process: subprocess.Popen[bytes] | None = None
        self._tail: Tail | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End the program: its input ends, and it is killed where that is not enough."""
        if self._process is not None:
            assert self._process.stdin is not None
            with suppress(BrokenPipeError):
                self._process.stdin.close()
            if kind is None:
                with suppress(subprocess.TimeoutExpired):
                    self._process.wait(_PATIENCE)
            self._kill()

    def ask(self, request: Mapping[str, Json]) -> dict[str, Json]:
        """Send ``request`` and wait for the answer.

        Raises:
            NoAnswerError: the program died, was too slow, or wrote something else than one line with one object.
            MachineError: it cannot be started.
        """
        process = self._running()
        assert process.stdin is not None
        assert process.stdout is not None
        output = process.stdout.fileno()
        if _readable(output, 0):
            stray = os.read(output, 200)
            self._fail(f"wrote without being asked: {stray!r}" if stray else self._death())
        try:
            process.stdin.write(json.dumps(request).encode() + b"\n")
            process.stdin.flush()
        except BrokenPipeError:
            self._fail(self._death())
        return self._object(self._line(output))

    def _running(self) -> subprocess.Popen[bytes]:
        if self._process is None:
            try:
                # A group of its own, so that what a wrapper script started ends with it.
                self._process = subprocess.Popen(  # noqa: S603 -- the user's own program is what is asked for
                    self.command,
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=None if self._verbose else subprocess.PIPE,
                    start_new_session=True,
                )
            except OSError as error:
                raise MachineError(f"{shlex.join(self.command)}: cannot be started: {error.strerror}") from None
            self._tail = None if self._process.stderr is None else Tail(self._process.stderr)
        return self._process

    def _line(self, output: int) -> bytes:
        deadline = monotonic() + self._timeout
        buffer = bytearray()
        while b"\n" not in buffer:
            if not _readable(output, deadline - monotonic()):
                self._fail(f"did not answer within {self._timeout:g} seconds")
            chunk = os.read(output, 1 << 16)
            if not chunk:
                self._fail(self._death())
            buffer += chunk
            if len(buffer) > _LONGEST:
                self._fail(f"wrote more than {_LONGEST} bytes")
        line, _, rest = bytes(buffer).partition(b"\n")
        if rest:
            self._fail(f"wrote more than one line: {rest[:200]!r}")
        return line

    def _object(self, line: bytes) -> dict[str, Json]:
        try:
            answer = json.loads(line, parse_constant=_refuse_constant)
        except (ValueError, RecursionError):
            self._fail(f"wrote something else than JSON: {line[:200]!r}")
        if not isinstance(answer, dict):
            self._fail(f"answered with something else than an object: {line[:200]!r}")
        return answer

    def _death(self) -> str:
        assert self._process is not None
        try:
            code = self._process.wait(_PATIENCE)
        except subprocess.TimeoutExpired:
            return "closed its output"
        return f"died of {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"

    def _fail(self, reason: str) -> Never:
        """Whatever comes after a wrong answer belongs to no question, so that the program starts anew."""
        self._kill()
        raise NoAnswerError(reason, () if self._tail is None else self._tail.lines())

    def _kill(self) -> None:
        assert self._process is not None
        if self._process.poll() is None:  # its number, once free, is somebody else's
            with suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
        for stream in (self._process.stdin, self._process.stdout):
            assert stream is not None
            with suppress(BrokenPipeError):  # what was not sent is not sent now
                stream.close()
        self._process = None


def _readable(descriptor: int, seconds: float) -> bool:
    """Whether something, or the end, can be read within ``seconds``."""
    with selectors.DefaultSelector() as selector:
        selector.register(descriptor, selectors.EVENT_READ)
        return bool(selector.select(max(0.0, seconds)))


def _refuse_constant(name: str) -> Never:
    raise ValueError(name)
