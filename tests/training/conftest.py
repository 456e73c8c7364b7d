"""The tiny project of helpers_runs, and the command line in this process, for this folder's tests."""

from helpers_dense import dense_project
from helpers_runs import _quiet_root, cli, project, trained

__all__ = ["_quiet_root", "cli", "dense_project", "project", "trained"]
