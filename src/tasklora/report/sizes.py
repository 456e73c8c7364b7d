"""The report's figures of what a method's parameters buy: its average, and Δm, against how many are trained."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from matplotlib.figure import Figure
from matplotlib.transforms import Bbox

from tasklora.evaluation import Estimate
from tasklora.report.figures import done, place_of, title_of
from tasklora.report.loading import Source
from tasklora.report.svg import INK, MUTED, Picture, ends, legend, picture, series

SIZE_LABEL = "trainable parameters, heads included (logarithmic scale)"


def score_and_size(source: Source) -> Picture:
    """Average score against trainable parameters."""
    results = source.results
    methods = [method for method in done(results) if method.average and method.parameters]

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        axes.set_xscale("log")
        for method in methods:
            assert method.average is not None
            assert method.parameters is not None
            style = series(place_of(results, method))
            x = method.parameters.trainable
            (low,), (high,) = ends([method.average])
            axes.vlines(x, low, high, color=style["color"], linewidth=1.4)
            axes.plot([x], [method.average.mean], linestyle="", **style)
        axes.margins(x=0.12)
        axes.set_xlabel(SIZE_LABEL)
        axes.set_ylabel("average score", color=MUTED)
        legend(figure, [method.title for method in done(results)], line=False)

    data = {
        method.title: {"trainable": method.parameters.trainable, "average": method.average.model_dump()}
        for method in methods
        if method.average and method.parameters
    }
    return picture(
        "score-and-size",
        "Score against trainable parameters",
        "Up is better, left is smaller: a method is worth its parameters if no other one stands above and left of it. "
        "Lines are 95 % intervals.",
        data,
        (7.6, 3.6),
        draw,
    )


class _Point(NamedTuple):
    title: str
    trainable: int
    estimate: Estimate
    place: int


def delta_m_and_size(source: Source) -> Picture | None:
    """Δm against trainable parameters, the baseline at 0; None where no method has a Δm."""
    results = source.results
    points = []
    for method in done(results):
        baseline = method.name == results.baseline
        estimate = Estimate(mean=0.0, std=None, low=None, high=None, seeds=[]) if baseline else method.delta_m
        if estimate and method.parameters:
            title = method.title + (" (baseline)" if baseline else "")
            points.append(_Point(title, method.parameters.trainable, estimate, place_of(results, method)))
    if not any(method.delta_m for method in results.methods):
        return None

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        axes.set_xscale("log")
        axes.axhline(0, color=MUTED, linewidth=1)
        for point in points:
            style = series(point.place)
            (low,), (high,) = ends([point.estimate])
            axes.vlines(point.trainable, low, high, color=style["color"], linewidth=1.4)
            axes.plot([point.trainable], [point.estimate.mean], linestyle="", **style)
        axes.margins(x=0.15, y=0.1)
        axes.set_xlabel(SIZE_LABEL)
        axes.set_ylabel("Δm in percent", color=MUTED)
        if not _label_points(figure, axes, points):
            legend(figure, [method.title for method in done(results)], line=False)

    reading = (
        f"Δm is the mean relative change of the tasks' scores against {title_of(results, results.baseline)}, which "
        "stands at 0 with its own parameters. Up is better, left is smaller: a method is worth its parameters if no "
        "other one stands above and left of it. Lines are 95 % intervals, the baseline's scores taken as measured."
    )
    if results.guarded:
        reading += f" Left out, because the baseline's score is near zero: {', '.join(results.guarded)}."
    data = {
        point.title: {
            "trainable": point.trainable,
            "delta_m": point.estimate.model_dump() if point.estimate.seeds else 0.0,
        }
        for point in points
    }
    title = "Δm against trainable parameters"
    return picture("delta-m-and-size", title, reading, data, (7.6, 3.8), draw)


# where a label may stand, in points from its own point: right, left, above, below, and towards the corners
_BESIDE = [(7, 0, "left", "center"), (-7, 0, "right", "center"), (0, 7, "center", "bottom"), (0, -7, "center", "top")]
_BESIDE += [(5, 7, "right", "bottom"), (-5, 7, "left", "bottom"), (5, -7, "right", "top"), (-5, -7, "left", "top")]
_ABOVE, _BELOW = (0, 3, "center", "bottom"), (0, -3, "center", "top")  # of the ends of its interval


def _label_points(figure: Figure, axes: Any, points: Sequence[_Point]) -> bool:
    """Write each title beside its point; return False, with nothing written, if some has no free place."""
    figure.draw_without_rendering()  # fixes where things are
    at = axes.transData.transform
    inside, written = axes.get_window_extent(), []
    zero = at((points[0].trainable, 0))[1]
    taken = [Bbox([[inside.x0, zero - 1], [inside.x1, zero + 1]])]
    for point in points:
        (low,), (high,) = ends([point.estimate])
        x, bottom = at((point.trainable, low))
        top = at((point.trainable, high))[1]
        y = at((point.trainable, point.estimate.mean))[1]
        taken += [Bbox([[x - 2, bottom], [x + 2, top]]), Bbox([[x - 5, y - 5], [x + 5, y + 5]])]
    for point in points:
        (low,), (high,) = ends([point.estimate])
        places = [(point.estimate.mean, *beside) for beside in _BESIDE] + [(high, *_ABOVE), (low, *_BELOW)]
        for y, right, up, across, along in places:
            text = axes.annotate(
                point.title,
                (point.trainable, y),
                xytext=(right, up),
                textcoords="offset points",
                ha=across,
                va=along,
                color=INK,
                fontsize=8,
            )
            text.set_in_layout(False)
            box = text.get_window_extent()
            fits = inside.x0 <= box.x0 and box.x1 <= inside.x1 and inside.y0 <= box.y0 and box.y1 <= inside.y1
            if fits and not any(box.overlaps(other) for other in taken):
                taken.append(box)
                written.append(text)
                break
            text.remove()
        else:
            for text in written:
                text.remove()
            return False
    return True
