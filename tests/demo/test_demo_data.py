"""The demo's data: valid, balanced, varied, and held-out rows that are no templates of the training rows."""

import json
import re
from collections import Counter

import numpy as np
import pytest

from tasklora.demo.run import DEMO, SENTENCES
from tasklora.tasks import load_suite, load_tasks

DATA = DEMO / "data"
SPECS = load_suite("demo").tasks
TASKS = list(SPECS)


def rows_of(task, split):
    return [json.loads(line) for line in (DATA / task / f"{split}.jsonl").read_text(encoding="utf-8").splitlines()]


def texts_of(task, split):
    return [row[column] for row in rows_of(task, split) for column in SPECS[task].inputs]


def words(text):
    return re.findall(r"[a-z0-9']+", text.lower())


def grams(text, n):
    return {tuple(words(text)[i : i + n]) for i in range(len(words(text)) - n + 1)}


def normal(text):
    return " ".join(words(text))


@pytest.fixture(scope="module")
def loaded(project):
    return load_tasks(SPECS, ["train", "tune", "validation"], DATA)


def test_there_are_at_least_four_tasks():
    assert len(TASKS) == 5
    assert {path.name for path in DATA.iterdir() if path.is_dir()} == set(TASKS)


@pytest.mark.parametrize("task", TASKS)
def test_a_few_hundred_rows_load_and_none_is_lost(loaded, task):
    splits = loaded.splits[task]
    assert len(splits["train"]) + len(splits["tune"]) == len(rows_of(task, "train")) >= 250
    assert len(splits["validation"]) >= 100


@pytest.mark.parametrize("split", ["train", "validation"])
@pytest.mark.parametrize("task", TASKS)
def test_labels_are_balanced(task, split):
    spec, labels = SPECS[task], [row["label"] for row in rows_of(task, split)]
    if spec.kind == "classification":
        counts = Counter(labels)
        assert set(counts) == set(range(spec.num_outputs))
        assert max(counts.values()) <= 1.3 * min(counts.values())
    else:
        counts = np.histogram(labels, bins=5, range=spec.range)[0]
        assert counts.min() >= 0.1 * len(labels)
        assert counts.max() <= 0.35 * len(labels)


@pytest.mark.parametrize("task", TASKS)
def test_no_row_stands_twice(task):
    inputs = SPECS[task].inputs
    rows = [
        tuple(normal(row[column]) for column in inputs) for s in ("train", "validation") for row in rows_of(task, s)
    ]
    assert [row for row, count in Counter(rows).items() if count > 1] == []
    assert all(len(set(row)) == len(row) for row in rows)  # a pair's texts differ


@pytest.mark.parametrize("task", TASKS)
def test_held_out_rows_share_no_five_words_in_a_row_with_training_rows(task):
    train = set().union(*(grams(text, 5) for text in texts_of(task, "train")))
    shared = {text: grams(text, 5) & train for text in texts_of(task, "validation")}
    assert {text: found for text, found in shared.items() if found} == {}


@pytest.mark.parametrize("task", TASKS)
def test_held_out_rows_share_few_three_words_in_a_row_with_training_rows(task):
    train = set().union(*(grams(text, 3) for text in texts_of(task, "train")))
    found = [grams(text, 3) for text in texts_of(task, "validation")]
    assert np.mean([len(three & train) / len(three) for three in found if three]) < 0.10


@pytest.mark.parametrize("task", TASKS)
def test_rows_do_not_all_begin_alike(task):
    texts = texts_of(task, "train")
    opening, count = Counter(tuple(words(text)[:2]) for text in texts).most_common(1)[0]
    assert count <= 0.06 * len(texts), opening
    lengths = [len(words(text)) for text in texts]
    assert np.std(lengths) > 1.5


@pytest.mark.parametrize("task", ["sentiment", "topic", "paraphrase"])  # what a question asks, one word does tell
def test_no_single_word_gives_the_label_away(task):
    """The best single word tells at most a third of the rows of its class."""
    spec = SPECS[task]
    by_label = {label: [] for label in range(spec.num_outputs)}
    for row in rows_of(task, "train"):
        by_label[row["label"]].append(set(words(" ".join(row[column] for column in spec.inputs))))
    for label, sets in by_label.items():
        others = [s for other, found in by_label.items() if other != label for s in found]
        for word in set().union(*sets):
            mine = sum(word in s for s in sets) / len(sets)
            theirs = sum(word in s for s in others) / len(others)
            assert mine - theirs < 0.34, (word, label)


def test_the_sentences_shown_are_in_no_data_file():
    known = {normal(text) for task in TASKS for split in ("train", "validation") for text in texts_of(task, split)}
    shown = [text for _, texts, _ in SENTENCES for text in texts]
    assert [text for text in shown if normal(text) in known] == []
    assert {task for task, _, _ in SENTENCES} == set(TASKS)
    for task, texts, _ in SENTENCES:
        assert len(texts) == len(SPECS[task].inputs)


def test_tasks_do_not_share_their_rows():
    of_task = [{normal(text) for split in ("train", "validation") for text in texts_of(task, split)} for task in TASKS]
    shared = [one & other for place, one in enumerate(of_task) for other in of_task[place + 1 :]]
    assert sum(map(len, shared)) == 0
