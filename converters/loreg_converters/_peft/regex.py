"""Regular expressions from a stranger's config, matched in a time that the stranger cannot choose.

PEFT compiles the keys of ``rank_pattern`` with :mod:`re`, which backtracks: ``(a+)+$`` takes 2**n steps.
Here a pattern becomes a nondeterministic automaton that is walked with a set of states (Thompson 1968), so
a match takes at most (length of the name) x (size of the automaton) steps. Only whether a name matches is
asked for, and to that question both give the same answer. Look-around and back-references are no regular
expressions; they are refused by name.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TypeAlias

LENGTH = 8192  # characters of a pattern; Unsloth's for target_modules have some 600
STATES = 20_000  # automaton states; a counted repetition multiplies them

_PLAIN = re.compile(r"\^?(?:[A-Za-z0-9_.\-/]|\\[.\-_])*\$?", re.ASCII)
_LITERAL = re.compile(r"\^(?:[A-Za-z0-9_]|\\[.\-_])+", re.ASCII)
_CLASSES = {"d": "0-9", "w": r"A-Za-z0-9_", "s": r" \t\n\r\f\v"}


class PatternError(ValueError):
    """The pattern is no regular expression, is too large, or uses what cannot be matched in bounded time."""


Node: TypeAlias = "_Char | _Anchor | _Sequence | _Choice | _Repeat"


@dataclass(frozen=True, slots=True)
class _Char:
    test: re.Pattern[str]  # one character


@dataclass(frozen=True, slots=True)
class _Anchor:
    start: bool


@dataclass(frozen=True, slots=True)
class _Sequence:
    parts: tuple[Node, ...]


@dataclass(frozen=True, slots=True)
class _Choice:
    parts: tuple[Node, ...]


@dataclass(frozen=True, slots=True)
class _Repeat:
    part: Node
    low: int
    high: int | None


class Regex:
    """A pattern that has been parsed; the names it is asked about must match it from end to end.

    Raises:
        PatternError: see there.
    """

    def __init__(self, pattern: str) -> None:
        if len(pattern) > LENGTH:
            raise PatternError(f"a pattern of {len(pattern)} characters is beyond the limit of {LENGTH}")
        self.pattern = pattern
        self._automaton = _Automaton(_Parser(pattern).parse())

    def matches(self, name: str) -> bool:
        """Whether the whole of ``name`` matches, as ``re.fullmatch`` says it."""
        return self._automaton.accepts(name)


class SuffixPattern:
    r"""A key of ``rank_pattern`` or ``alpha_pattern``: ``re.match(rf"(.*\.)?({key})$", name)`` of PEFT 0.21.2.

    Dots are not escaped there, so they stand for any character. Keys without operators, nearly all, go to
    :mod:`re`, which cannot backtrack far on them; the others to :class:`Regex`.

    Attributes:
        literal: the one name that the key matches, where it is anchored and every dot is escaped.
        plain: whether the key has no operators.
    """

    def __init__(self, key: str) -> None:
        whole = rf"(.*\.)?({key})$"
        self.plain = len(key) <= LENGTH and _PLAIN.fullmatch(key) is not None
        self.literal = re.sub(r"\\(.)", r"\1", key[1:]) if _LITERAL.fullmatch(key) else None
        if self.literal is not None:
            self._matches: Callable[[str], object] = self.literal.__eq__
        else:
            self._matches = re.compile(whole).match if self.plain else Regex(whole).matches

    def matches(self, name: str) -> bool:
        """Whether PEFT would apply the entry to the module or parameter ``name``."""
        return bool(self._matches(name))


class _Parser:
    """Recursive descent over the syntax of :mod:`re` that trainers use."""

    def __init__(self, pattern: str) -> None:
        self._text = pattern
        self._at = 0
        self._depth = 0

    def parse(self) -> Node:
        node = self._choice()
        if self._at < len(self._text):
            raise self._error("an unmatched ')'")
        return node

    def _error(self, what: str) -> PatternError:
        return PatternError(f"{what} at character {self._at}")

    def _peek(self) -> str:
        return self._text[self._at : self._at + 1]

    def _take(self) -> str:
        letter = self._peek()
        self._at += 1
        return letter

    def _choice(self) -> Node:
        self._depth += 1
        if self._depth > 50:
            raise self._error("groups nested deeper than 50")
        parts = [self._sequence()]
        while self._peek() == "|":
            self._at += 1
            parts.append(self._sequence())
        self._depth -= 1
        return parts[0] if len(parts) == 1 else _Choice(tuple(parts))

    def _sequence(self) -> Node:
        parts: list[Node] = []
        while self._peek() not in ("", "|", ")"):
            parts.append(self._repeat(self._atom()))
        return _Sequence(tuple(parts))

    def _repeat(self, node: Node) -> Node:
        bounds = {"*": (0, None), "+": (1, None), "?": (0, 1)}
        if (letter := self._peek()) in bounds:
            self._at += 1
            low, high = bounds[letter]
        elif counted := re.compile(r"\{(\d{0,4})(,?)(\d{0,4})\}", re.ASCII).match(self._text, self._at):
            if counted[0] == "{}":
                return node
            self._at = counted.end()
            low = int(counted[1] or 0)
            high = (int(counted[3]) if counted[3] else None) if counted[2] else low
        else:
            return node
        if high is not None and high < low:
            raise self._error("a repetition whose bounds are the wrong way round")
        if self._peek() == "?":  # lazy: another order of trying, the same answer
            self._at += 1
        if self._peek() in ("*", "+"):
            raise self._error("a repetition of a repetition")
        return _Repeat(node, low, high)

    def _atom(self) -> Node:
        letter = self._take()
        match letter:
            case "(":
                return self._group()
            case "[":
                return self._set()
            case ".":
                return _Char(re.compile(r"[^\n]"))
            case "^" | "$":
                return _Anchor(letter == "^")
            case "\\":
                return self._escape()
            case "*" | "+" | "?":
                raise self._error("nothing to repeat")
        return _Char(re.compile(re.escape(letter)))

    def _group(self) -> Node:
        if self._peek() == "?":
            plain = re.compile(r"\?(?::|P<\w+>)").match(self._text, self._at)
            if plain is None:
                raise self._error("look-around, flags or another extension '(?...)'")
            self._at = plain.end()
        node = self._choice()
        if self._take() != ")":
            raise self._error("a group that is not closed")
        return node

    def _escape(self) -> Node:
        letter = self._take()
        if letter in ("A", "Z"):
            return _Anchor(letter == "A")
        if letter in _CLASSES:
            return _Char(re.compile(f"[{_CLASSES[letter]}]"))
        if letter and letter in "DWS":
            return _Char(re.compile(f"[^{_CLASSES[letter.lower()]}]"))
        if not letter or letter.isalnum():
            raise self._error(f"the escape '\\{letter}'")
        return _Char(re.compile(re.escape(letter)))

    def _set(self) -> Node:
        start = self._at - 1
        if self._peek() == "^":
            self._at += 1
        if self._peek() == "]":
            self._at += 1
        while (letter := self._take()) != "]":
            if not letter:
                raise self._error("a set that is not closed")
            if letter == "\\":
                self._at += 1
        try:
            # One set matches one character: re cannot backtrack on it.
            return _Char(re.compile(self._text[start : self._at]))
        except re.error as error:
            raise self._error(f"a set that is not one ({error})") from None


@dataclass(slots=True)
class _State:
    """``test`` consumes a character on the way to the first of ``to``; without one, all of ``to`` are free."""

    test: re.Pattern[str] | None = None
    anchor: _Anchor | None = None
    to: list[int] = field(default_factory=list)


class _Automaton:
    def __init__(self, node: Node) -> None:
        self._states: list[_State] = [_State()]  # state 0 accepts
        self._built = 0
        self._start = self._build(node, 0)

    def _add(self, state: _State) -> int:
        if len(self._states) >= STATES:
            raise PatternError(f"the pattern needs more than {STATES} states")
        self._states.append(state)
        return len(self._states) - 1

    def _build(self, node: Node, then: int) -> int:
        """Add states for ``node`` that go on to ``then``; the first of them."""
        self._built += 1
        if self._built > 4 * STATES:  # repetitions of nothing add no state, and still take time
            raise PatternError(f"the pattern needs more than {STATES} states")
        match node:
            case _Char(test):
                return self._add(_State(test=test, to=[then]))
            case _Anchor():
                return self._add(_State(anchor=node, to=[then]))
            case _Sequence(parts):
                for part in reversed(parts):
                    then = self._build(part, then)
                return then
            case _Choice(parts):
                return self._add(_State(to=[self._build(part, then) for part in parts]))
            case _Repeat(part, low, high):
                return self._repeated(part, low, high, then)

    def _repeated(self, part: Node, low: int, high: int | None, then: int) -> int:
        if high is None:
            loop = self._add(_State(to=[then]))
            self._states[loop].to.append(self._build(part, loop))
            then = loop
        else:
            end = then
            for _ in range(high - low):
                then = self._add(_State(to=[end, self._build(part, then)]))
        for _ in range(low):
            then = self._build(part, then)
        return then

    def accepts(self, name: str) -> bool:
        current = self._reach({self._start}, 0, len(name))
        for position, letter in enumerate(name, start=1):
            states = [self._states[state] for state in current]
            stepped = {state.to[0] for state in states if state.test and state.test.match(letter)}
            if not stepped:
                return False
            current = self._reach(stepped, position, len(name))
        return 0 in current

    def _reach(self, states: set[int], position: int, length: int) -> set[int]:
        """Everything that can be reached from ``states`` without consuming a character."""
        found = set(states)
        todo = list(states)
        while todo:
            state = self._states[todo.pop()]
            if state.test is not None or (state.anchor and position != (0 if state.anchor.start else length)):
                continue
            for after in state.to:
                if after not in found:
                    found.add(after)
                    todo.append(after)
        return found
