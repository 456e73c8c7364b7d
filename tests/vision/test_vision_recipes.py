"""The recipes for the published benchmarks: their trainable parameters are the published ones, counted offline."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from tasklora.training import DenseRecipe, count_recipe_parameters, load_recipe

FOLDER = Path(__file__).resolve().parents[2] / "recipes" / "vision"
PUBLISHED = sorted([*FOLDER.glob("pascal-*.yaml"), *FOLDER.glob("nyud-*.yaml")])

COUNTS = {
    "pascal-mtlora-r16": 4_953_146,
    "pascal-mtlora-r32": 6_083_642,
    "pascal-mtlora-r64": 8_344_634,
    "pascal-mtlora-plus-r16": 3_469_370,
    "pascal-mtlora-plus-r32": 4_664_378,
    "pascal-mtlora-plus-r64": 7_054_394,
    "pascal-decoders-only": 1_946_624,
    "pascal-full": 29_464_442,
    "nyud-mtlora-r64": 7_810_478,
}
SINGLE = {"semseg": "semseg", "human_parts": "parts", "saliency": "saliency", "normals": "normals"}
SCORES = {
    "pascal-single-semseg": "67.21",
    "pascal-single-human_parts": "61.93",
    "pascal-single-saliency": "62.35",
    "pascal-single-normals": "17.97",
    "pascal-mtlora-r16": "+1.34",
    "pascal-mtlora-r32": "+2.14",
    "pascal-mtlora-r64": "+2.54",
    "pascal-full": "+2.45",
}


def load(name: str, *overrides: str) -> DenseRecipe:
    recipe = load_recipe(FOLDER / f"{name}.yaml", list(overrides))
    assert isinstance(recipe, DenseRecipe)
    return recipe


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a count must not reach for the network")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


@pytest.mark.parametrize("name", COUNTS)
@pytest.mark.usefixtures("no_network")
def test_trainable_parameters_are_the_published_ones(name):
    counts = count_recipe_parameters(load(name))
    assert counts.trainable == COUNTS[name]
    assert sum(counts.groups.values()) == COUNTS[name]


def test_the_command_counts_offline_without_data(tmp_path):
    """In a process of its own, with an empty cache: nothing is downloaded, and no data folder is looked for."""
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "cache"), "OMP_NUM_THREADS": "1"}
    recipe = str(FOLDER / "pascal-mtlora-r16.yaml")
    said = subprocess.run(
        [sys.executable, "-m", "tasklora", "params", recipe, "--json"],
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
        env=environment,
    )
    assert said.returncode == 0, said.stderr
    assert json.loads(said.stdout)["trainable"] == COUNTS["pascal-mtlora-r16"]


def test_the_recipes_are_all_there():
    names = {path.stem for path in PUBLISHED}
    singles = {f"pascal-single-{task}" for task in SINGLE}
    assert names == {*COUNTS, *singles, "pascal-lora", "pascal-bitfit"}


@pytest.mark.parametrize("path", PUBLISHED, ids=lambda path: path.stem)
def test_settings_are_the_papers(path):
    recipe = load(path.stem)
    training, method = recipe.training, recipe.method
    assert recipe.model.name == "microsoft/swin-tiny-patch4-window7-224"
    assert (recipe.model.size, recipe.model.drop_path, recipe.model.decoder) == ((448, 448), 0.2, "mtlora")
    assert (training.epochs, training.batch_size, training.scheduler) == (300, 32, "cosine")
    assert training.learning_rate == pytest.approx(5e-4 * training.batch_size / 512, rel=1e-12)
    assert training.warmup_ratio == pytest.approx(20 / 300, rel=1e-3)
    assert (training.weight_decay, training.max_grad_norm) == (0.05, 5)
    assert training.augmentation is not None
    assert training.augmentation.model_dump() == {"flip": 0.5, "rotation": 20, "scale": (0.75, 1.25), "colour": 0}
    if method.name == "mtlora":
        options = {key: method.options[key] for key in ("task_r", "scale", "task_scale", "lora_dropout")}
        assert options == {"task_r": 4, "scale": 4, "task_scale": 4, "lora_dropout": 0.05}
    assert "Not run here" in recipe.description
    assert SCORES.get(path.stem, "no published score") in recipe.description
    assert "ESTIMATE" in path.read_text(encoding="utf-8")
    assert recipe.output.directory == f"runs/{path.stem}"


@pytest.mark.parametrize("path", PUBLISHED, ids=lambda path: path.stem)
def test_tasks_and_loss_weights_are_the_papers(path):
    recipe = load(path.stem)
    published = {"semseg": 1, "parts": 2, "saliency": 5, "normals": 10}
    if path.stem.startswith("nyud"):
        published = {"semseg": 1, "normals": 10, "depth": 1}
    elif "-single-" in path.stem:
        task = SINGLE[path.stem.removeprefix("pascal-single-")]
        published = {task: published[task]}
    assert list(recipe.loss_weights().items()) == list(published.items())


def test_every_rank_says_its_own_number():
    for path in PUBLISHED:
        recipe = load(path.stem)
        if recipe.method.name == "mtlora":
            assert path.stem.endswith(f"-r{recipe.method.options['r']}")
            assert bool(recipe.method.options.get("plus")) == ("-plus-" in path.stem)
            assert f"{COUNTS[path.stem]:,}" in recipe.description
