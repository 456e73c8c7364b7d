"""The tiny project of helpers_runs, and a comparison on it that is made once."""

import functools
from dataclasses import dataclass
from pathlib import Path

import pytest

from helpers_runs import Project, _quiet_root, cli, project, trained
from tasklora.evaluation import ComparisonResults
from tasklora.training import compare_methods

__all__ = ["_quiet_root", "cli", "project", "trained"]


@dataclass(frozen=True)
class Compared:
    """A finished comparison; not to be changed (copy it)."""

    path: Path
    results: ComparisonResults


@functools.cache
def _compared(project: Project) -> Compared:
    path = project.root / "runs" / "compared"
    recipe = project.load("training.epochs=2")
    methods = ["lora", "mtl_lora", "heads_only"]
    results = compare_methods(
        recipe, path, methods, [0, 1], search=["lr=0.01,0.03"], command="tasklora compare tiny.yaml"
    )
    return Compared(path, results)


@pytest.fixture(scope="session")
def compared(project: Project) -> Compared:
    """Return three methods, two seeds and two learning rates on the tiny tasks."""
    return _compared(project)
