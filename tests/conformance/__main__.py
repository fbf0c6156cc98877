"""``python tests/conformance --entrypoint CMD``: ``loreg conformance`` with the vectors of this checkout."""

from __future__ import annotations

import sys
from pathlib import Path

from lora_registry.cli import main

VECTORS = Path(__file__).resolve().parents[2] / "spec" / "vectors"

main(["conformance", "--vectors", str(VECTORS), *sys.argv[1:]], prog_name="python tests/conformance")
