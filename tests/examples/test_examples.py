"""Every script under examples/ runs, proves its point by itself, and stands in the list of examples.

`make test-long` runs the scripts.
"""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"
SCRIPTS = sorted(EXAMPLES.glob("*.py"))
TORCHRUN = [script for script in SCRIPTS if "torchrun --standalone" in script.read_text(encoding="utf-8")]
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "GLOO_SOCKET_IFNAME": "lo"}
NEEDS = re.compile(r"Needs `pip install ([\w-]+)`")


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory) -> Path:
    """Return a folder with output and exit status of all scripts that run on one process."""
    folder = tmp_path_factory.mktemp("examples")
    scripts = [str(script) for script in SCRIPTS if script not in TORCHRUN]
    runner = Path(__file__).with_name("run_examples.py")
    subprocess.run(
        [sys.executable, str(runner), str(folder), *scripts],
        env=ENVIRONMENT,
        cwd=folder,
        check=True,
        timeout=900,
        capture_output=True,
    )
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("script", [script for script in SCRIPTS if script not in TORCHRUN], ids=lambda path: path.stem)
def test_example(outcomes, script):
    printed = (outcomes / f"{script.stem}.out").read_text(encoding="utf-8")
    needs = NEEDS.search(script.read_text(encoding="utf-8"))
    if needs and f"No module named '{needs[1]}'" in printed:
        pytest.skip(f"{script.name} needs {needs[1]}, which is not installed")
    assert (outcomes / f"{script.stem}.rc").read_text() == "0", printed[-3000:]
    assert printed.strip()


@pytest.mark.slow
@pytest.mark.parametrize("script", TORCHRUN, ids=lambda path: path.stem)
def test_example_on_two_processes(script, tmp_path):
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run(
        [*torchrun, str(script)], env=ENVIRONMENT, cwd=tmp_path, timeout=600, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.strip()


@pytest.mark.slow
def test_examples_leave_nothing_behind(outcomes):
    """They write into temporary folders only."""
    assert {path.suffix for path in outcomes.iterdir()} == {".out", ".rc"}


def test_the_list_of_examples_is_complete():
    listed = re.findall(
        r"^\| \[([\w.]+\.py)\]\(\1\)", (EXAMPLES / "README.md").read_text(encoding="utf-8"), re.MULTILINE
    )
    assert sorted(listed) == [script.name for script in SCRIPTS]
    assert TORCHRUN
