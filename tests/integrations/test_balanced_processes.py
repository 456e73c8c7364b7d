"""Two processes (gloo, CPU) balance tasks as one process does, and agree with each other bit by bit."""

import os
import subprocess
import sys
from pathlib import Path

import balancing_worker as worker
import pytest
import torch

from helpers_runs import _project

pytest.importorskip("torchjd", reason="TorchJD (tasklora[balancing]) is not installed")
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def results(tmp_path_factory) -> Path:
    """Return a folder with what one process and two processes ended with."""
    root = tmp_path_factory.mktemp("balanced_processes")
    project = root / "project"
    project.mkdir()
    _project(project)
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    for name, start, batch in (("one", [], "8"), ("two", torchrun, "4")):
        (root / name).mkdir()
        done = subprocess.run(
            [sys.executable, *start, worker.__file__, str(project), str(root / name), batch],
            env={
                **os.environ,
                "PYTHONPATH": os.pathsep.join(
                    [str(Path(worker.__file__).parents[1]), os.environ.get("PYTHONPATH", "")]
                ),
                "OMP_NUM_THREADS": "1",
                "GLOO_SOCKET_IFNAME": "lo",
                "HF_HUB_OFFLINE": "1",
            },
            capture_output=True,
            text=True,
            timeout=600,
        )
        assert done.returncode == 0, done.stderr[-3000:]
    return root


@pytest.mark.parametrize("way", worker.WAYS)
def test_two_processes_balance_as_one(results, way):
    one, mine, theirs = (torch.load(results / run) for run in (f"one/{way}-0.pt", f"two/{way}-0.pt", f"two/{way}-1.pt"))
    assert len(one["losses"]) == 4
    assert mine["losses"] == pytest.approx(one["losses"], rel=1e-4)
    for name, value in one["state"].items():
        assert torch.equal(mine["state"][name.removeprefix("module.")], theirs["state"][name.removeprefix("module.")])
        torch.testing.assert_close(mine["state"][name], value, rtol=1e-4, atol=1e-4, msg=lambda m, n=name: f"{n}: {m}")
