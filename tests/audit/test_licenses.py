"""What looks like an SPDX license expression."""

from __future__ import annotations

import pytest

from lora_registry.audit.licenses import looks_like_spdx


@pytest.mark.parametrize(
    "text",
    [
        "MIT",
        "apache-2.0",
        "GPL-2.0+",
        "MIT OR Apache-2.0",
        "MIT AND (LGPL-2.1-or-later OR BSD-3-Clause)",
        "GPL-2.0-or-later WITH Classpath-exception-2.0",
        "LicenseRef-llama3.2",
        "DocumentRef-spdx-tool-1.2:LicenseRef-MIT-Style-2",
        "  MIT ",
        "((MIT))",
    ],
)
def test_expression(text: str) -> None:
    """Identifiers, operators, exceptions, references and parentheses make an expression."""
    assert looks_like_spdx(text)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "Apache 2.0",
        "Apache License, Version 2.0",
        "MIT OR",
        "OR MIT",
        "MIT AND AND MIT",
        "(MIT",
        "MIT)",
        "()",
        "MIT MIT",
        "MIT WITH",
        "MIT WITH (x)",
        "WITH x",
        "https://example.org/license",
        "llama3.1",
        "MIT OR other",
        "CC BY 4.0",
        "©",
    ],
)
def test_no_expression(text: str) -> None:
    """Prose, URLs, broken grammar and names that only hubs use make none."""
    assert not looks_like_spdx(text)
