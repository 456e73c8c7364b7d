"""A comparison that is killed, or stopped by Ctrl-C, in the middle of a run goes on to the same table."""

import os
import shutil
import signal
from pathlib import Path

import pytest
import torch

from helpers_runs import in_subprocess
from tasklora.training import compare_methods
from tasklora.training.callbacks import StopOnInterrupt

METHODS, SEEDS = ["mtl_lora", "heads_only"], [0, 1]
# Dropout, so that a run that goes on must have the right random numbers too.
OVERRIDES = ["model.head_dropout=0.3", "training.epochs=1", "training.evaluate_every=3"]
BETWEEN = 5  # a step after the first checkpoint at which none is due

on_step_end = StopOnInterrupt.on_step_end


def send_in_second_run(number):
    """Return a step's end at which this process gets a signal, in the middle of the run with seed 1."""

    def send(self, args, state, control, **options):
        if "seed-1" in args.output_dir and state.global_step == BETWEEN:
            os.kill(os.getpid(), number)
        return on_step_end(self, args, state, control, **options)

    return send


def arguments(project, output):
    settings = [part for override in OVERRIDES for part in ("--set", override)]
    seeds = ",".join(map(str, SEEDS))
    return [project.recipe, "--output", output, "--methods", ",".join(METHODS), "--seeds", seeds, *settings]


@pytest.fixture(scope="module")
def whole(project, tmp_path_factory):
    """Return the results of a comparison that nothing disturbed."""
    return compare_methods(project.load(*OVERRIDES), tmp_path_factory.mktemp("whole") / "out", METHODS, SEEDS)


def table(results):
    """Return every number of a comparison but times."""
    methods = [method.model_dump(exclude={"seconds", "step_seconds"}) for method in results.methods]
    return {**results.model_dump(exclude={"created", "command", "commit", "methods", "machine"}), "methods": methods}


def assert_goes_on(recipe, output, whole):
    """Assert that the first run is finished and kept, the second one begun, and that going on gives the whole table."""
    (first,), (second,) = output.glob("mtl_lora-*/seed-0"), output.glob("mtl_lora-*/seed-1")
    assert (second / "checkpoints" / "checkpoint-3").is_dir()
    assert not (second / "results.json").exists()
    assert not (output / "results.json").exists()
    finished = (first / "results.json").stat().st_mtime_ns
    results = compare_methods(recipe, output, METHODS, SEEDS)
    assert table(results) == table(whole)
    assert (first / "results.json").stat().st_mtime_ns == finished


@pytest.mark.slow  # `make test-long` runs it
def test_a_killed_comparison_goes_on_to_the_same_table(project, whole, tmp_path):
    here = Path(__file__).parent
    code = (
        f"import sys, signal, torch; sys.path[:0] = {[str(here), str(here.parent)]}\n"
        f"torch.set_num_threads({torch.get_num_threads()})  # sums in another order differ in the last digit\n"
        "from test_interrupted_comparisons import StopOnInterrupt, send_in_second_run\n"
        "StopOnInterrupt.on_step_end = send_in_second_run(signal.SIGKILL)\n"
        "from tasklora.cli import main; main()"
    )
    said = in_subprocess(project, "-c", code, "compare", *map(str, arguments(project, tmp_path / "out")))
    assert said.returncode == -signal.SIGKILL, said.stderr
    assert_goes_on(project.load(*OVERRIDES), tmp_path / "out", whole)


def test_so_does_one_that_was_stopped_by_ctrl_c_and_moved(cli, project, whole, tmp_path, monkeypatch):
    """Where the rows and the comparison lie is no part of what is compared."""
    shutil.copytree(project.data, tmp_path / "data")
    with monkeypatch.context() as patch:
        patch.setattr(StopOnInterrupt, "on_step_end", send_in_second_run(signal.SIGINT))
        said = cli("compare", *arguments(project, tmp_path / "out"), "--data-root", tmp_path / "data")
    assert said.code == 130
    assert said.err == "interrupted in a run; finished ones are kept. The same command goes on.\n"
    shutil.move(tmp_path / "data", tmp_path / "moved")
    shutil.move(tmp_path / "out", tmp_path / "also moved")
    recipe = project.load(*OVERRIDES, f"tasks.data_root={tmp_path / 'moved'}")
    assert_goes_on(recipe, tmp_path / "also moved", whole)
