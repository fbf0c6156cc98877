"""Which folder is the registry: the one that is named, else ``$LOREG_HOME``, else one in the user's data."""

from __future__ import annotations

import os
import re
from pathlib import Path

from lora_registry.errors import UsageError

HOME_VARIABLE = "LOREG_HOME"

_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://", re.ASCII)


def registry_folder(location: str | Path | None = None) -> Path:
    """The folder of a registry, which need not exist.

    Args:
        location: what the user said; None or an empty text where that is nothing.

    Raises:
        UsageError: a URL; a registry is a folder, and databases or object stores are refused by name. Or a path
            that begins with ``~`` and the name of no user.
    """
    if location is None or str(location) == "":
        location = os.environ.get(HOME_VARIABLE) or _user_folder()
    if match := _SCHEME.match(str(location)):
        raise UsageError(f"a registry is a folder; {match[1]}:// is not supported")
    try:
        return Path(location).expanduser().absolute()
    except RuntimeError:
        raise UsageError(f"there is no home folder for {str(location)!r}") from None


def _user_folder() -> Path:
    from platformdirs import user_data_path

    return user_data_path("loreg", appauthor=False)
