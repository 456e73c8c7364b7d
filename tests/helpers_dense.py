"""A tiny dense project on disk, made once per test session: a random Swin, a suite of rendered scenes, a recipe.

The images are 40 × 56 and the network sees 64 × 64, so every run resizes. The suite has five kinds of tasks: classes,
salient pixels, normals, edges and depth.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from transformers import SwinConfig, SwinModel

from tasklora.training import DenseRecipe, DenseTrainer, RunDirectory, load_recipe, workload_of
from tasklora.training.run import training_arguments
from tasklora.vision.scenes import SEMSEG_CLASSES

SIZE = (40, 56)
IMAGES = {"train": 8, "tune": 3, "validation": 4}
DENSE_TASKS = ["semseg", "saliency", "normals", "edges", "depth"]

SUITE: dict[str, Any] = {
    "name": "tiny_scenes",
    "version": 1,
    "shape": "dense",
    "layout": "scenes",
    "options": {"size": list(SIZE), "images": IMAGES},
    "tasks": {
        "semseg": {"kind": "segmentation", "labels": list(SEMSEG_CLASSES), "source": {"label": "semseg"}},
        "saliency": {"kind": "saliency", "source": {"label": "saliency"}, "loss_weight": 5.0},
        "normals": {"kind": "normals", "source": {"label": "normals"}, "loss_weight": 10.0},
        "edges": {"kind": "edges", "source": {"label": "edges"}, "positive_weight": 0.95, "loss_weight": 50.0},
        "depth": {"kind": "depth", "source": {"label": "depth"}},
    },
}


@dataclass(frozen=True)
class DenseProject:
    """Where things are.

    Attributes:
        base: the saved Swin.
        suite: the suite's YAML file.
        recipe: the recipe's YAML file.
    """

    root: Path
    base: Path
    suite: Path
    recipe: Path

    def load(self, *overrides: str) -> DenseRecipe:
        """Return the recipe with ``section.key=value`` overrides."""
        recipe = load_recipe(self.recipe, list(overrides))
        assert isinstance(recipe, DenseRecipe)
        return recipe

    def trainer(self, directory: Path, *overrides: str) -> DenseTrainer:
        """Return the recipe's trainer, as a run builds it, without a run."""
        recipe = self.load(*overrides)
        work = workload_of(recipe)
        work.load_data(["train", "tune"])
        work.prepare()
        trainer = work.trainer(training_arguments(recipe, RunDirectory(directory)), [])
        assert isinstance(trainer, DenseTrainer)
        return trainer


def save_swin(folder: Path, seed: int = 0) -> Path:
    """Save a random Swin of two stages."""
    torch.manual_seed(seed)
    config = SwinConfig(image_size=64, embed_dim=12, depths=[2, 2], num_heads=[2, 4], window_size=4, drop_path_rate=0.1)
    SwinModel(config, add_pooling_layer=False).save_pretrained(folder)
    return folder


@functools.cache
def _project(root: Path) -> DenseProject:
    root.mkdir(parents=True, exist_ok=True)
    suite, recipe, base = root / "suite.yaml", root / "recipe.yaml", save_swin(root / "base")
    suite.write_text(yaml.safe_dump(SUITE, sort_keys=False))
    content = {
        "shape": "dense",
        "model": {"name": str(base), "image_size": 64, "decoder": "segformer"},
        "tasks": {"suite": str(suite)},
        "method": {"name": "mtlora", "r": 4, "task_r": 2},
        "training": {
            "epochs": 2,
            "batch_size": 4,
            "learning_rate": 0.005,
            "weight_decay": 0.05,
            "logging_steps": 1,
            "warmup_ratio": 0.0,
        },
        "output": {"directory": str(root / "runs" / "default")},
    }
    recipe.write_text(yaml.safe_dump(content, sort_keys=False))
    return DenseProject(root, base, suite, recipe)


@pytest.fixture(scope="session")
def dense_project(tmp_path_factory: pytest.TempPathFactory) -> DenseProject:
    """Return the tiny dense project."""
    return _project(tmp_path_factory.getbasetemp() / "dense_project")
