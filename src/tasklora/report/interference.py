"""The report's figures of how tasks get into each other's way: their gradients, and their updates."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from scipy.cluster.hierarchy import leaves_list, linkage
from scipy.spatial.distance import squareform

from tasklora.evaluation import Diagnostics, GradientCosines, own_share
from tasklora.report.figures import BAR, done
from tasklora.report.heatmaps import (
    MAX_LAYERS,
    NUMBERED,
    UNDER_NUMBERS,
    Matrix,
    by_layer,
    heat_map,
    largest,
    mean,
    scale_legend,
)
from tasklora.report.loading import Source
from tasklora.report.svg import INK, MUTED, SERIES, Picture, picture

FEW_TASKS = 12
"""Up to so many tasks keep their order and stand in panels side by side."""


def tasks_of(source: Source) -> list[str]:
    """Return the tasks in the order of the shown run's diagnostics; files of the first version do not name them."""
    return source.shown.diagnostics.tasks or list(source.results.metrics)


def of_shown(source: Source) -> str:
    """Return the words that say which run a figure of a comparison is of."""
    if not source.comparison:
        return ""
    shown = source.shown.results
    return f"Of {source.results.method(source.shown_method).title}, seed {shown.seed}. "


def interference(source: Source) -> list[Picture]:
    """Return what can be drawn: gradients if they were measured, updates if the method has some per task."""
    found: list[Picture] = []
    if source.comparison:
        found += [own_shares(source)] if _methods_with_pairs(source) else []
    if source.shown.gradient_cosines:
        found += [gradient_matrix(source), gradients_over_time(source)]
    if "update_cosine" in source.shown.diagnostics.per_pair:
        found += [update_matrices(source), updates_per_layer(source)]
    return found


# --- gradients


def gradient_matrix(source: Source) -> Picture:
    """Cosines between the tasks' gradients, the mean over the measurements."""
    measured = source.shown.gradient_cosines
    during = [one for one in measured if one.step] or measured
    tasks = during[0].tasks
    values = mean(np.array([_square(one) for one in during]))
    steps = f"steps {during[0].step} to {during[-1].step}" if len(during) > 1 else f"step {during[0].step}"
    reading = (
        f"{of_shown(source)}The cosine between two tasks' gradients of the parameters that they share, the mean of "
        f"{len(during)} measurement(s), {steps}. Blue pairs pull the same way; orange pairs pull against each other: a "
        "step that helps one would, alone, raise the loss of the other. The diagonal is a task against itself, on two "
        "halves of its sample: what noise leaves of a perfect 1. Where it is h, two tasks with the very same gradient "
        "would show about 2h / (1 + h); where it is near 0 or below, the sample was too small to say anything. Colours "
        "are scaled to the pairs, the diagonal may exceed them. Around zero is common and harmless; a "
        "negative cosine is a hint to look at that pair's scores, not a proof of harm."
    )
    return _matrix(values, tasks, "gradient-cosines", "Do the tasks' gradients agree?", reading, diverging=True)


def _square(one: GradientCosines) -> Matrix:
    """Return one measurement as a matrix (T, T), the halves on its diagonal."""
    count = len(one.tasks)
    square = np.full((count, count), np.nan)
    square[np.triu_indices(count, 1)] = np.array(one.overall.cosines, dtype=np.float64)
    square.T[np.triu_indices(count, 1)] = square[np.triu_indices(count, 1)]
    np.fill_diagonal(square, np.array(one.overall.halves, dtype=np.float64))
    return square


def gradients_over_time(source: Source) -> Picture:
    """Cosines over the steps: over all layers as lines, per layer as a map."""
    measured = source.shown.gradient_cosines
    steps = [str(one.step) for one in measured]
    overall = np.array([one.overall.cosines for one in measured], dtype=np.float64)  # (measurements, pairs)
    halves = mean(np.array([one.overall.halves for one in measured], dtype=np.float64).T)
    layers = {
        layer: [float(mean(np.array(one.layers[layer].cosines, dtype=np.float64))) for one in measured]
        for layer in measured[0].layers
    }
    names, values = by_layer(layers)
    undefined = np.isnan(overall).all(axis=1)
    low, high = (np.where(undefined, np.nan, side) for side in _ends(overall))
    top = largest(values, 0.1)

    def draw(figure: Figure) -> None:
        height = 0.13 * len(names)
        lines, cells = figure.subplots(2, 1, height_ratios=[1.5, max(0.6, height)], sharex=True)
        places = np.arange(len(steps))
        lines.axhline(0, color=MUTED, linewidth=1)
        lines.fill_between(
            places, low, high, color=SERIES[0], alpha=0.2, linewidth=0, label="from lowest to highest pair"
        )
        lines.plot(places, mean(overall.T), marker="o", color=SERIES[0], label="mean over the pairs")
        lines.plot(places, halves, linestyle="--", color=MUTED, label="halves of a task's own sample")
        lines.set_ylabel("cosine, all layers", color=MUTED)
        lines.margins(x=0)
        lines.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=3, fontsize=7.5, borderaxespad=0.2)
        heat_map(cells, values, names, steps, top)
        every = -(-len(steps) // 16)
        cells.set_xticks(places[::every], steps[::every], rotation=0, ha="center", color=INK)
        cells.set_xlabel("step")
        scale_legend(figure, top, diverging=True)

    blocks = " Layers are averaged by block." if len(layers) > MAX_LAYERS else ""
    reading = (
        f"{of_shown(source)}Above, over all layers: the mean over the pairs of tasks, with the range from the most "
        "opposed to the most agreeing pair. Below, the mean over the pairs in each layer (rows) at each measured step "
        "(columns): blue agrees, orange opposes. A good sign is a band that stays above the line or narrows towards "
        "it; layers that stay orange are where tasks would profit from directions of their own. Gradients get small "
        "and noisy as losses fall, so cosines drift to zero at the end of any run; the dashed line shows how much of "
        f"that is noise.{blocks}"
    )
    data = [one.model_dump() for one in measured]
    size = (7.6, 2.6 + 0.13 * len(names))
    return picture("gradient-cosines-over-time", "Agreement of gradients over training", reading, data, size, draw)


def _ends(values: Matrix) -> tuple[Matrix, Matrix]:
    """Return the smallest and the largest defined entry of each row."""
    return np.nanmin(values, axis=1, initial=np.inf), np.nanmax(values, axis=1, initial=-np.inf)


# --- updates


def update_matrices(source: Source) -> Picture:
    """Cosines and overlaps of the tasks' updates, the mean over the layers."""
    found, tasks = source.shown.diagnostics, tasks_of(source)
    cosine, columns, rows = (
        mean(np.array(list(found.matrices(name).values()), dtype=np.float64))
        for name in ("update_cosine", "column_overlap", "row_overlap")
    )
    order = _order(cosine)
    names = [tasks[place] for place in order]
    cosine, columns, rows = (side[np.ix_(order, order)] for side in (cosine, columns, rows))
    overlaps = np.where(np.triu(np.ones_like(columns)) > 0, columns, rows)
    few, numbers = len(tasks) <= FEW_TASKS, len(tasks) <= NUMBERED

    def draw(figure: Figure) -> None:
        grid = figure.subplots(*((1, 2) if few else (2, 1)))
        titles = ("cosine of the updates", "overlap of their subspaces")
        for axes, values, title in zip(grid, (cosine, overlaps), titles, strict=True):
            heat_map(axes, values, names, names, 1.0, title=title, numbers=numbers, square=True)
        scale_legend(figure, 1.0, diverging=True, strongest=UNDER_NUMBERS if numbers else 1.0)

    reading = (
        f"{of_shown(source)}Left, the cosine between two tasks' ΔW: 1 is the same update up to its size, 0 nothing in "
        "common, below 0 one undoes some of the other. Right, the mean cosine of the principal angles between what two "
        "updates write to (columns, above the diagonal) and read from (rows, below): 1 is the same subspace, and two "
        f"random ones have about the square root of rank over width. Means over the layers. {_by_construction(found)}"
        "Alike is good for tasks that help each other and bad for tasks that should differ: the picture says what was "
        "shared, the scores whether it paid."
    )
    if not few:
        reading = reading.replace("Left,", "Above,").replace("Right,", "Below,") + _ORDERED
    data = {
        "tasks": names,
        "update_cosine": _json(cosine),
        "column_overlap": _json(columns),
        "row_overlap": _json(rows),
    }
    size = (7.6, 1.9 + 0.3 * min(len(tasks), 9)) if few else (7.6, 2 * (0.9 + 0.135 * len(tasks)))
    return picture("update-overlaps", "How alike are the tasks' updates?", reading, data, size, draw)


_ORDERED = " Tasks are ordered so that alike ones stand together."


def _by_construction(found: Diagnostics) -> str:
    """Return which overlaps are 1 everywhere: those that a method's tasks share by what they are."""
    same = []
    for name, what in (("column_overlap", "write to"), ("row_overlap", "read from")):
        entries = [entry for of_layer in found.per_pair[name].values() for entry in of_layer if entry is not None]
        if entries and min(entries) > 0.999:
            same.append(what)
    if not same:
        return ""
    return f"All tasks of this method {' and '.join(same)} the same subspace by construction, which says nothing here. "


def updates_per_layer(source: Source) -> Picture:
    """Cosines and overlaps per layer: the range over the pairs."""
    found = source.shown.diagnostics
    titles = {
        "update_cosine": "cosine of the updates",
        "column_overlap": "overlap of columns",
        "row_overlap": "overlap of rows",
    }
    panels = {name: by_layer(found.per_pair[name]) for name in titles}
    names = panels["update_cosine"][0]
    places = np.arange(len(names))

    def draw(figure: Figure) -> None:
        grid = figure.subplots(1, 3, sharey=True)
        for axes, (name, (_, values)) in zip(grid, panels.items(), strict=True):
            low, high = (np.where(np.isfinite(side), side, np.nan) for side in _ends(values))
            axes.hlines(places, low, high, color=SERIES[0], linewidth=1.4)
            axes.plot(mean(values.T), places, "o", color=SERIES[0], markersize=3.5)
            axes.axvline(0, color=MUTED, linewidth=1)
            axes.set_xlim(min(-0.05, largest(np.minimum(np.nan_to_num(values), 0), 0.05) * -1.05), 1.05)
            axes.set_title(titles[name], color=INK)
            axes.set_yticks(places, names)
            axes.set_ylim(len(names) - 0.5, -0.5)
            axes.tick_params(labelsize=6.5, length=0)

    blocks = " Layers are averaged by block." if len(found.per_pair["update_cosine"]) > MAX_LAYERS else ""
    reading = (
        f"{of_shown(source)}One row per layer: the point is the mean over the pairs of tasks, the line runs from the "
        "least to the most alike pair. Layers with points far right do the same for every task; layers with points "
        f"near zero are where the tasks part. Long lines are layers that some tasks share and others do not.{blocks}"
    )
    data = {name: found.per_pair[name] for name in titles}
    size = (7.6, 0.7 + 0.13 * len(names))
    return picture("updates-per-layer", "Where do the tasks' updates part?", reading, data, size, draw)


def own_shares(source: Source) -> Picture:
    """How much of the updates tasks do not share, by method."""
    shares: dict[str, dict[str, Any]] = {}
    for method, found in _methods_with_pairs(source).items():
        per_layer = {layer: own_share(*_of_layer(found, layer)) for layer in found.per_pair["update_cosine"]}
        squares = {layer: _of_layer(found, layer)[1].square().sum().item() for layer in per_layer}
        whole = {layer: share for layer, share in per_layer.items() if share is not None}
        total = sum(squares[layer] for layer in whole)
        overall = sum(share * squares[layer] for layer, share in whole.items()) / total if total else None
        shares[source.results.method(method).title] = {"overall": overall, "layers": per_layer}
    tasks = len(source.results.metrics)
    places = {method.title: place for place, method in enumerate(done(source.results))}

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        for row, (title, share) in enumerate(shares.items()):
            colour = SERIES[places.get(title, 0) % len(SERIES)]
            points = [value for value in share["layers"].values() if value is not None]
            axes.plot(points, [row] * len(points), "|", color=colour, alpha=0.55, markersize=9)
            if share["overall"] is not None:
                axes.plot([share["overall"]], [row], "o", color=colour, markersize=8)
        axes.axvline((tasks - 1) / tasks, color=MUTED, linewidth=1, linestyle="--")
        axes.set_xlim(-0.02, 1.02)
        axes.set_yticks(range(len(shares)), list(shares))
        axes.set_ylim(len(shares) - 0.4, -0.6)
        axes.grid(visible=False, axis="y")
        axes.tick_params(axis="y", length=0)
        axes.set_xlabel("share of ‖ΔW‖² that tasks do not share")

    reading = (
        "How much of a method's updates is the tasks' own: Σ‖ΔW_t − M‖² / Σ‖ΔW_t‖², M the mean of the tasks' updates "
        "in a layer; the large point is over all layers, the small strokes are single layers, each of the method's "
        "first run. 0 is one update for all tasks, the dashed line updates that have nothing in common. Neither end is "
        "good in itself; methods that differ little here differ in their parameters, not in what they do for tasks."
    )
    return picture(
        "own-shares", "What do tasks keep to themselves?", reading, shares, (7.6, 0.9 + BAR * len(shares)), draw
    )


def _methods_with_pairs(source: Source) -> dict[str, Diagnostics]:
    """Return the diagnostics of each method's first run that has updates per task."""
    found = {method.name: source.runs[method.name][0].diagnostics for method in done(source.results)}
    return {method: said for method, said in found.items() if "update_cosine" in said.per_pair}


def _of_layer(found: Diagnostics, layer: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the cosines (T, T) and norms (T,) of one layer's updates."""
    norms = torch.tensor(found.per_task["update_norm"][layer], dtype=torch.float64)
    square = np.array(Diagnostics(per_pair={"c": {layer: found.per_pair["update_cosine"][layer]}}).matrices("c")[layer])
    return torch.from_numpy(square.astype(np.float64)), norms


# --- matrices of pairs


def matrix_picture(
    source: Source,
    layers: Mapping[str, Any],
    name: str,
    title: str,
    reading: str,
    diverging: bool,
) -> Picture:
    """Return the mean over layers of symmetric matrices (T, T) as a picture."""
    values = mean(np.array(list(layers.values()), dtype=np.float64))
    return _matrix(values, tasks_of(source), name, title, of_shown(source) + reading, diverging)


def _matrix(values: Matrix, tasks: list[str], name: str, title: str, reading: str, diverging: bool) -> Picture:
    numbers = len(tasks) <= NUMBERED
    if len(tasks) > FEW_TASKS:
        order = _order(values if diverging else -values)
        values, tasks, reading = values[np.ix_(order, order)], [tasks[place] for place in order], reading + _ORDERED
    top = largest(np.where(np.eye(len(values), dtype=bool), np.nan, values), 0.1)

    def draw(figure: Figure) -> None:
        heat_map(figure.subplots(), values, tasks, tasks, top, numbers=numbers, square=True)
        scale_legend(figure, top, diverging, UNDER_NUMBERS if numbers else 1.0)

    cell = 0.4 if numbers else 0.3 if len(tasks) <= FEW_TASKS else 0.14
    size = (7.6, 1.2 + cell * len(tasks))
    return picture(name, title, reading, {"tasks": tasks, "values": _json(values)}, size, draw)


def _order(likeness: Matrix) -> list[int]:
    """Return the order of the tasks: their own of a few; of many, like ones beside each other (average linkage)."""
    if len(likeness) <= FEW_TASKS:
        return list(range(len(likeness)))
    distance = np.nan_to_num(np.nanmax(likeness, initial=0.0) - likeness, nan=1.0)
    np.fill_diagonal(distance, 0.0)
    return [int(place) for place in leaves_list(linkage(squareform(distance, checks=False), "average"))]


def _json(values: Matrix) -> list[Any]:
    return [[None if np.isnan(value) else round(float(value), 4) for value in row] for row in values]
