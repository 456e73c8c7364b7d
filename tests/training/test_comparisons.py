"""Comparisons: same rows, same steps, same search for every method; numbers that follow from the runs; runs kept.

What is summarised of finished runs, and how, is in tests/evaluation/test_comparison_summaries.py.
"""

import io
import json
import shutil

import numpy as np
import pytest
import torch
from rich.console import Console

from helpers_runs import EVERY_METHOD, TASKS, use_method, write_rows
from tasklora.errors import ConfigError, DataError, OutputError
from tasklora.evaluation import ComparisonResults, RunResults
from tasklora.training import RunDirectory, compare_methods, count_recipe_parameters, load_recipe
from tasklora.training.comparison_directory import ComparisonDirectory
from tasklora.training.contenders import contender

METHODS = ["mtl_lora", "lora"]
SEEDS = [0, 1]
SEARCH = ["lr=0.002,0.02", "lora:lr=0.001,0.01"]
QUICK = ("training.max_steps=2", "training.evaluate_every=2")


def recipe_of(project, *overrides):
    return project.load("training.epochs=1", *overrides)


@pytest.fixture(scope="module")
def compared(project, tmp_path_factory):
    """Return a finished comparison's directory and results; not to be changed (copy it)."""
    path = tmp_path_factory.mktemp("comparison") / "out"
    return path, compare_methods(recipe_of(project), path, METHODS, SEEDS, search=SEARCH, command="tasklora compare me")


@pytest.fixture
def copied(compared, tmp_path):
    """Return a copy of the finished comparison."""
    return shutil.copytree(compared[0], tmp_path / "copy")


def cells_of(path):
    """Return the finished runs of a comparison: folder inside it → results."""
    return {
        file.parent.relative_to(path).as_posix(): RunResults.read(file)
        for file in sorted(path.glob("*/seed-*/results.json"))
    }


def moments(path):
    """Return when each file of the runs was last written."""
    return {file: file.stat().st_mtime_ns for file in path.glob("*/seed-*/**/*") if file.is_file()}


def numbers(results):
    """Return what a comparison found, without when and how."""
    return results.model_dump(exclude={"created", "command"})


# --- what is compared


def test_every_method_trains_the_same_rows_and_steps(compared):
    path, results = compared
    cells = cells_of(path)
    assert len(cells) == len(METHODS) * 3  # two trials with the first seed, the better one with the second
    rows = {
        seed: [RunDirectory(path / run).manifest()["training_rows"] for run, cell in cells.items() if cell.seed == seed]
        for seed in SEEDS
    }
    assert all(of_seed == rows[seed][0] for seed in SEEDS for of_seed in rows[seed])
    assert rows[0][0] != rows[1][0]
    assert ComparisonDirectory(path).plan().training_rows == {seed: rows[seed][0] for seed in SEEDS}
    assert {cell.training.steps for cell in cells.values()} == {results.steps} == {8}
    assert results.training_rows == {"mood": 36, "answer": 54, "heat": 24}
    assert results.rows == dict.fromkeys(TASKS, 24)


def test_every_method_sees_the_same_batches_in_the_same_order(project, tmp_path):
    batches = {
        method: torch.cat(
            [
                torch.cat([batch["task_ids"], batch["labels"].flatten(), batch["input_ids"].flatten()])
                for batch in project.trainer(tmp_path / method, use_method(method)).get_train_dataloader()
            ]
        )
        for method in EVERY_METHOD
    }
    assert all(torch.equal(batches["lora"], of_method) for of_method in batches.values())


def test_lora_has_the_rank_and_scale_of_the_main_method(compared):
    path, results = compared
    (options,) = {
        tuple(sorted(load_recipe(path / trial.run / "recipe.resolved.yaml").method.options.items()))
        for trial in results.method("lora").trials
    }
    assert options == (("lora_alpha", 8), ("r", 4))
    assert results.main == "mtl_lora"


@pytest.mark.parametrize("options", ["r: 4, lora_alpha: 8", "r: 2, lora_alpha: 3", "", "up_projections: 1"])
def test_a_matched_lora_is_the_nearest_in_parameters_at_the_same_scale(project, options):
    recipe = project.load(f"method={{name: mtl_lora, {options}}}")
    matched = contender(recipe, "lora_matched")
    rank, alpha = (matched.method.options[key] for key in ("r", "lora_alpha"))
    wanted = low_rank(recipe)
    distance = {r: abs(low_rank(with_rank(project, r)) - wanted) for r in (rank - 1, rank, rank + 1) if r > 0}
    assert distance[rank] == min(distance.values())
    assert len(distance) == 3
    assert alpha / rank == pytest.approx(scale_of(recipe))
    assert matched.method.name == "lora"


def low_rank(recipe):
    groups = count_recipe_parameters(recipe).groups
    return groups["shared"] + groups["per_task"]


def with_rank(project, r):
    return project.load(f"method={{name: lora, r: {r}}}")


def scale_of(recipe):
    from tasklora.training import prepare

    return next(m.scaling for m in prepare(recipe).model.modules() if type(m).__name__ == "MTLLora")


def test_options_that_are_not_given_are_those_of_the_main_method(project):
    """MTL-LoRA's α is 16 where nothing is said, PEFT's own is 8: left alone they would not be at the same scale."""
    lora = contender(project.load("method={name: mtl_lora}"), "lora").method.options
    assert (lora["r"], lora["lora_alpha"]) == (8, 16)
    matched = contender(project.load("method={name: lora}"), "lora_matched").method.options
    assert (matched["r"], matched["lora_alpha"]) == (8, 8)


@pytest.mark.parametrize("method", ["heads_only", "full_fine_tuning"])
def test_parameters_are_matched_to_an_adapter_alone(project, method):
    with pytest.raises(ConfigError, match=f"'lora_matched' matches the parameters .* '{method}'"):
        contender(project.load(use_method(method)), "lora_matched")


# --- what is chosen and reported


def test_the_best_trial_on_tune_is_chosen_and_run_with_every_seed(compared):
    path, results = compared
    cells = cells_of(path)
    for method in results.methods:
        tune = [cells[trial.run].training.best_tune_average for trial in method.trials]
        assert [trial.tune_average for trial in method.trials] == tune
        (chosen,) = [trial for trial in method.trials if trial.chosen]
        assert chosen.tune_average == max(tune)
        assert method.settings == chosen.settings
        assert method.runs[0] == chosen.run
        assert [cells[run].seed for run in method.runs] == SEEDS
        for run in method.runs:
            recipe = load_recipe(path / run / "recipe.resolved.yaml")
            assert recipe.training.learning_rate == method.settings["training.learning_rate"]
    rates = {m.name: [t.settings["training.learning_rate"] for t in m.trials] for m in results.methods}
    assert rates == {"mtl_lora": [0.002, 0.02], "lora": [0.001, 0.01]}


def test_scores_are_those_of_the_chosen_runs_on_validation(compared):
    path, results = compared
    cells = cells_of(path)
    assert results.split == "validation"
    base = [cells[run] for run in results.method("lora").runs]
    for method in results.methods:
        runs = [cells[run] for run in method.runs]
        averages = [run.scores["validation"].average for run in runs]
        assert method.average.seeds == pytest.approx(averages)
        for task in TASKS:
            scores = np.array([run.scores["validation"].tasks[task].score for run in runs])
            theirs = np.array([run.scores["validation"].tasks[task].score for run in base])
            estimate = method.tasks[task]
            assert (estimate.mean, estimate.std) == pytest.approx((scores.mean(), scores.std(ddof=1)))
            if method.name != "lora":
                assert method.differences[task].mean == pytest.approx((scores - theirs).mean())
        assert method.parameters == runs[0].parameters
        assert method.seconds == [run.training.seconds for run in runs]
    assert results.baseline == "lora"


def test_results_are_written_as_returned(compared):
    path, results = compared
    assert ComparisonResults.read(path / "results.json") == results
    assert (results.command, results.search, results.seeds) == ("tasklora compare me", SEARCH, SEEDS)
    assert not list(path.glob("*/*/checkpoints"))  # many runs need the room


def test_the_baseline_is_lora_or_the_first_or_the_one_asked_for(project, copied):
    recipe = recipe_of(project)
    alone = compare_methods(recipe, copied, ["mtl_lora"], SEEDS, search=SEARCH[:1])
    assert alone.baseline == "mtl_lora"
    asked = compare_methods(recipe, copied, METHODS, SEEDS, search=SEARCH, baseline="mtl_lora")
    assert asked.baseline == "mtl_lora"
    assert asked.method("lora").differences
    assert not asked.method("mtl_lora").differences


# --- what is there already is kept


def test_a_finished_comparison_runs_nothing_again(project, compared):
    path, results = compared
    before = moments(path)
    again = compare_methods(recipe_of(project), path, METHODS, SEEDS, search=SEARCH, command="tasklora compare me")
    assert moments(path) == before
    assert numbers(again) == numbers(results)


def test_a_method_and_a_seed_can_be_added(project, tmp_path):
    recipe = recipe_of(project, *QUICK)
    first = compare_methods(recipe, tmp_path, ["heads_only"], [0])
    before = moments(tmp_path)
    method = compare_methods(recipe, tmp_path, ["heads_only", "lora"], [0], baseline="heads_only")
    assert method.method("heads_only") == first.method("heads_only")
    assert len(cells_of(tmp_path)) == 2
    seed = compare_methods(recipe, tmp_path, ["heads_only"], [0, 1])
    assert seed.method("heads_only").average.seeds[:1] == first.method("heads_only").average.seeds
    assert len(cells_of(tmp_path)) == 3
    assert {file: moments(tmp_path)[file] for file in before} == before
    assert ComparisonDirectory(tmp_path).plan().training_rows.keys() == {0, 1}


def test_a_run_of_which_only_scraps_are_left_is_begun_again(project, compared, copied):
    """What a kill leaves while a run's folder is made or replaced is no run, but it is the comparison's own."""
    run = copied / compared[1].method("lora").runs[1]
    for name in ("results.json", "manifest.json"):
        (run / name).unlink()
    again = compare_methods(recipe_of(project), copied, METHODS, SEEDS, search=SEARCH)
    assert again.method("lora").tasks == compared[1].method("lora").tasks


# --- runs that fail


def test_runs_that_fail_are_noted_not_chosen_and_not_run_again(project, tmp_path):
    recipe = recipe_of(project, *QUICK)
    search = ["lr=1e30,0.02", "heads_only:lr=1e30,2e30"]
    results = compare_methods(recipe, tmp_path, ["lora", "heads_only"], [0], search=search)
    wild, tame = results.method("lora").trials
    assert (wild.tune_average, wild.chosen) == (None, False)
    assert "the loss became NaN or infinite at step 2, on rows of task(s) " in wild.failed
    assert (tame.chosen, tame.failed) == (True, None)
    assert results.method("lora").settings == {"training.learning_rate": 0.02}
    assert results.method("lora").failures == []
    heads = results.method("heads_only")
    assert [trial.failed is not None for trial in heads.trials] == [True, True]
    assert heads.failures == [heads.trials[0].failed]
    assert (heads.tasks, heads.average, heads.runs) == ({}, None, [])
    assert ComparisonResults.read(tmp_path / "results.json") == results
    before = moments(tmp_path)
    again = compare_methods(recipe, tmp_path, ["lora", "heads_only"], [0], search=search)
    assert moments(tmp_path) == before
    assert numbers(again) == numbers(results)


def test_a_finished_trial_is_preferred_to_a_failed_one(project, tmp_path):
    """Even if its average on tune is undefined: constant predictions have no correlation."""
    data = shutil.copytree(project.data, tmp_path / "data")
    rows = [json.loads(line) for line in (data / "heat" / "tune.jsonl").read_text().splitlines()]
    write_rows(data / "heat" / "tune.jsonl", [{**row, "degree": 2.0} for row in rows])
    recipe = recipe_of(project, *QUICK, f"tasks.data_root={data}")
    results = compare_methods(recipe, tmp_path / "out", ["heads_only"], [0], search=["lr=1e30,0.02"])
    assert [trial.chosen for trial in results.method("heads_only").trials] == [False, True]
    assert results.method("heads_only").average is not None


# --- what is refused, with nothing overwritten


def contents(path):
    return {file.relative_to(path): file.read_bytes() for file in path.rglob("*") if file.is_file()}


def refused(error, says, path, recipe, methods=("lora",), seeds=(0,), **options):
    before = contents(path)
    with pytest.raises(error, match=says):
        compare_methods(recipe, path, list(methods), list(seeds), **options)
    assert contents(path) == before


def test_variants_are_told_apart_while_they_run(project, tmp_path):
    recipe = project.load("tasks.include=[mood, heat]", "training.max_steps=1")
    said = io.StringIO()
    methods = ["mtl_lora", "mtl_lora[r=2]"]
    compare_methods(recipe, tmp_path / "out", methods, [0], console=Console(file=said, width=200))
    for method in methods:
        assert f"\n{method} seed 0: average on tune " in f"\n{said.getvalue()}"


@pytest.mark.parametrize("override", ["training.epochs=2", "method.r=3", "tasks.include=[mood]", "model.max_length=20"])
def test_another_recipe_does_not_go_on_with_a_comparison(project, compared, override):
    refused(OutputError, "holds a comparison of another recipe", compared[0], recipe_of(project, override))


def test_overwriting_begins_anew(project, copied):
    results = compare_methods(recipe_of(project, *QUICK), copied, ["heads_only"], [0], overwrite=True)
    assert list(cells_of(copied)) == results.methods[0].runs


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize(
    "content",
    [
        {"thesis.tex": "mine"},
        {"comparison.json": '{"prices": [1, 2]}', "shop.csv": "mine"},
        {"comparison.json": "no json", "shop.csv": "mine"},
    ],
)
def test_a_directory_that_holds_something_else_is_left_alone(project, tmp_path, content, overwrite):
    """A file that is called comparison.json as ours is does not make a directory ours."""
    for name, text in content.items():
        (tmp_path / name).write_text(text)
    refused(OutputError, "holds no comparison", tmp_path, recipe_of(project), overwrite=overwrite)


def test_a_place_that_cannot_be_written(project, tmp_path):
    (tmp_path / "file").write_text("mine")
    for place in ("file", "file/below"):
        with pytest.raises(OutputError, match=str(tmp_path / place)):
            compare_methods(recipe_of(project), tmp_path / place, ["lora"], [0])


def test_rows_may_be_moved_but_not_changed(project, compared, copied, tmp_path):
    data = shutil.copytree(project.data, tmp_path / "data")
    recipe = recipe_of(project, f"tasks.data_root={data}")
    assert numbers(compare_methods(recipe, copied, METHODS, SEEDS, search=SEARCH)) == numbers(compared[1])
    lines = (data / "mood" / "train.jsonl").read_text().splitlines()
    (data / "mood" / "train.jsonl").write_text("\n".join(lines[::-1]))
    refused(OutputError, "the training rows of seed 0 are no longer those", copied, recipe)
    (data / "mood" / "train.jsonl").write_text("\n".join(lines))
    lines = (data / "mood" / "validation.jsonl").read_text().splitlines()
    (data / "mood" / "validation.jsonl").write_text("\n".join(lines[::-1]))
    refused(OutputError, "the tune or scored rows of seed 0 are no longer those", copied, recipe)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"methods": []}, "no method to compare"),
        ({"seeds": []}, "no seed to compare"),
        ({"seeds": [0, -1]}, "seed"),
        ({"search": ["r=4,0"]}, "r must be a positive integer, got 0"),
        ({"search": ["lr=1,-1"]}, "training.learning_rate"),
        ({"methods": ["mtl_lora", "lora_matched"], "search": ["r=2,4"]}, "the rank of 'lora_matched'"),
        ({"methods": ["lora_matched"], "overrides": [use_method("heads_only")]}, "must be an adapter of one rank"),
    ],
)
def test_what_cannot_be_compared_is_said_before_anything_is_run(project, tmp_path, options, says):
    recipe = recipe_of(project, *options.get("overrides", []))
    refused(
        ConfigError,
        says,
        tmp_path,
        recipe,
        options.get("methods", ["mtl_lora"]),
        options.get("seeds", [0]),
        search=options.get("search", []),
    )


def test_rows_that_cannot_be_had_are_said_before_anything_is_run(project, tmp_path):
    refused(DataError, "no folder nowhere", tmp_path, recipe_of(project, "tasks.data_root=nowhere"))
