"""What a program may claim: it is asked about every vector of its classes, and every wrong answer is kept."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from lora_registry.adapter import Json
from lora_registry.conformance.judge import judge, request, without_feature
from lora_registry.conformance.program import NoAnswerError, Program
from lora_registry.conformance.protocol import HELLO, OPERATIONS, Hello
from lora_registry.conformance.vectors import Corpus, Vector
from lora_registry.progress import Progress


@dataclass(frozen=True, slots=True)
class Failure:
    """One wrong answer.

    Attributes:
        class_name: of the program, such as ``reader``; empty where the program itself is wrong.
        id: of the vector; ``hello`` for what the program says about itself.
        why: what the vector is about.
        rules: the rules that it is about.
        reason: what is wrong about the answer.
        expected: by the vector.
        got: the answer; None where there was none.
        stderr: the last lines that the program wrote to its standard error, where there was no answer.
    """

    class_name: str
    id: str
    why: str
    rules: tuple[str, ...]
    reason: str
    expected: Json
    got: Json
    stderr: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Json]:
        """The record as a JSON object."""
        return {
            "class": self.class_name,
            "id": self.id,
            "why": self.why,
            "rules": list[Json](self.rules),
            "reason": self.reason,
            "expected": self.expected,
            "got": self.got,
            "stderr": list[Json](self.stderr),
        }


@dataclass(frozen=True, slots=True)
class Claim:
    """The result of one class.

    Attributes:
        class_name: such as ``reader``.
        format: version of the text.
        vectors: version of the vectors.
        passed: answers that were right.
        total: vectors of the class.
    """

    class_name: str
    format: str
    vectors: str
    passed: int
    total: int

    @property
    def holds(self) -> bool:
        """Whether every answer was right, and there was something to ask."""
        return 0 < self.total == self.passed

    def __str__(self) -> str:
        name = self.class_name.capitalize()
        return f"{name} {self.format}, vectors {self.vectors}, {self.passed}/{self.total}"

    def to_json(self) -> dict[str, Json]:
        """The record as a JSON object."""
        return {
            "class": self.class_name,
            "format": self.format,
            "vectors": self.vectors,
            "passed": self.passed,
            "total": self.total,
        }


@dataclass(frozen=True, slots=True)
class Report:
    """What came out.

    Attributes:
        hello: what the program says about itself; None where it says nothing that can be understood.
        claims: a class each.
        failures: in the order of the questions.
    """

    hello: Hello | None
    claims: tuple[Claim, ...]
    failures: tuple[Failure, ...]

    @property
    def holds(self) -> bool:
        """Whether there is a claim, and every one holds."""
        return bool(self.claims) and not self.failures and all(claim.holds for claim in self.claims)

    def to_json(self) -> dict[str, Json]:
        """The report as a JSON object."""
        return {
            "program": self.hello.to_json() if self.hello else None,
            "holds": self.holds,
            "claims": [claim.to_json() for claim in self.claims],
            "failures": [failure.to_json() for failure in self.failures],
        }


def examine(program: Program, corpus: Corpus, classes: Sequence[str] = (), progress: Progress | None = None) -> Report:
    """Ask ``program`` about every vector of its classes.

    Args:
        program: not asked anything yet, or idle.
        corpus: the vectors.
        classes: those to ask about, which the program has to claim; all that it claims where there are none.
        progress: told of each answer.

    Raises:
        MachineError: the program cannot be started.
    """
    try:
        answer = program.ask(HELLO)
    except NoAnswerError as error:
        return Report(None, (), (_about_program(str(error), None, error.stderr),))
    try:
        hello = Hello.of(answer)
    except ValueError as error:
        return Report(None, (), (_about_program(str(error), answer),))
    failures = list(_wrong_about_itself(hello, corpus, classes))
    asked = [name for name in hello.classes if not classes or name in classes]
    total = sum(len(corpus.expecting(OPERATIONS[name])) for name in asked)
    claims, done = [], 0
    with TemporaryDirectory(prefix="loreg-conformance-") as scratch:
        for name in asked:
            vectors = corpus.expecting(OPERATIONS[name])
            wrong: list[Failure] = []
            for vector in vectors:
                wrong += _wrong_answer(program, hello, name, corpus, vector, Path(scratch))
                done += 1
                if progress is not None:
                    progress(done, total)
            claims.append(Claim(name, hello.format, corpus.version, len(vectors) - len(wrong), len(vectors)))
            failures += wrong
            if not vectors:
                failures.append(_about_program(f"there is no vector for the class {name}", hello.to_json()))
    return Report(hello, tuple(claims), tuple(failures))


def _wrong_about_itself(hello: Hello, corpus: Corpus, classes: Sequence[str]) -> Iterator[Failure]:
    if hello.format.partition(".")[0] != corpus.format.partition(".")[0]:
        reason = f"implements version {hello.format} of the format, and the vectors are of {corpus.format}"
        yield _about_program(reason, hello.to_json())
    if not hello.classes:
        yield _about_program("claims no class", hello.to_json())
    for name in classes:
        if name not in hello.classes:
            yield _about_program(f"does not claim the class {name}", hello.to_json())


def _about_program(reason: str, got: Json, stderr: tuple[str, ...] = ()) -> Failure:
    return Failure("", "hello", "what the program says about itself", (), reason, None, got, stderr)


def _wrong_answer(
    program: Program, hello: Hello, class_name: str, corpus: Corpus, vector: Vector, scratch: Path
) -> Iterator[Failure]:
    """Ask about one vector; nothing where the answer was right."""
    operation = OPERATIONS[class_name]
    expectation = vector.expect[operation]
    if not vector.needs <= hello.features:
        expectation = without_feature(operation, expectation)
    question = request(operation, expectation, corpus.adapter(vector, scratch), corpus.folder)
    answer: dict[str, Json] | None = None
    stderr: tuple[str, ...] = ()
    try:
        answer = program.ask(question)
        reason = judge(operation, expectation, answer, corpus.folder)
    except NoAnswerError as error:
        reason, stderr = str(error), error.stderr
    if reason is not None:
        yield Failure(class_name, vector.id, vector.why, vector.rules, reason, dict(expectation), answer, stderr)
