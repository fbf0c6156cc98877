"""Make the test vectors: ``python spec/vectors/make`` writes them, ``--check`` compares them with what lies there.

Nothing here knows an implementation of the format: the vectors follow from the text alone, so that they are able
to contradict every program, this project's included. Standard library only.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from corpus import files

FOLDERS = ("valid", "invalid", "canonical", "merge", "probe")


def main() -> int:
    """Write the vectors, or compare; the exit code."""
    parser = argparse.ArgumentParser(prog="python spec/vectors/make", description="Make the test vectors.")
    parser.add_argument("--check", action="store_true", help="compare, write nothing, and exit with 1 on a difference")
    parser.add_argument(
        "folder", nargs="?", type=Path, default=Path(__file__).resolve().parent.parent, help="where they lie"
    )
    arguments = parser.parse_args()
    folder: Path = arguments.folder
    wanted = files()
    there = {path.relative_to(folder).as_posix(): path for part in FOLDERS for path in (folder / part).glob("**/*.*")}
    there |= {"index.json": folder / "index.json"} if (folder / "index.json").exists() else {}
    stray = sorted(set(there) - set(wanted))
    changed = [name for name, data in wanted.items() if name not in there or there[name].read_bytes() != data]
    if arguments.check:
        for name in stray:
            print(f"belongs to no vector: {name}")
        for name in changed:
            print(f"is not what is made: {name}")
        return 1 if stray or changed else 0
    for name in stray:
        there[name].unlink()
    for name in changed:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(wanted[name])
    print(f"{len(wanted)} files, {len(changed)} written, {len(stray)} removed")
    return 0


if __name__ == "__main__":
    sys.exit(main())
