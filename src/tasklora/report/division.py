"""The report's figures of how methods divide their directions among the tasks."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from tasklora.report.heatmaps import MAX_LAYERS, UNDER_NUMBERS, by_layer, heat_map, largest, mean, scale_legend
from tasklora.report.interference import FEW_TASKS, matrix_picture, of_shown, tasks_of
from tasklora.report.loading import Source
from tasklora.report.svg import Picture, picture

OF_FACTORS = ("update_norm", "update_rank")
"""Diagnostics that every method with factors per task has; see :mod:`tasklora.report.interference`."""


def division(source: Source) -> list[Picture]:
    """Return pictures of what the shown run's updates say of their tasks; none for methods that say nothing.

    What a method says under a name that has no picture here is shown as it is.
    """
    found = source.shown.diagnostics
    drawn = [
        _DIAGNOSTICS.get(name, partial(_anything, name=name))(source, layers)
        for name, layers in found.per_task.items()
        if name not in OF_FACTORS
    ]
    if "task_matrix_distance" in found.per_pair:
        drawn.append(_task_matrix_distance(source))
    return drawn


def _mixing_weights(source: Source, layers: dict[str, Any], name: str, title: str, what: str, letter: str) -> Picture:
    tasks = tasks_of(source)
    names, weights = by_layer(layers)  # (layers, T, n)
    count = weights.shape[-1]
    labels = [f"{letter}{i + 1}" for i in range(count)]
    even = f"({1 / count:.2f} if all were equal)"
    data = {"layers": list(layers), "tasks": tasks, "weights": list(layers.values())}
    ending = (
        "Columns that look alike share what they use. The weights begin at random, so only differences between tasks "
        "that recur over layers speak of what was learned."
    )
    if len(tasks) > FEW_TASKS:
        return picture(
            name,
            title,
            f"{of_shown(source)}The mean over the layers of the weight that each task (rows) gives each {what} {even}. "
            f"Rows that look alike share what they use; means near {1 / count:.2f} may hide layers that differ.",
            data,
            (7.6, 1.2 + 0.14 * len(tasks)),
            lambda figure: _one(figure, weights.mean(axis=0), tasks, labels, 1.0),
        )
    return picture(
        name,
        title,
        f"{of_shown(source)}One panel per {what}, one row per layer, one column per task: the stronger the colour, the "
        f"larger the weight that the task gives it {even}. {ending}",
        data,
        (7.6, 1.3 + 0.13 * len(names)),
        lambda figure: _panels(figure, [weights[..., i] for i in range(count)], labels, names, tasks),
    )


def _up_projection_weights(source: Source, layers: dict[str, Any]) -> Picture:
    title = "How each layer mixes its up-projections"
    return _mixing_weights(source, layers, "up-projection-weights", title, "up-projection B_i", "B")


def _expert_weights(source: Source, layers: dict[str, Any]) -> Picture:
    return _mixing_weights(source, layers, "expert-weights", "How each layer weights its experts", "expert", "expert ")


def _per_layer(
    source: Source,
    layers: dict[str, Any],
    name: str,
    title: str,
    reading: str,
    key: str,
    top: float | None = None,
    least: float = 0.0,
) -> Picture:
    """Return a map of one number per layer (rows) and task (columns); of several the mean is shown."""
    tasks = tasks_of(source)
    names, values = by_layer(layers)
    shown = values if values.ndim == 2 else mean(np.moveaxis(values, -1, 0))
    blocks = " Layers are averaged by block." if len(layers) > MAX_LAYERS else ""
    return picture(
        name,
        title,
        f"{of_shown(source)}{reading}{blocks}",
        {"layers": list(layers), "tasks": tasks, key: list(layers.values())},
        (7.6, 1.3 + 0.13 * len(names)),
        lambda figure: _one(figure, shown, names, tasks, top or largest(shown, least)),
    )


def _task_gates(source: Source, layers: dict[str, Any]) -> Picture:
    return _per_layer(
        source,
        layers,
        "task-gates",
        "How far each task opens its directions",
        "The mean of σ(G e_t/τ) over the r task directions, per layer (rows) and task (columns): 0 means that the task "
        "uses the shared directions alone, 1 that it uses all of the task directions too. They begin near 0.5.",
        "gates",
        1.0,
    )


def _task_matrix_change(source: Source, layers: dict[str, Any]) -> Picture:
    return _per_layer(
        source,
        layers,
        "task-matrix-change",
        "How far each task's matrix moved",
        "‖Λ_t − I‖ / ‖I‖ per layer (rows) and task (columns): 0 means that the task uses the shared down-projection as "
        "it is; the stronger the colour, the more it turned it its own way.",
        "change",
    )


def _task_share(source: Source, layers: dict[str, Any]) -> Picture:
    return _per_layer(
        source,
        layers,
        "task-share",
        "How much of each update lies in the task directions",
        "‖task part‖² / (‖shared part‖² + ‖task part‖²) per layer (rows) and task (columns): near 0 the layer does the "
        "same for every task, near 1 what it does is gated by the task. Neither is good in itself; a task that stands "
        "out in many layers is one that the shared directions do not serve.",
        "share",
        1.0,
    )


def _shared_cosine(source: Source, layers: dict[str, Any]) -> Picture:
    return _per_layer(
        source,
        layers,
        "shared-cosine",
        "How the task directions stand to the shared ones",
        "The cosine between the shared part of ΔW and the task's part, per layer (rows) and task (columns): near 0 "
        "they are kept apart, as the option orthogonality asks; blue repeats the shared part, orange takes some of it "
        "back.",
        "cosine",
        least=0.2,  # what is nearly zero is to look so
    )


def _anything(source: Source, layers: dict[str, Any], name: str) -> Picture:
    return _per_layer(
        source,
        layers,
        name.replace("_", "-"),
        f"What the method says per task: {name}",
        "Per layer (rows) and task (columns), as the method's `diagnostics` define it; of several numbers the mean.",
        name,
    )


def _task_matrix_distance(source: Source) -> Picture:
    return matrix_picture(
        source,
        source.shown.diagnostics.matrices("task_matrix_distance"),
        "task-matrix-distance",
        "How far the tasks' matrices are from each other",
        "‖Λ_t − Λ_s‖ / ‖I‖, the mean over the layers: pairs with a small distance transform what the shared "
        "down-projection reads in the same way. Compare it with how far each moved from I: two matrices that hardly "
        "moved are near each other without having agreed on anything.",
        diverging=False,
    )


_DIAGNOSTICS: dict[str, Callable[[Source, dict[str, Any]], Picture]] = {
    "up_projection_weights": _up_projection_weights,
    "task_matrix_change": _task_matrix_change,
    "expert_weights": _expert_weights,
    "task_gates": _task_gates,
    "task_share": _task_share,
    "shared_cosine": _shared_cosine,
}


def _one(figure: Figure, values: Any, rows: list[str], columns: list[str], top: float) -> None:
    numbers = len(rows) * len(columns) <= 40
    heat_map(figure.subplots(), values, rows, columns, top, numbers=numbers)
    diverging = bool((values < 0).any())
    scale_legend(figure, top, diverging, UNDER_NUMBERS if numbers else 1.0)


def _panels(figure: Figure, panels: list[Any], titles: list[str], rows: list[str], columns: list[str]) -> None:
    grid = figure.subplots(1, len(panels), squeeze=False, sharey=True)
    for axes, panel, title in zip(grid.flat, panels, titles, strict=True):
        heat_map(axes, panel, rows, columns, 1.0, title=title)
    scale_legend(figure, 1.0, diverging=False)
