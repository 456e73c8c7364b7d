"""The tiny project of helpers_runs, and a comparison on it that is made once; dense runs of several methods."""

import functools
import json
import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from helpers_dense import DenseProject, dense_project
from helpers_runs import Project, _quiet_root, cli, project, trained
from tasklora.evaluation import ComparisonResults
from tasklora.training import compare_methods, train_recipe

__all__ = ["_quiet_root", "cli", "dense_project", "project", "trained"]


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


DENSE = {"mtlora": 0.0, "lora": 1.0, "decoders_only": -2.0, "bitfit": 2.0, "full_fine_tuning": 3.0, "per_task_lora": -1}
"""Methods of the dense runs, and by how much the depth of each was better than MTLoRA's."""


@functools.cache
def _dense_runs(project: DenseProject) -> dict[str, Path]:
    folder = project.root / "runs" / "methods"
    first = folder / "mtlora"
    train_recipe(project.load("training.max_steps=1"), first, command="tasklora train tiny.yaml")
    for place, (method, better) in enumerate(DENSE.items()):
        if method == "mtlora":
            continue
        run = shutil.copytree(first, folder / method)
        results = json.loads((run / "results.json").read_text())
        results["method"] = method
        results["parameters"]["trainable"] *= 3**place
        results["scores"]["validation"]["tasks"]["depth"]["score"] += better
        (run / "results.json").write_text(json.dumps(results))
        with np.load(run / "shown_images.npz") as file:  # what it said is what MTLoRA said, moved to the right
            moved = {name: np.roll(a, place, -1) if name.startswith("prediction") else a for name, a in file.items()}
        np.savez_compressed(run / "shown_images.npz", **moved)
    return {method: folder / method for method in DENSE}


@pytest.fixture(scope="session")
def dense_runs(dense_project: DenseProject) -> dict[str, Path]:
    """Return finished dense runs, method → run: one that was trained, others made up of it. Not to be changed."""
    return _dense_runs(dense_project)
