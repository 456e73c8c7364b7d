"""The report's figure of transfer: what each task gains or loses by being trained with the others."""

from __future__ import annotations

from matplotlib.figure import Figure

from tasklora.evaluation import MethodResults
from tasklora.report.figures import done
from tasklora.report.loading import Source
from tasklora.report.numbers import score_label
from tasklora.report.svg import GRID, MUTED, Picture, interval_points, legend, picture


def with_transfer(source: Source) -> list[MethodResults]:
    """Return the methods that were compared with single-task runs of their own."""
    return [method for method in done(source.results) if method.transfer]


def transfer(source: Source) -> Picture | None:
    """Score of each task minus that of its own single-task run, paired; None where there are no such runs."""
    methods = with_transfer(source)
    if not methods:
        return None
    known = {task for method in methods for task in method.transfer}
    means = {task: _mean(methods, task) for task in known}
    tasks = sorted(known, key=lambda task: -means[task])

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        axes.axvline(0, color=MUTED, linewidth=1)
        for place, method in enumerate(methods):
            present = [task for task in tasks if task in method.transfer]
            shift = (place - (len(methods) - 1) / 2) * 0.7 / len(methods)
            heights = [tasks.index(task) + shift for task in present]
            interval_points(axes, place, heights, [method.transfer[task] for task in present])
        for boundary in range(1, len(tasks)):
            axes.axhline(boundary - 0.5, color=GRID, linewidth=0.6)
        axes.set_yticks(range(len(tasks)), [f"{task} ({score_label(source.results.metrics[task])})" for task in tasks])
        axes.set_ylim(len(tasks) - 0.5, -0.5)
        axes.grid(visible=False, axis="y")
        axes.tick_params(axis="y", length=0)
        axes.set_xlabel("score with the other tasks minus score alone: right of the line, company helps")
        if len(methods) > 1:
            legend(figure, [method.title for method in methods])

    reading = (
        "Each point is a task's score in the run of all tasks minus its score in a run of its own, by the same method "
        "on the same rows, each task seeing as many of its rows; the line is the 95 % interval, paired by seed and "
        "row. Right is better in company, left is paid for it; an interval that touches the line says neither. Sorted "
        "by the mean. Several tasks are looked at, so one outlier may be chance."
    )
    data = {
        method.title: {
            task: {**method.transfer[task].model_dump(), "percent": method.relative_transfer.get(task)}
            for task in tasks
            if task in method.transfer
        }
        for method in methods
    }
    size = (7.6, 0.9 + (0.22 if len(methods) > 1 else 0) + len(tasks) * max(0.26, 0.15 * len(methods)))
    return picture("transfer", "What do tasks gain from company?", reading, data, size, draw)


def _mean(methods: list[MethodResults], task: str) -> float:
    values = [method.transfer[task].mean for method in methods if task in method.transfer]
    return sum(values) / len(values)
