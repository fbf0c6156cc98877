"""Push adapters into a registry from a process of its own, which the tests kill, crowd and starve.

Usage: push_worker.py ROOT NAME COUNT WIDTH [FILE_LIMIT]
    Pushes COUNT adapters as ``many/NAME:1`` to ``many/NAME:COUNT``, and each as ``many/shared:latest`` too.
    Prints the reference of every push that was reported as done. FILE_LIMIT is the largest file it may write.
"""

from __future__ import annotations

import resource
import signal
import sys

from small_adapters import small_adapter

from lora_registry.errors import LoregError
from lora_registry.registry import Registry


def main() -> int:
    root, name, count, width, *limit = sys.argv[1:]
    if limit:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (int(limit[0]), int(limit[0])))
    registry = Registry.open(root)
    for index in range(1, int(count) + 1):
        adapter = small_adapter(hash_of(name, index), width=int(width))
        try:
            for reference, move in ((f"many/{name}:{index}", False), ("many/shared:latest", True)):
                registry.push(adapter, reference, move=move, actor=name)
                print(reference, flush=True)
        except LoregError as error:
            print(error, file=sys.stderr)
            return error.exit_code
    return 0


def hash_of(name: str, index: int) -> int:
    """A seed for an adapter that no other worker makes."""
    return int.from_bytes(f"{name}:{index}".encode(), "big")


if __name__ == "__main__":
    sys.exit(main())
