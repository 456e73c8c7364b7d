"""Two processes (gloo, CPU) shard the model by FSDP2, and make the run that one process makes, within rounding."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import sharded_worker as worker
import torch

from helpers_runs import log_of
from tasklora.tasks import read_safetensors

pytestmark = pytest.mark.slow
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
SHARDED = {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2"}


def run(root, *command, **settings):
    tests = str(Path(worker.__file__).parents[1])
    paths = os.pathsep.join([tests, os.environ.get("PYTHONPATH", "")])
    quiet = {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "HF_DATASETS_CACHE": str(root / "cache")}
    done = subprocess.run(
        [*command],
        env={**os.environ, **quiet, "PYTHONPATH": paths, "GLOO_SOCKET_IFNAME": "lo", **settings},
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("sharded") / "projects"
    worker.save_projects(root)
    return root


@pytest.fixture(scope="module")
def runs(root) -> Path:
    """Return a folder with the runs of one process and of two."""
    for name, start, batch, settings in (("one", [sys.executable], "16", {}), ("two", TORCHRUN, "8", SHARDED)):
        folder = root.parent / name
        folder.mkdir()
        run(root, *start, worker.__file__, str(root), str(folder), batch, ",".join(worker.WAYS), **settings)
    return root.parent


def expect_same_files(one: Path, two: Path, rtol=1e-3, atol=1e-4) -> None:
    """Expect the same tensors, whole, in the files of two saved models."""
    files = sorted(path.name for path in one.glob("*.safetensors"))
    assert files == sorted(path.name for path in two.glob("*.safetensors"))
    for file in files:
        mine, theirs = read_safetensors(one / file), read_safetensors(two / file)
        assert mine.keys() == theirs.keys()
        for name, value in mine.items():
            if name.endswith("key.bias"):
                continue  # attention does not depend on it: Adam makes steps of what rounding leaves of its gradient
            torch.testing.assert_close(theirs[name], value, rtol=rtol, atol=atol, msg=lambda m, n=name: f"{n} {m}")


@pytest.mark.parametrize("way", worker.WAYS)
def test_two_processes_that_shard_make_the_run_of_one(runs, way):
    one, two = runs / "one" / way, runs / "two" / way
    coarse = way in worker.COARSE
    for part in ("final", "best"):
        expect_same_files(one / part, two / part, *((0.1, 0.05) if coarse else (1e-3, 1e-4)))
    for mine, theirs in zip(log_of(one), log_of(two), strict=True):
        shared = {key for key in mine if key != "epoch" and not key.startswith("train_")}
        if coarse:  # a rounded score may differ by a row
            shared = {key for key in shared if not key.startswith("eval_") or key.endswith("_loss")}
        assert shared <= theirs.keys()
        assert {key: theirs[key] for key in shared} == pytest.approx(
            {key: mine[key] for key in shared}, rel=0.1 if coarse else 1e-2, abs=0.02 if coarse else 1e-3
        )
    results = [json.loads((each / "results.json").read_text()) for each in (one, two)]
    assert results[0]["training"]["rows_drawn"] == results[1]["training"]["rows_drawn"]
    assert results[0]["parameters"] == results[1]["parameters"]
    assert {path.name for path in one.iterdir()} == {path.name for path in two.iterdir()}


@pytest.mark.parametrize("way", worker.WAYS)
def test_every_process_ends_with_the_same_results_and_its_shards(runs, way):
    main, other = (json.loads((runs / "two" / f"{way}-{rank}.json").read_text()) for rank in (0, 1))
    assert main == other
    assert main["sharded_layers"] == 2
    assert json.loads((runs / "one" / f"{way}-0.json").read_text())["sharded_layers"] == 0


@pytest.mark.parametrize("way", ["decayed", "selected"])
def test_checkpoints_are_those_of_one_process(runs, way):
    checkpoints = sorted((runs / "one" / way / "checkpoints").iterdir())
    assert checkpoints
    for checkpoint in checkpoints:
        other = runs / "two" / way / "checkpoints" / checkpoint.name
        expect_same_files(checkpoint, other)
        mine, theirs = (torch.load(each / "optimizer.pt") for each in (checkpoint, other))
        assert mine["param_groups"] == theirs["param_groups"]
        assert mine["state"].keys() == theirs["state"].keys()
        for index, entries in mine["state"].items():
            for key, value in entries.items():
                assert type(theirs["state"][index][key]) is type(value)
                torch.testing.assert_close(theirs["state"][index][key], value, rtol=1e-3, atol=1e-4)
        sizes = [sum(p.stat().st_size for p in each.iterdir() if "rng" not in p.name) for each in (checkpoint, other)]
        assert sizes[1] == pytest.approx(sizes[0], rel=0.05)  # nothing of the base


def test_steps_lack_tasks(runs):
    """Else the test of weight decay would say nothing: what has no row in a step must not decay."""
    drawn = [len([key for key in entry if key.startswith("loss/")]) for entry in log_of(runs / "one" / "decayed")]
    assert min(count for count in drawn if count) < 3


def test_a_signal_to_one_process_stops_all_at_the_same_step(runs):
    said = [(runs / "two" / f"said-{rank}").read_text() for rank in (0, 1)]
    assert said[0] == said[1]
    assert said[0].startswith("interrupted at step 3; a checkpoint is kept")


def test_accelerate_launch_shards(runs, root, tmp_path):
    """The launcher's own flags, with its defaults."""
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--use_fsdp", "--fsdp_version", "2"]
    processes = ["--num_processes", "2", "--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no"]
    ways = [worker.__file__, str(root), str(tmp_path), "8", "selected"]
    run(root, *launch, *processes, *ways)
    assert json.loads((tmp_path / "selected-1.json").read_text())["sharded_layers"] == 2
    for part in ("final", "best"):
        expect_same_files(runs / "one" / "selected" / part, tmp_path / "selected" / part)
