"""Tables on the terminal, and the one of methods that the docs hold too."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.markup import escape
from rich.table import Table

from tasklora.evaluation import ComparisonResults, Estimate, ParameterCounts, SplitScores


def number(value: float | None) -> str:
    """Return a score as text; a dash where it is undefined."""
    return "–" if value is None else f"{value:.4f}"


def score_table(
    scores: Mapping[Any, SplitScores], title: str, untrained: Mapping[Any, SplitScores] | None = None
) -> Table:
    """Return scores per task and on average, beside those before training if given."""
    table = Table(title=title, title_justify="left")
    table.add_column("task")
    table.add_column("rows", justify="right")
    table.add_column("metric")
    if untrained:
        table.add_column("untrained", justify="right")
    table.add_column("score", justify="right", style="bold")
    for split, split_scores in scores.items():
        before = (untrained or {}).get(split)
        for name, task in split_scores.tasks.items():
            for place, (metric, value) in enumerate(task.metrics.items()):
                cells = [name if place == 0 else "", str(task.rows) if place == 0 else "", metric]
                if before is not None:
                    cells.append(number(before.tasks[name].metrics[metric]))
                table.add_row(*cells, number(value))
        table.add_section()
        cells = [f"average on {split}", "", "primary metrics"]
        if before is not None:
            cells.append(number(before.average))
        table.add_row(*cells, number(split_scores.average))
        if split_scores.undefined:
            table.caption = f"undefined on these rows, left out of the average: {', '.join(split_scores.undefined)}"
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


def method_records() -> list[dict[str, Any]]:
    """Return what each method is and can do, read from the registry."""
    from tasklora.tuner import METHODS

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
                "checked against": method.parity,
                "paper": method.paper,
            }
        )
    return records


def _cell(value: Any) -> str:
    return {True: "yes", False: "no"}[value] if isinstance(value, bool) else str(value)


def method_table() -> Table:
    """Return the methods as a table for the terminal; ``--markdown`` and ``--json`` have every column."""
    table = Table(title="methods", title_justify="left", caption="'lora' in a recipe is PEFT's own, one for all tasks")
    columns = ("name", "kind", "task ids", "plain LoRA per task", "mergeable", "checked against", "paper")
    for column in columns:
        table.add_column(column, overflow="fold")
    for record in method_records():
        table.add_row(*(_cell(record[column]) for column in columns))
    return table


def methods_markdown() -> str:
    """Return the methods as a Markdown table."""
    records = method_records()
    lines = ["| " + " | ".join(records[0]) + " |", "| " + " | ".join("---" for _ in records[0]) + " |"]
    lines += ["| " + " | ".join(_cell(value) for value in record.values()) + " |" for record in records]
    return "\n".join(lines) + "\n"


def comparison_table(results: ComparisonResults) -> Table:
    """Return a comparison: one column per method, one row per task, with spread over seeds and intervals."""
    table = Table(
        title=f"{results.suite} on {results.base}, {len(results.seeds)} seed(s): mean ± standard deviation",
        title_justify="left",
    )
    table.add_column("task")
    table.add_column("metric")
    done = [method for method in results.methods if method.average is not None]
    for method in done:
        table.add_column(method.title, justify="right", overflow="fold")
    for task, metric in results.metrics.items():
        table.add_row(task, metric, *(estimate(method.tasks.get(task)) for method in done))
    table.add_section()
    table.add_row("average", "", *(estimate(method.average) for method in done), style="bold")
    table.add_row("", "95 % interval", *(interval(method.average) for method in done))
    table.add_row(
        f"minus {results.baseline}", "95 % interval", *(interval(method.difference, sign=True) for method in done)
    )
    table.add_row("Δm", f"% against {results.baseline}", *(percent(method.delta_m) for method in done))
    table.add_row(
        "trainable", "parameters", *(f"{method.parameters.trainable:,}" for method in done if method.parameters)
    )
    notes = []
    if results.guarded:
        notes.append(f"left out of Δm, its baseline score is near zero: {', '.join(results.guarded)}")
    notes += [f"{method.title} failed: {method.failures[0]}" for method in results.methods if method.failures]
    table.caption = "\n".join(notes) or None
    return table


def estimate(value: Estimate | None) -> str:
    """Return a mean with its spread over seeds."""
    if value is None:
        return "–"
    return f"{value.mean:.3f}" + ("" if value.std is None else f" ± {value.std:.3f}")


def interval(value: Estimate | None, sign: bool = False) -> str:
    """Return an interval."""
    if value is None:
        return "–"
    return f"[{value.low:+.3f}, {value.high:+.3f}]" if sign else f"[{value.low:.3f}, {value.high:.3f}]"


def percent(value: Estimate | None) -> str:
    """Return a Δm."""
    return "–" if value is None else f"{value.mean:+.1f}"
