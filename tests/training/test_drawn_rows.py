"""What a run draws: counted in the log, and, after an interrupt at any step, the very rows that were still to come."""

import json
import os
import signal

import numpy as np
import pytest

from helpers_runs import TASKS, AtStep, assert_same_state, log_of
from tasklora.report.loading import load_source
from tasklora.report.page import render
from tasklora.tasks import read_safetensors
from tasklora.training import InterruptedRun, MixedRows, train_recipe

WEIGHTS = "strategy: weights, weights: {mood: 5, answer: 1, heat: 1}"
END = "strategy: weights, weights: {mood: 1, answer: 1, heat: 5}"
ANNEALED = f"training.mixing={{{WEIGHTS}, epoch_rows: 40, replacement: true, schedule: {{{END}}}}}"
BY_STEP = f"training.mixing={{{WEIGHTS}, schedule: {{{END}, shape: linear, every: step}}}}"
ACCUMULATED = ("training.batch_size=4", "training.gradient_accumulation_steps=3")


@pytest.fixture
def rows(monkeypatch):
    """Return the places of the rows that are read, as they are read."""
    read = []
    original = MixedRows.__getitem__

    def watch(self, index):
        read.append(int(index))
        return original(self, index)

    monkeypatch.setattr(MixedRows, "__getitem__", watch)
    return read


def ctrl_c(**_):
    os.kill(os.getpid(), signal.SIGINT)


def drawn_log(run):
    """Return what the log says was drawn: (step, task) → rows."""
    return {
        (record["step"], key.removeprefix("drawn/")): value
        for record in log_of(run)
        for key, value in record.items()
        if key.startswith("drawn/")
    }


def weights_of(directory):
    return {
        f"{file.name}/{key}": value
        for file in directory.glob("*.safetensors")
        for key, value in read_safetensors(file).items()
    }


@pytest.mark.parametrize(
    ("overrides", "per_step", "epoch_rows", "stops"),
    [
        pytest.param((ANNEALED, "training.epochs=4"), 16, 40, (1, 7, 12), marks=pytest.mark.slow),
        ((BY_STEP, *ACCUMULATED, "training.max_steps=13", "training.evaluate_every=5"), 12, 114, (4, 10)),
    ],
    ids=["annealed over epochs, with replacement", "over steps, accumulated"],
)
def test_a_resumed_run_draws_the_very_rows_that_were_to_come(
    project, tmp_path, rows, overrides, per_step, epoch_rows, stops
):
    recipe = project.load(*overrides, "model.head_dropout=0.3", "training.logging_steps=2")
    results, _ = train_recipe(recipe, tmp_path / "whole")
    whole = list(rows)
    per_epoch = -(-epoch_rows // per_step)
    for stop in stops:
        run = tmp_path / f"stop-{stop}"
        with pytest.raises(InterruptedRun):
            train_recipe(recipe, run, callbacks=[AtStep(stop, ctrl_c)])
        rows.clear()
        resumed, _ = train_recipe(recipe, run, resume=True)
        epochs, more = divmod(stop, per_epoch)
        done = epochs * epoch_rows + more * per_step
        assert rows == whole[done:]
        assert drawn_log(run) == drawn_log(tmp_path / "whole")
        assert resumed.training.rows_drawn == results.training.rows_drawn
        for part in ("final", "best"):
            assert_same_state(weights_of(run / part), weights_of(tmp_path / "whole" / part))


def test_the_log_counts_what_was_drawn_and_the_report_shows_it(project, tmp_path, rows):
    run = tmp_path / "run"
    results, _ = train_recipe(project.load(BY_STEP, "training.logging_steps=3"), run)
    edges = np.cumsum([36, 54, 24])
    tasks = [TASKS[place] for place in np.searchsorted(edges, rows, side="right")]
    counted = drawn_log(run)
    for step in (3, 6):
        for task in TASKS:
            assert counted[step, task] == tasks[: step * 16].count(task)
    totals = {task: tasks.count(task) for task in TASKS}
    assert results.training.rows_drawn == totals
    assert {task: counted[16, task] for task in TASKS} == totals
    assert totals["mood"] == pytest.approx(228 * 3 / 7, abs=2)  # 5/7 to 1/7
    page = render(load_source([run]))
    assert "Rows drawn of each task" in page
    assert f"mood, {totals['mood'] / 36:.2g} ×" in page


def test_tasks_that_were_not_drawn_are_not_logged_again(project, tmp_path):
    # one row of 40 is mood's: most logs have none of it
    few = "{strategy: weights, weights: {mood: 1.0e-6, answer: 1, heat: 1}, epoch_rows: 40}"
    recipe = project.load(f"training.mixing={few}", "training.batch_size=4", "training.epochs=1")
    train_recipe(recipe, tmp_path / "run")
    steps = [step for step, task in drawn_log(tmp_path / "run") if task == "mood"]
    assert len(steps) == 2  # the step that drew it, and the end of training
    assert steps[-1] == 10
    log = (tmp_path / "run" / "log.jsonl").read_text().splitlines()
    assert json.loads(log[-1])["drawn/mood"] == 1


def test_many_tasks_stay_legible_in_the_figure(project, trained, tmp_path):
    """Eight of a hundred tasks are named: those that were drawn most and least."""
    from tasklora.report import curves
    from tasklora.report.loading import RunFiles, Source

    class Many(RunFiles):
        @property
        def log(self):
            return [
                {"step": step, **{f"drawn/t{place}": step * (place + 1) for place in range(100)}} for step in (5, 10)
            ]

    source = load_source([trained.path])
    run = Many(trained.path)
    run.results.training.rows_per_task = {f"t{place}": 10 for place in range(100)}
    run.results.training.steps = 10
    metrics = {f"t{place}": "accuracy" for place in range(100)}
    many = Source("many", source.results.model_copy(update={"metrics": metrics}), {"mtl_lora": [run]})
    made = curves.rows_drawn(many)
    assert len(made.data) == 100
    assert made.data["t99"] == {"steps": [0, 5, 10, 10], "values": [0.0, 500, 1000, 1000], "rows": 10}
    assert "the 4 tasks drawn most and the 4 drawn least; thin lines are the other 92" in made.reading
    names = [f"t{place}," for place in range(100) if f"t{place}, " in made.svg]
    assert names == ["t0,", "t1,", "t2,", "t3,", "t96,", "t97,", "t98,", "t99,"]
    assert "t99, 100 ×" in made.svg
    assert "t0, 1 ×" in made.svg


def test_a_task_of_which_nothing_was_drawn_is_shown_at_zero(trained):
    from tasklora.report import curves
    from tasklora.report.loading import RunFiles, Source

    class OneTask(RunFiles):
        @property
        def log(self):
            return [{"step": 5, "drawn/mood": 40}]

    source, run = load_source([trained.path]), OneTask(trained.path)
    run.results.training.steps = 10
    made = curves.rows_drawn(Source("one", source.results, {"mtl_lora": [run]}))
    assert set(made.data) == {"mood", "answer", "heat"}
    assert made.data["heat"]["steps"] == [0, 10]
    assert made.data["heat"]["values"] == [0.0, 0.0]
    assert "heat, 0 ×" in made.svg


def test_a_schedule_that_cannot_move_is_refused_before_a_run_is_made(project, tmp_path):
    from tasklora.errors import ConfigError

    recipe = project.load("training.mixing={schedule: {strategy: equal}}", "training.epochs=1")
    with pytest.raises(ConfigError, match=r"schedule\.every: step"):
        train_recipe(recipe, tmp_path / "run")
    with pytest.raises(ConfigError, match="epoch_rows is 2, but there are 3 tasks"):
        train_recipe(project.load("training.mixing.epoch_rows=2"), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_run_that_extends_another_counts_its_own_tasks(project, tmp_path):
    train_recipe(project.load("tasks.include=[mood]", "training.max_steps=2"), tmp_path / "first")
    more = project.load("tasks.include=[heat, answer]", "training.max_steps=5", "training.mixing={strategy: equal}")
    more = more.model_copy(update={"extends": str(tmp_path / "first")})
    with pytest.raises(InterruptedRun):
        train_recipe(more, tmp_path / "run", callbacks=[AtStep(3, ctrl_c)])
    results, _ = train_recipe(more, tmp_path / "run", resume=True)
    drawn = results.training.rows_drawn
    assert drawn["mood"] == 0
    assert sum(drawn.values()) == 78  # one epoch: 64 rows, and 14 in the fifth step
    assert {drawn["heat"], drawn["answer"]} == {39}
