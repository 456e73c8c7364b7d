"""What is seen while a run goes on: the bar with the tasks' losses, plain lines, TensorBoard, the last line."""

import io
import sys

import pytest
from rich.console import Console

from helpers_runs import TASKS, log_of, use_method
from tasklora.errors import ConfigError
from tasklora.training import train_recipe
from tasklora.training.callbacks import ProgressBar, ProgressDisplay, losses_line

SOME = {"cola": 0.61, "sst2": 0.25, "stsb": 1.5}


def test_all_losses_in_their_order_where_there_is_room():
    assert losses_line(SOME, 80) == "cola 0.610  sst2 0.250  stsb 1.500"
    assert losses_line(SOME, 34) == losses_line(SOME, 80)


def test_the_highest_losses_where_there_is_not():
    assert losses_line(SOME, 33) == "stsb 1.500  cola 0.610  … 1 lower"
    assert losses_line(SOME, 25) == "stsb 1.500  … 2 lower"
    assert losses_line(SOME, 15) == "… 3 tasks"
    many = {f"task{place}": place / 1000 for place in range(1000)}
    assert losses_line(many, 60) == "task999 0.999  task998 0.998  task997 0.997  … 997 lower"
    for width in range(10, 200):
        assert len(losses_line(many, width)) <= max(width, len("… 1000 tasks"))


def test_a_console_that_is_no_terminal_gets_a_line_per_log(project, tmp_path):
    console = Console(file=io.StringIO(), width=100)
    train_recipe(project.load("training.max_steps=4", "training.logging_steps=2"), tmp_path / "run", console=console)
    lines = console.file.getvalue().splitlines()
    records = [record for record in log_of(tmp_path / "run") if "loss" in record]
    assert [line for line in lines if " of 4  loss" in line] == [
        f"step {record['step']:>5} of 4  loss {record['loss']:.3f}  "
        + "  ".join(f"{task} {record[f'loss/{task}']:.3f}" for task in TASKS if f"loss/{task}" in record)
        for record in records
    ]
    assert not any("━" in line for line in lines)


def test_the_last_step_is_logged_too(project, tmp_path):
    train_recipe(project.load("training.max_steps=5", "training.logging_steps=3"), tmp_path / "run")
    assert [record["step"] for record in log_of(tmp_path / "run") if "loss" in record] == [3, 5]


@pytest.mark.parametrize("width", [30, 60, 120])
def test_a_terminal_of_any_width_gets_the_count_and_one_line_of_losses(width):
    console = Console(file=io.StringIO(), width=width, force_terminal=True, color_system=None)
    display = ProgressDisplay(console)
    display.add_task("training", total=100, completed=50, note="loss 0.532")
    display.losses = {f"task{place}": place / 10 for place in range(40)}
    with console.capture() as capture:
        console.print(display.get_renderable())
    lines = capture.get().splitlines()
    assert len(lines) == 2
    assert max(map(len, lines)) <= width
    assert "50/100" in lines[0]
    assert "lower" in lines[1]


def test_losses_of_tasks_that_were_not_drawn_stay_and_the_display_ends_empty(project, tmp_path):
    console = Console(file=io.StringIO(), width=100, force_terminal=True)
    bar = ProgressBar(console)
    seen = []

    class Look(ProgressBar):
        def __init__(self):
            pass

        def on_log(self, args, state, control, logs=None, **_):
            seen.append(dict(bar.progress.losses))

        def on_train_begin(self, *_, **__):
            pass

        on_step_end = on_train_end = on_train_begin

    train_recipe(
        project.load("training.max_steps=3", "training.batch_size=1"), tmp_path / "run", callbacks=[bar, Look()]
    )
    assert [len(losses) for losses in seen[:3]] == sorted(len(losses) for losses in seen[:3])
    logged = {key.removeprefix("loss/") for r in log_of(tmp_path / "run") for key in r if key.startswith("loss/")}
    assert set(seen[2]) == logged
    bar.stop()
    assert bar.progress.losses == {}


def test_tensorboard_gets_every_tasks_scalars_inside_the_run(project, tmp_path):
    pytest.importorskip("tensorboard", reason="tensorboard is not installed")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run = tmp_path / "run"
    train_recipe(project.load("training.report_to=[tensorboard]", "training.epochs=1"), run)
    assert list((run / "tensorboard").glob("events.out.tfevents.*"))
    assert not (run / "checkpoints" / "runs").exists()
    events = EventAccumulator(str(run / "tensorboard"))
    events.Reload()
    tags = set(events.Tags()["scalars"])
    for task in TASKS:
        assert {f"train/loss/{task}", f"train/drawn/{task}"} <= tags
    assert {"eval/average", "eval/mood_accuracy", "eval/heat_pearson"} <= tags
    for task in TASKS:
        of_log = [(r["step"], r[f"loss/{task}"]) for r in log_of(run) if f"loss/{task}" in r]
        of_board = [(event.step, event.value) for event in events.Scalars(f"train/loss/{task}")]
        assert of_board == [(step, pytest.approx(value, rel=1e-6)) for step, value in of_log]


def test_what_cannot_be_reported_to_is_said_before_the_first_step(project, tmp_path, monkeypatch):
    with pytest.raises(ConfigError, match=r"report_to names 'tensorbord', .* Did you mean 'tensorboard'"):
        train_recipe(project.load("training.report_to=[tensorbord]"), tmp_path / "run")
    for name in ("tensorboard", "tensorboardX", "torch.utils.tensorboard"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ConfigError, match=r"'tensorboard', which cannot be used here: .*pip install tensorboard"):
        train_recipe(project.load("training.report_to=[tensorboard]"), tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        ((), "best/ (adapter and heads), results.json, report.html, log.jsonl, predictions.jsonl; export: "),
        (
            (use_method("heads_only"),),
            "best/ (heads), results.json, report.html, log.jsonl, predictions.jsonl; export: ",
        ),
        pytest.param(
            (use_method("hydra_lora"),),
            "predictions.jsonl; predict: tasklora predict run TEXT --task mood",
            marks=pytest.mark.slow,
        ),
        (("training.selection=per_task",), "best_per_task/ (each task's own), results.json"),
    ],
)
def test_the_last_line_says_where_everything_is_and_it_is_there(cli, project, tmp_path, overrides, says):
    settings = [part for override in overrides for part in ("--set", override)]
    said = cli("train", project.recipe, "--output", "run", "--set", "training.max_steps=2", *settings)
    assert said.code == 0, said.err
    last = said.out.splitlines()[-1]
    assert last.startswith("everything is in run: ")
    assert says in last
    places, then = last.removeprefix("everything is in run: ").split("; ")
    for place in places.split(", "):
        assert (tmp_path / "run" / place.split(" ")[0]).exists()
    command = then.partition(": tasklora ")[2].replace("DIR", "out").replace("TEXT", "good").split()
    assert cli(*command).code == 0
