"""``python -m lora_registry.conformance``: loreg answers requests of the conformance protocol, a line each."""

from __future__ import annotations

import sys

from lora_registry.conformance.answer import serve


def main() -> None:
    """Answer until the input ends."""
    for answer in serve(sys.stdin):
        sys.stdout.write(f"{answer}\n")
        sys.stdout.flush()


main()
