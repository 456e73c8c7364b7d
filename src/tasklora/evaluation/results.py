"""results.json: typed, versioned, complete enough to repeat the run."""

from __future__ import annotations

import json
import math
import os
import platform
from importlib import metadata
from pathlib import Path
from typing import Literal

import pydantic

from tasklora.errors import CheckpointError
from tasklora.tasks import Split, Strict, parse, write_text_whole

RESULTS_VERSION = 1
RECIPE_FILE = "recipe.resolved.yaml"
RESULTS_FILE = "results.json"
LOG_FILE = "log.jsonl"
COMPARISON_FILE = "comparison.json"
_PACKAGES = ("tasklora", "torch", "peft", "transformers", "accelerate", "datasets", "scikit-learn", "scipy", "numpy")


class TaskScore(Strict):
    """Scores of one task on one split.

    Attributes:
        rows: number of rows (of a dense task, images) scored.
        metrics: name → value; None where the metric is undefined on these rows.
        primary: the metric that stands for the task.
        score: its value (negated if lower is better), None if undefined.
        loss: mean loss per row.
    """

    rows: int
    metrics: dict[str, float | None]
    primary: str
    score: float | None
    loss: float

    @pydantic.field_validator("metrics", mode="before")
    @classmethod
    def _no_nan(cls, metrics: dict[str, float | None]) -> dict[str, float | None]:
        return {name: None if value is None or math.isnan(value) else value for name, value in metrics.items()}


class SplitScores(Strict):
    """Scores of all tasks on one split.

    Attributes:
        tasks: name → scores.
        average: mean of the tasks' scores that are defined; None if none is. Of dense tasks, whose metrics have several
            units, on the scale of :func:`tasklora.evaluation.dense.unit_score`.
        undefined: tasks left out of the average, by name.
    """

    tasks: dict[str, TaskScore]
    average: float | None
    undefined: list[str] = []

    @classmethod
    def of(cls, tasks: dict[str, TaskScore]) -> SplitScores:
        """Return the scores with their average."""
        defined = [score.score for score in tasks.values() if score.score is not None]
        undefined = [name for name, score in tasks.items() if score.score is None]
        return cls(tasks=tasks, average=sum(defined) / len(defined) if defined else None, undefined=undefined)


class ParameterCounts(Strict):
    """Numbers of parameters.

    Attributes:
        trainable: all that is trained.
        total: all parameters, the frozen base included.
        groups: of the trainable ones: ``shared`` and ``per_task`` low-rank parameters, ``heads`` (of dense tasks,
            their decoders), ``other``.
    """

    trainable: int
    total: int
    groups: dict[str, int]


class TrainingSummary(Strict):
    """How training went.

    Attributes:
        steps: optimiser steps.
        epochs: passes over the mixed rows.
        best_step: step of the checkpoint that was kept.
        best_tune_average: its average on tune.
        seconds: wall-clock time of training, evaluation on tune included, over all resumptions.
        step_seconds: median wall-clock time of an optimiser step, without loading and scoring; of the last resumption.
        rows_per_task: name → training rows; tasks with streamed rows of an unknown number are left out.
        rows_drawn: name → rows drawn over the run, a row that came twice counted twice; empty for images, of which
            every epoch has all.
        stopped: why it ended.
    """

    steps: int
    epochs: float
    best_step: int | None
    best_tune_average: float | None
    seconds: float
    step_seconds: float | None = None
    rows_per_task: dict[str, int]
    rows_drawn: dict[str, int] = {}
    stopped: Literal["finished", "early_stopping"]


class TaskChoice(Strict):
    """The step that a task's own model is from.

    Attributes:
        step: optimiser steps.
        tune_score: the task's score on tune there (negated if lower is better), which chose the step.
    """

    step: int
    tune_score: float


class PerTaskResults(Strict):
    """What a run with ``selection: per_task`` found besides.

    Attributes:
        choices: task → its own step; tasks whose primary metric was never defined on tune have none, and are scored
            with the checkpoint that the average chose.
        scores: split → scores of each task with the model of its own step. On tune such scores would be too good, being
            the best of many; the report split chose nothing.
    """

    choices: dict[str, TaskChoice]
    scores: dict[Split, SplitScores]


class RunResults(Strict):
    """Content of results.json.

    Attributes:
        scores: split → scores of the kept checkpoint, which the average on tune chose.
        per_task: each task's own step and its scores there; None for a run with ``selection: average``.
        untrained: split → scores before training, where asked for.
        memory: peak resident bytes of the process, and of the accelerator if there is one.
    """

    format: Literal["tasklora/results"] = "tasklora/results"
    version: int = RESULTS_VERSION
    created: str
    command: str
    commit: str | None
    seed: int
    method: str
    base: str
    suite: str
    tasks: list[str]
    scores: dict[Split, SplitScores]
    per_task: PerTaskResults | None = None
    untrained: dict[Split, SplitScores] = {}
    parameters: ParameterCounts
    training: TrainingSummary
    evaluation_seconds: float
    memory: dict[str, int]
    versions: dict[str, str]
    machine: dict[str, str]

    def write(self, path: Path) -> None:
        """Write the file, whole or not at all."""
        write_text_whole(path, self.model_dump_json(indent=2) + "\n")

    @classmethod
    def read(cls, path: Path) -> RunResults:
        """Read the file.

        Raises:
            CheckpointError: if it is missing, damaged or of a newer version.
        """
        try:
            data = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, json.JSONDecodeError, UnicodeDecodeError) as error:
            raise CheckpointError(f"cannot read {path}: {error}. Has the run finished?") from None
        version = data.get("version") if isinstance(data, dict) else None
        if isinstance(version, int) and version > RESULTS_VERSION:
            raise CheckpointError(
                f"{path} has version {version}, this tasklora reads up to {RESULTS_VERSION}. Upgrade tasklora."
            )
        return parse(cls, data, str(path))


def package_versions() -> dict[str, str]:
    """Return Python's version and those of the packages that the numbers depend on."""
    versions = {"python": platform.python_version()}
    for name in _PACKAGES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return versions


def machine_description() -> dict[str, str]:
    """Return what ran: architecture, cores, accelerator."""
    import torch

    accelerator = torch.cuda.get_device_name() if torch.cuda.is_available() else "none"
    return {
        "system": platform.system(),
        "architecture": platform.machine(),
        "cores": str(os.cpu_count()),
        "threads": str(torch.get_num_threads()),
        "accelerator": accelerator,
    }


def peak_memory() -> dict[str, int]:
    """Return peak resident bytes of this process, and peak allocated bytes of the accelerator if there is one."""
    import resource
    import sys

    import torch

    unit = 1 if sys.platform == "darwin" else 1024
    peak: dict[str, int] = {"resident_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit}
    if torch.cuda.is_available():
        peak["accelerator_bytes"] = int(torch.cuda.max_memory_allocated())
    return peak


def source_commit(directory: Path | None = None) -> str | None:
    """Return the commit of the tasklora source tree that runs, with ``+changes`` if it differs; None if unknown."""
    import shutil
    import subprocess

    root = directory or Path(__file__).resolve().parents[3]
    if not (root / ".git").exists() or shutil.which("git") is None:
        return None

    def git(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(["git", "-C", str(root), *arguments], capture_output=True, text=True, check=False)

    commit = git("rev-parse", "HEAD")
    if commit.returncode != 0:
        return None
    changed = bool(git("status", "--porcelain", "--untracked-files=no").stdout.strip())
    return commit.stdout.strip() + ("+changes" if changed else "")
