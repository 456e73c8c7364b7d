"""Lists on the command line, separated by commas."""

import re

from tasklora.errors import ConfigError


def names_of(text: str) -> list[str]:
    """Return the names of ``a,b[x=1,y=2],c``; commas in brackets separate nothing."""
    return [part.strip() for part in re.split(r",(?![^\[]*\])", text) if part.strip()]


def seeds_of(text: str) -> list[int]:
    """Return the numbers of ``0,1,2``.

    Raises:
        ConfigError: if one is no whole number.
    """
    try:
        return [int(part) for part in names_of(text)]
    except ValueError:
        raise ConfigError(f"--seeds takes whole numbers separated by commas, e.g. 0,1,2; got '{text}'.") from None
