"""The report's figures over training steps, and of what updates learned about their tasks."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Patch, Rectangle

from tasklora.report.figures import done
from tasklora.report.loading import Source
from tasklora.report.numbers import lower_is_better
from tasklora.report.svg import INK, MUTED, SERIES, Picture, legend, line_of, picture, series

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
            drawn[task] = {"steps": [0, *steps, last], "values": [0.0, *counts, counts[-1]], "rows": sizes[task]}
    if not drawn:
        return None
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
        times = [drawn[task]["values"][-1] / drawn[task]["rows"] for task in named]
        legend(figure, [f"{task}, {count:.2g} ×" for task, count in zip(named, times, strict=True)])

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


def diagnostics(source: Source) -> list[Picture]:
    """Return pictures of what the shown run's updates say of their tasks; none for methods that say nothing."""
    found = source.shown.diagnostics
    known = [(name, _DIAGNOSTICS[name]) for name in _DIAGNOSTICS if name in found]
    return [draw(source, found[name]) for name, draw in known]


def _mixing_weights(source: Source, layers: dict[str, Any], name: str, title: str, what: str, letter: str) -> Picture:
    names, tasks = list(layers), list(source.results.metrics)
    weights = np.array([layers[name] for name in names])  # (layers, T, n)
    count = weights.shape[-1]
    return picture(
        name,
        title,
        f"One panel per {what}, one row per layer, one column per task: the stronger the colour, the larger the weight "
        f"that the task gives it ({1 / count:.2f} if all were equal). Columns that look alike share what they use. The "
        "weights begin at random, so only differences between tasks that recur over layers speak of what was learned.",
        {"layers": names, "tasks": tasks, "weights": weights.tolist()},
        (7.6, 1.3 + 0.13 * len(names)),
        lambda figure: _heatmaps(
            figure,
            [weights[..., i] for i in range(count)],
            [f"{letter}{i + 1}" for i in range(count)],
            names,
            tasks,
            1.0,
        ),
    )


def _up_projection_weights(source: Source, layers: dict[str, Any]) -> Picture:
    title = "How each layer mixes its up-projections"
    return _mixing_weights(source, layers, "up-projection-weights", title, "up-projection B_i", "B")


def _expert_weights(source: Source, layers: dict[str, Any]) -> Picture:
    return _mixing_weights(source, layers, "expert-weights", "How each layer weights its experts", "expert", "expert ")


def _task_gates(source: Source, layers: dict[str, Any]) -> Picture:
    names, tasks = list(layers), list(source.results.metrics)
    gates = np.array([layers[name] for name in names])  # (layers, T, r)
    return picture(
        "task-gates",
        "How far each task opens its directions",
        "The mean of σ(G e_t/τ) over the r task directions, per layer (rows) and task (columns): 0 means that the task "
        "uses the shared directions alone, 1 that it uses all of the task directions too. They begin near 0.5.",
        {"layers": names, "tasks": tasks, "gates": gates.tolist()},
        (7.6, 1.3 + 0.13 * len(names)),
        lambda figure: _heatmaps(figure, [gates.mean(axis=-1)], [""], names, tasks, 1.0),
    )


def _task_matrix_change(source: Source, layers: dict[str, Any]) -> Picture:
    names, tasks = list(layers), list(source.results.metrics)
    change = np.array([layers[name] for name in names])  # (layers, T)
    return picture(
        "task-matrix-change",
        "How far each task's matrix moved",
        "‖Λ_t − I‖ / ‖I‖ per layer (rows) and task (columns): 0 means that the task uses the shared down-projection as "
        "it is; the stronger the colour, the more it turned it its own way.",
        {"layers": names, "tasks": tasks, "change": change.tolist()},
        (7.6, 1.3 + 0.13 * len(names)),
        lambda figure: _heatmaps(figure, [change], [""], names, tasks, None),
    )


_DIAGNOSTICS: dict[str, Callable[[Source, dict[str, Any]], Picture]] = {
    "up_projection_weights": _up_projection_weights,
    "task_matrix_change": _task_matrix_change,
    "expert_weights": _expert_weights,
    "task_gates": _task_gates,
}


def _heatmaps(
    figure: Figure, panels: list[Any], titles: list[str], rows: list[str], columns: list[str], top: float | None
) -> None:
    """Draw matrices side by side: the opacity of each cell is its value relative to `top`, the largest by default."""
    largest = top or max(float(panel.max()) for panel in panels) or 1.0
    grid = figure.subplots(1, len(panels), squeeze=False, sharey=True)
    for axes, panel, title in zip(grid.flat, panels, titles, strict=True):
        for row in range(len(rows)):
            for column in range(len(columns)):
                share = min(1.0, max(0.0, float(panel[row, column]) / largest))
                axes.add_patch(
                    Rectangle((column - 0.5, row - 0.5), 1, 1, facecolor=SERIES[0], alpha=share, linewidth=0)
                )
        axes.set_xlim(-0.5, len(columns) - 0.5)
        axes.set_ylim(len(rows) - 0.5, -0.5)
        axes.set_xticks(range(len(columns)), columns, rotation=60, ha="right", rotation_mode="anchor", color=INK)
        axes.set_yticks(range(len(rows)), [_short(row) for row in rows])
        axes.tick_params(labelsize=6.5, length=0)
        axes.grid(visible=False)
        axes.set_title(title, color=INK)
    _scale(figure, largest)


def _scale(figure: Figure, largest: float) -> None:
    """Draw the scale of the opacities."""
    handles = [
        Patch(facecolor=(SERIES[0], share), edgecolor=MUTED, linewidth=0.4, label=f"{share * largest:.2f}")
        for share in (0.0, 0.25, 0.5, 0.75, 1.0)
    ]
    figure.legend(handles=handles, loc="outside upper right", ncols=5, labelcolor=MUTED, fontsize=7, handlelength=1.2)


def _short(layer: str) -> str:
    """Return a layer's path without what says nothing in a column of such paths."""
    return layer.replace("encoder.layer.", "").replace("attention.self.", "").replace(".dense", "")
