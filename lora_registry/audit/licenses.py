"""SPDX license expressions (SPDX specification 3.0, annex B), by the list of identifiers that ``packaging`` keeps."""

from __future__ import annotations

import re

from packaging.licenses import InvalidLicenseExpression, canonicalize_license_expression

_OTHER_DOCUMENT = re.compile(r"DocumentRef-[A-Za-z0-9.-]+:(?=LicenseRef-)")  # SPDX has it, packaging does not


def as_spdx(text: str) -> str | None:
    """``text`` with its identifiers and operators as SPDX writes them; None where it is no SPDX expression.

    SPDX compares them without regard to case, and model hubs write them in lower case.
    """
    try:
        found = canonicalize_license_expression(_OTHER_DOCUMENT.sub("", text))
    except InvalidLicenseExpression:
        return None
    return text.strip() if _OTHER_DOCUMENT.search(text) else str(found)
