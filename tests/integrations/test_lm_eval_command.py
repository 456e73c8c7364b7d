"""`lm_eval --model tasklora` as a command, and what makes it known to lm-eval."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import helpers_lm_eval
from helpers_lm_eval import (
    CHOICE,
    WRITE,
    evaluate,
    numbers,
)

base, adapter, tasks = helpers_lm_eval.base, helpers_lm_eval.adapter, helpers_lm_eval.tasks  # fixtures
_quiet = helpers_lm_eval._no_questions_about_the_machine


def command(arguments, base, adapter, tasks, tmp_path, **environment):
    """Run a command with `--model tasklora` on two tasks; return what it prints."""
    source = Path(__file__).resolve().parents[2] / "src"
    settings = {"PYTHONPATH": os.pathsep.join([str(tmp_path / "installed"), str(source)]), "HF_HUB_OFFLINE": "1"}
    arguments = [
        *(sys.executable, *arguments, "--model", "tasklora", "--device", "cpu", "--tasks", f"{CHOICE},{WRITE}"),
        *("--model_args", f"pretrained={base},adapter={adapter},task_map={CHOICE}:cola;{WRITE}:sst2"),
        *("--include_path", str(tasks), "--output_path", str(tmp_path / "results")),
    ]
    return subprocess.run(
        arguments, env={**os.environ, **settings, **environment}, capture_output=True, text=True, check=False
    )


def installed(tmp_path):
    """Write what an installed tasklora tells torch, as its wheel does."""
    about = tmp_path / "installed" / "tasklora_entry-1.0.dist-info"
    about.mkdir(parents=True)
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: tasklora-entry\nVersion: 1.0\n")
    (about / "entry_points.txt").write_text(
        "[torch.backends]\ntasklora_lm_eval = tasklora_lm_eval:when_torch_is_imported\n"
    )


@pytest.mark.slow
@pytest.mark.parametrize("program", ["lm_eval", "tasklora.evaluation.lm_eval_bridge"])
def test_the_command(program, base, adapter, tasks, tmp_path):
    """lm-eval's own command, and this module as one, score as lm-eval does when it is called from Python."""
    if program == "lm_eval":
        installed(tmp_path)
    done = command(["-m", program], base, adapter, tasks, tmp_path)
    assert done.returncode == 0, done.stderr[-2000:]
    results = json.loads(next((tmp_path / "results").rglob("results*.json")).read_text())["results"]
    arguments = {"pretrained": str(base), "adapter": str(adapter), "task_map": {CHOICE: "cola", WRITE: "sst2"}}
    scores, _ = evaluate("tasklora", [CHOICE, WRITE], tasks, arguments)
    for name in (CHOICE, WRITE):
        assert numbers(results[name]) == pytest.approx(scores[name])


@pytest.mark.slow
def test_torch_can_be_told_not_to_ask(base, adapter, tasks, tmp_path):
    """Then lm-eval knows its own models only, and says so."""
    installed(tmp_path)
    done = command(["-m", "lm_eval"], base, adapter, tasks, tmp_path, TORCH_DEVICE_BACKEND_AUTOLOAD="0")
    assert done.returncode != 0
    assert "Attempted to load model 'tasklora', but no model for this name found" in done.stderr


def test_other_processes_are_left_alone(tmp_path):
    """`import torch` elsewhere imports neither tasklora nor lm-eval."""
    installed(tmp_path)
    source = Path(__file__).resolve().parents[2] / "src"
    code = "import sys, torch; print([m for m in ('tasklora_lm_eval', 'lm_eval', 'tasklora') if m in sys.modules])"
    paths = os.pathsep.join([str(tmp_path / "installed"), str(source)])
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": paths},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == "['tasklora_lm_eval']"
