"""The tiny projects of helpers_runs and helpers_dense, for this folder's tests."""

from helpers_dense import dense_project
from helpers_runs import _quiet_root, project, trained

__all__ = ["_quiet_root", "dense_project", "project", "trained"]
