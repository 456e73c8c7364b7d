"""The errors that tasklora raises, and the one helper that makes them helpful.

Every message says what was wrong, what was given and what to do. The classes derive from the built-in error that a
PEFT user would expect, so existing ``except ValueError`` clauses keep working; the command line prints any
:class:`TaskLoraError` as one line instead of a traceback.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class TaskLoraError(Exception):
    """Base of all errors raised on purpose by tasklora."""


class TaskIdsError(TaskLoraError, ValueError):
    """Task ids are missing, out of range, or of the wrong shape or dtype."""


class UnknownTaskError(TaskLoraError, ValueError):
    """A task name that the adapter does not have."""


class ConfigError(TaskLoraError, ValueError):
    """A configuration or recipe that cannot be used as it is."""


class UnsupportedError(TaskLoraError, NotImplementedError):
    """Something the mathematics or the base layer does not allow."""


class DataError(TaskLoraError, ValueError):
    """Missing files or columns, or rows that a task cannot use."""


class CheckpointError(TaskLoraError, RuntimeError):
    """A saved adapter, head or run that is damaged or does not belong here."""


class BrokenAdapterError(TaskLoraError, ValueError):
    """An adapter whose numbers are NaN or infinite."""


class OutputError(TaskLoraError, OSError):
    """An output directory that cannot be written without losing something."""


class NonFiniteLossError(TaskLoraError, ArithmeticError):
    """The training loss became NaN or infinite."""


class MemoryRanOutError(TaskLoraError, MemoryError):
    """There was not enough memory, of the machine or of its accelerator."""


class WorkerDiedError(TaskLoraError, RuntimeError):
    """A process that loads rows died."""


class InterruptedRun(TaskLoraError):
    """Training was interrupted; the run can be resumed."""


def did_you_mean(name: str, valid: Iterable[str]) -> str:
    """Return ``" Did you mean 'x'?"`` for the nearest of `valid`, or an empty string when none is near."""
    matches = difflib.get_close_matches(str(name), list(valid), n=1, cutoff=0.6)
    return f" Did you mean '{matches[0]}'?" if matches else ""


def first_line(error: BaseException) -> str:
    """Return the first line of another library's error; its class where it says nothing."""
    return next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)


def counted(count: int, what: str) -> str:
    """Return ``"1 row"`` or ``"1,200 rows"``."""
    return f"{count:,} {what}{'' if count == 1 else 's'}"


def listing(names: Iterable[str], limit: int = 12) -> str:
    """Return `names` joined by commas, cut after `limit` entries with the number left out."""
    names = list(names)
    shown = ", ".join(names[:limit])
    return shown if len(names) <= limit else f"{shown}, … ({len(names) - limit} more)"
