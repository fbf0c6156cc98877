"""The harness believes nobody: loreg passes through its real process, and every lie is caught and named."""

from __future__ import annotations

import fcntl
import json
import subprocess
import sys
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from time import sleep
from typing import Any

import numpy as np
import pytest

from lora_registry.adapter import Adapter, Kind, Target
from lora_registry.conformance import vectors as vectors_module
from lora_registry.conformance.answer import respond
from lora_registry.conformance.claim import Report, examine
from lora_registry.conformance.judge import judge, ulps
from lora_registry.conformance.program import Program, split
from lora_registry.conformance.protocol import OPERATIONS
from lora_registry.conformance.vectors import Corpus, built, find, load
from lora_registry.errors import InvalidInputError, MachineError, NotFoundError, UsageError
from lora_registry.format.container import encode_tensors
from lora_registry.format.writer import write_adapter
from lora_registry.ops.arrays import from_array
from lora_registry.ops.fingerprint import target_fingerprint

CHECKOUT = Path(__file__).parents[2]
LIAR = Path(__file__).with_name("liar.py")
LOREG = [sys.executable, "-m", "lora_registry.conformance"]
RANDOM = np.random.default_rng(0)
WEIGHT = RANDOM.standard_normal((3, 2)).astype(np.float32)


def target(name: str, *, fingerprint: bool = True, other: bool = False) -> Target:
    tensors = {
        "A": from_array(RANDOM.standard_normal((1, 2)).astype(np.float32)),
        "B": from_array(RANDOM.standard_normal((3, 1)).astype(np.float32)),
    }
    made = Target(name=name, kind=Kind.LINEAR, layout=("out", "in"), shape=(3, 2), tensors=tensors)
    stated = target_fingerprint(made, WEIGHT + 1 if other else WEIGHT) if fingerprint else None
    return replace(made, fingerprint=stated)


def ask(**request: Any) -> Any:
    return respond(json.dumps(request))


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    """A few vectors for every operation, whose expectations are what loreg itself answers."""
    folder = tmp_path_factory.mktemp("vectors")
    sound = Adapter(targets=(target("a"), target("b", fingerprint=False), target("c", other=True)))
    write_adapter(sound, folder / "sound.safetensors")
    write_adapter(replace(sound, gate=(7,)), folder / "gated.safetensors")
    whole = (folder / "sound.safetensors").read_bytes()
    (folder / "broken.safetensors").write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    base = {name: from_array(WEIGHT) for name in ("a", "b", "c", "untouched")}
    (folder / "base.safetensors").write_bytes(b"".join(encode_tensors(base, {})))
    path = {name: str(folder / f"{name}.safetensors") for name in ("sound", "gated", "broken", "base")}
    title = ask(op="edit", file=path["sound"], title="Ω")
    (folder / "titled.safetensors").write_bytes(bytes.fromhex(title["bytes"]))
    merged, probed = ask(op="merge", adapter=path["sound"], base=path["base"]), ask(op="probe", file=path["sound"])
    bounds = {name: dict.fromkeys(found, 1e-8) for name, found in probed["targets"].items()}
    entries: list[dict[str, Any]] = [
        {
            "id": "valid/sound",
            "file": "sound.safetensors",
            "expect": {
                "read": ask(op="read", file=path["sound"]),
                "validate": {"rules": []},
                "write": {"file": "sound.safetensors"},
                "edit": {"title": "Ω", "file": "titled.safetensors"},
                "merge": {"base": "base.safetensors", "ulp": 0, **without_verdict(merged)},
                "probe": {**without_verdict(probed), "bounds": bounds},
            },
        },
        {
            "id": "invalid/broken",
            "file": "broken.safetensors",
            "rules": ["R-035"],
            "expect": {
                "read": {"verdict": "reject", "code": "integrity"},
                "validate": {"rules": ["R-035"]},
                "edit": {"title": "", "verdict": "reject", "code": "integrity"},
            },
        },
        {
            "id": "merge/gated",
            "file": "gated.safetensors",
            "needs": ["gate"],
            "expect": {
                "read": ask(op="read", file=path["gated"]),
                "validate": {"rules": []},
                "write": {"file": "gated.safetensors"},
                "merge": {"base": "base.safetensors", "verdict": "reject", "code": "unsupported"},
            },
        },
        {
            "id": "invalid/large",
            "build": [{"hex": "ffffff0100000000"}, {"text": '{"#": ', "times": 3}],
            "expect": {"validate": {"rules": ["R-001"]}},
        },
    ]
    for entry in entries:
        entry |= {"why": f"about {entry['id']}", "rules": entry.get("rules", [])}
    index = {"version": "1.2.3", "format": "1.0", "vectors": entries}
    (folder / "index.json").write_text(json.dumps(index))
    return load(folder)


def without_verdict(answer: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in answer.items() if name != "verdict"}


class Recorder(Program):
    """loreg in this process, keeping what it was asked and what it said."""

    def __init__(self) -> None:
        super().__init__(["loreg"])
        self.answers: dict[str, Any] = {}

    def ask(self, request: Any) -> Any:
        answer = respond(json.dumps(request))
        self.answers[json.dumps(request, sort_keys=True)] = answer
        return answer


@pytest.fixture
def answers(corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The right answers, for a liar to start from; adapters that are built have one place in both runs."""
    monkeypatch.setattr("lora_registry.conformance.claim.TemporaryDirectory", lambda **_: Kept(tmp_path))
    recorder = Recorder()
    assert examine(recorder, corpus).holds
    path = tmp_path / "answers.json"
    path.write_text(json.dumps(recorder.answers))
    return path


class Kept:
    """A temporary folder that stays where it is."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __enter__(self) -> str:
        return str(self.folder)

    def __exit__(self, *error: object) -> None:
        """Leave it to pytest."""


def told(lie: str, answers: Path, corpus: Corpus, *classes: str, timeout: float = 60.0) -> Report:
    """The report about a liar."""
    with Program([sys.executable, "-S", str(LIAR), str(answers), lie], timeout=timeout) as program:
        return examine(program, corpus, classes)


# loreg itself


def test_loreg_claims_every_class(capfd: pytest.CaptureFixture[str]) -> None:
    """The real process, asked about every vector of the specification: all right, and none left out (P-041)."""
    corpus = load(find())
    with Program(LOREG, verbose=True) as program:
        report = examine(program, corpus)
    assert [failure.to_json() for failure in report.failures] == []
    assert {claim.class_name: claim.total for claim in report.claims} == {
        name: len(corpus.expecting(operation)) for name, operation in OPERATIONS.items()
    }
    assert report.holds
    assert capfd.readouterr().err == ""


def test_a_program_that_tells_the_truth_passes(answers: Path, corpus: Corpus) -> None:
    """The liar without a lie: otherwise the tests below would show nothing."""
    report = told("none", answers, corpus)
    assert report.holds
    assert [str(claim) for claim in report.claims] == [
        "Reader 1.0, vectors 1.2.3, 3/3",
        "Validator 1.0, vectors 1.2.3, 4/4",
        "Writer 1.0, vectors 1.2.3, 2/2",
        "Editor 1.0, vectors 1.2.3, 2/2",
        "Merger 1.0, vectors 1.2.3, 2/2",
        "Prover 1.0, vectors 1.2.3, 1/1",
    ]


@pytest.mark.parametrize(
    ("request_", "why"),
    [
        ("{", "Expecting property name"),
        ("[]", "no such operation"),
        ('{"op": "sing"}', "no such operation"),
        ('{"op": "read"}', "'file' is no string"),
        ('{"op": "read", "file": "/nothing/here"}', "no such file"),
        ('{"op": "read", "file": "a\\u0000b"}', "null byte"),
        ('{"op": "edit", "file": "FILE"}', "'title' is no string"),
    ],
)
def test_what_cannot_be_answered_is_said_in_one_sentence(corpus: Corpus, request_: str, why: str) -> None:
    """A question that is none, or is about nothing, is an error and not a refusal; the process goes on."""
    answer = respond(request_.replace("FILE", str(corpus.folder / "sound.safetensors")))
    assert list(answer) == ["error"]
    assert why in str(answer["error"])


# Lies

WRONG = {
    "accepts everything": ("reader", "expected {'verdict': 'reject', 'code': 'integrity'}"),
    "rejects everything": ("reader", "is to be accepted"),
    "another content": ("reader", "expected {'verdict': 'accept', 'content': 'sha256:"),
    "no root": ("reader", "the answer: expected"),
    "finds nothing": ("validator", "expected ['R-035'], got []"),
    "finds more": ("validator", "'R-001'"),
    "finds it twice": ("validator", "sorted and each once: expected ['R-035'], got ['R-035', 'R-035']"),
    "finds something nameless": ("validator", "expected ['R-035'], got [35]"),
    "finds a word": ("validator", "expected ['R-035'], got 'R-035'"),
    "another byte": ("writer", "bytes differ from"),
    "a byte less": ("editor", "bytes differ from"),
    "no hexadecimal": ("writer", "the bytes are not in hexadecimal"),
    "no bytes": ("writer", "the members of the answer: expected"),
    "one unit away": ("merger", "element 0 of a is 1 units in the last place away; 0 are allowed"),
    "another type": ("merger", "dtype of a: expected 'F32', got 'I32'"),
    "transposed": ("merger", "shape of a: expected [3, 2], got [2, 3]"),
    "an element less": ("merger", "a has not 24 bytes in hexadecimal"),
    "no data": ("merger", "a has not dtype, shape and data: None"),
    "tensors left out": ("merger", "the changed tensors: expected ['a', 'b', 'c'], got []"),
    "all the same": ("merger", "fingerprints: expected {'a': 'same', 'b': 'none', 'c': 'other'}"),
    "a number is off": ("prover", "number 7 of a change is"),
    "seven numbers": ("prover", "a change is not 8 numbers"),
    "numbers as text": ("prover", "a change is not 8 numbers"),
    "no components": ("prover", "the components of a: expected ['change'], got []"),
    "no targets": ("prover", "the targets: expected ['a', 'b', 'c'], got []"),
    "rejects with another code": ("merger", "expected {'verdict': 'reject', 'code': 'unsupported'}"),
    "rejects in words": ("reader editor merger", "'reason': 'R-029'"),
    "gives up": (" ".join(OPERATIONS), "could not answer: 'not implemented'"),
    "says more": (" ".join(OPERATIONS), "comment"),
}


@pytest.mark.parametrize("lie", WRONG)
def test_a_wrong_answer_fails_its_class_and_no_other(lie: str, answers: Path, corpus: Corpus) -> None:
    """The claim of the class does not hold, the failure says what was expected, and the other claims stand."""
    classes, reason = WRONG[lie]
    report = told(lie, answers, corpus)
    assert not report.holds
    assert [claim.class_name for claim in report.claims if not claim.holds] == classes.split()
    assert any(reason in failure.reason for failure in report.failures), [str(f.reason) for f in report.failures]
    for claim in report.claims:
        assert claim.total - claim.passed == sum(f.class_name == claim.class_name for f in report.failures)


MISBEHAVED = {
    "dies": "ended with exit code 3",
    "closes its output": "closed its output",
    "prints words": "wrote something else than JSON: b'accept'",
    "prints NaN": "wrote something else than JSON",
    "nests without end": "wrote something else than JSON",
    "prints a list": "answered with something else than an object",
    "answers twice": "wrote more than one line",
    "writes without end": "wrote more than 16777216 bytes",
}


@pytest.mark.parametrize("lie", MISBEHAVED)
def test_a_program_that_misbehaves_fails_and_is_started_again(lie: str, answers: Path, corpus: Corpus) -> None:
    """Each question is asked, to a fresh process where the last one was spoiled."""
    report = told(lie, answers, corpus, "prover", "writer")
    assert [(claim.passed, claim.total) for claim in report.claims] == [(0, 2), (0, 1)]
    assert all(MISBEHAVED[lie] in failure.reason for failure in report.failures), report.failures
    assert all(failure.got is None for failure in report.failures)


def test_a_program_that_hangs_fails_that_vector_and_answers_the_next(answers: Path, corpus: Corpus) -> None:
    """The timeout ends it; what is asked next is answered by a new process."""
    report = told("hangs", answers, corpus, "writer", "prover", timeout=3.0)
    assert {failure.reason for failure in report.failures} == {"did not answer within 3 seconds"}
    assert [(claim.class_name, claim.passed) for claim in report.claims] == [("writer", 0), ("prover", 1)]


def test_a_program_that_ends_before_its_input_does_not_pass(answers: Path, corpus: Corpus) -> None:
    """Right answers by a process each are not what the protocol says."""
    report = told("ends after each answer", answers, corpus, "validator")
    assert not report.holds
    assert {failure.reason for failure in report.failures} == {"ended with exit code 0"}


def test_what_a_dying_program_said_is_kept(answers: Path, corpus: Corpus, capfd: pytest.CaptureFixture[str]) -> None:
    """The last lines of its standard error are in the failure, however many it wrote; nothing is shown in between."""
    report = told("complains and dies", answers, corpus, "prover")
    assert [failure.reason for failure in report.failures] == ["ended with exit code 3"]
    assert report.failures[0].stderr == ("line 99995", "line 99996", "line 99997", "line 99998", "line 99999")
    assert report.to_json()["failures"][0]["stderr"][-1] == "line 99999"  # type: ignore[index, call-overload]
    assert capfd.readouterr().err == ""


def test_a_program_that_cannot_say_hello_is_quoted(answers: Path, corpus: Corpus) -> None:
    """What stands in front of a program that does not start is the reason, such as a module that is missing."""
    with Program([sys.executable, "-c", "import no_such_module"]) as program:
        report = examine(program, corpus)
    assert report.failures[0].id == "hello"
    assert report.failures[0].stderr[-1] == "ModuleNotFoundError: No module named 'no_such_module'"


def test_what_a_program_writes_besides_is_shown_on_request(
    answers: Path, corpus: Corpus, capfd: pytest.CaptureFixture[str]
) -> None:
    """A talkative program passes, in silence or not; it never waits for somebody who reads what it says."""
    assert told("complains", answers, corpus, "prover").holds
    assert capfd.readouterr().err == ""
    with Program([sys.executable, "-S", str(LIAR), str(answers), "complains"], timeout=60.0, verbose=True) as program:
        assert examine(program, corpus, ["prover"]).holds
    assert capfd.readouterr().err.endswith("line 99999\n")


HELLO = {
    "dies at once": "died of SIGKILL",
    "greets in words": "wrote something else than JSON: b'hello'",
    "claims nothing": "claims no class",
    "claims a class that there is not": "no such class: magician",
    "claims another format": "implements version 2.0 of the format, and the vectors are of 1.0",
    "claims no version": "name, version and format are strings",
    "says more about itself": "the members are ['classes', 'features', 'format', 'motto'",
    "says no features": "features is no list of names",
}


@pytest.mark.parametrize("lie", HELLO)
def test_a_program_that_does_not_say_who_it_is_claims_nothing(lie: str, answers: Path, corpus: Corpus) -> None:
    """The first failure is about the program, and nothing holds."""
    report = told(lie, answers, corpus)
    assert not report.holds
    assert report.failures[0].id == "hello"
    assert HELLO[lie] in report.failures[0].reason


def test_a_class_that_is_asked_for_has_to_be_claimed(answers: Path, corpus: Corpus) -> None:
    """Otherwise asking a reader for its merger would be a success."""
    table = json.loads(answers.read_text())
    table['{"op": "hello"}']["classes"] = ["reader"]
    answers.write_text(json.dumps(table))
    report = told("none", answers, corpus, "reader", "merger")
    assert not report.holds
    assert [failure.reason for failure in report.failures] == ["does not claim the class merger"]
    assert told("none", answers, corpus, "reader").holds


def test_a_class_without_vectors_does_not_hold(answers: Path, corpus: Corpus) -> None:
    """0/0 is no claim."""
    without = replace(corpus, vectors=tuple(vector for vector in corpus.vectors if "probe" not in vector.expect))
    report = told("none", answers, without, "prover")
    assert not report.holds
    assert str(report.claims[0]) == "Prover 1.0, vectors 1.2.3, 0/0"
    assert [failure.reason for failure in report.failures] == ["there is no vector for the class prover"]


def test_of_a_program_without_a_feature_the_refusal_is_expected(answers: Path, corpus: Corpus) -> None:
    """R-015 is right for it, and going on as if nothing were is not."""
    report = told("lacks the gate", answers, corpus)
    wrong = {(failure.class_name, failure.id) for failure in report.failures}
    assert wrong == {(name, "merge/gated") for name in ("reader", "validator", "writer")}
    table = json.loads(answers.read_text())
    for request, answer in table.items():
        if "gated" in request:
            refused = {"rules": ["R-015"]} if '"validate"' in request else {"verdict": "reject", "code": "unsupported"}
            table[request] = refused if "hello" not in request else answer
    answers.write_text(json.dumps(table))
    assert told("lacks the gate", answers, corpus).holds


def test_numbers_within_what_the_vector_allows_are_right(corpus: Corpus) -> None:
    """One unit in the last place where one is allowed, and a probe on its bound."""
    expected = corpus.vectors[0].expect
    tensors: Any = expected["merge"]["tensors"]
    data = bytearray.fromhex(tensors["a"]["data"])
    data[0] ^= 1
    merged = {**tensors, "a": {**tensors["a"], "data": data.hex()}}
    answer = {"verdict": "accept", "tensors": merged, "fingerprints": expected["merge"]["fingerprints"]}
    assert judge("merge", {**expected["merge"], "ulp": 1}, answer, corpus.folder) is None
    assert judge("merge", expected["merge"], answer, corpus.folder) is not None


def test_one_of_several_rules_is_enough(corpus: Corpus) -> None:
    """P-003: a validator reports at least one of the rules that a file breaks, and none that it does not break."""
    expected = {"rules": ["R-009", "R-021"]}
    for rules in (["R-009"], ["R-021"], ["R-009", "R-021"]):
        assert judge("validate", expected, {"rules": rules}, corpus.folder) is None
    for wrong in ([], ["R-021", "R-009"], ["R-009", "R-022"], ["R-009", "R-009"]):
        assert judge("validate", expected, {"rules": wrong}, corpus.folder) is not None
    assert judge("validate", {"rules": []}, {"rules": ["R-009"]}, corpus.folder) is not None


def test_units_in_the_last_place() -> None:
    """Neighbors are one apart across zero and powers of two; both zeros are one number; integers count."""
    below = np.array([0.0, -0.0, 1.0, -1.0, 1e-45, 65504], np.float32)
    above = np.nextafter(below, np.float32(np.inf))
    assert ulps(below.tobytes(), above.tobytes(), "F32") == [1] * 6
    assert ulps(np.float16(-0.0).tobytes(), np.float16(0.0).tobytes(), "F16") == [0]
    assert ulps(np.array([-(2**-24)], np.float16).tobytes(), np.array([2**-24], np.float16).tobytes(), "F16") == [2]
    assert ulps(b"\x01\xff", b"\x03\x00", "U8") == [2, 255]
    assert ulps(b"\x38\x80", b"\x3a\x00", "F8_E4M3") == [2, 0]


# Programs and vectors


def test_a_program_that_cannot_be_started_is_the_machine(corpus: Corpus) -> None:
    """Nothing was asked, so that nothing is said about it."""
    with Program(["/no/such/program"]) as program, pytest.raises(MachineError, match="cannot be started"):
        examine(program, corpus)


@pytest.mark.parametrize("command", ["", "  ", "'open"])
def test_a_command_line_has_words(command: str) -> None:
    """Nothing to start is a mistake of the request."""
    with pytest.raises(UsageError):
        split(command)
    assert split("node 'my reader.js' -x") == ["node", "my reader.js", "-x"]


def test_what_a_program_started_ends_with_it(tmp_path: Path) -> None:
    """A wrapper script that hangs takes its child along, which then holds its lock no longer."""
    lines = ("import fcntl, time", "lock = open('held', 'w')", "fcntl.flock(lock, fcntl.LOCK_EX)", "time.sleep(600)")
    (tmp_path / "child.py").write_text("\n".join(lines))
    wrapper = tmp_path / "wrapper.sh"
    wrapper.write_text(f"cd {tmp_path}\n{sys.executable} -S child.py\nexit 1\n")
    with Program(["sh", str(wrapper)], timeout=3.0) as program:
        assert not examine(program, Corpus(tmp_path, "1.0.0", "1.0", ())).holds
    with (tmp_path / "held").open() as lock:
        for _ in range(100):  # the kernel takes its time
            with suppress(BlockingIOError):
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return
            sleep(0.1)
    pytest.fail("the child still runs")


def test_an_adapter_is_built_of_its_pieces() -> None:
    """Bytes, and a text so many times with the number of the time in it."""
    pieces = ({"hex": "00ff"}, {"text": "a#,", "times": 3}, {"text": "##", "times": 1})
    assert b"".join(built(pieces)) == b"\x00\xffa0,a1,a2,00"


BROKEN = {
    "no JSON": "{",
    "a list": "[]",
    "no vectors": '{"version": "1", "format": "1.0", "vectors": []}',
    "no version": '{"format": "1.0", "vectors": []}',
    "neither file nor build": '{"version": "1", "format": "1", "vectors": '
    '[{"id": "a", "why": "", "rules": [], "expect": {}}]}',
    "a file that is not there": '{"version": "1", "format": "1", "vectors": '
    '[{"id": "a", "file": "a", "why": "", "rules": [], "expect": {}}]}',
}


BROKEN_VECTORS: dict[str, dict[str, Any]] = {
    "there is no such operation": {"file": "a", "expect": {"cook": {"verdict": "accept"}}},
    "the expectation has no 'content'": {"file": "a", "expect": {"read": {"verdict": "accept"}}},
    "the expectation has no 'base'": {"file": "a", "expect": {"merge": {"tensors": {}, "fingerprints": {}, "ulp": 0}}},
    "the expectation has no 'title'": {"file": "a", "expect": {"edit": {"verdict": "reject", "code": "integrity"}}},
    "outside of its folder": {"file": "a", "expect": {"write": {"file": "../secret"}}},
    "non-hexadecimal": {"build": [{"hex": "zz"}], "expect": {}},
    "cannot be interpreted as an integer": {"build": [{"text": "a", "times": "3"}], "expect": {}},
    "is built to more than": {"build": [{"text": "a", "times": 10**11}], "expect": {}},
    "there is no member 'text'": {"build": [{}], "expect": {}},
}


@pytest.mark.parametrize("reason", BROKEN_VECTORS)
def test_a_broken_vector_is_refused_before_anything_is_asked(reason: str, tmp_path: Path) -> None:
    """One line that names the vector, no traceback half-way, no bytes from elsewhere, and no full disk."""
    (tmp_path / "secret").write_bytes(b"")
    folder = tmp_path / "vectors"
    folder.mkdir()
    (folder / "a").write_bytes(b"")
    entry = {"id": "v", "why": "", "rules": [], **BROKEN_VECTORS[reason]}
    (folder / "index.json").write_text(json.dumps({"version": "1", "format": "1", "vectors": [entry]}))
    with pytest.raises(InvalidInputError, match=reason):
        load(folder)


@pytest.mark.parametrize("case", BROKEN)
def test_an_index_that_is_none_is_refused(case: str, tmp_path: Path) -> None:
    """An empty or broken folder would otherwise be a success without questions."""
    (tmp_path / "index.json").write_text(BROKEN[case])
    with pytest.raises(InvalidInputError, match=r"index\.json"):
        load(tmp_path)


def test_vectors_that_are_nowhere_are_not_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither a folder without an index, nor an installation without vectors."""
    with pytest.raises(NotFoundError):
        load(tmp_path)
    for place in ("_PACKAGED", "_CHECKOUT"):
        monkeypatch.setattr(vectors_module, place, tmp_path)
    with pytest.raises(NotFoundError, match="--vectors"):
        find()


def test_the_checkout_runs_it_without_the_command() -> None:
    """``python tests/conformance``, with the vectors of the checkout."""
    command = [sys.executable, str(CHECKOUT / "tests" / "conformance"), "--class", "validator"]
    result = subprocess.run(command, check=False, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr
    assert result.stdout.splitlines()[-1].startswith("Validator 1.0, vectors ")
