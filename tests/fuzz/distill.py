"""Keep a few small inputs that between them break every rule and have every kind of target.

    python tests/fuzz/distill.py build/fuzz/corpus tests/fuzz/corpus

Names say what comes out: ``R-029-R-033-9f86d081.safetensors`` breaks these two rules, ``accepted-2c26b46b.safetensors``
is sound. Files under names of another form are left alone.
"""

from __future__ import annotations

import re
import sys
import tempfile
from collections.abc import Iterable
from hashlib import sha256
from pathlib import Path

sys.path[:0] = [str(Path(__file__).resolve().parent)]

from file_properties import examine  # noqa: E402  (the path is set above)

from lora_registry.format.reader import read_adapter  # noqa: E402

LARGEST = 4096
"""Bytes of an input that is kept."""

OURS = re.compile(r".+-[0-9a-f]{8}\.safetensors")

RULES_EACH = 3
"""Rules that one input breaks; with more of them nobody sees what it is about."""


def shown(data: bytes, folder: Path) -> frozenset[str]:
    """What an input is an example of: the rules that it breaks, or the kinds of its targets."""
    rules = {finding.rule for finding in examine(data, folder)}
    kinds = set() if rules else {target.kind.value for target in read_adapter(folder / "given.loreg.safetensors")}
    return frozenset(rules if len(rules) <= RULES_EACH else ()) | kinds


def chosen(examples: dict[bytes, frozenset[str]]) -> Iterable[bytes]:
    """A set cover, greedily: again and again the input that shows most that is new, the smallest of those."""
    missing = frozenset().union(*examples.values())
    while missing:
        best = min(examples, key=lambda data: (-len(examples[data] & missing), len(data), data))
        missing -= examples[best]
        yield best


def main(sources: list[Path], goal: Path) -> None:
    """Replace what this program wrote into ``goal`` before by a choice out of all folders."""
    old = [path for path in goal.iterdir() if OURS.fullmatch(path.name)]
    found = [*old, *(path for source in sources for path in source.iterdir())]
    inputs = {path.read_bytes() for path in found if path.stat().st_size <= LARGEST}
    with tempfile.TemporaryDirectory() as name:
        examples = {data: shown(data, Path(name)) for data in sorted(inputs)}
    for path in old:
        path.unlink()
    for data in (kept := list(chosen(examples))):
        rules = "-".join(sorted(item for item in examples[data] if item.startswith("R-")))
        (goal / f"{rules or 'accepted'}-{sha256(data).hexdigest()[:8]}.safetensors").write_bytes(data)
    print(f"{len(kept)} inputs in {goal}")


if __name__ == "__main__":
    *inputs, output = map(Path, sys.argv[1:])
    main(inputs, output)
