"""A method with a run for each task: ``METHOD@single``, what the tasks score without each other's company.

The runs of one setting and seed make one cell of a comparison, in one directory that reads like a run:

    CELL/  recipe.resolved.yaml  manifest.json  tasks/TASK/ (each a run)  results.json  predictions.jsonl  log.jsonl

Each task sees as many of its rows as in the run of all tasks: the epochs, or its share of the steps, follow the mixing.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Mapping
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from tasklora.errors import ConfigError, listing
from tasklora.evaluation import ParameterCounts, RunResults, SplitScores, TrainingSummary, write_text_whole
from tasklora.evaluation.results import RECIPE_FILE
from tasklora.training.callbacks import ProgressDisplay
from tasklora.training.directory import RunDirectory
from tasklora.training.mixing import MixingPlan
from tasklora.training.mixing_section import MixingSection
from tasklora.training.recipe import Recipe
from tasklora.training.recipes import changed
from tasklora.training.run import train_recipe
from tasklora.training.workloads import workload_of


def single_recipes(recipe: Recipe, sizes: Mapping[str, int]) -> dict[str, Recipe]:
    """Return the recipe of each task alone.

    Args:
        recipe: the recipe of all tasks.
        sizes: task → its training rows.

    Raises:
        ConfigError: if a task's number of rows is unknown.
    """
    training = recipe.training
    unknown = [name for name in recipe.task_specs() if name not in sizes]
    if unknown:
        raise ConfigError(
            f"METHOD@single trains each task for as long as the run of all tasks draws its rows, but how many rows "
            f"{listing(unknown)} has is unknown: give streaming.rows."
        )
    rows_per_step = training.batch_size * training.gradient_accumulation_steps
    plan = MixingPlan(sizes, training.mixing, rows_per_step, training.epochs, training.max_steps)
    made = {}
    for task, rows in plan.mean_counts().items():
        share = rows / plan.rows
        settings: dict[str, Any] = {
            "tasks.include": [task],
            "tasks.options": {name: of.model_dump() for name, of in recipe.tasks.options.items() if name == task},
            "training.mixing": MixingSection().model_dump(),
            "training.gradient_cosines": None,
            "training.balancing": None,
            "training.selection": "average",  # of one task, its own
            "training.epochs": training.epochs * rows / sizes[task],
        }
        if training.max_steps is not None:
            settings["training.max_steps"] = max(1, round(training.max_steps * share))
        if training.evaluate_every != "epoch":  # as often as in the run of all tasks, which has more steps
            settings["training.evaluate_every"] = max(1, round(training.evaluate_every * share))
        made[task] = changed(recipe, settings)
    return made


def train_single_tasks(
    recipe: Recipe, output: str | Path, *, command: str, progress: ProgressDisplay | None = None
) -> RunResults:
    """Train a recipe's tasks one by one, those that are not finished, and write what they are together.

    Args:
        recipe: the recipe of all tasks.
        output: the directory; runs in it are gone on with.
        command: the command line to note.
        progress: a display to show the steps on.

    Raises:
        NonFiniteLossError: if the loss of one becomes NaN.
        InterruptedRun: on Ctrl-C; call again to go on.
    """
    cell = RunDirectory(output)
    work = workload_of(recipe)
    work.load_data(["train"])
    if cell.is_run:  # the recipe is the same, but its rows may have moved since
        write_text_whole(cell.path / RECIPE_FILE, recipe.to_yaml())
    else:
        shutil.rmtree(cell.path, ignore_errors=True)
        cell.create(recipe, command, work.fingerprints(), overwrite=False)
    found = {}
    for task, single in single_recipes(recipe, work.rows_per_task()).items():
        run = RunDirectory(cell.path / "tasks" / task)
        single.output.directory = str(run.path)
        if not (run.is_run and run.results.is_file()):
            resume = run.is_run and run.latest_checkpoint() is not None
            if resume:
                write_text_whole(run.path / RECIPE_FILE, single.to_yaml())
            else:
                shutil.rmtree(run.path, ignore_errors=True)
            train_recipe(single, run.path, resume=resume, command=command, progress=progress)
            shutil.rmtree(run.checkpoints, ignore_errors=True)  # many runs need the room
        found[task] = run
    return _together(cell, found)


def _together(cell: RunDirectory, runs: Mapping[str, RunDirectory]) -> RunResults:
    """Write the files of a run of what the tasks' own runs have."""
    write_text_whole(cell.predictions, "".join(run.predictions.read_text(encoding="utf-8") for run in runs.values()))
    write_text_whole(cell.log, "".join(_log(run, task) for task, run in runs.items()))
    parts = [RunResults.read(run.results) for run in runs.values()]
    first = parts[0]
    averages = [part.training.best_tune_average for part in parts]
    defined = [average for average in averages if average is not None]
    adapted = [part.parameters for part in parts]
    results = first.model_copy(
        update={
            "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
            "tasks": list(runs),
            "scores": {
                split: SplitScores.of(_joined(part.scores[split].tasks for part in parts)) for split in first.scores
            },
            "parameters": ParameterCounts(
                trainable=sum(counts.trainable for counts in adapted),
                total=first.parameters.total - first.parameters.trainable + sum(counts.trainable for counts in adapted),
                groups={name: sum(counts.groups[name] for counts in adapted) for name in first.parameters.groups},
            ),
            "training": TrainingSummary(
                steps=sum(part.training.steps for part in parts),
                epochs=max(part.training.epochs for part in parts),
                best_step=None,
                best_tune_average=sum(defined) / len(parts) if len(defined) == len(parts) else None,
                seconds=sum(part.training.seconds for part in parts),
                rows_per_task=_joined(part.training.rows_per_task for part in parts),
                stopped="finished",
            ),
            "evaluation_seconds": sum(part.evaluation_seconds for part in parts),
        }
    )
    results.write(cell.results)  # last: with it the cell is finished
    return results


def _joined(parts: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    return {task: entry for part in parts for task, entry in part.items()}


def _log(run: RunDirectory, task: str) -> str:
    """Return what a run logged of its task; averages over one task are none."""
    lines = []
    for line in run.log.read_text(encoding="utf-8").splitlines():
        try:
            record = json.loads(line)
        except ValueError:  # torn by a crash
            continue
        own = {key: value for key, value in record.items() if key == f"loss/{task}" or key.startswith(f"eval_{task}_")}
        if own:
            lines.append(json.dumps({"step": record["step"], **own}) + "\n")
    return "".join(lines)
