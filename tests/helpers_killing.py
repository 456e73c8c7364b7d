"""Trains tiny recipes in children that are killed with SIGKILL and resumed: ``helpers_killing.py PROJECT FOLDER PLAN``.

PLAN is JSON: ``overrides`` of the recipe, a ``seed``, and what kills: ``at`` (a list of [pattern, which]: a child dies
before the file-system event of that number whose text matches), ``events`` (how many die before a random event) and
``timed`` (how many die at a random time). Imports are done once; every child is a fork. FOLDER gets ``whole``, never
killed, the killed runs, and ``report.json``: the events of the whole run, and where each kill struck.
"""

from __future__ import annotations

import json
import os
import random
import re
import signal
import sys
import time
import traceback
from pathlib import Path
from typing import Any

import datasets
import torch

from helpers_runs import Project
from tasklora.training import RunDirectory, train_recipe

EVENTS = {"open", "os.rename", "os.remove", "os.mkdir", "os.rmdir", "shutil.rmtree"}


def watch(run: Path, log: Path, at: int | None, match: tuple[str, int] | None) -> None:
    """Note what this process does to files of the run, and die before event `at`, or before a matching one."""
    handle = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    seen = matched = 0

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal seen, matched
        if event not in EVENTS or not isinstance(arguments[0], (str, os.PathLike)):
            return
        path = os.fspath(arguments[0])
        if not path.startswith(str(run)) or (event == "open" and set(arguments[1] or "w") <= set("rbt")):
            return
        seen += 1
        line = f"{event} {path[len(str(run)) + 1 :]}"
        os.write(handle, (line + "\n").encode())
        if match is not None and re.search(match[0], line):
            matched += 1
        if seen == at or (match is not None and matched == match[1]):
            os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)


def child(
    project: Project, overrides: list[str], run: Path, log: Path, at: Any = None, match: Any = None, after: Any = None
) -> bool:
    """Begin or resume a run in a fork; return whether it finished before it was killed."""
    pid = os.fork()
    if pid == 0:
        try:
            watch(run, log, at, match)
            directory = RunDirectory(run)
            resume = directory.is_run and directory.recipe_file.is_file()  # else it is begun again, as the user would
            train_recipe(project.load(*overrides), run, resume=resume, command="tasklora train tiny.yaml")
            os._exit(0)
        except BaseException:
            traceback.print_exc()
            os._exit(1)
    if after is not None:
        time.sleep(after)
        os.kill(pid, signal.SIGKILL)
    status = os.waitpid(pid, 0)[1]
    if os.WIFSIGNALED(status):
        assert os.WTERMSIG(status) == signal.SIGKILL, status
        return False
    assert os.WEXITSTATUS(status) == 0, f"a run failed: {log.read_text()[-500:]}"
    return True


def main(root: Path, folder: Path, plan: dict[str, Any]) -> None:
    """Train one run in peace, then others that are killed until the plan is fulfilled; all end finished."""
    project = Project(root, root / "base", root / "data", root / "suite.yaml", root / "recipe.yaml")
    overrides, log = plan["overrides"], folder / "events.txt"
    began = time.monotonic()
    assert child(project, overrides, folder / "whole", log)
    duration = time.monotonic() - began
    events = log.read_text().splitlines()
    random_numbers = random.Random(plan["seed"])
    kinds = [{"match": match} for match in plan.get("at", [])]
    kinds += [{"at": None}] * plan.get("events", 0) + [{"after": None}] * plan.get("timed", 0)
    kills: list[dict[str, Any]] = []
    runs = 0
    while len(kills) < len(kinds):
        run, finished = folder / f"killed-{runs}", False
        runs += 1
        while not finished:
            kind = dict(kinds[len(kills)]) if len(kills) < len(kinds) else {}
            if "at" in kind:
                kind["at"] = random_numbers.randint(1, len(events))
            if "after" in kind:
                kind["after"] = random_numbers.uniform(0, duration)
            finished = child(project, overrides, run, log, **kind)
            assert not finished or "match" not in kind, f"nothing matched {kind}"
            if not finished:
                lines = log.read_text().splitlines() if log.exists() else []
                finished = (run / "results.json").is_file()  # killed after its last file: there is nothing to resume
                kills.append({"run": run.name, "kind": next(iter(kind)), "event": lines[-1] if lines else "none"})
    (folder / "report.json").write_text(json.dumps({"events": events, "kills": kills, "runs": runs}))


if __name__ == "__main__":
    torch.set_num_threads(1)
    datasets.disable_progress_bars()
    datasets.config.HF_DATASETS_CACHE = Path(sys.argv[1]) / "cache"
    main(Path(sys.argv[1]), Path(sys.argv[2]), json.loads(sys.argv[3]))
