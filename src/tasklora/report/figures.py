"""The report's figures of scores, parameters and time."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from tasklora.evaluation import ComparisonResults, Estimate, MethodResults
from tasklora.report.loading import Source
from tasklora.report.numbers import AVERAGE_OF_UNITS, has_units, score_label, signed
from tasklora.report.svg import GRID, INK, MUTED, SERIES, Picture, ends, interval_points, legend, picture, series

PER_METHOD = 0.2  # inches that one method takes in a row of points
BAR = 0.34  # inches that one bar takes


def done(results: ComparisonResults) -> list[MethodResults]:
    """Return the methods that were scored, also where none of their scores has a value."""
    return [method for method in results.methods if method.tasks or not method.failures]


def scores(source: Source) -> Picture:
    """Scores per task and on average, with intervals."""
    results = source.results
    methods = done(results)
    rows = [*results.metrics, "average"]
    found = [{**method.tasks, **({"average": method.average} if method.average else {})} for method in methods]
    untrained = _untrained(source)

    apart = has_units(results.metrics, source.is_dense)

    def draw(figure: Figure) -> None:
        for axes, part in _axes_of(figure, rows, apart):
            _rows_of_points(axes, part, found)
            axes.set_yticks(range(len(part)), [_row_label(results, row) for row in part])
            for row, value in untrained.items():
                if row in part:
                    label = "untrained" if row == next(iter(untrained)) else None
                    axes.plot([value], [part.index(row)], "|", color=MUTED, markersize=11, label=label)
        if untrained and not apart:
            axes.legend(loc="lower left")
        axes.set_xlabel("score, each row on a scale of its own" if apart else "score (1 is perfect)")
        if len(methods) > 1:
            legend(figure, [method.title for method in methods])

    reading = (
        "Each mark is a mean over the seeds, its line the 95 % bootstrap interval over seeds and rows; further right "
        "is better. Metrics differ between tasks, so compare marks within a row, not rows with each other."
        if source.comparison or len(results.seeds) > 1
        else "Each mark is the score of this run, its line the 95 % bootstrap interval over the rows it was measured "
        "on; further right is better. One run says nothing about the spread between seeds."
    )
    data: dict[str, dict[str, Any]] = {
        method.title: {row: estimate.model_dump() for row, estimate in of_method.items()}
        for method, of_method in zip(methods, found, strict=True)
    }
    if untrained:
        data["untrained"] = untrained
    if apart:
        reading += f" Errors are negated; {AVERAGE_OF_UNITS}."
    size = (7.6, _height(rows, methods, apart))
    return picture("scores", "Scores per task, with intervals", reading, data, size, draw)


def differences(source: Source) -> Picture:
    """Differences to the baseline per task, paired."""
    results = source.results
    methods = done(results)
    rows = [*results.metrics, "average"]
    found = [
        {**method.differences, **({"average": method.difference} if method.difference else {})} for method in methods
    ]

    apart = has_units(results.metrics, source.is_dense)

    def draw(figure: Figure) -> None:
        for axes, part in _axes_of(figure, rows, apart):
            axes.axvline(0, color=MUTED, linewidth=1)
            _rows_of_points(axes, part, found)
            axes.set_yticks(range(len(part)), [_row_label(results, row) for row in part])
        baseline = title_of(results, results.baseline)
        axes.set_xlabel(f"score minus that of {baseline}")
        legend(figure, [method.title for method in methods], without=[baseline])

    reading = (
        f"Right of the line is better than {title_of(results, results.baseline)}. Seeds and rows are paired, so an "
        "interval that does not touch the line is a difference that resampling them does not explain away."
    )
    data = {
        method.title: {row: estimate.model_dump() for row, estimate in of_method.items()}
        for method, of_method in zip(methods, found, strict=True)
    }
    size = (7.6, _height(rows, methods, apart))
    return picture("differences", "Differences to the baseline", reading, data, size, draw)


def delta_m_bars(source: Source) -> Picture:
    """Δm against the baseline."""
    results = source.results
    methods = [method for method in done(results) if method.delta_m]
    estimates = [method.delta_m for method in methods if method.delta_m]

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        axes.axvline(0, color=MUTED, linewidth=1)
        _bars(axes, results, methods, [estimate.mean for estimate in estimates])
        lows, highs = ends(estimates)
        axes.hlines(range(len(methods)), lows, highs, color=INK, linewidth=1.2)
        for place, (estimate, high) in enumerate(zip(estimates, highs, strict=True)):
            axes.annotate(
                signed(estimate.mean, 1) + " %",
                (max(high, 0), place),
                xytext=(5, 0),
                textcoords="offset points",
                va="center",
                color=INK,
            )
        axes.margins(x=0.12)
        axes.set_xlabel(f"Δm in percent against {title_of(results, results.baseline)}")

    reading = (
        f"Δm is the mean relative change of the tasks' scores against {title_of(results, results.baseline)}; the thin "
        "line is its 95 % interval."
    )
    if results.guarded:
        reading += (
            f" Left out, because the baseline's score is near zero and a relative change would mean nothing: "
            f"{', '.join(results.guarded)}."
        )
    data = {method.title: method.delta_m.model_dump() for method in methods if method.delta_m}
    return picture("delta-m", "Δm", reading, data, (7.6, 0.7 + BAR * len(methods)), draw)


def parameters(source: Source) -> Picture:
    """Trainable parameters: by method, or by group for one method."""
    results = source.results
    methods = [method for method in done(results) if method.parameters]

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        if source.comparison:
            values = [method.parameters.trainable for method in methods if method.parameters]
            axes.set_xscale("log")
            _bars(axes, results, methods, values)
        else:
            assert methods[0].parameters is not None
            groups = {name: count for name, count in methods[0].parameters.groups.items() if count}
            values = list(groups.values())
            axes.barh(range(len(values)), values, height=0.6, color=SERIES[0])
            axes.xaxis.set_major_locator(MaxNLocator(5))
            axes.xaxis.set_major_formatter("{x:,.0f}")
            axes.set_yticks(range(len(values)), [GROUPS[name] for name in groups])
            axes.invert_yaxis()
        for place, value in enumerate(values):
            axes.annotate(
                f"{value:,}", (value, place), xytext=(5, 0), textcoords="offset points", va="center", color=INK
            )
        axes.margins(x=0.2)
        axes.grid(visible=False, axis="y")
        axes.set_xlabel("trainable parameters")

    data = {
        method.title: {"trainable": method.parameters.trainable, **method.parameters.groups}
        for method in methods
        if method.parameters
    }
    bars = len(methods) if source.comparison else sum(1 for n in next(iter(data.values())).values() if n) - 1
    reading = (
        "Numbers that training changes, heads included; the scale is logarithmic, so a bar that is a little longer is "
        "many times larger."
        if source.comparison
        else "Numbers that training changes. What belongs to single tasks is all that one more task would add."
    )
    return picture("parameters", "Trainable parameters", reading, data, (7.6, 0.75 + BAR * bars), draw)


GROUPS = {
    "shared": "low-rank, shared by all tasks",
    "per_task": "low-rank, of single tasks",
    "heads": "heads or decoders",
    "other": "weights of the encoder",
}


def training_time(source: Source) -> Picture:
    """Wall-clock time of training."""
    results = source.results
    methods = done(results)
    medians = [sorted(method.seconds)[len(method.seconds) // 2] for method in methods]

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        _bars(axes, results, methods, medians)
        for place, method in enumerate(methods):
            axes.plot(method.seconds, [place] * len(method.seconds), "o", color=INK, markersize=3)
        axes.set_xlabel("seconds")

    return picture(
        "training-time",
        "Training time",
        "Bars are the middle one of each method's runs, points the runs themselves: wall-clock time on the machine "
        "named above, scoring of tune rows included. The runs came one after another, so whatever else the machine "
        "did is in them; speed claims need interleaved measurements.",
        {method.title: method.seconds for method in methods},
        (7.6, 0.75 + BAR * len(methods)),
        draw,
    )


def search(source: Source) -> Picture | None:
    """Averages on tune over the searched key; None unless exactly one number was searched."""
    results = source.results
    keys = {key for method in results.methods for trial in method.trials for key in trial.settings}
    if len(keys) != 1:
        return None
    (key,) = keys
    tried = {
        method.title: [
            {"value": trial.settings[key], "tune_average": trial.tune_average, "chosen": trial.chosen}
            for trial in method.trials
            if key in trial.settings  # a method may have a single setting, the recipe's own
        ]
        for method in results.methods
    }
    values = [trial["value"] for trials in tried.values() for trial in trials]
    if not all(isinstance(value, (int, float)) and value > 0 for value in values):
        return None

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        axes.set_xscale("log")
        for place, trials in enumerate(tried.values()):
            whole = sorted((t for t in trials if t["tune_average"] is not None), key=lambda t: t["value"])
            axes.plot([t["value"] for t in whole], [t["tune_average"] for t in whole], **series(place))
            best = [t for t in whole if t["chosen"]]
            axes.plot(
                [t["value"] for t in best],
                [t["tune_average"] for t in best],
                "o",
                markersize=11,
                markerfacecolor="none",
                color=SERIES[place % len(SERIES)],
            )
        ticks = sorted(set(values))
        axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
        axes.minorticks_off()
        axes.set_xlabel(key)
        axes.set_ylabel("average on tune", color=MUTED)
        legend(figure, list(tried))

    return picture(
        "search",
        "The search",
        "One point per setting that was tried, all with the first seed; rings mark what was chosen, by rows held out "
        "of training and not reported anywhere else. A ring at the end of its line means that the best setting may lie "
        "outside the grid.",
        tried,
        (7.6, 3.4),
        draw,
    )


def _rows_of_points(axes: Any, rows: Sequence[str], found: Sequence[dict[str, Estimate]]) -> None:
    """Draw, for each row, one point with interval per method, the methods side by side."""
    for place, of_method in enumerate(found):
        present = [row for row in rows if row in of_method]
        if not present:
            continue
        shift = (place - (len(found) - 1) / 2) * 0.7 / max(len(found), 1)
        interval_points(axes, place, [rows.index(row) + shift for row in present], [of_method[row] for row in present])
    for boundary in range(1, len(rows)):
        axes.axhline(boundary - 0.5, color=GRID, linewidth=1.2 if rows[boundary] == "average" else 0.6)
    axes.grid(visible=False, axis="y")
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.tick_params(axis="y", length=0)


def _bars(axes: Any, results: ComparisonResults, methods: Sequence[MethodResults], values: Sequence[float]) -> None:
    colours = [SERIES[place_of(results, method) % len(SERIES)] for method in methods]
    axes.barh(range(len(methods)), values, height=0.6, color=colours)
    axes.set_yticks(range(len(methods)), [method.title for method in methods])
    axes.set_ylim(len(methods) - 0.4, -0.6)
    axes.grid(visible=False, axis="y")
    axes.tick_params(axis="y", length=0)


def place_of(results: ComparisonResults, method: MethodResults) -> int:
    """Return the place of a method among those drawn, which is its colour in every figure."""
    return done(results).index(method)


def _axes_of(figure: Figure, rows: list[str], apart: bool) -> list[tuple[Any, list[str]]]:
    """Return axes with the rows that they show: one for all, or one for each where scores have several units."""
    if not apart:
        return [(figure.subplots(), rows)]
    return [(axes, [row]) for axes, row in zip(figure.subplots(len(rows)), rows, strict=True)]


def _height(rows: Sequence[str], methods: Sequence[MethodResults], apart: bool = False) -> float:
    legend_lines = -(-len(methods) // 4) if len(methods) > 1 else 0
    per_row = max(0.28, PER_METHOD * 0.75 * len(methods)) + (0.3 if apart else 0)
    return 0.8 + 0.22 * legend_lines + len(rows) * per_row


def _row_label(results: ComparisonResults, row: str) -> str:
    return f"{row} ({score_label(results.metrics[row])})" if row in results.metrics else row


def title_of(results: ComparisonResults, method: str) -> str:
    """Return the title of a method by its name."""
    return results.method(method).title


def _untrained(source: Source) -> dict[str, float]:
    """Return the scores before training, where the run measured them."""
    if source.comparison:
        return {}
    split = source.shown.results.untrained.get(source.results.split)
    if split is None:
        return {}
    found = {name: task.score for name, task in split.tasks.items()} | {"average": split.average}
    return {name: value for name, value in found.items() if value is not None}
