"""A tiny project with a task of every kind that has a head, learnable by a word or two, and random answers for metrics.

``CASES`` has a row for every one; what is tested of kinds is tested of all of them. ``text_answers`` has texts.
"""

from __future__ import annotations

import functools
import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import yaml

from helpers_runs import BAD, FILLERS, GOOD, HEAT, THINGS, Project, save_base, words, write_rows
from tasklora.tasks import HEADS, METRICS, Answers, TaskSpec

TRAITS = ["nice", "hot", "yes"]
TAGS = ["O", "B-THING", "I-THING", "B-HEAT"]


@dataclass(frozen=True)
class KindCase:
    """A kind in tests.

    Attributes:
        task: its task in the suite; metrics are all that it can have.
        rows: generator → the lines of a file that make up one row.
        given: the texts of a row on the command line.
        answers: (generator, rows) → labels, predictions and scores, random.
        wrong: (changes of one line, what the error says of it).
    """

    task: dict[str, Any]
    rows: Callable[[random.Random], list[dict[str, Any]]]
    given: list[str]
    answers: Callable[[np.random.Generator, int], Answers]
    wrong: list[tuple[dict[str, Any], str]]


def _classification(generator: random.Random) -> list[dict[str, Any]]:
    label = generator.randrange(2)
    return [{"text": words(generator, generator.choice([BAD, GOOD][label])), "label": label}]


def _regression(generator: random.Random) -> list[dict[str, Any]]:
    degree = generator.randrange(5)
    return [{"first": words(generator), "second": words(generator, HEAT[degree]), "label": float(degree)}]


def _multi_label(generator: random.Random) -> list[dict[str, Any]]:
    held = [name for name in TRAITS if generator.random() < 0.5]
    marks = {"nice": "lovely", "hot": "hot", "yes": "yes"}
    return [{"text": words(generator, *(marks[name] for name in held)), "label": held}]


def _multiple_choice(generator: random.Random) -> list[dict[str, Any]]:
    count = generator.randint(2, 4)
    label = generator.randrange(count)
    choices = [words(generator, generator.choice(GOOD if place == label else BAD)) for place in range(count)]
    return [{"question": words(generator), "choices": choices, "label": label}]


def _token_classification(generator: random.Random) -> list[dict[str, Any]]:
    tokens, tags = [], []
    for _ in range(generator.randint(2, 5)):
        kind = generator.choice(TAGS)
        if kind == "O":
            tokens.append(generator.choice(FILLERS))
            tags.append("O")
        elif kind == "B-HEAT":
            tokens.append(generator.choice(HEAT))
            tags.append(kind)
        else:
            tokens += [generator.choice(THINGS), "maybe"]
            tags += ["B-THING", "I-THING"]
    return [{"tokens": tokens, "label": tags}]


def _ranking(generator: random.Random) -> list[dict[str, Any]]:
    query = words(generator) + f" {generator.randrange(10**6)}"
    relevant = generator.randrange(3)
    documents = [generator.choice(BAD if place != relevant else GOOD) for place in range(generator.randint(3, 4))]
    return [
        {"query": query, "document": words(generator, word), "label": 2 * int(place == relevant)}
        for place, word in enumerate(documents)
    ]


def _class_answers(generator: np.random.Generator, rows: int) -> Answers:
    labels, predictions = generator.integers(0, 2, (2, rows)).astype(float)
    return Answers(labels, predictions, generator.integers(0, 6, rows) / 5, ("no", "yes"))


def _number_answers(generator: np.random.Generator, rows: int) -> Answers:
    labels, predictions = generator.normal(size=(2, rows)).round(1) + 2.7
    return Answers(labels, predictions)


def _label_answers(generator: np.random.Generator, rows: int) -> Answers:
    labels = (generator.random((rows, 3)) < [0.5, 0.2, 0.05]).astype(float)
    scores = generator.integers(0, 8, (rows, 3)) / 7
    return Answers(labels, (scores > 0.5).astype(float), scores, tuple(TRAITS))


def _choice_answers(generator: np.random.Generator, rows: int) -> Answers:
    labels, predictions = generator.integers(0, 4, (2, rows)).astype(float)
    return Answers(labels, predictions)


def _ragged(generator: np.random.Generator, values: Any, least: int) -> np.ndarray[Any, Any]:
    """Cut the rows of an array to random lengths."""
    lengths = generator.integers(least, values.shape[1] + 1, len(values))
    return np.where(np.arange(values.shape[1]) < lengths[:, None], values, np.nan)


def _token_answers(generator: np.random.Generator, rows: int) -> Answers:
    labels = _ragged(generator, generator.integers(0, 4, (rows, 6)), 1)
    predictions = np.where(generator.random((rows, 6)) < 0.6, labels, generator.integers(0, 4, (rows, 6)))
    predictions = np.where(np.isnan(labels) | (generator.random((rows, 6)) < 0.1), np.nan, predictions)  # some not seen
    return Answers(labels, predictions, classes=tuple(TAGS))


def _rank_answers(generator: np.random.Generator, rows: int) -> Answers:
    labels = _ragged(generator, generator.choice([0, 0, 0, 1, 2], (rows, 12)), 1)
    return Answers(labels, np.where(np.isnan(labels), np.nan, generator.integers(0, 9, (rows, 12)) / 3))


def text_answers(generator: np.random.Generator, rows: int) -> Answers:
    """Return labels and predictions of generation."""
    words_of = np.array(["the good film", "film", "a bad book", "", "good good"], dtype=object)
    return Answers(words_of[generator.integers(0, 3, rows)], words_of[generator.integers(0, 5, rows)])


def _task(kind: str, inputs: list[str], **settings: Any) -> dict[str, Any]:
    """Return a task with all metrics that it can have."""
    classes = len(settings.get("labels", []))
    metrics = [name for name, m in METRICS.items() if kind in m.kinds and (not m.two_classes or classes == 2)]
    return {"kind": kind, "inputs": inputs, "metrics": metrics, "primary": metrics[0], **settings}


CASES: dict[str, KindCase] = {
    "classification": KindCase(
        _task("classification", ["text"], labels=["bad", "good"]),
        _classification,
        ["it was a good film"],
        _class_answers,
        [({"label": 2}, "label 2 is outside the head's range 0 … 1 (bad, good)"), ({"text": None}, "holds None")],
    ),
    "regression": KindCase(
        _task("regression", ["first", "second"], range=[0, 4]),
        _regression,
        ["the room", "it was hot"],
        _number_answers,
        [
            ({"label": 4.5}, "label 4.5 is outside the head's range 0.0 … 4.0"),
            ({"second": None}, "'second' holds None"),
        ],
    ),
    "multi_label": KindCase(
        _task("multi_label", ["text"], labels=TRAITS),
        _multi_label,
        ["a lovely hot day"],
        _label_answers,
        [
            ({"label": ["cold"]}, "label 'cold' is outside the head's range 0 … 2 (nice, hot, yes)"),
            ({"label": ["hot", "hot"]}, "names a class twice"),
            ({"label": None}, "label None is outside the head's range of lists of nice, hot, yes"),
        ],
    ),
    "multiple_choice": KindCase(
        _task("multiple_choice", ["question"], choices="choices"),
        _multiple_choice,
        ["was it", "the bad film", "a good book", "dull"],
        _choice_answers,
        [
            ({"label": 9}, "label 9 is none of the"),
            ({"choices": ["one"], "label": 0}, "not a list of at least two choices"),
            ({"choices": None}, "'choices' holds None, not a list"),
        ],
    ),
    "token_classification": KindCase(
        _task("token_classification", ["tokens"], labels=TAGS),
        _token_classification,
        ["we saw a cake"],
        _token_answers,
        [
            ({"label": ["O"]}, "is not a list of"),
            ({"tokens": ["a", " "], "label": ["O", "O"]}, "the word ' ' is blank"),
            ({"tokens": ["a", "b"], "label": ["O", "B-X"]}, "label 'B-X' is outside the head's range 0 … 3"),
            ({"tokens": [], "label": []}, "not a list of words"),
        ],
    ),
    "ranking": KindCase(
        _task("ranking", ["query", "document"]),
        _ranking,
        ["the walk", "good book", "dull lamp", "a song"],
        _rank_answers,
        [
            ({"label": -1.0}, "label -1.0 is no relevance: a number of 0 or more"),
            ({"document": None}, "'document' holds None"),
            ({"query": None}, "'query' holds None"),
        ],
    ),
}


def table(case: KindCase, count: int, seed: int = 0) -> list[dict[str, Any]]:
    """Return the lines of a file of `count` rows."""
    generator = random.Random(seed)
    return [line for _ in range(count) for line in case.rows(generator)]


def spec_of(kind: str, **changes: Any) -> TaskSpec:
    """Return the task of a kind."""
    return TaskSpec(**{**CASES[kind].task, **changes})


@functools.cache
def _kinds_project(root: Path) -> Project:
    assert set(CASES) == set(HEADS), "a kind has no case: add it to CASES"
    base, data = save_base(root / "base"), root / "data"
    for place, (kind, case) in enumerate(CASES.items()):
        for split, count in {"train": 40, "tune": 12, "validation": 16}.items():
            write_rows(data / kind / f"{split}.jsonl", table(case, count, seed=100 * place + count))
    suite = root / "suite.yaml"
    tasks = {kind: case.task for kind, case in CASES.items()}
    suite.write_text(yaml.safe_dump({"name": "kinds", "version": 1, "tasks": tasks}, sort_keys=False))
    content = {
        "model": {"name": str(base), "max_length": 32, "head_dropout": 0.0},
        "tasks": {"suite": str(suite), "data_root": str(data)},
        "method": {"name": "mtl_lora", "r": 4, "lora_alpha": 8, "up_projections": 2},
        "training": {"epochs": 8, "batch_size": 12, "learning_rate": 0.02, "logging_steps": 5, "warmup_ratio": 0.0},
        "output": {"directory": str(root / "runs" / "default")},
    }
    recipe = root / "recipe.yaml"
    recipe.write_text(yaml.safe_dump(content, sort_keys=False))
    return Project(root, base, data, suite, recipe)


@pytest.fixture(scope="session")
def kinds(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """Return a tiny project with a task of every kind, each named after its kind."""
    root = tmp_path_factory.getbasetemp() / "kinds"
    root.mkdir(exist_ok=True)
    datasets.config.HF_DATASETS_CACHE = root / "cache"  # not the user's
    return _kinds_project(root)


every_kind = pytest.mark.parametrize("kind", CASES)
