"""The small pretrained Swin of the package: it is what its papers say, and loads by its name."""

import hashlib
import json
from importlib import resources
from pathlib import Path

import pytest
import torch

from tasklora.vision.base_model import SCENES_SWIN, load_dense_base, load_dense_skeleton
from tasklora.vision.scenes import PART_CLASSES, SEMSEG_CLASSES

FOLDER = Path(str(resources.files("tasklora.vision") / "swin_scenes"))
WEIGHTS = FOLDER / "model.safetensors"


@pytest.fixture(scope="module")
def about():
    """Return what the folder says of how the weights were made."""
    return json.loads((FOLDER / "pretraining.json").read_text())


def test_it_is_small_and_the_file_that_was_made(about):
    assert WEIGHTS.stat().st_size < 8 * 10**6
    assert hashlib.sha256(WEIGHTS.read_bytes()).hexdigest() == about["sha256"]


def test_it_loads_by_its_name(about):
    base = load_dense_base(SCENES_SWIN)
    assert base.name == base.model.config._name_or_path == SCENES_SWIN
    assert sum(p.numel() for p in base.model.parameters()) == about["weights"]
    assert {p.dtype for p in base.model.parameters()} == {torch.float32}
    shapes = {name: p.shape for name, p in load_dense_skeleton(SCENES_SWIN).model.named_parameters()}
    assert shapes == {name: p.shape for name, p in base.model.named_parameters()}


def test_it_says_how_it_was_made(about):
    assert about["command"].startswith("python tools/pretrain_scenes_swin.py ")
    assert about["seed"] == 0
    assert len(about["commit"]) == 40
    losses = [point["eval_loss"] for point in about["curve"] if "eval_loss" in point]
    assert len(losses) >= 5
    assert losses[-1] < losses[0]
    found = about["mean_average_precision"]
    for name in ("kinds", "vivid", "parts"):
        assert found[name] > 2 * found[f"{name}_by_chance"]


def test_it_was_asked_what_is_there_and_never_where(about):
    kinds = SEMSEG_CLASSES[1:]
    assert about["questions"] == [*kinds, "vivid", *PART_CLASSES[1:]]
