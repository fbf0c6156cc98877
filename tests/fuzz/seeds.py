"""Files to begin with: adapters of every kind, each changed a little, and the files that the repository keeps.

python tests/fuzz/seeds.py build/fuzz/corpus
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path
from random import Random

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
sys.path[:0] = [str(HERE), str(HERE.parent / "models")]

from adapter_strategies import adapters, samples  # noqa: E402  (the path is set above)
from mutator import mutated, respelled  # noqa: E402

from lora_registry.format.writer import encode_adapter  # noqa: E402

LARGEST = 1 << 14
"""Bytes of the largest seed; larger ones make every execution slow and show nothing that small ones do not."""


def seeds(count: int = 100) -> Iterator[bytes]:
    """Sound files, the same in another spelling, and broken ones; always the same."""
    random = Random(0)
    for adapter in samples(count, adapters()):
        file = b"".join(encode_adapter(adapter).chunks())
        yield from (file, respelled(file, random), mutated(file, random))
    for folder in (HERE / "corpus", ROOT / "spec" / "vectors"):
        for path in sorted(folder.rglob("*.safetensors")):
            if path.stat().st_size <= LARGEST:
                yield path.read_bytes()


def main(folder: Path) -> None:
    """Write the seeds under names that follow from their content."""
    folder.mkdir(parents=True, exist_ok=True)
    for seed in seeds():
        (folder / sha256(seed).hexdigest()[:40]).write_bytes(seed)
    print(f"{len(list(folder.iterdir()))} seeds in {folder}")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
