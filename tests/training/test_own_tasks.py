"""Tasks that a recipe defines itself: checked, trained from every source, resumed, compared, evaluated."""

import json
import random
import shutil
from pathlib import Path

import pytest
import yaml
from datasets import Dataset, DatasetDict

from helpers_runs import AtStep, assert_same_state, mostly_slow, tiny_row, trained_state, write_rows
from tasklora.errors import ConfigError, DataError
from tasklora.tasks import load_weights
from tasklora.training import compare_methods, load_recipe, load_recipe_data, train_recipe
from tasklora.training.recipes import parse_recipe

MOOD = {
    "kind": "classification",
    "inputs": ["text"],
    "labels": ["bad", "good"],
    "metrics": ["accuracy"],
    "primary": "accuracy",
}


def rows(count=40, seed=0):
    generator = random.Random(seed)
    return [tiny_row("mood", generator) for _ in range(count)]


@pytest.fixture
def recipe_of(project, tmp_path):
    """Return a function that writes a recipe of one own task and loads it."""

    def write(*overrides, **more):
        tasks = {"define": {"mood": {**MOOD, **more}}}
        content = {**yaml.safe_load(project.recipe.read_text()), "tasks": tasks}
        (tmp_path / "own.yaml").write_text(yaml.safe_dump(content))
        return load_recipe(tmp_path / "own.yaml", list(overrides))

    return write


@pytest.fixture
def places(tmp_path):
    """Return the same rows in every kind of place."""
    write_rows(tmp_path / "mood.jsonl", rows())
    write_rows(tmp_path / "split" / "train.jsonl", rows())
    write_rows(tmp_path / "split" / "dev.jsonl", rows(12, 1))
    table = Dataset.from_list(rows())
    table.to_csv("mood.csv")
    table.to_csv("mood.tsv", sep="\t")
    table.to_parquet("mood.parquet")
    table.save_to_disk("one")
    DatasetDict(train=table, validation=Dataset.from_list(rows(12, 1))).save_to_disk("several")
    return {
        "jsonl": {"files": "mood.jsonl"},
        "csv": {"files": "mood.csv"},
        "tsv": {"files": "mood.tsv"},
        "parquet": {"files": "mood.parquet"},
        "split files": {"files": {"train": "mood.csv", "validation": "split/dev.jsonl"}},
        "folder": {"files": "split"},
        "saved": {"files": "one"},
        "saved splits": {"files": "several"},
        "public name": {"hub": {"path": str(tmp_path / "split")}},
    }


SOURCES = ["jsonl", "csv", "tsv", "parquet", "split files", "folder", "saved", "saved splits", "public name"]


@pytest.mark.parametrize("place", mostly_slow(SOURCES, "csv", "parquet", "split files", "saved splits", "public name"))
def test_every_source_trains(recipe_of, places, tmp_path, place):
    recipe = recipe_of("training.max_steps=2", **places[place])
    results, _ = train_recipe(recipe, tmp_path / "run")
    assert results.suite == "own tasks"
    held_out = place in ("jsonl", "csv", "tsv", "parquet", "saved")
    assert results.scores["validation"].tasks["mood"].rows == (8 if held_out else 12)
    assert results.training.rows_per_task == {"mood": 29 if held_out else 36}


def test_a_run_is_resumed_and_evaluated_from_its_own_directory(recipe_of, places, tmp_path, cli):
    recipe = recipe_of("training.max_steps=4", "training.evaluate_every=2", **places["csv"])
    whole, _ = train_recipe(recipe, tmp_path / "whole")

    def stop(**_):
        raise RuntimeError("crashed")

    with pytest.raises(RuntimeError, match="crashed"):
        train_recipe(recipe, tmp_path / "broken", callbacks=[AtStep(3, stop)])
    resumed, prepared = train_recipe(recipe, tmp_path / "broken", resume=True)
    state = trained_state(prepared.model)
    load_weights(prepared.model, tmp_path / "whole" / "best")
    assert_same_state(state, trained_state(prepared.model))
    assert resumed.scores == whole.scores
    said = cli("evaluate", tmp_path / "broken", "--json")
    assert json.loads(said.out)["tasks"]["mood"]["rows"] == 8
    assert str(tmp_path) not in (tmp_path / "broken" / "best" / "tasklora.json").read_text().replace(
        recipe.model.name, ""
    )
    resolved = yaml.safe_load((tmp_path / "broken" / "recipe.resolved.yaml").read_text())
    assert resolved["tasks"]["define"]["mood"]["files"] == "mood.csv"  # as it was written


def test_a_comparison_goes_on_when_files_have_moved(recipe_of, places, tmp_path):
    plan = recipe_of("training.max_steps=2", **places["csv"])
    first = compare_methods(plan, tmp_path / "c", ["lora"], [0])
    shutil.move("mood.csv", "elsewhere.csv")
    moved = recipe_of("training.max_steps=2", files="elsewhere.csv")
    again = compare_methods(moved, tmp_path / "c", ["lora", "heads_only"], [0])
    assert len(list((tmp_path / "c").glob("lora-*"))) == 1
    assert first.suite == again.suite == "own tasks"


@pytest.mark.parametrize(
    ("task", "says"),
    [
        ({"files": {"trian": "a.csv"}}, "'tasks.define.mood.files': unknown split 'trian'. Did you mean 'train'?"),
        ({"files": ["a.csv"]}, "'tasks.define.mood.files': give a path, or a path for each split: {train: PATH"),
        ({"files": {}}, "'tasks.define.mood.files': give a path"),
        ({"file": "a.csv"}, "unknown key 'tasks.define.mood.file'. Did you mean 'files'?"),
        ({"labels": ["good"]}, "'tasks.define.mood': a classification task needs `labels`"),
        ({"labels": [True, False]}, "'tasks.define.mood.labels.0': Input should be a valid string (got True)"),
        ({"primary": "f1"}, "primary metric 'f1' is not among metrics ['accuracy']"),
    ],
)
def test_a_wrong_task_is_named_with_its_key(recipe_of, task, says):
    with pytest.raises(ConfigError) as caught:
        recipe_of(**task)
    assert says in str(caught.value)


def test_a_suite_or_own_tasks_but_one_of_them(recipe_of, project):
    content = yaml.safe_load(project.recipe.read_text())
    for tasks, says in (
        ({}, "name a `suite`, or write tasks of your own under `define`"),
        ({"suite": "glue", "define": {"mood": MOOD}}, "give `suite` or `define`, not both"),
    ):
        with pytest.raises(ConfigError, match=says):
            parse_recipe({**content, "tasks": tasks}, "r.yaml")
    with pytest.raises(ConfigError, match=r"own tasks has no task 'moot'. Did you mean 'mood'\?"):
        recipe_of("tasks.include=[moot]")


@pytest.mark.parametrize("place", [3, 17, 38])
def test_a_wrong_row_has_its_number_in_the_file_whatever_is_held_out_and_drawn(recipe_of, place):
    """It counts from 0, as the rows of the file do, also of those that are held out for validation and tune."""
    wrong = rows()
    wrong[place]["label"] = 5
    write_rows(Path("wrong.jsonl"), wrong)
    recipe = recipe_of("tasks.limits={train: 28}", files="wrong.jsonl")
    with pytest.raises(DataError, match=rf"task 'mood', split '\w+', row {place}: label 5 is outside"):
        load_recipe_data(recipe, recipe.task_specs())


def test_a_task_without_rows_says_where_they_may_be_named(recipe_of, tmp_path):
    with pytest.raises(DataError, match="give its files with --data-root DIR, or `files` in the recipe"):
        train_recipe(recipe_of(), tmp_path / "run")
    assert not (tmp_path / "run").exists()
