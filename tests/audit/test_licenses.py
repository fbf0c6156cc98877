"""SPDX license expressions."""

from __future__ import annotations

import pytest

from lora_registry.audit.licenses import as_spdx


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
    assert as_spdx(text) is not None


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
        "Apache-2.1",
        "CC BY 4.0",
        "©",
    ],
)
def test_no_expression(text: str) -> None:
    """Prose, URLs, broken grammar and names that only hubs use make none."""
    assert as_spdx(text) is None


@pytest.mark.parametrize(
    ("written", "canonical"),
    [
        ("apache-2.0", "Apache-2.0"),
        ("mit or (Gpl-3.0-only with Classpath-exception-2.0)", "MIT OR (GPL-3.0-only WITH Classpath-exception-2.0)"),
        ("LicenseRef-My-own", "LicenseRef-My-own"),
    ],
)
def test_case(written: str, canonical: str) -> None:
    """Identifiers come out as SPDX writes them, names of licenses that it does not list as they are."""
    assert as_spdx(written) == canonical
