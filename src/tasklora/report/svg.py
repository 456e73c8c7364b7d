"""Figures as SVG that follow the page: text stays text, and colours are the page's, light or dark.

A figure is drawn with stand-in colours, one per role; in the SVG each becomes a CSS variable.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

INK, MUTED, GRID, SURFACE = "#010101", "#020202", "#030303", "#040404"
SERIES = [f"#0a00{place:02x}" for place in range(1, 9)]
"""Stand-ins of the page's eight series colours, in a fixed order."""

MARKERS = "oD^svPX*"
"""A shape for each series: colour alone must not carry the meaning."""

_ROLES = {
    INK: "var(--ink)",
    MUTED: "var(--muted)",
    GRID: "var(--grid)",
    SURFACE: "var(--surface)",
    **{colour: f"var(--series-{place})" for place, colour in enumerate(SERIES, start=1)},
}

_STYLE: dict[str, Any] = {
    "svg.fonttype": "none",
    "font.family": "sans-serif",
    "font.size": 9,
    "text.color": INK,
    "axes.edgecolor": GRID,
    "axes.labelcolor": MUTED,
    "axes.facecolor": "none",
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.titlesize": 9,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "figure.facecolor": "none",
    "grid.color": GRID,
    "grid.linewidth": 0.6,
    "legend.frameon": False,
    "lines.linewidth": 1.6,
    "lines.markersize": 5,
    "savefig.facecolor": "none",
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelcolor": MUTED,
    "ytick.labelcolor": INK,
}


@dataclass(frozen=True)
class Picture:
    """A figure of the report.

    Attributes:
        name: unique on the page.
        title: its heading.
        reading: a sentence on how to read it.
        svg: the picture, to stand in the page.
        data: what it shows, as plain data.
    """

    name: str
    title: str
    reading: str
    svg: str
    data: Any


def picture(
    name: str, title: str, reading: str, data: Any, size: tuple[float, float], draw: Callable[[Figure], None]
) -> Picture:
    """Return a picture.

    Args:
        name: unique on the page; of letters, digits and hyphens.
        title: its heading.
        reading: a sentence on how to read it.
        data: what it shows.
        size: width and height in inches.
        draw: draws it onto a figure.
    """
    with matplotlib.rc_context({**_STYLE, "svg.hashsalt": name}):
        figure = Figure(figsize=size, layout="constrained")
        draw(figure)
        file = io.StringIO()
        figure.savefig(file, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    return Picture(name, title, reading, _for_page(file.getvalue(), name, title), data)


def _for_page(svg: str, name: str, title: str) -> str:
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    for colour, variable in _ROLES.items():
        svg = svg.replace(colour, variable)
    svg = re.sub(r"""\bid="([^"]+)\"""", rf'id="{name}-\1"', svg)
    svg = re.sub(r"""href="#([^"]+)\"""", rf'href="#{name}-\1"', svg)
    svg = re.sub(r"url\(#([^)]+)\)", rf"url(#{name}-\1)", svg)
    label = title.replace("&", "&amp;").replace('"', "&quot;")
    return svg.replace("<svg ", f'<svg role="img" aria-label="{label}" ', 1)


def series(place: int) -> dict[str, Any]:
    """Return colour and marker of the series at a place, for ``plot``; hollow ones once the colours are used up."""
    again = place // len(SERIES)
    marker = MARKERS[(place + 3 * again) % len(MARKERS)]
    return {"color": SERIES[place % len(SERIES)], "marker": marker, "markerfacecolor": "none" if again else None}


def line_of(place: int) -> str:
    """Return the line of the series at a place; dashed once the colours are used up."""
    return "--" if place // len(SERIES) else "-"


def legend(figure: Figure, titles: Sequence[str], line: bool = True, without: Sequence[str] = ()) -> None:
    """Put the names of the series above the figure, in their order; those in `without` are not drawn in it."""
    handles = [
        Line2D([], [], linestyle=line_of(place) if line else "", label=title, **series(place))
        for place, title in enumerate(titles)
        if title not in without
    ]
    figure.legend(handles=handles, loc="outside upper left", ncols=4, handletextpad=0.4, columnspacing=1.4)


def ends(estimates: Sequence[Any]) -> tuple[list[float], list[float]]:
    """Return the ends of intervals; an undefined interval is a point at its mean."""
    lows = [estimate.mean if estimate.low is None else estimate.low for estimate in estimates]
    highs = [estimate.mean if estimate.high is None else estimate.high for estimate in estimates]
    return lows, highs


def interval_points(axes: Axes, place: int, y: Sequence[float], estimates: Sequence[Any]) -> None:
    """Draw means as points with their intervals as lines, along x."""
    style = series(place)
    lows, highs = ends(estimates)
    axes.hlines(y, lows, highs, color=style["color"], linewidth=1.6, linestyle=line_of(place))
    axes.plot([e.mean for e in estimates], y, linestyle="", **style)
