"""What was run, as far as a few words can say it: the head of a report."""

from __future__ import annotations

from tasklora.errors import listing
from tasklora.report import figures, numbers
from tasklora.report.loading import Source
from tasklora.report.many_tasks import MOST_TASKS


def facts(source: Source) -> dict[str, str]:
    """Return what was run, as far as a few words can say it."""
    results = source.results
    rows = sorted(set(results.training_rows.values()))
    scored = sorted(set(results.rows.values()))
    what = "images" if source.is_dense else "rows a task"
    streamed = [] if source.is_dense else [task for task in results.metrics if task not in results.training_rows]
    unknown = f", and an unknown number of {listing(streamed, MOST_TASKS)}" if rows and streamed else ""
    has_units = numbers.has_units(results.metrics, source.is_dense)
    found = {
        "tasks": f"{len(results.metrics)} of {results.suite}: {listing(results.metrics, MOST_TASKS)}",
        "base model": results.base,
        "methods": ", ".join(method.title for method in results.methods),
        "seeds": ", ".join(map(str, results.seeds)),
        "budget": f"{results.steps} steps on {_range(rows)} training {what}{unknown}",
        "scored on": f"{_range(scored)} {what} of {results.split}",
        "undefined": _undefined(source),
        "average": f"mean over the tasks; {numbers.AVERAGE_OF_UNITS}" if has_units else "",
        "search": _search(source),
        "time": "" if source.comparison else _time(source),
        "command": results.command,
        "commit": ", ".join(commit or "unknown" for commit in results.commits),
        "machine": ", ".join(f"{key} {value}" for key, value in results.machine.items()),
        "versions": ", ".join(f"{name} {version}" for name, version in results.versions.items()),
    }
    return {name: fact for name, fact in found.items() if fact}


def _undefined(source: Source) -> str:
    """Return which scores there are not, since the primary metric has no value on the rows."""
    results = source.results
    missing = {
        f"{task} ({numbers.score_label(metric)})": [m.title for m in figures.done(results) if task not in m.tasks]
        for task, metric in results.metrics.items()
    }
    named = [f"{task} of {', '.join(methods)}" for task, methods in missing.items() if methods]
    return f"{'; '.join(named)}: no value on these rows, so none on average over all tasks" if named else ""


def _search(source: Source) -> str:
    results = source.results
    if not source.comparison:
        return ""
    if not results.search:
        return "none: every method ran with the recipe's settings"
    trials = max(len(method.trials) for method in results.methods)
    if trials == 1:
        return f"none: every method ran with the recipe's settings, but for {'; '.join(results.search)}"
    return (
        f"{trials} settings per method ({'; '.join(results.search)}), tried with seed {results.seeds[0]}, chosen by "
        "the average on tune"
    )


def _time(source: Source) -> str:
    training, scoring = source.shown.results.training.seconds, source.shown.results.evaluation_seconds
    return f"{training:,.0f} s of training, scoring of tune rows included, and {scoring:,.0f} s of scoring"


def _range(counts: list[int]) -> str:
    if not counts:  # all rows are streamed, and nobody knows how many there are
        return "an unknown number of"
    return f"{counts[0]:,}" if len(counts) == 1 else f"{counts[0]:,} to {counts[-1]:,}"
