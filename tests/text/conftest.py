"""The tiny project of tasks in text, and the command line in this process, for this folder's tests."""

from helpers_runs import _quiet_root, cli
from helpers_text import text_project

__all__ = ["_quiet_root", "cli", "text_project"]
