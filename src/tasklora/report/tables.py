"""Tables on the terminal, and the one of methods that the docs hold too."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.markup import escape
from rich.table import Table

from tasklora.errors import listing
from tasklora.evaluation import ComparisonResults, MethodResults, ParameterCounts, PerTaskResults, SplitScores
from tasklora.report import numbers
from tasklora.report.many_tasks import worst_and_best
from tasklora.tasks import TRAINING_METHODS
from tasklora.tuner import METHODS


def score_table(
    scores: Mapping[Any, SplitScores],
    title: str,
    untrained: Mapping[Any, SplitScores] | None = None,
    per_task: PerTaskResults | None = None,
) -> Table:
    """Return scores per task and on average, beside those before training and at each task's own step if given.

    Of very many tasks, the worst and the best are in it.
    """
    table = Table(title=title, title_justify="left")
    table.add_column("task")
    table.add_column("rows", justify="right")
    table.add_column("metric")
    if untrained:
        table.add_column("untrained", justify="right")
    table.add_column("score", justify="right", style="bold")
    if per_task:
        table.add_column("own best", justify="right")
        table.add_column("its step", justify="right")
    for split, split_scores in scores.items():
        before = (untrained or {}).get(split)
        picked = worst_and_best({name: task.score for name, task in split_scores.tasks.items()})
        for name in picked:
            task = split_scores.tasks[name]
            for place, (metric, value) in enumerate(task.metrics.items()):
                cells = [name if place == 0 else "", str(task.rows) if place == 0 else "", metric]
                if before is not None:
                    cells.append(numbers.number(before.tasks[name].metrics[metric], 4))
                cells.append(numbers.number(value, 4))
                if per_task:
                    choice = per_task.choices.get(name)
                    cells.append(numbers.number(per_task.scores[split].tasks[name].metrics[metric], 4))
                    cells.append(str(choice.step) if choice and place == 0 else "")
                table.add_row(*cells)
        table.add_section()
        cells = [f"average on {split}", "", "primary metrics"]
        if before is not None:
            cells.append(numbers.number(before.average, 4))
        cells.append(numbers.number(split_scores.average, 4))
        if per_task:
            cells += [numbers.number(per_task.scores[split].average, 4), ""]
        table.add_row(*cells)
        notes = [numbers.average_note(split_scores)]
        if split_scores.undefined:
            notes.append(f"undefined on these rows, left out of the average: {listing(split_scores.undefined)}")
        if len(picked) < len(split_scores.tasks):
            notes.append(
                f"{len(picked)} of {len(split_scores.tasks):,} tasks: those with the lowest and the highest scores; "
                "results.json and report.html have all"
            )
        table.caption = "\n".join(note for note in notes if note) or None
    return table


def prediction_table(task: str, records: list[dict[str, Any]]) -> Table:
    """Return predictions as a table."""
    table = Table(title=task, title_justify="left")
    for column in records[0]:
        table.add_column(column, overflow="fold")
    for record in records:
        table.add_row(*(escape(str(value)) for value in record.values()))
    return table


def parameter_table(counts: ParameterCounts, title: str) -> Table:
    """Return parameter counts by group."""
    table = Table(title=title, title_justify="left")
    table.add_column("group")
    table.add_column("parameters", justify="right")
    for group, count in counts.groups.items():
        table.add_row(group, f"{count:,}")
    table.add_section()
    table.add_row("trainable", f"{counts.trainable:,}", style="bold")
    table.add_row("all", f"{counts.total:,}")
    table.caption = f"{100 * counts.trainable / counts.total:.3f} % trainable"
    return table


# MTLoRA is no update of single layers but a network of them, so it has no entry in the registry of updates.
_STREAMS = {
    "name": "mtlora",
    "method": "MTLoRA",
    "config": "vision.SwinMTLoRAConfig",
    "kind": "streams",
    "update": "s B A x; in a task's stream s_t B_t A_t x_t",
    "task ids": False,
    "plain LoRA per task": False,
    "mergeable": False,
    "new task without retraining": False,
    "checked against": "published code, 1e-10 a layer",
    "paper": "CVPR 2024",
}


def method_records() -> list[dict[str, Any]]:
    """Return what each method is and can do, read from the registry."""
    records = []
    for method in METHODS.values():
        update = method.update_cls
        exact = update.kind != "routed"
        records.append(
            {
                "name": method.name,
                "method": method.title,
                "config": method.config_cls.__name__,
                "kind": update.kind,
                "update": method.formula,
                "task ids": update.uses_task_ids,
                "plain LoRA per task": exact,
                "mergeable": exact,
                "new task without retraining": update.uses_task_ids,
                "checked against": method.parity,
                "paper": method.paper,
            }
        )
    return [*records, dict(_STREAMS)]


def _cell(value: Any) -> str:
    return {True: "yes", False: "no"}[value] if isinstance(value, bool) else str(value)


# Column of the Markdown table → its heading in a terminal, where eighty characters must do.
TERMINAL_COLUMNS = {
    "name": "name",
    "kind": "kind",
    "task ids": "task ids",
    "plain LoRA per task": "export",
    "mergeable": "merge",
    "new task without retraining": "new task",
    "checked against": "parity",
    "paper": "paper",
}


def method_table() -> Table:
    """Return the methods as a table for the terminal; ``--markdown`` and ``--json`` have every column."""
    baselines = [f"{m.name} ({m.title})" for name, m in TRAINING_METHODS.items() if name not in METHODS]
    caption = "besides, for comparison: " + "; ".join(baselines)
    table = Table(title="methods", title_justify="left", padding=(0, 1, 0, 0), caption=caption)
    for heading in TERMINAL_COLUMNS.values():
        table.add_column(heading, overflow="fold", no_wrap=heading in ("name", "merge", "export"))
    for record in method_records():
        table.add_row(*(_cell(record[column]) for column in TERMINAL_COLUMNS))
    return table


def methods_markdown() -> str:
    """Return the methods as a Markdown table."""
    records = method_records()
    lines = ["| " + " | ".join(records[0]) + " |", "| " + " | ".join("---" for _ in records[0]) + " |"]
    lines += ["| " + " | ".join(_cell(value) for value in record.values()) + " |" for record in records]
    return "\n".join(lines) + "\n"


def comparison_tables(results: ComparisonResults) -> list[Table]:
    """Return a comparison as two tables: methods with averages and sizes, and tasks with the mean of each method."""
    done = [method for method in results.methods if method.tasks or not method.failures]
    seeds = f"{len(results.seeds)} seed" + ("s" if len(results.seeds) > 1 else "")
    methods = Table(title=f"{results.suite}, {seeds}, against {results.baseline}", title_justify="left")
    methods.add_column("method")
    timed = any(method.step_seconds for method in done)
    for column in ("average", "minus baseline, 95 % interval", "Δm, %", "trainable", *(["step, ms"] if timed else [])):
        methods.add_column(column, justify="right")
    for method in done:
        methods.add_row(
            method.title,
            numbers.estimate(method.average),
            numbers.difference(method.difference),
            numbers.percent(method.delta_m),
            f"{method.parameters.trainable:,}" if method.parameters else "–",
            *([numbers.milliseconds(numbers.step_milliseconds(method))] if timed else []),
            style="bold" if method.name == results.main else None,
        )
    notes = []
    if results.guarded:
        notes.append(f"left out of Δm, the baseline's score is near zero: {', '.join(results.guarded)}")
    if timed:
        notes.append(numbers.STEP_NOTE)
    notes += [f"{method.title} failed: {method.failures[0]}" for method in results.methods if method.failures]
    methods.caption = "\n".join(notes) or None
    return [methods, _task_table(results, done)]


def _task_table(results: ComparisonResults, done: list[MethodResults]) -> Table:
    """Return the mean score of each method on each task; whichever are more become the rows, so that all fit."""
    titles = {method.name: method.title for method in done}
    tasks = {task: f"{task} [dim]{numbers.score_label(metric)}[/dim]" for task, metric in results.metrics.items()}
    means = {
        (task, method.name): numbers.number(method.tasks[task].mean if task in method.tasks else None)
        for task in tasks
        for method in done
    }
    title = "mean score per task"
    if len(titles) > len(tasks):
        table = Table(title=title, title_justify="left", padding=(0, 1, 0, 0), caption=" · ".join(tasks.values()))
        table.add_column("method")
        for task in tasks:
            table.add_column(task, justify="right", overflow="fold")
        for method, title in titles.items():
            table.add_row(title, *(means[task, method] for task in tasks))
        return table
    table = Table(title=title, title_justify="left")
    table.add_column("task", no_wrap=True)
    for title in titles.values():
        table.add_column(title, justify="right")  # titles wrap at their words, where names would be cut
    for task, label in tasks.items():
        table.add_row(label, *(means[task, method] for method in titles))
    return table
