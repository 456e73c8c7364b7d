"""Two processes (gloo, CPU) make the run that one process makes, within rounding; and errors end both at once."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import recipes_worker as worker

from helpers_runs import _project, environment, log_of
from helpers_text import _text_project
from tasklora.tasks import read_safetensors

pytestmark = pytest.mark.slow
WAYS = [*worker.WAYS, *worker.IN_TEXT]
TORCHRUN = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]


def run_python(project, *arguments):
    tests = str(Path(worker.__file__).parents[1])
    paths = os.pathsep.join([tests, os.environ.get("PYTHONPATH", "")])
    return subprocess.run(
        [sys.executable, *arguments],
        env={**environment(project), "PYTHONPATH": paths, "GLOO_SOCKET_IFNAME": "lo"},
        capture_output=True,
        text=True,
        timeout=600,
    )


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    root = tmp_path_factory.mktemp("processes") / "project"
    root.mkdir()
    return _project(root)


@pytest.fixture(scope="module")
def runs(tiny) -> Path:
    """Return a folder with the runs of one process and of two."""
    _text_project(tiny.root / "text")
    for name, start, batch in (("one", [], "16"), ("two", TORCHRUN, "8")):
        folder = tiny.root / name
        folder.mkdir()
        done = run_python(tiny, *start, worker.__file__, str(tiny.root), str(folder), batch)
        assert done.returncode == 0, done.stderr[-3000:]
    return tiny.root


@pytest.mark.parametrize("way", WAYS)
def test_two_processes_make_the_run_of_one(runs, way):
    one, two = runs / "one" / way, runs / "two" / way
    for part in ("final", "best"):
        for file in ["adapter_model.safetensors", *(["heads.safetensors"] if way in worker.WAYS else [])]:
            mine, theirs = read_safetensors(one / part / file), read_safetensors(two / part / file)
            assert mine.keys() == theirs.keys()
            for name, value in mine.items():
                assert (theirs[name] - value).abs().max() <= 5e-4 * value.abs().max(), name
    for mine, theirs in zip(log_of(one), log_of(two), strict=True):
        shared = {key for key in mine if key not in ("epoch", "grad_norm") and not key.startswith("train_")}
        assert shared <= theirs.keys()
        for key in shared:
            close = {"rel": 1e-5} if "loss" in key else {"rel": 1e-2, "abs": 1e-3}  # one row may be scored otherwise
            assert theirs[key] == pytest.approx(mine[key], **close), key
    counts = [json.loads((run / "results.json").read_text())["training"]["rows_drawn"] for run in (one, two)]
    assert counts[0] == counts[1]


@pytest.mark.parametrize("way", WAYS)
def test_every_process_ends_with_the_same_model_and_results(runs, way):
    main, other = (json.loads((runs / "two" / f"{way}-{rank}.json").read_text()) for rank in (0, 1))
    assert main == other


def test_a_signal_to_one_process_stops_all_at_the_same_step(runs):
    said = [(runs / "two" / f"said-{rank}").read_text() for rank in (0, 1)]
    assert said[0] == said[1]
    assert said[0].startswith("interrupted at step 3; a checkpoint is kept")


def test_the_command_under_torchrun_prints_once(tiny, tmp_path):
    done = run_python(tiny, *TORCHRUN, "-m", "tasklora", "train", str(tiny.recipe), "--output", str(tmp_path / "run"))
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("average on tune") == 2  # one line for each evaluation
    assert (tmp_path / "run" / "report.html").is_file()


def test_an_error_is_said_once_and_ends_all(tiny, tmp_path):
    command = ["-m", "tasklora", "train", str(tiny.recipe), "--output", str(tmp_path / "run"), "--set", "training.lr=1"]
    done = run_python(tiny, *TORCHRUN, *command)
    assert done.returncode != 0
    assert done.stderr.count("training.lr") == 1, done.stderr
    assert "Traceback" not in done.stderr.partition("ChildFailedError")[0].partition("torch/distributed")[0]


def test_comparisons_are_refused(tiny, tmp_path):
    command = ["-m", "tasklora", "compare", str(tiny.recipe), "--methods", "lora", "--output", str(tmp_path / "c")]
    done = run_python(tiny, *TORCHRUN, *command)
    assert done.returncode != 0
    assert "a comparison is made by one process, but the launcher started 2" in " ".join(done.stderr.split())
    assert not (tmp_path / "c").exists()
