"""The tiny project of helpers_runs, for this folder's tests."""

from helpers_runs import _quiet_root, project, trained

__all__ = ["_quiet_root", "project", "trained"]
