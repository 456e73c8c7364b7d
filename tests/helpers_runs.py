"""A tiny project on disk, made once per test session: a random BERT, three learnable tasks, a suite and a recipe.

The tasks: ``mood`` (one text, 2 classes), ``answer`` (a pair, 3 classes, class weights balanced) and ``heat`` (a pair,
a number from 0 to 4). Each label is decided by one word, so a run of a second or two learns them. ``mood`` and
``answer`` have no tune file (a tenth of train is held out), ``heat`` has one. Folders get these as fixtures through a
``conftest.py`` that imports them.
"""

from __future__ import annotations

import functools
import json
import os
import random
import subprocess
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import pytest
import torch
import yaml
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import BertConfig, BertModel, BertTokenizerFast, TrainerCallback

from tasklora.evaluation import RunResults
from tasklora.tasks import TRAINING_METHODS, BaseModel, TaskData, load_base
from tasklora.training import (
    MultiTaskTrainer,
    Prepared,
    Recipe,
    RunDirectory,
    load_recipe,
    load_recipe_data,
    prepare,
    train_recipe,
)
from tasklora.training.run import training_arguments

HIDDEN, VOCABULARY = 32, 80
TASKS = ["mood", "answer", "heat"]
EVERY_METHOD = list(TRAINING_METHODS)


def mostly_slow(cases: Iterable[Any], *quick: Any) -> list[Any]:
    """Return the cases for a test that runs `quick` ones always, and the others with ``make test-full``."""
    return [
        case if case in quick else pytest.param(*(case if isinstance(case, tuple) else [case]), marks=pytest.mark.slow)
        for case in cases
    ]


METHODS = [name for name, method in TRAINING_METHODS.items() if method.encoder == "adapter"]
ROWS = {"mood": 40, "answer": 60, "heat": 24}

GOOD, BAD = ["good", "lovely", "great"], ["bad", "awful", "dull"]
HEAT = ["icy", "cold", "mild", "warm", "hot"]
ANSWERS = ["yes", "maybe", "no"]
THINGS = ["cake", "film", "song", "room", "walk", "book", "lamp", "coat", "dish", "game"]
FILLERS = ["the", "a", "was", "is", "it", "we", "saw", "had", "this", "that", "and", "very", "so", "one", "day"]
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
WORDS = [*SPECIAL, *GOOD, *BAD, *HEAT, *ANSWERS, *THINGS, *FILLERS, *"abcdefghijklmnopqrstuvwxyz?.,"]

SUITE: dict[str, Any] = {
    "name": "tiny",
    "version": 3,
    "tasks": {
        "mood": {
            "kind": "classification",
            "inputs": ["text"],
            "labels": ["bad", "good"],
            "metrics": ["accuracy", "mcc"],
            "primary": "accuracy",
        },
        "answer": {
            "kind": "classification",
            "inputs": ["question", "reply"],
            "labels": ANSWERS,
            "metrics": ["accuracy", "f1_macro"],
            "primary": "f1_macro",
            "class_weights": "balanced",
        },
        "heat": {
            "kind": "regression",
            "inputs": ["first", "second"],
            "label": "degree",
            "range": [0, 4],
            "metrics": ["pearson", "rmse"],
            "primary": "pearson",
        },
    },
}


@dataclass(frozen=True)
class Project:
    """Where things are.

    Attributes:
        base: the saved base model.
        data: ``TASK/SPLIT.jsonl``.
        suite: the suite's YAML file.
        recipe: the recipe's YAML file.
    """

    root: Path
    base: Path
    data: Path
    suite: Path
    recipe: Path

    def load(self, *overrides: str) -> Recipe:
        """Return the recipe with ``section.key=value`` overrides."""
        return load_recipe(self.recipe, list(overrides))

    def base_model(self) -> BaseModel:
        """Return the base, loaded anew."""
        return load_base(str(self.base))

    def prepare(self, *overrides: str) -> Prepared:
        """Return the adapted model of the recipe, its updates and heads filled with random numbers, in eval mode."""
        prepared = prepare(self.load(*overrides))
        randomise(prepared.model)
        prepared.model.eval()
        return prepared

    def rows(self, *overrides: str) -> TaskData:
        """Return the recipe's rows."""
        recipe = self.load(*overrides)
        return load_recipe_data(recipe, recipe.task_specs())

    def trainer(self, directory: Path, *overrides: str) -> MultiTaskTrainer:
        """Return the recipe's trainer, as a run builds it, without a run."""
        recipe, data = self.load(*overrides), self.rows(*overrides)
        prepared = prepare(recipe)
        for name, rows in data.split("train").items():
            prepared.model.heads[name].fit_labels(torch.from_numpy(rows.labels).float(), rows.class_weights())
        return MultiTaskTrainer(
            prepared.model,
            prepared.about,
            training_arguments(recipe, RunDirectory(directory)),
            data.split("train"),
            data.split("tune"),
            prepared.about.collator(prepared.base.tokenizer),
            recipe.training.mixing,
            recipe.loss_weights(),
            recipe.groups_by_length(),
            recipe.method.options.get("encoder_learning_rate"),
            balancing=recipe.training.balancing,
        )


@dataclass(frozen=True)
class Trained:
    """A finished run, trained once; not to be changed (copy it)."""

    project: Project
    path: Path
    results: RunResults


def words(generator: random.Random, *must: str) -> str:
    """Return a short sentence that holds the words of `must`."""
    sentence = [*generator.choices(FILLERS, k=generator.randint(2, 5)), generator.choice(THINGS), *must]
    generator.shuffle(sentence)
    return " ".join(sentence)


def tiny_row(task: str, generator: random.Random) -> dict[str, Any]:
    """Return one row of a tiny task."""
    if task == "mood":
        label = generator.randrange(2)
        return {"text": words(generator, generator.choice([BAD, GOOD][label])), "label": label}
    if task == "answer":
        label = generator.choices(range(3), [3, 2, 1])[0]
        return {"question": words(generator), "reply": words(generator, ANSWERS[label]), "label": label}
    degree = generator.randrange(5)
    return {"first": words(generator), "second": words(generator, HEAT[degree]), "degree": float(degree)}


def write_rows(path: Path, rows: list[dict[str, Any]]) -> Path:
    """Write rows as JSONL."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def save_base(folder: Path, seed: int = 0, **options: Any) -> Path:
    """Save a random BERT with its tokenizer as safetensors."""
    torch.manual_seed(seed)
    sizes = {"hidden_size": HIDDEN, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 48}
    dropout = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    config = BertConfig(vocab_size=VOCABULARY, max_position_embeddings=48, **{**sizes, **dropout, **options})
    model = BertModel(config)
    model.embeddings.word_embeddings.weight.data *= 10  # words, not positions, decide what a token vector is
    model.save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


def tiny_tokenizer() -> BertTokenizerFast:
    """Return a WordPiece tokenizer over the tasks' words and single letters."""
    vocabulary = {word: place for place, word in enumerate(dict.fromkeys(WORDS))}
    assert len(vocabulary) <= VOCABULARY
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", vocabulary["[SEP]"]), ("[CLS]", vocabulary["[CLS]"]))
    return BertTokenizerFast(tokenizer_object=tokenizer)


@functools.cache
def _project(root: Path) -> Project:
    base, data = save_base(root / "base"), root / "data"
    for task in TASKS:
        generator = random.Random(task)
        splits = {"train": ROWS[task], "validation": 24, **({"tune": 16} if task == "heat" else {})}
        for split, count in splits.items():
            write_rows(data / task / f"{split}.jsonl", [tiny_row(task, generator) for _ in range(count)])
    suite = root / "suite.yaml"
    suite.write_text(yaml.safe_dump(SUITE, sort_keys=False))
    recipe = root / "recipe.yaml"
    content = {
        "model": {"name": str(base), "max_length": 24, "head_dropout": 0.0},
        "tasks": {"suite": str(suite), "data_root": str(data)},
        "method": {"name": "mtl_lora", "r": 4, "lora_alpha": 8, "up_projections": 2},
        "training": {"epochs": 2, "batch_size": 16, "learning_rate": 0.02, "logging_steps": 1, "warmup_ratio": 0.0},
        "output": {"directory": str(root / "runs" / "default")},
    }
    recipe.write_text(yaml.safe_dump(content, sort_keys=False))
    return Project(root, base, data, suite, recipe)


@functools.cache
def _trained(project: Project) -> Trained:
    path = project.root / "runs" / "trained"
    results, _ = train_recipe(project.load("training.epochs=5"), path, command="tasklora train tiny.yaml")
    return Trained(project, path, results)


@pytest.fixture(scope="session")
def project(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """Return the tiny project."""
    root = tmp_path_factory.getbasetemp() / "project"
    datasets.config.HF_DATASETS_CACHE = root / "cache"  # not the user's
    return _project(root)


@pytest.fixture(scope="session")
def trained(project: Project) -> Trained:
    """Return a run of the tiny recipe with MTL-LoRA, five epochs."""
    return _trained(project)


@pytest.fixture(autouse=True)
def _quiet_root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run each test in its own empty folder: relative default paths must not reach the repository."""
    monkeypatch.chdir(tmp_path)


def use_method(name: str) -> str:
    """Return the override that makes a recipe train a method, at rank 4 if it has one."""
    return f"method={{name: {name}{', r: 4, lora_alpha: 8' if 'r' in TRAINING_METHODS[name].options else ''}}}"


def randomise(model: torch.nn.Module, seed: int = 0, scale: float = 0.3) -> None:
    """Fill everything that is trained with random numbers, so that every task's update is different and not zero."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * scale)


def trained_state(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Return copies of the parameters that are trained."""
    return {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}


def assert_same_state(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> None:
    """Assert that two states are equal bit by bit."""
    assert one.keys() == other.keys()
    assert [name for name in one if not torch.equal(one[name], other[name])] == []


def log_of(run: Path) -> list[dict[str, Any]]:
    """Return the records of a run's log."""
    return [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]


class AtStep(TrainerCallback):
    """Does something at the end of one step."""

    def __init__(self, step: int, action: Any) -> None:
        self.step = step
        self.action = action

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> Any:
        """Act when the step has come."""
        if state.global_step == self.step:
            self.action(control=control, **kwargs)
        return control


def environment(project: Project) -> dict[str, str]:
    """Return the environment of a subprocess: offline, one thread, its cache in the project."""
    settings = {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "HF_DATASETS_CACHE": str(project.root / "cache")}
    return {**os.environ, **settings}


def in_subprocess(project: Project, *arguments: str, **options: Any) -> subprocess.CompletedProcess[str]:
    """Run ``python ARGUMENTS`` and return what it said."""
    return subprocess.run(
        [sys.executable, *arguments], capture_output=True, text=True, env=environment(project), **options
    )


@dataclass(frozen=True)
class Said:
    """What a command of ``tasklora`` answered."""

    code: int
    out: str
    err: str


@pytest.fixture
def cli(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., Said]:
    """Return a function that runs ``tasklora ARGUMENTS`` in this process, through its real entry point."""
    from tasklora.cli import main

    # In a process of its own the command line sees to this by environment variables, before datasets is imported.
    datasets.disable_progress_bars()
    datasets.logging.set_verbosity(datasets.logging.CRITICAL)

    def run(*arguments: Any) -> Said:
        monkeypatch.setattr(sys, "argv", ["tasklora", *map(str, arguments)])
        capsys.readouterr()
        try:
            main()
            code: Any = 0
        except SystemExit as stop:
            code = stop.code
        return Said(int(code or 0), *capsys.readouterr())

    return run
