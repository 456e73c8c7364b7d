"""``METHOD@single``: a run for each task makes one cell of a comparison, against which transfer is measured."""

import json
import os
import signal

import pytest

from helpers_runs import TASKS, AtStep, use_method
from tasklora.errors import ConfigError, InterruptedRun
from tasklora.evaluation import RunResults
from tasklora.report.loading import load_source
from tasklora.report.page import render
from tasklora.training import compare_methods, single_tasks, train_recipe
from tasklora.training.contenders import contender, title_of
from tasklora.training.single_tasks import single_recipes, train_single_tasks

SIZES = {"mood": 36, "answer": 54, "heat": 24}


def test_each_task_sees_as_many_of_its_rows_as_with_the_others(project):
    recipe = project.load("training.epochs=4", "tasks.options={mood: {loss_weight: 2.0}, heat: {loss_weight: 0.5}}")
    alone = single_recipes(recipe, SIZES)
    assert {task: one.tasks.include for task, one in alone.items()} == {task: [task] for task in TASKS}
    assert [one.training.epochs for one in alone.values()] == [4, 4, 4]
    assert [list(one.tasks.options) for one in alone.values()] == [["mood"], [], ["heat"]]
    equal = single_recipes(project.load("training.epochs=4", "training.mixing={strategy: equal}"), SIZES)
    assert [one.training.epochs for one in equal.values()] == pytest.approx([4 * 38 / rows for rows in SIZES.values()])
    assert {one.training.mixing.strategy for one in equal.values()} == {"proportional"}
    steps = single_recipes(project.load("training.max_steps=114", "training.evaluate_every=57"), SIZES)
    assert [one.training.max_steps for one in steps.values()] == [36, 54, 24]
    assert [one.training.evaluate_every for one in steps.values()] == [18, 27, 12]


@pytest.fixture(scope="module")
def compared(project, tmp_path_factory):
    """Return a comparison with runs of single tasks, and its directory."""
    path = tmp_path_factory.mktemp("compared") / "comparison"
    recipe = project.load("training.epochs=1")
    return compare_methods(recipe, path, ["mtl_lora", "mtl_lora@single"], [0, 1]), path, recipe


def test_transfer_is_the_difference_to_the_tasks_own_runs(compared):
    results, path, _ = compared
    together, alone = results.method("mtl_lora"), results.method("mtl_lora@single")
    assert alone.transfer == {}
    assert together.transfer.keys() == set(TASKS)
    for task, gained in together.transfer.items():
        scores = [RunResults.read(path / alone.runs[seed] / "tasks" / task / "results.json") for seed in (0, 1)]
        expected = [
            mine - run.scores["validation"].tasks[task].score
            for mine, run in zip(together.tasks[task].seeds, scores, strict=True)
        ]
        assert gained.seeds == pytest.approx(expected)
        assert gained.low <= gained.mean <= gained.high
        percent = 100 * gained.mean / abs(alone.tasks[task].mean)
        assert together.relative_transfer[task] == pytest.approx(percent)
    assert alone.parameters.trainable == sum(
        RunResults.read(path / alone.runs[0] / "tasks" / task / "results.json").parameters.trainable for task in TASKS
    )
    assert alone.title == "MTL-LoRA, one run per task"


def test_it_is_shown_and_nothing_is_run_twice(compared, monkeypatch):
    results, path, recipe = compared
    page = render(load_source([path]))
    assert 'id="figure-transfer"' in page
    assert 'id="table-transfer"' in page
    monkeypatch.setattr(single_tasks, "train_recipe", None)
    again = compare_methods(recipe, path, ["mtl_lora", "mtl_lora@single"], [0, 1], baseline="mtl_lora@single")
    assert again.method("mtl_lora").transfer == results.method("mtl_lora").transfer
    assert again.method("mtl_lora").differences == results.method("mtl_lora").transfer
    assert 'id="figure-transfer"' in render(load_source([path]))


def test_an_interrupted_cell_goes_on_where_it_was(project, compared, tmp_path, monkeypatch):
    results, path, _ = compared
    recipe = project.load("training.epochs=1")

    def stopping(single, output, **options):
        if single.tasks.include == ["answer"]:
            callback = AtStep(3, lambda **_: os.kill(os.getpid(), signal.SIGINT))
            return train_recipe(single, output, callbacks=[callback], **options)
        return train_recipe(single, output, **options)

    monkeypatch.setattr(single_tasks, "train_recipe", stopping)
    with pytest.raises(InterruptedRun):
        train_single_tasks(recipe, tmp_path / "cell", command="x")
    assert not (tmp_path / "cell" / "results.json").exists()
    monkeypatch.undo()
    began = (tmp_path / "cell" / "tasks" / "mood" / "results.json").read_text()
    scores = train_single_tasks(recipe, tmp_path / "cell", command="x").scores
    assert scores == RunResults.read(path / results.method("mtl_lora@single").runs[0] / "results.json").scores
    assert (tmp_path / "cell" / "tasks" / "mood" / "results.json").read_text() == began
    log = [json.loads(line) for line in (tmp_path / "cell" / "log.jsonl").read_text().splitlines()]
    assert {key.removeprefix("loss/") for record in log for key in record if key.startswith("loss/")} == set(TASKS)
    assert not any("eval_average" in record for record in log)


def test_what_cannot_be_compared_is_refused_before_anything_runs(project, dense_project, tmp_path):
    recipe = project.load()
    with pytest.raises(ConfigError, match="'lora@single' is what 'lora' is measured against: compare that one too"):
        compare_methods(recipe, tmp_path / "out", ["mtl_lora", "lora@single"], [0])
    with pytest.raises(ConfigError, match="unknown method 'lorra'"):
        contender(recipe, "lorra@single")
    assert not (tmp_path / "out").exists()
    with pytest.raises(ConfigError, match="runs of single tasks are for recipes on text; on images, compare 'single_t"):
        contender(dense_project.load(), "mtlora@single")
    assert contender(recipe, "mtl_lora[r=2]@single") == contender(recipe, "mtl_lora[r=2]")
    assert title_of("mtl_lora[r=2]@single") == "MTL-LoRA, r 2, one run per task"
    assert contender(project.load(use_method("lora")), "lora@single").method.name == "lora"
