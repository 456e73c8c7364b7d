"""SIGKILL at any moment: the run is resumed, and ends bit by bit as one that was never killed.

What is compared: every file of the run, byte by byte, but for times: of ``results.json`` and ``log.jsonl`` what they
say apart from seconds, rates, memory and the commit; of ``trainer_state.json`` apart from the path of the best
checkpoint; ``manifest.json`` is of the start.
"""

import json
import random
import signal
import time
from pathlib import Path
from subprocess import DEVNULL, Popen
from sys import executable

import pytest

import helpers_killing as killing
from helpers_runs import SUITE, AtStep, environment, in_subprocess, log_of
from tasklora.training import train_recipe

BY_EPOCH = ["model.head_dropout=0.3", "training.logging_steps=3", "training.selection=per_task"]
BY_STEPS = [*BY_EPOCH[:2], "training.evaluate_every=5", "training.early_stopping_patience=1", "training.epochs=4"]
TIMES = {"train_runtime", "train_samples_per_second", "train_steps_per_second"}


def content(run):
    """Return what a run left behind, path → content without times."""
    found = {}
    for path in sorted(path for path in run.rglob("*") if path.is_file()):
        name = str(path.relative_to(run))
        if path.name == "results.json":
            results = json.loads(path.read_text())
            for key in ("created", "commit", "evaluation_seconds", "memory"):
                del results[key]
            for key in ("seconds", "step_seconds"):
                del results["training"][key]
            found[name] = results
        elif path.name == "log.jsonl":
            found[name] = [{key: record[key] for key in record.keys() - TIMES} for record in log_of(run)]
        elif path.name == "trainer_state.json":
            found[name] = json.loads(path.read_text())
            del found[name]["best_model_checkpoint"]
        elif path.name not in ("manifest.json", "report.html"):
            found[name] = path.read_bytes()
    return found


def assert_same_end(run, whole):
    one, other = content(run), content(whole)
    assert one.keys() == other.keys()
    assert [name for name in one if one[name] != other[name]] == []


def kill_and_compare(project, folder, **plan):
    """Run a plan of kills; return the events of the whole run and the kills."""
    done = in_subprocess(project, killing.__file__, str(project.root), str(folder), json.dumps(plan))
    assert done.returncode == 0, done.stderr[-3000:]
    report = json.loads((folder / "report.json").read_text())
    for place in range(report["runs"]):
        assert_same_end(folder / f"killed-{place}", folder / "whole")
    return report["events"], report["kills"]


def test_killed_three_times_a_run_ends_as_if_never_killed(project, tmp_path):
    """Before a checkpoint gets its name, before a log in the second epoch, and before the results get theirs."""
    at = [[r"os.rename checkpoints/.partial/checkpoint-8", 1], [r"open log.jsonl", 6], [r"os.rename .results.json", 1]]
    _, kills = kill_and_compare(project, tmp_path, overrides=BY_EPOCH, seed=0, at=at)
    assert [kill["run"] for kill in kills] == ["killed-0"] * 3
    assert [record["step"] for record in log_of(tmp_path / "killed-0") if "loss" in record] == [3, 6, 9, 12, 15, 16]


@pytest.mark.slow
def test_a_killed_run_on_streamed_rows_ends_as_if_never_killed(project, tmp_path):
    """In the second pass over the stream, of which a checkpoint keeps nothing."""
    mood = {**SUITE["tasks"]["mood"], "files": str(project.data / "mood"), "streaming": {"rows": 40, "buffer": 20}}
    heat = {**SUITE["tasks"]["heat"], "files": str(project.data / "heat")}
    tasks = json.dumps({"define": {"mood": mood, "heat": heat}})
    overrides = [*BY_STEPS[:2], f"tasks={tasks}", "training.group_by_length=false", "training.evaluate_every=3"]
    at = [[r"open log.jsonl", 5]]  # at the end; what goes on from step 6 of 8 reads the stream from its beginning
    _, kills = kill_and_compare(project, tmp_path, overrides=overrides, seed=0, at=at)
    assert len(kills) == 1


@pytest.mark.slow
@pytest.mark.parametrize("overrides", [BY_EPOCH, BY_STEPS], ids=["by_epoch", "by_steps"])
def test_killed_at_random_moments_a_run_ends_as_if_never_killed(project, tmp_path, overrides):
    """16 kills before a random change of a file and 8 at random times, for each recipe; and at what matters most."""
    at = [
        [r"os.rename checkpoints/.partial/checkpoint", 1],
        [r"shutil.rmtree checkpoints", 1],
        [r"os.rename \.best-", 1],
        [r"os.rename \.predictions", 1],
    ]
    events, kills = kill_and_compare(project, tmp_path, overrides=overrides, seed=1, at=at, events=16, timed=8)
    assert len(kills) == 28
    struck = {kill["event"] for kill in kills}
    assert len(struck) > 14, struck  # not the same moment again and again
    assert len(events) > 100


@pytest.mark.slow
def test_the_real_command_killed_and_resumed(project, tmp_path):
    """``tasklora train`` and ``--resume`` as processes of their own, killed at random times of their life."""
    settings = [part for override in BY_EPOCH for part in ("--set", override)]

    def command(run, resume):
        given = ["--resume", str(run)] if resume else [str(project.recipe), "--output", str(run), *settings]
        return [executable, "-m", "tasklora", "train", *given]

    began = time.monotonic()
    whole = in_subprocess(project, *command(tmp_path / "whole", False)[1:])
    assert whole.returncode == 0, whole.stderr
    duration, numbers, kills, run = time.monotonic() - began, random.Random(2), 0, tmp_path / "run"
    while not (run / "results.json").is_file():
        resume = (run / "recipe.resolved.yaml").is_file()
        process = Popen(command(run, resume), stdout=DEVNULL, stderr=DEVNULL, env=environment(project))
        if kills < 4:
            time.sleep(numbers.uniform(0.5, 1.0) * duration)
            process.send_signal(signal.SIGKILL)
            kills += 1
        assert process.wait() in (0, -signal.SIGKILL)
    one, other = content(run), content(tmp_path / "whole")
    for of_run in (one, other):
        del of_run["results.json"]["command"]
    assert kills
    assert [name for name in other if one[name] != other[name]] == []


def test_a_torn_last_line_of_the_log_is_gone_after_resuming(project, tmp_path):
    def crash(**_):
        with Path("run/log.jsonl").open("a") as log:
            log.write('{"step": 11, "lo')
        raise RuntimeError("power cut")

    with pytest.raises(RuntimeError, match="power cut"):
        train_recipe(project.load(), "run", callbacks=[AtStep(10, crash)])
    train_recipe(project.load(), "run", resume=True)
    assert [r["step"] for r in log_of(Path("run")) if "loss" in r] == list(range(1, 17))
