"""A program that knows every right answer and lies in one way: ``python liar.py ANSWERS LIE``.

ANSWERS is a JSON file that maps requests to answers. Standard library only, so that it starts at once.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

Answer = dict[str, Any]
Lie = Callable[[Answer], Answer]


def main() -> None:
    answers = json.loads(Path(sys.argv[1]).read_text())
    lie = sys.argv[2]
    for line in sys.stdin:
        request = json.loads(line)
        answer = answers[json.dumps(request, sort_keys=True)]
        told = hello(answer, lie) if request["op"] == "hello" else misbehave(request, answer, lie)
        sys.stdout.write(told)
        sys.stdout.flush()
        if lie == "ends after each answer":
            return


def hello(answer: Answer, lie: str) -> str:
    """What it says about itself; most lies are about something else."""
    match lie:
        case "dies at once":
            os.kill(os.getpid(), signal.SIGKILL)
        case "greets in words":
            return "hello\n"
        case "claims nothing":
            answer = {**answer, "classes": []}
        case "claims a class that there is not":
            answer = {**answer, "classes": ["magician"]}
        case "claims another format":
            answer = {**answer, "format": "2.0"}
        case "claims no version":
            answer = {**answer, "version": 1}
        case "says more about itself":
            answer = {**answer, "motto": "trust me"}
        case "says no features":
            answer = {**answer, "features": "all"}
        case "lacks the gate":
            answer = {**answer, "features": []}
    return json.dumps(answer) + "\n"


def misbehave(request: Answer, answer: Answer, lie: str) -> str:
    """The line, or what stands in its place."""
    match lie:
        case "dies":
            sys.exit(3)
        case "complains" | "complains and dies":
            sys.stderr.write("".join(f"line {number}\n" for number in range(100_000)))
            sys.stderr.flush()
            if lie == "complains and dies":
                sys.exit(3)
        case "hangs" if request["op"] == "write":
            time.sleep(600)
        case "closes its output":
            os.close(1)
            time.sleep(600)
        case "prints words":
            return "accept\n"
        case "prints a list":
            return json.dumps([answer]) + "\n"
        case "prints NaN":
            return '{"verdict": NaN}\n'
        case "answers twice":
            return 2 * (json.dumps(answer) + "\n")
        case "writes without end":
            while True:
                sys.stdout.write("x" * 65536)
        case "nests without end":
            return "[" * 100_000 + "\n"
    return json.dumps(distort(request["op"], answer, lie)) + "\n"


def distort(operation: str, answer: Answer, lie: str) -> Answer:
    """A well-formed answer that is wrong in one member, or the right one where the lie is about something else."""
    table = WHERE_ACCEPTED if answer.get("verdict") == "accept" else WHERE_NOT
    for of in (operation, "any"):
        if (lie, of) in table:
            return table[lie, of](answer)
    return answer


def of_tensors(change: Callable[[Answer], Any]) -> Lie:
    """Change the record of each merged tensor."""
    return lambda answer: {**answer, "tensors": {name: change(record) for name, record in answer["tensors"].items()}}


def of_probes(change: Callable[[list[float]], Any]) -> Lie:
    """Change the numbers of each component."""
    return lambda answer: {
        **answer,
        "targets": {
            n: {part: change(found) for part, found in parts.items()} for n, parts in answer["targets"].items()
        },
    }


def away(record: Answer) -> Answer:
    """The first element of a tensor, one unit in the last place away."""
    data = bytearray.fromhex(record["data"])
    data[0] ^= 1
    return {**record, "data": data.hex()}


NOWHERE = "sha256:" + 64 * "0"
ANYWHERE: dict[tuple[str, str], Lie] = {
    ("gives up", "any"): lambda answer: {"error": "not implemented"},
    ("says more", "any"): lambda answer: {**answer, "comment": "easy"},
    ("rejects everything", "read"): lambda answer: {"verdict": "reject", "code": "invalid-input"},
}
WHERE_NOT = ANYWHERE | {
    ("accepts everything", "read"): lambda answer: {"verdict": "accept", "content": NOWHERE},
    ("rejects with another code", "merge"): lambda answer: {**answer, "code": "invalid-input"},
    ("rejects in words", "any"): lambda answer: {**answer, "reason": "R-029"} if "code" in answer else answer,
    ("finds nothing", "validate"): lambda answer: {"rules": []},
    ("finds more", "validate"): lambda answer: {"rules": sorted([*answer["rules"], "R-001"])},
    ("finds it twice", "validate"): lambda answer: {"rules": 2 * answer["rules"]},
    ("finds something nameless", "validate"): lambda answer: {"rules": [35]},
    ("finds a word", "validate"): lambda answer: {"rules": (answer["rules"] or [[]])[0]},
}
WHERE_ACCEPTED = ANYWHERE | {
    ("another content", "read"): lambda answer: {**answer, "content": NOWHERE},
    ("no root", "read"): lambda answer: {name: value for name, value in answer.items() if name != "root"},
    ("another byte", "write"): lambda answer: {**answer, "bytes": answer["bytes"][:-2] + "ff"},
    ("a byte less", "edit"): lambda answer: {**answer, "bytes": answer["bytes"][:-2]},
    ("no hexadecimal", "write"): lambda answer: {**answer, "bytes": "spam"},
    ("no bytes", "write"): lambda answer: {"verdict": "accept"},
    ("one unit away", "merge"): of_tensors(away),
    ("another type", "merge"): of_tensors(lambda record: {**record, "dtype": "I32"}),
    ("transposed", "merge"): of_tensors(lambda record: {**record, "shape": record["shape"][::-1]}),
    ("an element less", "merge"): of_tensors(lambda record: {**record, "data": record["data"][:-8]}),
    ("no data", "merge"): of_tensors(lambda record: None),
    ("tensors left out", "merge"): lambda answer: {**answer, "tensors": {}},
    ("all the same", "merge"): lambda answer: {**answer, "fingerprints": dict.fromkeys(answer["fingerprints"], "same")},
    ("a number is off", "probe"): of_probes(lambda found: [*found[:-1], found[-1] + 1e-6]),
    ("seven numbers", "probe"): of_probes(lambda found: found[:7]),
    ("numbers as text", "probe"): of_probes(lambda found: [str(number) for number in found]),
    ("no components", "probe"): lambda answer: {**answer, "targets": {name: {} for name in answer["targets"]}},
    ("no targets", "probe"): lambda answer: {**answer, "targets": {}},
}


main()
