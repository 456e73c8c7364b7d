"""The report: one HTML page that holds all it shows, and asks nothing of any network."""

from __future__ import annotations

import base64
import dataclasses
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import jinja2

from tasklora.errors import OutputError
from tasklora.evaluation import Estimate, PerTaskResults, ScoredImages, package_versions, write_text_whole
from tasklora.report import curves, figures, numbers, sizes
from tasklora.report.division import division
from tasklora.report.examples import TaskErrors, worst_errors
from tasklora.report.facts import facts
from tasklora.report.images import worst_images
from tasklora.report.interference import interference
from tasklora.report.loading import Source, load_source
from tasklora.report.many_tasks import picked_tasks, which, with_tasks
from tasklora.report.shown import pictures_of
from tasklora.report.svg import Picture
from tasklora.report.transfer import transfer, with_transfer
from tasklora.vision.spec import DenseTaskSpec

REPORT_FILE = "report.html"
PER_TASK = (figures.scores, figures.differences, transfer, curves.loss_curves, curves.score_curves)
"""Figures with a mark, a row or a panel for each task."""


@dataclass(frozen=True)
class Cell:
    """A cell of a table.

    Attributes:
        text: what is shown.
        value: what the column is sorted by.
        strong: whether it is the best of its kind.
    """

    text: str
    value: float | str
    strong: bool = False


@dataclass(frozen=True)
class PageTable:
    """A table that the reader can sort.

    Attributes:
        reading: a sentence on what it shows.
        columns: titles; numbers from the second column on.
    """

    name: str
    title: str
    reading: str
    columns: list[str]
    rows: list[list[Cell]]


def write_report(
    paths: Sequence[Path], output: Path | None = None, *, baseline: str | None = None, overwrite: bool = True
) -> Path:
    """Write the report of a run, of several runs, or of a comparison.

    Args:
        paths: a comparison, or runs.
        output: the file; ``report.html`` in the directory of a single path by default.
        baseline: the method that others are measured against, where several runs are given.
        overwrite: replace the file if it is there.

    Returns:
        The file.

    Raises:
        CheckpointError: if something is missing, unfinished, or not comparable.
        ConfigError: if the runs do not make up a table.
        OutputError: if the file cannot be written.
    """
    source = load_source(paths, baseline)
    output = output or paths[0] / REPORT_FILE
    if output.is_dir() or (output.exists() and not overwrite):
        raise OutputError(f"{output} exists already. Choose another --output, or replace a file with --overwrite.")
    if not output.parent.is_dir():
        raise OutputError(
            f"no folder {output.parent} to write {output.name} into. Make it, or choose another --output."
        )
    write_text_whole(output, render(source))
    return output


def render(source: Source) -> str:
    """Return the page."""
    templates = resources.files("tasklora.report") / "templates"
    environment = jinja2.Environment(
        loader=jinja2.FunctionLoader(lambda name: (templates / name).read_text(encoding="utf-8")),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
    )
    environment.filters["data_link"] = _data_link
    styles = ["report.css", *(["pictures.css"] if source.is_dense else [])]
    return environment.get_template("report.html.j2").render(
        title=source.title,
        version=package_versions()["tasklora"],
        source=source,
        results=source.results,
        facts=facts(source),
        tables=_tables(source),
        pictures=_pictures(source),
        shown=pictures_of(source),
        failures=[(method.title, method.failures) for method in source.results.methods if method.failures],
        errors=_errors(source),
        errors_of=source.results.method(source.shown_method).title,
        errors_among=which(source),
        style="\n".join((templates / style).read_text(encoding="utf-8") for style in styles),
        script=(templates / "report.js").read_text(encoding="utf-8"),
    )


def _data_link(data: Any) -> str:
    """Return data as a link that holds it."""
    return "data:application/json;base64," + base64.b64encode(json.dumps(data).encode()).decode()


def _pictures(source: Source) -> list[Picture]:
    makers: list[Callable[[Source], Picture | None]] = [figures.scores]
    if source.comparison:
        makers += [figures.differences, transfer, figures.delta_m_bars, sizes.delta_m_and_size, sizes.score_and_size]
        makers += [figures.search]
    makers += [curves.loss_curves, curves.score_curves, curves.rows_drawn, figures.parameters]
    if source.comparison:
        makers.append(figures.training_time)
    few, note = with_tasks(source, picked_tasks(source)), which(source)

    def noted(picture: Picture | None) -> Picture | None:
        return picture and dataclasses.replace(picture, reading=picture.reading + note)

    made = [noted(make(few)) if make in PER_TASK else make(source) for make in makers]
    made += [*interference(source), *(noted(picture) for picture in division(few))]
    return [picture for picture in made if picture is not None]


def _tables(source: Source) -> list[PageTable]:
    tables = [_methods_table(source), _tasks_table(source)] if source.comparison else [_metrics_table(source)]
    tables += [_transfer_table(source)] if with_transfer(source) else []
    return [*tables, *([_images_table(source)] if source.is_dense else [])]


def _images_table(source: Source) -> PageTable:
    """Return the images that the shown run did worst on."""
    rows = []
    for task, spec in source.specs.items():
        scored = source.shown.rows[task]
        assert isinstance(spec, DenseTaskSpec)
        assert isinstance(scored, ScoredImages)
        for image in worst_images(spec, scored):
            rows.append(
                [
                    Cell(task, task),
                    Cell(image.name, image.name),
                    Cell(numbers.number(image.loss), image.loss),
                    Cell(
                        f"{spec.primary} {numbers.number(image.metric)}", "" if image.metric is None else image.metric
                    ),
                ]
            )
    title = source.results.method(source.shown_method).title
    return PageTable(
        "images",
        "Images to look at",
        f"The images of {source.results.split} on which the losses of {title} (seed {source.results.seeds[0]}) are "
        "largest, with the task's metric on each image alone: labels that are doubtful, or what the model does not "
        "know.",
        ["task", "image", "loss", "metric on it alone"],
        rows,
    )


def _methods_table(source: Source) -> PageTable:
    results = source.results
    methods = figures.done(results)
    best = max((method.average.mean for method in methods if method.average), default=None)
    timed = any(method.step_seconds for method in methods)
    rows = []
    for method in methods:
        assert method.parameters is not None
        step = numbers.step_milliseconds(method)
        rows.append(
            [
                Cell(method.title + (" (baseline)" if method.name == results.baseline else ""), method.title),
                _estimate_cell(method.average, best),
                Cell(numbers.interval(method.average), numbers.sortable(method.average)),
                Cell(numbers.difference(method.difference), numbers.sortable(method.difference)),
                Cell(numbers.percent(method.delta_m), numbers.sortable(method.delta_m)),
                Cell(f"{method.parameters.trainable:,}", method.parameters.trainable),
                *([Cell(numbers.milliseconds(step), "" if step is None else step)] if timed else []),
            ]
        )
    reading = (
        f"Averages over the tasks, mean ± standard deviation over {len(results.seeds)} seed(s), with 95 % bootstrap "
        f"intervals over seeds and rows; differences are paired with {results.method(results.baseline).title}."
    )
    columns = ["method", "average", "95 % interval", "minus baseline", "Δm, %", "trainable parameters"]
    if timed:
        reading += f" {numbers.STEP_NOTE}"
        columns.append("step, ms")
    return PageTable("methods", "Methods", reading, columns, rows)


def _tasks_table(source: Source) -> PageTable:
    results = source.results
    methods = figures.done(results)
    rows = []
    for task, metric in results.metrics.items():
        found = [method.tasks.get(task) for method in methods]
        best = max((estimate.mean for estimate in found if estimate), default=None)
        rows.append(
            [
                Cell(task, task),
                Cell(numbers.score_label(metric), metric),
                Cell(f"{results.rows[task]:,}", results.rows[task]),
                *(_estimate_cell(estimate, best) for estimate in found),
            ]
        )
    return PageTable(
        "tasks",
        "Scores per task",
        "Mean ± standard deviation over the seeds; the highest mean of a row is bold, which does not say that it "
        "differs from the others by more than chance.",
        ["task", "metric", _unit(source), *(method.title for method in methods)],
        rows,
    )


def _transfer_table(source: Source) -> PageTable:
    methods = with_transfer(source)
    rows = []
    for task in source.results.metrics:
        cells = [Cell(task, task)]
        for method in methods:
            gained, relative = method.transfer.get(task), method.relative_transfer.get(task)
            cells.append(Cell(numbers.difference(gained), numbers.sortable(gained)))
            cells.append(Cell("–", "") if relative is None else Cell(numbers.signed(relative, 1), relative))
        rows.append(cells)
    return PageTable(
        "transfer",
        "Transfer per task",
        "Score in the run of all tasks minus that in a run of the task's own, with its 95 % interval, and in percent "
        "of the latter (not where that is near zero).",
        ["task", *(title for method in methods for title in (method.title, "%"))],
        rows,
    )


def _metrics_table(source: Source) -> PageTable:
    """Return every metric of a single method's first run, with the interval of the primary one."""
    results = source.results
    (method,) = results.methods
    split = source.shown.results.scores[results.split]
    per_task = source.shown.results.per_task
    own = per_task.scores[results.split] if per_task else None
    rows = []
    for task, score in split.tasks.items():
        for metric, value in score.metrics.items():
            primary = metric == score.primary
            estimate = numbers.natural(method.tasks.get(task), metric) if primary else None
            rows.append(
                [
                    Cell(task, task),
                    Cell(metric, metric),
                    Cell(f"{score.rows:,}", score.rows),
                    Cell(numbers.number(value), "" if value is None else value, primary),
                    Cell(numbers.interval(estimate), numbers.sortable(estimate)),
                    *(_own_cells(per_task, own.tasks[task].metrics[metric], task, primary) if own else []),
                ]
            )
    rows.append(
        [
            Cell("average", "~"),
            Cell("of the primary metrics", "~"),
            Cell("", 0),
            _estimate_cell(method.average, None),
            Cell(numbers.interval(method.average), numbers.sortable(method.average)),
            *([*_own_cells(None, own.average, "", False)] if own else []),
        ]
    )
    reading = "Primary metrics are bold; their 95 % bootstrap intervals are over the rows that were scored."
    columns = ["task", "metric", _unit(source), "score", "95 % interval"]
    if own:
        training = source.shown.results.training
        reading += (
            f" The score is that of one model for all tasks, from step {training.best_step or training.steps}, where "
            "the average on tune was best; the score at its own step is that of the model from the step where the task "
            f"itself was best on tune. Neither choice saw {results.split}, so the columns can be compared; but picking "
            "each task's best of all evaluations picks more luck, and a small difference says nothing."
        )
        columns += ["score at its own step", "own step"]
    return PageTable("tasks", "Scores", reading, columns, rows)


def _own_cells(per_task: PerTaskResults | None, value: float | None, task: str, primary: bool) -> list[Cell]:
    """Return the cells of a task's score at its own step."""
    choice = per_task.choices.get(task) if per_task else None
    return [
        Cell(numbers.number(value), "" if value is None else value, primary),
        Cell(f"{choice.step:,}" if choice else "", choice.step if choice else ""),
    ]


def _unit(source: Source) -> str:
    return "images" if source.is_dense else "rows"


def _estimate_cell(estimate: Estimate | None, best: float | None) -> Cell:
    value = numbers.sortable(estimate)
    return Cell(numbers.estimate(estimate), value, value == best)


def _errors(source: Source) -> list[TaskErrors]:
    if source.is_dense:  # its rows are no texts to read: see _images_table
        return []
    shown = source.shown_method
    others: dict[str, Any] = {
        method.title: source.runs[method.name][0].rows
        for method in figures.done(source.results)
        if method.name != shown
    }
    rows: Any = source.shown.rows
    specs: Any = source.specs
    picked = picked_tasks(source)
    return [
        worst_errors(task, spec, rows[task], {title: said[task] for title, said in others.items()})
        for task, spec in specs.items()
        if task in picked
    ]
