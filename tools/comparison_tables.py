"""Tables of the comparisons that are kept in benchmarks/results, as the README and the docs show them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from tasklora.evaluation import ComparisonResults, Trial
from tasklora.report import numbers
from tasklora.report.loading import Source
from tasklora.report.svg import Picture

RESULTS = Path(__file__).resolve().parents[1] / "benchmarks" / "results"


def kept(name: str) -> ComparisonResults:
    """Return a kept comparison."""
    return ComparisonResults.read(RESULTS / f"{name}.json")


def of_kept(name: str, draw: Callable[[Source], Picture]) -> Picture:
    """Return a figure of a kept comparison."""
    return draw(Source(name, kept(name), {}))


def table(header: list[str], rows: list[list[str]]) -> str:
    """Return a Markdown table; every column but the first is aligned to the right."""
    lines = ["| " + " | ".join(header) + " |", "| --- |" + " ---: |" * (len(header) - 1)]
    return "\n".join(lines + ["| " + " | ".join(row) + " |" for row in rows]) + "\n"


def comparison(name: str) -> Callable[[], str]:
    """Return what writes the tables of a kept comparison, with how it was made."""

    def write() -> str:
        results = kept(name)
        return f"{_methods(results)}\n{_tasks(results)}\n{_trials(results)}{_provenance(results)}"

    return write


def summary(name: str) -> Callable[[], str]:
    """Return what writes the table of methods of a kept comparison."""
    return lambda: f"{_methods(kept(name))}\n{_provenance(kept(name))}"


def dense_comparison(name: str) -> Callable[[], str]:
    """Return what writes the tables of a kept comparison on dense tasks, as published ones are laid out."""

    def write() -> str:
        results = kept(name)
        return f"{_dense_methods(results)}\n{_trials(results)}{_provenance(results, 'images')}"

    return write


def dense_summary(name: str) -> Callable[[], str]:
    """Return what writes the first of these tables alone."""
    return lambda: f"{_dense_methods(kept(name))}\n{_provenance(kept(name), 'images')}"


def _methods(results: ComparisonResults) -> str:
    rows = [
        [
            method.title + (" (baseline)" if method.name == results.baseline else ""),
            f"{method.parameters.trainable:,}" if method.parameters else "–",
            numbers.estimate(method.average),
            numbers.interval(method.average),
            numbers.difference(method.difference),
            numbers.percent(method.delta_m),
        ]
        for method in results.methods
    ]
    return table(["method", "trainable", "average", "95 % interval", "minus baseline (95 %)", "Δm, %"], rows)


def _tasks(results: ComparisonResults) -> str:
    rows = [
        [task, metric, f"{results.rows[task]:,}"]
        + [numbers.estimate(method.tasks.get(task)) for method in results.methods]
        for task, metric in results.metrics.items()
    ]
    return table(["task", "metric", "rows", *(method.title for method in results.methods)], rows)


def _dense_methods(results: ComparisonResults) -> str:
    """Return one row per method: every task's metric as it is (not negated), Δm, parameters, time."""
    metrics = results.metrics.items()
    arrows = {metric: "↓" if numbers.lower_is_better(metric) else "↑" for _, metric in metrics}
    rows = []
    for method in results.methods:
        rows.append(
            [
                method.title + (" (baseline)" if method.name == results.baseline else ""),
                *(numbers.estimate(numbers.natural(method.tasks.get(task), metric)) for task, metric in metrics),
                numbers.percent(method.delta_m),
                numbers.interval(method.delta_m, 1),
                f"{method.parameters.trainable:,}" if method.parameters else "–",
                numbers.milliseconds(numbers.step_milliseconds(method)),
            ]
        )
    header = [f"{task}, {metric} {arrows[metric]}" for task, metric in metrics]
    return table(["method", *header, "Δm, %", "95 % interval", "trainable", "step, ms"], rows)


def _trials(results: ComparisonResults) -> str:
    """Return what each method was run with: what all its trials had, then what was tried."""
    if not results.search:
        return ""
    rows = [[method.title, _tried(method.trials)] for method in results.methods]
    return table(["method", "settings tried: average on tune (**chosen**)"], rows) + "\n"


def _tried(trials: list[Trial]) -> str:
    settings = [{key.rpartition(".")[2]: value for key, value in trial.settings.items()} for trial in trials]
    varied = [key for key in settings[0] if any(other[key] != settings[0][key] for other in settings)]
    same = [f"{key} {value:g}" for key, value in settings[0].items() if key not in varied]
    if not varied:
        return ", ".join(same) or "the recipe's own"
    tried = [
        f"{mark}{' '.join(f'{of_trial[key]:g}' for key in varied)}: {numbers.number(trial.tune_average)}{mark}"
        for trial, of_trial in zip(trials, settings, strict=True)
        for mark in ["**" if trial.chosen else ""]
    ]
    return ", ".join([*same, f"{' '.join(varied)} {', '.join(tried)}"])


def _provenance(results: ComparisonResults, unit: str = "rows") -> str:
    rows = sorted(set(results.training_rows.values()))
    said = f"{rows[0]:,}" if len(rows) == 1 else f"{rows[0]:,} to {rows[-1]:,}"
    seeds = (
        "seed " + str(results.seeds[0]) if len(results.seeds) == 1 else "seeds " + ", ".join(map(str, results.seeds))
    )
    of_what = "rows a task" if unit == "rows" else unit
    text = (
        f"{results.suite} on {results.base.rpartition('/')[2]}; {said} training {of_what}, {results.steps} steps, "
        f"{seeds}; mean ± standard deviation over seeds, intervals by bootstrap over seeds and {unit}."
    )
    if results.guarded:
        text += f" Left out of Δm, the baseline's score is near zero: {', '.join(results.guarded)}."
    commits = " and ".join(f"`{(commit or 'unknown')[:12]}`" for commit in results.commits)
    return f"{text} `{results.command}` at commit {commits}.\n"
