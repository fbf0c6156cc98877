"""With CI=true a skipped test is a failed one, so that a green run says that everything ran."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

SKIPS = "import pytest\n\ndef test_it():\n    pytest.skip('no model here')\n"
SKIPS_WHOLE = "import pytest\n\npytest.skip('no model here', allow_module_level=True)\n"
WAITS_FOR_GPU = "import pytest\n\n@pytest.mark.cuda\ndef test_it():\n    pytest.skip('no GPU here')\n"
XFAILS = "import pytest\n\n@pytest.mark.xfail\ndef test_it():\n    assert False\n"


@pytest.mark.parametrize(
    ("source", "ci", "summary"),
    [
        (SKIPS, "true", "1 failed"),
        (SKIPS, "", "1 skipped"),
        (SKIPS_WHOLE, "true", "1 error"),
        (SKIPS_WHOLE, "", "1 skipped"),
        (WAITS_FOR_GPU, "true", "1 skipped"),
        (XFAILS, "true", "1 xfailed"),
    ],
)
def test_what_a_skip_becomes(tmp_path: Path, source: str, ci: str, summary: str) -> None:
    """It fails in CI, whether one test or a whole file skips; only a test that waits for a GPU may."""
    shutil.copy(Path(__file__).with_name("conftest.py"), tmp_path)
    (tmp_path / "test_it.py").write_text(source)
    (tmp_path / "pytest.ini").write_text("[pytest]\nmarkers = cuda\n")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(tmp_path)]
    environment = {**os.environ, "CI": ci}
    result = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert summary in result.stdout.splitlines()[-1], result.stdout
