"""The command line: train, evaluate, predict, export, params, methods, demo."""

from tasklora.cli.main import main

__all__ = ["main"]
