"""Tasks with no rows, one row, one class or a constant label, from the recipe to the report: refused by name, or null.

Metrics by themselves are in tests/tasks/test_metrics.py, what an undefined score does to training in
test_interrupted_runs.py and test_task_selection.py.
"""

import json
import random
import re

import pytest
import yaml

from helpers_runs import log_of, tiny_row, words, write_rows
from helpers_text import text_project  # noqa: F401
from tasklora.errors import DataError
from tasklora.evaluation import RunResults
from tasklora.training import load_recipe, train_recipe

SIZES = {"train": 12, "tune": 4, "validation": 6}
CLASSES = {"kind": "classification", "inputs": ["text"], "labels": ["bad", "good"]}
NUMBERS = {"kind": "regression", "inputs": ["first", "second"], "label": "degree", "range": [0, 4]}
RUNS = ["training.max_steps=4", "training.batch_size=16", "training.evaluate_every=2"]


def rows(task, count, seed=0, **same):
    generator = random.Random(seed)
    return [{**tiny_row(task, generator), **same} for _ in range(count)]


def queries(count):
    return [
        {"query": f"q {i}", "document": words(random.Random(3 * i + j)), "label": 0}
        for i in range(count)
        for j in range(3)
    ]


def metrics(spec, *names):
    return {**spec, "metrics": list(names), "primary": names[0]}


# name → (the task, count → its rows, one row of each split?, metrics without a value)
EDGES = {
    "one_class": (
        metrics(CLASSES, "mcc", "auc", "accuracy", "f1", "f1_macro"),
        lambda count: rows("mood", count, label=1),
        False,
        {"mcc", "auc"},
    ),
    "absent_class": (
        metrics(CLASSES, "average_precision", "f1"),
        lambda count: rows("mood", count, label=0),
        False,
        {"average_precision"},
    ),
    "one_row": (metrics(CLASSES, "accuracy", "mcc"), lambda count: rows("mood", count), True, {"mcc"}),
    "constant": (
        metrics(NUMBERS, "pearson", "spearman", "rmse"),
        lambda count: rows("heat", count, degree=2.0),
        False,
        {"pearson", "spearman"},
    ),
    "one_number": (metrics(NUMBERS, "rmse", "pearson"), lambda count: rows("heat", count), True, {"pearson"}),
    "no_label": (
        metrics({"kind": "multi_label", "inputs": ["text"], "labels": ["a", "b"]}, "map", "f1_micro", "f1_macro"),
        lambda count: rows("mood", count, label=[]),
        False,
        {"map"},
    ),
    "irrelevant": (
        metrics({"kind": "ranking", "inputs": ["query", "document"]}, "ndcg", "mrr", "ndcg@10"),
        queries,
        False,
        {"ndcg", "mrr", "ndcg@10"},
    ),
    "usual": (metrics(NUMBERS, "rmse"), lambda count: rows("heat", count), False, set()),
}
WITHOUT = [name for name, (task, _, _, missing) in EDGES.items() if task["primary"] in missing]


@pytest.fixture
def recipe_of(project, tmp_path):
    """Return a function that writes a recipe of tasks with files, and loads it."""

    def write(tasks, *overrides):
        define = {}
        for name, (task, of_splits) in tasks.items():
            files = {
                split: str(write_rows(tmp_path / "data" / name / f"{split}.jsonl", found))
                for split, found in of_splits.items()
            }
            define[name] = {**task, "files": files}
        content = {**yaml.safe_load(project.recipe.read_text()), "tasks": {"define": define}}
        (tmp_path / "edge.yaml").write_text(yaml.safe_dump(content, sort_keys=False))
        return load_recipe(tmp_path / "edge.yaml", [*RUNS, *overrides])

    return write


def splits_of(make, one_row):
    return {split: make(1 if one_row else count) for split, count in SIZES.items()}


def strict(text):
    """Return JSON, which knows no NaN."""
    return json.loads(text, parse_constant=pytest.fail)


def check_run(run, cli):
    """Return the results and the page of a run, whose files are all JSON, and which scores again as they say."""
    results = RunResults.read(run / "results.json")
    strict((run / "results.json").read_text())
    strict((run / "diagnostics.json").read_text())
    for file in run.glob("*.jsonl"):
        for line in file.read_text().splitlines():
            strict(line)
    scores = (results.per_task or results).scores["validation"]  # evaluated at each task's own step, if it has one
    said = cli("evaluate", run, "--json")
    assert said.code == 0, said.err
    again = strict(said.out)
    for name, task in scores.tasks.items():
        expected = {
            metric: value if value is None else pytest.approx(value, abs=1e-5) for metric, value in task.metrics.items()
        }
        assert again["tasks"][name]["metrics"] == expected
    assert again["undefined"] == scores.undefined
    if scores.undefined:
        table = cli("evaluate", run).out
        assert "undefined on these rows" in " ".join(table.split())
    assert cli("report", run).code == 0
    page = (run / "report.html").read_text()
    assert not re.search(r">[^<]*\bnan\b[^<]*<", page, re.IGNORECASE)
    return results, page


def test_what_has_no_value_is_null_and_named(recipe_of, tmp_path, cli):
    tasks = {name: (task, splits_of(make, one_row)) for name, (task, make, one_row, _) in EDGES.items()}
    recipe = recipe_of(tasks, "training.selection=per_task", "training.gradient_cosines={every: 4, rows: 2}")
    with pytest.warns(UserWarning, match=r"primary metric of (\w+, )+\w+ is undefined on its tune rows"):
        train_recipe(recipe, tmp_path / "run")
    results, page = check_run(tmp_path / "run", cli)
    scores = results.scores["validation"]
    for name, (_, _, _, missing) in EDGES.items():
        assert {metric for metric, value in scores.tasks[name].metrics.items() if value is None} == missing
        assert 0 <= scores.tasks[name].loss < 20
    assert scores.undefined == WITHOUT
    defined = [scores.tasks[name].score for name in EDGES if name not in WITHOUT]
    assert scores.average == pytest.approx(sum(defined) / len(defined))
    assert results.training.best_step is None  # no step had a score of every task, so the last one is kept
    assert set(results.per_task.choices) == set(EDGES) - set(WITHOUT)
    assert "one_class (mcc) of MTL-LoRA; absent_class (average_precision) of MTL-LoRA; " in page
    assert "no value on these rows, so none on average over all tasks" in page


def test_a_run_without_any_score_ends_and_says_so(recipe_of, tmp_path, cli):
    task, make, _, _ = EDGES["one_class"]
    train_recipe(recipe_of({"only": (task, splits_of(make, False))}), tmp_path / "run")
    results, page = check_run(tmp_path / "run", cli)
    assert (results.scores["validation"].average, results.scores["validation"].undefined) == (None, ["only"])
    assert [r["eval_average"] for r in log_of(tmp_path / "run") if "eval_average" in r] == [None, None]
    assert "only (mcc) of MTL-LoRA: no value on these rows" in page


def test_labels_that_were_constant_in_training_have_losses_of_their_own_scale(recipe_of, tmp_path):
    splits = {"train": rows("heat", 12, degree=2.0), "tune": rows("heat", 8, 1), "validation": rows("heat", 8, 2)}
    results, _ = train_recipe(recipe_of({"heat": (EDGES["usual"][0], splits)}), tmp_path / "run")
    assert results.scores["validation"].tasks["heat"].loss < 10  # labels are 0 … 4


@pytest.mark.parametrize("split", ["train", "tune", "validation"])
def test_a_split_without_rows_is_refused_by_name_before_a_run_begins(recipe_of, tmp_path, split):
    splits = {**splits_of(lambda count: rows("mood", count), False), split: []}
    recipe = recipe_of({"empty": (metrics(CLASSES, "accuracy"), splits)})
    with pytest.raises(DataError, match=rf"task 'empty': cannot read .*{split}\.jsonl: it is empty"):
        train_recipe(recipe, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_one_row_cannot_be_held_out_and_trained_on(recipe_of, tmp_path):
    splits = {"train": rows("mood", 1), "validation": rows("mood", 4)}
    recipe = recipe_of({"mood": (metrics(CLASSES, "accuracy"), splits)})
    with pytest.raises(DataError, match=r"task 'mood': its one training row cannot be held out for tune as well"):
        train_recipe(recipe, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_balanced_weights_of_one_class_are_refused_before_a_run_begins(recipe_of, tmp_path):
    task, make, _, _ = EDGES["one_class"]
    recipe = recipe_of({"mood": ({**task, "class_weights": "balanced"}, splits_of(make, False))})
    with pytest.raises(
        DataError, match=r"task 'mood': class_weights 'balanced' needs rows of every class.*none of: bad"
    ):
        train_recipe(recipe, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_decoders_too(text_project, tmp_path, cli):  # noqa: F811
    """One class and one row for each split, scored by likelihood; a text of one word that is generated."""
    data = tmp_path / "data"
    content = yaml.safe_load(text_project.recipe.read_text())
    for split, count in SIZES.items():
        write_rows(data / "mood" / f"{split}.jsonl", [{"text": "so dull", "label": 0}] * count)
        write_rows(data / "heat" / f"{split}.jsonl", [{"first": "a", "second": "b", "label": 2.0}])
        write_rows(data / "echo" / f"{split}.jsonl", [{"text": "the lamp", "label": "lamp"}])
    content["tasks"] = {**content["tasks"], "data_root": str(data), "include": ["mood", "heat", "echo"]}
    (tmp_path / "edge.yaml").write_text(yaml.safe_dump(content, sort_keys=False))
    recipe = load_recipe(tmp_path / "edge.yaml", ["training.max_steps=1", "training.packing=true"])
    results, _ = train_recipe(recipe, tmp_path / "run")
    tasks = results.scores["validation"].tasks
    assert tasks["mood"].metrics["mcc"] is None
    assert tasks["heat"].metrics["pearson"] is None
    assert all(value is not None for value in tasks["echo"].metrics.values())
    assert results.scores["validation"].undefined == []  # accuracy, RMSE and the F1 of words have values
    check_run(tmp_path / "run", cli)
