"""What a page shows where there are more tasks than anyone can look at: the worst and the best ones."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path

from tasklora.evaluation import Diagnostics, Estimate
from tasklora.evaluation.diagnostics import MAX_COMPARED_TASKS
from tasklora.report.loading import RunFiles, Source

MOST_TASKS = MAX_COMPARED_TASKS
"""Figures have all tasks up to so many; of more, :data:`PICKED` ones."""
PICKED = 24


def picked_tasks(source: Source) -> list[str]:
    """Return the tasks that are shown, in their order: all of up to :data:`MOST_TASKS`, else the worst and the best.

    A task without a score counts as worst.
    """
    scores = source.results.method(source.shown_method).tasks
    return worst_and_best({task: scores[task].mean if task in scores else None for task in source.results.metrics})


def worst_and_best(scores: Mapping[str, float | None]) -> list[str]:
    """Return the tasks of some scores, in their order, as :func:`picked_tasks` does."""
    if len(scores) <= MOST_TASKS:
        return list(scores)
    order = sorted(scores, key=lambda task: float("-inf") if (score := scores[task]) is None else score)
    picked = {*order[: PICKED // 2], *order[-(PICKED // 2) :]}
    return [task for task in scores if task in picked]


def with_tasks(source: Source, tasks: Sequence[str]) -> Source:
    """Return a source with some of its tasks only; averages stay those of all."""
    if len(tasks) == len(source.results.metrics):
        return source
    metrics = {task: source.results.metrics[task] for task in tasks}
    methods = [
        method.model_copy(
            update={
                "tasks": _of(method.tasks, tasks),
                "differences": _of(method.differences, tasks),
                "transfer": _of(method.transfer, tasks),
            }
        )
        for method in source.results.methods
    ]
    runs: dict[str, list[RunFiles]] = {
        method: [_SomeTasks(run.path, tuple(tasks)) for run in of] for method, of in source.runs.items()
    }
    results = source.results.model_copy(update={"metrics": metrics, "methods": methods})
    return dataclasses.replace(source, results=results, runs=runs)


def which(source: Source) -> str:
    """Return the sentence that says which tasks are shown; empty where all are."""
    shown, count = len(picked_tasks(source)), len(source.results.metrics)
    if shown == count:
        return ""
    return f" Shown are {shown} of {count:,} tasks: those with the lowest and the highest scores."


def _of(estimates: Mapping[str, Estimate], tasks: Sequence[str]) -> dict[str, Estimate]:
    return {task: estimates[task] for task in tasks if task in estimates}


@dataclasses.dataclass(frozen=True)
class _SomeTasks(RunFiles):
    """A run of which some tasks are shown."""

    path: Path
    tasks: tuple[str, ...]

    @cached_property
    def diagnostics(self) -> Diagnostics:
        """What its updates say of these tasks. Of so many, pairs are not compared."""
        found = RunFiles(self.path).diagnostics
        names = found.tasks or self.results.tasks
        places = [names.index(task) for task in self.tasks]
        per_task = {
            name: {layer: [entries[place] for place in places] for layer, entries in layers.items()}
            for name, layers in found.per_task.items()
        }
        return found.model_copy(update={"tasks": list(self.tasks), "per_task": per_task, "per_pair": {}})
