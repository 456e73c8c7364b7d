"""The tiny project with a task of every kind, for this folder's tests."""

from helpers_kinds import kinds
from helpers_runs import _quiet_root, cli

__all__ = ["_quiet_root", "cli", "kinds"]
