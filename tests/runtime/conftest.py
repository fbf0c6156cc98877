"""One export of each tiny model for all tests of the session."""

from __future__ import annotations

from collections.abc import Callable

import exported_models
import pytest
from exported_models import Exported


@pytest.fixture(scope="session")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Exported]:
    """Gives the export of a family; made when first asked for, never to be written into."""
    made: dict[str, Exported] = {}

    def get(family: str) -> Exported:
        if family not in made:
            made[family] = exported_models.export(family, tmp_path_factory.mktemp(family))
        return made[family]

    return get
