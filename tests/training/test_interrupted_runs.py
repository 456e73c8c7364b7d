"""Interrupts, crashes and NaN: what is kept, and that going on gives what an uninterrupted run gives, bit by bit."""

import json
import os
import shutil
import signal
import time
from subprocess import PIPE, Popen
from sys import executable

import pytest
import torch

from helpers_runs import (
    EVERY_METHOD,
    AtStep,
    assert_same_state,
    environment,
    log_of,
    mostly_slow,
    randomise,
    use_method,
)
from tasklora.errors import CheckpointError, NonFiniteLossError
from tasklora.tasks import load_model, read_safetensors
from tasklora.training import InterruptedRun, RunDirectory, train_recipe

DROPOUT = "model.head_dropout=0.3"  # so that a resumed run must have the right random numbers too


def weights_of(directory):
    files = directory.glob("*.safetensors")
    return {f"{file.name}/{key}": value for file in files for key, value in read_safetensors(file).items()}


def ctrl_c(**_):
    os.kill(os.getpid(), signal.SIGINT)


def wreck(model, **_):
    randomise(model, scale=5.0)


def history(run):
    """Return losses and evaluations by step; what a resumed run logs again counts once."""
    return {(r["step"], key): r[key] for r in log_of(run) for key in ("loss", "eval_average") if key in r}


def assert_same_run(one, other):
    assert history(one) == history(other)
    for part in ("final", "best"):
        assert_same_state(weights_of(one / part), weights_of(other / part))


def interrupt(recipe, run, step, *callbacks):
    before = signal.getsignal(signal.SIGINT)  # a process in the background may ignore it from the start
    with pytest.raises(InterruptedRun) as caught:
        train_recipe(recipe, run, callbacks=[AtStep(step, ctrl_c), *callbacks])
    assert f"interrupted at step {step}; a checkpoint is kept" in str(caught.value)
    assert f"tasklora train --resume {run}" in str(caught.value)
    assert RunDirectory(run).latest_checkpoint().name == f"checkpoint-{step}"
    assert signal.getsignal(signal.SIGINT) is before


@pytest.fixture(scope="module")
def whole(project, tmp_path_factory):
    """Return an uninterrupted run of two epochs (16 steps) with its results."""
    path = tmp_path_factory.mktemp("whole") / "run"
    return path, train_recipe(project.load(DROPOUT), path)[0]


# the first step, the middle of an epoch, its end (where evaluation is due), the middle of the second, the last step
@pytest.mark.parametrize("step", mostly_slow([1, 3, 8, 11, 16], 3, 8))
def test_a_resumed_run_equals_an_uninterrupted_one(project, whole, tmp_path, step):
    interrupt(project.load(DROPOUT), tmp_path / "run", step)
    assert not (tmp_path / "run" / "results.json").exists()
    results, _ = train_recipe(project.load(), tmp_path / "run", resume=True)  # the recipe is the run's own
    assert_same_run(tmp_path / "run", whole[0])
    assert results.scores == whole[1].scores
    times = {"seconds", "step_seconds"}
    assert results.training.model_dump(exclude=times) == whole[1].training.model_dump(exclude=times)


@pytest.mark.parametrize("method", mostly_slow([method for method in EVERY_METHOD if method != "mtl_lora"], "ta_lora"))
def test_so_with_every_method_accumulation_and_evaluation_by_steps(project, tmp_path, method):
    accumulate = ("training.batch_size=8", "training.gradient_accumulation_steps=2")
    recipe = project.load(DROPOUT, use_method(method), "training.evaluate_every=5", *accumulate)
    train_recipe(recipe, tmp_path / "whole")
    interrupt(recipe, tmp_path / "run", 5)  # where an evaluation is due
    train_recipe(recipe, tmp_path / "run", resume=True)
    assert_same_run(tmp_path / "run", tmp_path / "whole")


def test_a_run_may_be_interrupted_again_and_again(project, whole, tmp_path):
    interrupt(project.load(DROPOUT), tmp_path / "run", 2)
    for step in (5, 12):
        with pytest.raises(InterruptedRun, match=f"interrupted at step {step}"):
            train_recipe(project.load(), tmp_path / "run", resume=True, callbacks=[AtStep(step, ctrl_c)])
    train_recipe(project.load(), tmp_path / "run", resume=True)
    assert_same_run(tmp_path / "run", whole[0])


def test_a_crash_before_the_first_checkpoint_begins_anew(project, whole, tmp_path):
    def crash(**_):
        raise RuntimeError("power cut")

    with pytest.raises(RuntimeError, match="power cut"):
        train_recipe(project.load(DROPOUT), tmp_path / "run", callbacks=[AtStep(3, crash)])
    assert RunDirectory(tmp_path / "run").latest_checkpoint() is None
    with pytest.raises(CheckpointError, match=r"has no finished model .* Finish it with `tasklora train --resume`"):
        RunDirectory(tmp_path / "run").model()
    train_recipe(project.load(), tmp_path / "run", resume=True)
    assert_same_run(tmp_path / "run", whole[0])


@pytest.mark.parametrize("state", [None, '{"global_step": 9'])
def test_a_checkpoint_that_is_not_complete_is_passed_over(project, whole, tmp_path, state):
    interrupt(project.load(DROPOUT), tmp_path / "run", 11)
    checkpoints = tmp_path / "run" / "checkpoints"
    torn = shutil.copytree(checkpoints / "checkpoint-11", checkpoints / "checkpoint-12")
    (torn / "trainer_state.json").unlink()
    if state is not None:
        (torn / "trainer_state.json").write_text(state)
    assert RunDirectory(tmp_path / "run").latest_checkpoint().name == "checkpoint-11"
    train_recipe(project.load(), tmp_path / "run", resume=True)
    assert_same_run(tmp_path / "run", whole[0])


@pytest.mark.parametrize(("keep", "step"), [(1, 19), (2, 24)])  # 24 is the last step: no checkpoint follows
def test_the_best_checkpoint_outlives_interrupts_and_moves(project, tmp_path, monkeypatch, keep, step):
    monkeypatch.chdir(tmp_path)
    recipe = project.load("training.epochs=3", f"training.keep_checkpoints={keep}")
    with pytest.raises(InterruptedRun):  # best at step 8, then worse; a relative path
        train_recipe(recipe, "run", callbacks=[AtStep(9, wreck), AtStep(step, ctrl_c)])
    assert RunDirectory("run").latest_checkpoint().name == f"checkpoint-{step}"
    best = weights_of(tmp_path / "run" / "checkpoints" / "checkpoint-8")
    shutil.move("run", tmp_path / "elsewhere")
    monkeypatch.chdir("/")
    results, _ = train_recipe(recipe, tmp_path / "elsewhere", resume=True, callbacks=[AtStep(20, wreck)])
    assert results.training.best_step == 8
    assert_same_state(weights_of(tmp_path / "elsewhere" / "best"), best)


def test_a_real_ctrl_c_on_the_command_line(project, whole, tmp_path):
    """SIGINT to a real process: exit code 130, one line that says how to go on, and a run that goes on."""
    run = tmp_path / "run"
    command = ["-m", "tasklora", "train", str(project.recipe), "--output", str(run)]
    settings = ["--set", DROPOUT, "--set", "training.epochs=40"]
    process = Popen([executable, *command, *settings], stdout=PIPE, stderr=PIPE, text=True, env=environment(project))
    deadline = time.monotonic() + 120
    while not (run / "log.jsonl").exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130, errors
    assert "Traceback" not in errors
    step = json.loads((RunDirectory(run).latest_checkpoint() / "trainer_state.json").read_text())["global_step"]
    assert f"interrupted at step {step}; a checkpoint is kept. Go on with: tasklora train --resume {run}" in errors
    kept = (run / "recipe.resolved.yaml").read_text()
    (run / "recipe.resolved.yaml").write_text(kept.replace("epochs: 40.0", f"epochs: {step // 8 + 1}.0"))
    results, _ = train_recipe(project.load(), run, resume=True)
    assert results.training.steps == (step // 8 + 1) * 8


# --- NaN


def spoil(task, value):
    def action(model, **_):
        with torch.no_grad():
            model.heads[task].linear.bias.fill_(value)

    return action


@pytest.mark.parametrize(
    ("task", "value"),
    [
        ("answer", float("inf")),
        pytest.param("mood", float("nan"), marks=pytest.mark.slow),
        pytest.param("heat", float("nan"), marks=pytest.mark.slow),
    ],
)
def test_a_loss_that_is_not_finite_names_its_task_and_keeps_the_last_good_checkpoint(
    project, whole, tmp_path, task, value
):
    recipe, run = project.load(DROPOUT), tmp_path / "run"
    with pytest.raises(NonFiniteLossError) as caught:
        train_recipe(recipe, run, callbacks=[AtStep(10, spoil(task, value))])
    assert f"the loss became NaN or infinite at step 11, on rows of task(s) {task}. " in str(caught.value)
    assert "checkpoints are kept" in str(caught.value)
    assert [path.name for path in (run / "checkpoints").iterdir()] == ["checkpoint-8"]
    load_model(run / "checkpoints" / "checkpoint-8")
    assert all(bool(torch.isfinite(v).all()) for v in weights_of(run / "checkpoints" / "checkpoint-8").values())
    train_recipe(recipe, run, resume=True)  # without the cause, it goes on to the same end
    assert_same_run(run, whole[0])


def test_weights_that_are_not_finite_are_never_saved_as_a_checkpoint(project, tmp_path):
    with pytest.raises(NonFiniteLossError) as caught:  # spoilt in the step after which a checkpoint is due
        train_recipe(project.load(), tmp_path / "run", callbacks=[AtStep(16, spoil("answer", float("nan")))])
    assert "the loss on tune became NaN or infinite after step 16, on rows of task(s) answer. " in str(caught.value)
    assert [path.name for path in (tmp_path / "run" / "checkpoints").iterdir()] == ["checkpoint-8"]


def test_several_spoilt_tasks_are_all_named(project, tmp_path):
    actions = [AtStep(1, spoil(task, float("nan"))) for task in ("mood", "heat")]
    recipe = project.load("training.group_by_length=false", "training.batch_size=64")
    with pytest.raises(NonFiniteLossError, match=r"at step 2, on rows of task\(s\) mood, heat\. "):
        train_recipe(recipe, tmp_path / "run", callbacks=actions)


def test_a_score_that_is_undefined_stands_as_null_in_the_log(project, tmp_path):
    # a constant prediction has no correlation: with `heat` alone the average is undefined
    recipe = project.load("tasks.include=[heat]", "training.epochs=1", "training.learning_rate=1.0e-30")

    def flatten(model, **_):
        with torch.no_grad():
            model.heads["heat"].linear.weight.zero_()

    results, _ = train_recipe(recipe, tmp_path / "run", callbacks=[AtStep(1, flatten)])
    assert [record["eval_average"] for record in log_of(tmp_path / "run") if "eval_average" in record] == [None]
    assert results.scores["validation"].average is None
    assert results.scores["validation"].undefined == ["heat"]
