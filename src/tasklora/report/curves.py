"""The report's figures over training steps."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from tasklora.report.figures import done
from tasklora.report.loading import Source
from tasklora.report.numbers import lower_is_better
from tasklora.report.svg import INK, MUTED, Picture, legend, line_of, picture, series

COLUMNS = 4

NAMED = 8
"""Lines of one figure that have names: as many as there are colours."""


def loss_curves(source: Source) -> Picture:
    """Training loss per task over the steps."""
    what = "images" if source.is_dense else "rows"
    return _curves(
        source,
        "loss-curves",
        "Training loss per task",
        f"Mean loss of each task's {what} since the point before{_over_seeds(source)}; lower is better. The curves "
        f"are jagged because few {what} fall between two points.",
        lambda task: f"loss/{task}",
        lambda task: task,
        marked=False,
    )


def score_curves(source: Source) -> Picture:
    """Score on tune per task over the steps."""
    metrics = source.results.metrics
    return _curves(
        source,
        "score-curves",
        "Score on tune per task",
        f"The primary metric on rows held out of training{_over_seeds(source)}: what the kept checkpoint is chosen by. "
        "A task whose curve gets worse while others get better is paying for them. Lower is better where ↓ says so.",
        lambda task: f"eval_{task}_{metrics[task]}",
        lambda task: f"{task} ({metrics[task]}{' ↓' if lower_is_better(metrics[task]) else ''})",
        marked=True,
    )


def rows_drawn(source: Source) -> Picture | None:
    """Rows drawn of each task over the steps; None where every row has all tasks, and for logs of older runs.

    At most :data:`NAMED` tasks are named, those that were drawn most and least; lines of the others stand behind them.
    """
    run = source.shown
    sizes = run.results.training.rows_per_task
    drawn: dict[str, dict[str, Any]] = {}
    for task in source.results.metrics:
        steps, counts = run.curve(f"drawn/{task}")
        if steps:
            last = run.results.training.steps
            drawn[task] = {"steps": [0, *steps, last], "values": [0.0, *counts, counts[-1]], "rows": sizes.get(task)}
    if not drawn:
        return None
    for task in source.results.metrics:  # logs leave out tasks of which nothing was drawn
        last = run.results.training.steps
        drawn.setdefault(task, {"steps": [0, last], "values": [0.0, 0.0], "rows": sizes.get(task)})
    order = sorted(drawn, key=lambda task: -drawn[task]["values"][-1])
    named = order if len(order) <= NAMED else [*order[: NAMED // 2], *order[-(NAMED // 2) :]]
    (name,) = (name for name, runs in source.runs.items() if run in runs)
    shown = f"by {source.results.method(name).title}" if source.comparison else "in this run"
    reading = (
        f"How many rows of each task were drawn {shown} up to a step: a steeper line is a larger share of the batches, "
        "a bend a share that changes. Beside the name stands how many times the task's own training rows that is: well "
        "above the others means rows seen again and again, below 1 rows never seen."
    )
    if len(named) < len(order):
        reading += (
            f" Named are the {NAMED // 2} tasks drawn most and the {NAMED // 2} drawn least; thin lines are the other "
            f"{len(order) - len(named)}."
        )

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        for task in order:
            if task not in named:
                axes.plot(drawn[task]["steps"], drawn[task]["values"], color=MUTED, linewidth=0.4, alpha=0.5)
        for place, task in enumerate(named):
            axes.plot(drawn[task]["steps"], drawn[task]["values"], **{**series(place), "marker": ""})
            style = {**series(place), "linestyle": "", "clip_on": False}
            axes.plot(drawn[task]["steps"][-1:], drawn[task]["values"][-1:], **style)
        axes.set_xlabel("step")
        axes.set_ylabel("rows drawn")
        axes.set_xlim(left=0)
        axes.set_ylim(bottom=0)
        times = {task: drawn[task]["values"][-1] / drawn[task]["rows"] for task in named if drawn[task]["rows"]}
        said = {task: f", {times:,.0f} ×" if times >= 10 else f", {times:.2g} ×" for task, times in times.items()}
        legend(figure, [task + said.get(task, "") for task in named])

    return picture("rows-drawn", "Rows drawn of each task", reading, drawn, (7.6, 3.0), draw)


def _over_seeds(source: Source) -> str:
    return ", averaged over the seeds" if len(source.results.seeds) > 1 else ""


def _curves(
    source: Source,
    name: str,
    title: str,
    reading: str,
    key_of: Callable[[str], str],
    label_of: Callable[[str], str],
    marked: bool,
) -> Picture:
    methods = done(source.results)
    tasks = list(source.results.metrics)
    data: dict[str, dict[str, dict[str, list[float]]]] = {}
    for method in methods:
        data[method.title] = {}
        for task in tasks:
            curves = [run.curve(key_of(task)) for run in source.runs[method.name]]
            data[method.title][task] = _mean_curve(curves)
    rows = math.ceil(len(tasks) / COLUMNS)

    def draw(figure: Figure) -> None:
        columns = min(COLUMNS, len(tasks))
        grid = figure.subplots(rows, columns, squeeze=False, sharex=True)
        for place, axes in enumerate(grid.flat):
            if place >= len(tasks):
                axes.set_visible(False)
                continue
            for number, method in enumerate(methods):
                curve = data[method.title][tasks[place]]
                style = series(number)
                if not marked:
                    style.pop("marker")
                axes.plot(curve["steps"], curve["values"], linestyle=line_of(number), **style)
            axes.set_title(label_of(tasks[place]), color=INK)
            if place + columns >= len(tasks):
                axes.set_xlabel("step")
                axes.tick_params(labelbottom=True)
            axes.tick_params(labelsize=8)
        if len(methods) > 1:
            legend(figure, [method.title for method in methods])

    lines = -(-len(methods) // 4) if len(methods) > 1 else 0
    return picture(name, title, reading, data, (7.6, 0.3 + 0.2 * lines + 1.7 * rows), draw)


def _mean_curve(curves: list[tuple[list[int], list[float]]]) -> dict[str, list[float]]:
    """Return the mean of several runs' curves at the steps that all of them have."""
    common = set(curves[0][0]).intersection(*(steps for steps, _ in curves))
    steps = sorted(common)
    values = np.array([[dict(zip(*curve, strict=True))[step] for step in steps] for curve in curves])
    return {"steps": [float(step) for step in steps], "values": values.mean(axis=0).tolist() if steps else []}
