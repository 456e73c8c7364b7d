"""Heat maps of the report: opacities of the page's own colours, so that they read in light and dark.

Values from 0 up are shades of one colour. Values of both signs are blue above zero and orange below it, which
colour-blind readers tell apart too, and zero is the page itself.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch, PathPatch
from matplotlib.path import Path
from numpy.typing import NDArray

from tasklora.report.numbers import number
from tasklora.report.svg import GRID, INK, MUTED, SERIES

Matrix = NDArray[np.float64]

POSITIVE, NEGATIVE = SERIES[0], SERIES[1]
NUMBERED = 10
"""Maps of up to so many columns have their numbers in the cells."""
UNDER_NUMBERS = 0.6
"""Opacity that numbers are still read on."""
SHADES = 25
"""Shades of each colour that are told apart."""
_SQUARE = np.array([[-0.5, -0.5], [0.5, -0.5], [0.5, 0.5], [-0.5, 0.5], [-0.5, -0.5]])
MAX_LAYERS = 60
"""More layers than these are averaged by block."""


def heat_map(
    axes: Axes,
    values: Matrix,
    rows: Sequence[str],
    columns: Sequence[str],
    top: float,
    *,
    title: str = "",
    numbers: bool = False,
    square: bool = False,
) -> None:
    """Draw a matrix.

    Args:
        axes: where.
        values: (rows, columns); NaN is undefined and drawn as a dash.
        rows: labels.
        columns: labels.
        top: the value that has the full colour.
        title: above it.
        numbers: write the values into the cells.
        square: whether cells are squares.
    """
    digits = _digits(top)
    cells: dict[int, list[Path]] = {}  # cells of one shade are one path: thousands of them make a page heavy
    for row, of_row in enumerate(values):
        for column, value in enumerate(of_row):
            if np.isnan(value):
                axes.text(column, row, "–", ha="center", va="center", color=MUTED, fontsize=6.5)
                continue
            shade = round(SHADES * min(1.0, max(-1.0, float(value) / top)))
            cells.setdefault(shade, []).append(Path(_SQUARE + np.array([column, row]), closed=True))
            if numbers:
                said = number(round(float(value), digits) + 0.0, digits)  # no minus before a zero
                axes.text(column, row, said, ha="center", va="center", color=INK, fontsize=7)
    strongest = UNDER_NUMBERS if numbers else 1.0
    for shade, squares in cells.items():
        colour, alpha = POSITIVE if shade >= 0 else NEGATIVE, strongest * abs(shade) / SHADES
        axes.add_patch(PathPatch(Path.make_compound_path(*squares), facecolor=colour, alpha=alpha, linewidth=0))
    axes.set_xlim(-0.5, len(columns) - 0.5)
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.set_xticks(range(len(columns)), columns, rotation=60, ha="right", rotation_mode="anchor", color=INK)
    axes.set_yticks(range(len(rows)), rows)
    axes.tick_params(labelsize=6.5 if max(len(rows), len(columns)) > NUMBERED else 8, length=0)
    axes.grid(visible=False)
    for side in ("top", "right"):
        axes.spines[side].set_visible(True)
        axes.spines[side].set_color(GRID)
    axes.set_title(title, color=INK)
    if square:
        axes.set_aspect("equal")
        axes.set_anchor("NW")


def scale_legend(figure: Figure, top: float, diverging: bool, strongest: float = 1.0) -> None:
    """Draw the scale of the opacities above the figure."""
    digits = _digits(top)
    shares = (-1.0, -0.5, 0.0, 0.5, 1.0) if diverging else (0.0, 0.25, 0.5, 0.75, 1.0)
    handles = [
        Patch(
            facecolor=(POSITIVE if share >= 0 else NEGATIVE, strongest * abs(share)),
            edgecolor=MUTED,
            linewidth=0.4,
            label=number(share * top, digits),
        )
        for share in shares
    ]
    figure.legend(handles=handles, loc="outside upper left", ncols=5, labelcolor=MUTED, fontsize=7, handlelength=1.2)


def _digits(top: float) -> int:
    """Return after how many decimals values up to `top` are told apart: two, or more where all are small."""
    return max(2, 1 - math.floor(math.log10(top)))


def largest(values: Matrix, least: float = 0.0) -> float:
    """Return the largest size of the defined values, at least `least`; 1 where there is none."""
    return float(np.nanmax(np.abs(values), initial=least)) or 1.0


def short(layer: str) -> str:
    """Return a layer's path without what says nothing in a column of such paths."""
    return layer.replace("encoder.layer.", "").replace("attention.self.", "").replace(".dense", "")


def by_layer(layers: Mapping[str, Any]) -> tuple[list[str], Matrix]:
    """Return layers' labels and values, (layers, …), NaN where undefined; very many are averaged by block.

    Args:
        layers: path → numbers, of the same shape for all; None stands for undefined.
    """
    values = np.array(list(layers.values()), dtype=np.float64)
    if len(layers) <= MAX_LAYERS:
        return [short(name) for name in layers], values
    blocks: dict[str, list[int]] = {}
    for place, name in enumerate(layers):
        found = re.match(r"(.*?\d+)(\.|$)", name)  # up to the first number of the path
        blocks.setdefault(short(found[1] if found else name), []).append(place)
    return list(blocks), np.array([mean(values[places]) for places in blocks.values()])


def mean(values: Matrix) -> Matrix:
    """Return the mean over the first dimension of what is defined; NaN where nothing is."""
    defined = ~np.isnan(values)
    counts = defined.sum(axis=0)
    sums = np.where(defined, values, 0.0).sum(axis=0)
    found: Matrix = np.where(counts > 0, sums / np.maximum(counts, 1), np.nan)
    return found
