"""A run: what its directory holds, which checkpoint is kept, when it stops, and what it never overwrites.

Bad data, a bad method or a bad base leave no directory behind; --overwrite replaces runs of tasklora and nothing else.
"""

import json
import shutil
from pathlib import Path

import pytest
import torch
import yaml

from helpers_runs import (
    METHODS,
    TASKS,
    AtStep,
    assert_same_state,
    log_of,
    mostly_slow,
    randomise,
    trained_state,
    use_method,
    write_rows,
)
from tasklora.errors import CheckpointError, ConfigError, DataError, OutputError
from tasklora.evaluation import RunResults, score_tasks
from tasklora.tasks import load_model, read_safetensors
from tasklora.training import RunDirectory, load_recipe, train_recipe

WEIGHTS = ("adapter_model.safetensors", "heads.safetensors")


def weights_of(directory):
    return {f"{name}/{key}": value for name in WEIGHTS for key, value in read_safetensors(directory / name).items()}


def wreck(control, model, **_):
    """Fill what is trained with large random numbers."""
    randomise(model, scale=5.0)


def evaluations(run):
    return {record["step"]: record["eval_average"] for record in log_of(run) if "eval_average" in record}


def test_a_run_directory_is_complete(trained):
    files = {path.name for path in trained.path.iterdir()}
    assert files == {
        "recipe.resolved.yaml",
        "manifest.json",
        "checkpoints",
        "best",
        "final",
        "results.json",
        "log.jsonl",
        "predictions.jsonl",
        "diagnostics.json",
    }
    manifest = json.loads((trained.path / "manifest.json").read_text())
    assert (manifest["format"], manifest["command"], manifest["seed"]) == (
        "tasklora/run",
        "tasklora train tiny.yaml",
        0,
    )
    assert load_recipe(trained.path / "recipe.resolved.yaml") == trained.project.load("training.epochs=5")
    assert RunDirectory(trained.path).recipe() == trained.project.load("training.epochs=5")


def test_the_log_has_every_step_and_evaluation(trained):
    records = log_of(trained.path)
    assert [record["step"] for record in records if "loss" in record] == list(range(1, 41))
    assert all(any(f"loss/{name}" in record for name in TASKS) for record in records if "loss" in record)
    assert list(evaluations(trained.path)) == [8, 16, 24, 32, 40]
    for record in (record for record in records if "eval_average" in record):
        primary = [record["eval_mood_accuracy"], record["eval_answer_f1_macro"], record["eval_heat_pearson"]]
        assert record["eval_average"] == pytest.approx(sum(primary) / 3)
        assert all(record[f"eval_{name}_loss"] > 0 for name in TASKS)


@pytest.mark.parametrize("method", mostly_slow(METHODS, "mtl_lora", "hydra_lora"))
def test_every_method_learns_the_tasks(project, tmp_path, method):
    recipe = project.load(use_method(method), "training.epochs=8", "training.batch_size=8")
    results, _ = train_recipe(recipe, tmp_path / "run", score_untrained=True)
    before, after = results.untrained["validation"].tasks, results.scores["validation"].tasks
    assert results.scores["validation"].average > 0.9
    for name in TASKS:
        assert after[name].score > before[name].score + 0.1
        assert after[name].loss < before[name].loss
    assert results.method == method


def test_the_same_seed_gives_the_same_run(project, trained, tmp_path):
    recipe = project.load("training.epochs=5")
    results, _ = train_recipe(recipe, tmp_path / "again", score_untrained=True)  # scoring before changes nothing
    assert_same_state(weights_of(tmp_path / "again" / "final"), weights_of(trained.path / "final"))
    assert results.scores == trained.results.scores
    train_recipe(project.load("training.epochs=1", "training.seed=1"), tmp_path / "other")
    other, first = ([r["loss"] for r in log_of(run) if "loss" in r][:8] for run in (tmp_path / "other", trained.path))
    assert other != first


@pytest.mark.parametrize("keep", mostly_slow([1, 2, 5], 2))
def test_best_holds_the_best_checkpoint(project, tmp_path, keep):
    recipe = project.load("training.epochs=4", f"training.keep_checkpoints={keep}")
    results, prepared = train_recipe(recipe, tmp_path / "run", callbacks=[AtStep(17, wreck)])
    averages = evaluations(tmp_path / "run")
    best = max(averages, key=averages.get)
    assert best in (8, 16)
    assert (results.training.best_step, results.training.best_tune_average) == (best, averages[best])
    run = tmp_path / "run"
    assert_same_state(weights_of(run / "best"), weights_of(run / "checkpoints" / f"checkpoint-{best}"))
    assert_same_state(weights_of(run / "final"), weights_of(run / "checkpoints" / "checkpoint-32"))
    assert len(list((run / "checkpoints").iterdir())) == min(max(keep, 2), 4)
    # the reported scores, and the model that is returned, are the best's
    model, about, base = load_model(run / "best")
    assert_same_state(trained_state(prepared.model), trained_state_of(model, prepared.model))
    rows = project.rows().split("validation")
    assert score_tasks(model, rows, about.collator(base.tokenizer)) == results.scores["validation"]


def trained_state_of(model, like):
    names = trained_state(like).keys()
    return {name: parameter for name, parameter in model.named_parameters() if name in names}


def test_training_stops_early(project, tmp_path):
    recipe = project.load("training.epochs=9", "training.early_stopping_patience=2")
    results, _ = train_recipe(recipe, tmp_path / "run", callbacks=[AtStep(17, wreck)])
    averages = list(evaluations(tmp_path / "run").values())
    best = averages.index(max(averages))
    assert len(averages) == best + 3 < 9  # two evaluations without a better one
    assert results.training.stopped == "early_stopping"
    assert results.training.steps == 8 * len(averages)
    with pytest.raises(OutputError, match="is finished already; there is nothing to resume"):
        train_recipe(recipe, tmp_path / "run", resume=True)


def test_evaluating_by_steps(project, tmp_path):
    recipe = project.load("training.evaluate_every=3", "training.max_steps=7", "training.epochs=99")
    results, _ = train_recipe(recipe, tmp_path / "run")
    assert list(evaluations(tmp_path / "run")) == [3, 6, 7]  # and where training ends
    assert (results.training.steps, results.training.stopped) == (7, "finished")
    assert results.training.best_step in (3, 6, 7)


def test_one_task_alone_and_tasks_of_one_kind(project, tmp_path):
    for place, include in enumerate(("[heat]", "[answer]", "[heat, mood]")):
        results, _ = train_recipe(quick(project, f"tasks.include={include}"), tmp_path / str(place))
        assert results.tasks == yaml.safe_load(include)


# --- output directories


def quick(project, *overrides):
    return project.load("training.max_steps=1", "training.evaluate_every=1", *overrides)


def test_a_directory_that_holds_something_is_left_alone(project, tmp_path):
    target = tmp_path / "out"
    target.mkdir()
    (target / "thesis.tex").write_text("mine")
    for overwrite in (False, True):
        with pytest.raises(OutputError, match=r"not empty and holds no tasklora run.*Choose another"):
            train_recipe(quick(project), target, overwrite=overwrite)
    assert {path.name for path in target.iterdir()} == {"thesis.tex"}


@pytest.mark.parametrize("manifest", ['{"name": "a web page"}', '{"format": "tasklora/export"}', "[]", "no json"])
def test_a_foreign_manifest_is_not_taken_for_a_run(project, tmp_path, manifest):
    target = tmp_path / "site"
    target.mkdir()
    (target / "manifest.json").write_text(manifest)
    (target / "index.html").write_text("mine")
    with pytest.raises(OutputError, match="holds no tasklora run"):
        train_recipe(quick(project), target, overwrite=True)
    assert (target / "index.html").read_text() == "mine"


def test_a_run_is_replaced_only_when_asked_to(project, trained, tmp_path):
    target = shutil.copytree(trained.path, tmp_path / "run")
    with pytest.raises(OutputError, match=r"holds a run already. Choose another .* go on with it .* --overwrite"):
        train_recipe(quick(project), target)
    assert RunResults.read(target / "results.json") == trained.results
    results, _ = train_recipe(quick(project), target, overwrite=True)
    assert results.training.steps == 1
    assert [path.name for path in (target / "checkpoints").iterdir()] == ["checkpoint-1"]
    assert len([record for record in log_of(target) if "loss" in record]) == 1


def test_a_new_or_empty_directory_is_used(project, tmp_path):
    (tmp_path / "empty").mkdir()
    for target in (tmp_path / "empty", tmp_path / "new" / "and" / "deep"):
        train_recipe(quick(project), target)
        assert (target / "results.json").is_file()


@pytest.mark.parametrize("place", ["file", "file/below"])
@pytest.mark.parametrize("overwrite", [False, True])
def test_a_place_that_cannot_be_written(project, tmp_path, place, overwrite):
    (tmp_path / "file").write_text("mine")  # root may write everywhere, but not below a file
    with pytest.raises(OutputError, match=str(tmp_path / place)):
        train_recipe(quick(project), tmp_path / place, overwrite=overwrite)
    assert (tmp_path / "file").read_text() == "mine"


# --- what goes wrong before training leaves nothing behind


def bad_rows(project, tmp_path, task, row):
    data = shutil.copytree(project.data, tmp_path / "data")
    rows = [json.loads(line) for line in (data / task / "train.jsonl").read_text().splitlines()]
    write_rows(data / task / "train.jsonl", [*rows, row])
    return data


@pytest.mark.parametrize(
    ("task", "row", "says"),
    [
        ("mood", {"text": "good", "label": 2}, r"task 'mood', split '(train|tune)', row 40: label 2 is outside"),
        ("answer", {"question": "a", "reply": "b", "label": -1}, r"task 'answer'.* row 60: label -1 is outside"),
        (
            "heat",
            {"first": "a", "second": "b", "degree": 5},
            r"task 'heat'.* row 24: label 5.0 is outside .* 0.0 … 4.0",
        ),
        ("mood", {"text": None, "label": 1}, r"task 'mood'.* row 40: column 'text' holds None, not a text"),
    ],
)
def test_bad_rows_leave_no_run(project, tmp_path, task, row, says):
    data = bad_rows(project, tmp_path, task, row)
    with pytest.raises(DataError, match=says):
        train_recipe(quick(project, f"tasks.data_root={data}"), tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("override", "error"),
    [
        ("tasks.data_root=nowhere", DataError),
        ("tasks.report_on=test", DataError),
        ("model.name=./nowhere", CheckpointError),
        ("method={name: mtl_lora, rr: 1}", ConfigError),
        ("method={name: mtl_lora, target_modules: [nothing]}", ConfigError),
    ],
)
def test_a_bad_recipe_leaves_no_run(project, tmp_path, override, error):
    with pytest.raises(error):
        train_recipe(quick(project, override), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_bad_recipe_leaves_the_run_that_is_there(project, trained, tmp_path):
    target = shutil.copytree(trained.path, tmp_path / "run")
    with pytest.raises(DataError):
        train_recipe(quick(project, "tasks.data_root=nowhere"), target, overwrite=True)
    assert RunResults.read(target / "results.json") == trained.results


def test_balanced_weights_need_every_class(project, tmp_path):
    data = shutil.copytree(project.data, tmp_path / "data")
    rows = [json.loads(line) for line in (data / "answer" / "train.jsonl").read_text().splitlines()]
    write_rows(data / "answer" / "train.jsonl", [row for row in rows if row["label"] != 1])
    with pytest.raises(DataError, match="needs rows of every class in train, none of: maybe"):
        train_recipe(quick(project, f"tasks.data_root={data}"), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_what_is_no_run(tmp_path):
    for use in (RunDirectory(tmp_path).recipe, RunDirectory(tmp_path).model):
        with pytest.raises(CheckpointError, match=str(tmp_path)):
            use()
    assert RunDirectory(tmp_path).latest_checkpoint() is None
    assert list(Path(tmp_path).iterdir()) == []


def test_weights_are_finite_and_the_base_is_not_saved(trained):
    for directory in (trained.path / "best", trained.path / "final"):
        state = weights_of(directory)
        assert all(bool(torch.isfinite(value).all()) for value in state.values())
        adapter = read_safetensors(directory / "adapter_model.safetensors")
        assert all("base_layer" not in key and ".task_updates." in key for key in adapter)
