"""Summaries of a comparison: means, spreads, paired bootstrap intervals, and Δm against a baseline."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from tasklora.errors import CheckpointError, listing
from tasklora.evaluation.bootstrap import Counts, resample_counts
from tasklora.evaluation.predictions import Scored
from tasklora.evaluation.results import ParameterCounts, RunResults
from tasklora.evaluation.transfer import SINGLE, relative_transfer
from tasklora.tasks import Split, Strict, TaskSpec, parse, write_text_whole
from tasklora.vision.spec import DenseTaskSpec

Array = NDArray[np.float64]
Specs: TypeAlias = Mapping[str, TaskSpec] | Mapping[str, DenseTaskSpec]

RESAMPLES = 2000
CONFIDENCE = 0.95
NEAR_ZERO = 0.05
"""A baseline score of less than this is left out of Δm: a relative change against it says nothing."""


@dataclass(frozen=True)
class CellResults:
    """A finished run of a comparison: its results, and what it said of each row."""

    results: RunResults
    rows: Mapping[str, Scored]


class Estimate(Strict):
    """A quantity measured with several seeds.

    Attributes:
        mean: over the seeds.
        std: standard deviation over the seeds (n − 1); None with one seed.
        low: lower end of the 95 % bootstrap interval over seeds and rows; None if it is undefined on every resample.
        high: its upper end.
        seeds: the value of each seed.
    """

    mean: float
    std: float | None
    low: float | None
    high: float | None
    seeds: list[float]


class Trial(Strict):
    """One setting of a search.

    Attributes:
        settings: recipe key → value.
        run: the run's folder inside the comparison.
        tune_average: what it is judged by; None if it failed.
        failed: why it did.
    """

    settings: dict[str, Any]
    seed: int
    run: str
    tune_average: float | None
    chosen: bool
    failed: str | None = None


class MethodResults(Strict):
    """What a comparison found of one method.

    Attributes:
        title: as in tables.
        failures: why runs could not be finished; then there are no scores.
        settings: the chosen setting of the search.
        trials: everything that was tried, chosen by the average on tune.
        runs: folders of the runs of the chosen setting, inside the comparison.
        parameters: numbers of parameters.
        tasks: task → its score.
        average: mean over the tasks; of dense tasks, on the scale of :func:`tasklora.evaluation.dense.unit_score`.
        differences: task → its score minus the baseline's, paired by seed and row.
        difference: the same of the average.
        delta_m: Δm of the mean scores against the baseline's mean scores, in percent; None if no task counts, and for
            the baseline. Its interval is that of the differences, the baseline's scores taken as measured.
        transfer: task → its score minus that in a run of its own (``METHOD@single``, if it was compared), paired.
        relative_transfer: the same in percent of the score alone; without tasks whose score alone is near zero.
        seconds: wall-clock time of training of each run.
        step_seconds: median time of an optimiser step of each run; empty if one did not take it.
    """

    name: str
    title: str
    failures: list[str] = []
    settings: dict[str, Any]
    trials: list[Trial]
    runs: list[str] = []
    parameters: ParameterCounts | None = None
    tasks: dict[str, Estimate] = {}
    average: Estimate | None = None
    differences: dict[str, Estimate] = {}
    difference: Estimate | None = None
    delta_m: Estimate | None = None
    transfer: dict[str, Estimate] = {}
    relative_transfer: dict[str, float] = {}
    seconds: list[float] = []
    step_seconds: list[float] = []


class ComparisonResults(Strict):
    """Content of a comparison's results.json.

    Attributes:
        main: the recipe's own method.
        baseline: the method that others are measured against.
        guarded: tasks left out of Δm, because the baseline's score is near zero.
        metrics: task → its primary metric.
        rows: task → rows (of dense tasks, images) scored.
        training_rows: task → training rows.
        steps: optimiser steps of each run.
        commits: those that the reported runs were made at; None stands for an unknown one.
    """

    format: Literal["tasklora/comparison-results"] = "tasklora/comparison-results"
    version: Literal[1] = 1
    created: str
    command: str
    commits: list[str | None]
    main: str
    baseline: str
    suite: str
    split: Split
    base: str
    seeds: list[int]
    search: list[str]
    resamples: int
    guarded: list[str]
    metrics: dict[str, str]
    rows: dict[str, int]
    training_rows: dict[str, int]
    steps: int
    methods: list[MethodResults]
    versions: dict[str, str]
    machine: dict[str, str]

    def method(self, name: str) -> MethodResults:
        """Return what was found of a method."""
        return next(method for method in self.methods if method.name == name)

    def write(self, path: Path) -> None:
        """Write the file, whole or not at all."""
        write_text_whole(path, self.model_dump_json(indent=2) + "\n")

    @classmethod
    def read(cls, path: Path) -> ComparisonResults:
        """Read the file.

        Raises:
            CheckpointError: if it is missing or damaged.
        """
        try:
            data = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise CheckpointError(f"cannot read {path}: {error}. Has the comparison finished?") from None
        return parse(cls, data, str(path))


def delta_m(scores: Array, baseline: Array, measured: Array | None = None) -> Array:
    """Return Δm = (100/T) Σ_t (M_t − S_t) / |S_t|, in percent.

    Args:
        scores: (…, T), M; higher is better (metrics for which lower is better are negated before).
        baseline: (…, T), S.
        measured: (T,), what to divide by in place of S: on a resample with an S near zero Δm would explode.
    """
    change: Array = 100.0 * ((scores - baseline) / np.abs(baseline if measured is None else measured)).mean(axis=-1)
    return change


def compare_cells(
    cells: Mapping[str, Sequence[CellResults]],
    *,
    titles: Mapping[str, str],
    trials: Mapping[str, list[Trial]],
    failures: Mapping[str, list[str]],
    runs: Mapping[str, list[str]],
    main: str,
    baseline: str,
    specs: Specs,
    command: str,
    search: Sequence[str],
) -> ComparisonResults:
    """Summarise the finished runs of several methods.

    Intervals are percentiles of 2,000 resamples: seeds are drawn with replacement, rows of each task too (images, for
    all their tasks at once); all methods share what is drawn, so that differences are paired by seed and by row.

    Args:
        cells: method → its finished runs, one per seed, seeds in the same order.
        titles: method → title.
        trials: method → what was tried.
        failures: method → why runs of it failed; such a method gets no scores.
        runs: method → folders of its runs.
        main: the recipe's own method.
        baseline: the method that others are measured against.
        specs: the tasks.
        command: the command line.
        search: the grids as given.

    Raises:
        CheckpointError: if runs are of different suites, versions or rows, or the baseline failed.
    """
    whole = {method: list(of_method) for method, of_method in cells.items() if method not in failures}
    if baseline not in whole:
        raise CheckpointError(f"the baseline '{baseline}' failed: {'; '.join(failures[baseline])}")
    check_comparable([cell for of_method in whole.values() for cell in of_method])
    first = whole[baseline][0].results
    (split,) = first.scores
    tasks = list(specs)
    resampled = _Resampled(whole, specs)
    base = resampled.of(baseline)
    counted = [place for place, score in enumerate(base.seeds.mean(axis=0)) if abs(score) >= NEAR_ZERO]
    found = []
    for method, title in titles.items():
        chosen = next(trial for trial in trials[method] if trial.chosen)
        summary = MethodResults(name=method, title=title, settings=chosen.settings, trials=trials[method])
        if method not in whole:
            summary.failures = failures[method]
        else:
            scores = resampled.of(method)
            summary.runs = runs[method]
            summary.parameters = whole[method][0].results.parameters
            summary.seconds = [cell.results.training.seconds for cell in whole[method]]
            steps = [cell.results.training.step_seconds for cell in whole[method]]
            summary.step_seconds = [step for step in steps if step is not None] if None not in steps else []
            summary.tasks = scores.by_task(tasks)
            summary.average = scores.average()
            if method + SINGLE in whole:
                alone = resampled.of(method + SINGLE)
                summary.transfer = scores.minus(alone).by_task(tasks)
                summary.relative_transfer = relative_transfer(summary.transfer, alone.by_task(tasks), NEAR_ZERO)
            if method != baseline:
                apart = scores.minus(base)
                summary.differences, summary.difference = apart.by_task(tasks), apart.average()
                if counted and np.isfinite(apart.seeds[:, counted]).all():
                    measured = base.seeds.mean(axis=0)[counted]
                    summary.delta_m = _estimate(
                        delta_m(scores.seeds[:, counted], base.seeds[:, counted], measured),
                        delta_m(scores.draws[:, counted], base.draws[:, counted], measured),
                    )
        found.append(summary)
    return ComparisonResults(
        created=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        command=command,
        commits=sorted({cell.results.commit for of_method in whole.values() for cell in of_method}, key=str),
        main=main,
        baseline=baseline,
        suite=first.suite,
        split=split,
        base=first.base,
        seeds=[cell.results.seed for cell in whole[baseline]],
        search=list(search),
        resamples=RESAMPLES,
        guarded=[task for place, task in enumerate(tasks) if place not in counted],
        metrics={name: spec.primary for name, spec in specs.items()},
        rows={name: len(rows) for name, rows in whole[baseline][0].rows.items()},
        training_rows=first.training.rows_per_task,
        steps=first.training.steps,
        methods=found,
        versions=first.versions,
        machine=first.machine,
    )


def check_comparable(cells: Sequence[CellResults]) -> None:
    """Raise CheckpointError unless runs can stand in one table: same suite, tasks, base, versions, and rows scored."""
    first = cells[0]
    for cell in cells[1:]:
        for what in ("suite", "tasks", "base", "versions"):
            mine, other = getattr(first.results, what), getattr(cell.results, what)
            if mine != other:
                if isinstance(mine, dict):
                    mine, other = (
                        {key: value for key, value in one.items() if two.get(key) != value}
                        for one, two in ((mine, other), (other, mine))
                    )
                raise CheckpointError(
                    f"runs of different {what} cannot be compared: {_said(first)} has {_shown(mine)}, {_said(cell)} "
                    f"has {_shown(other)}. Run one of them again."
                )
        differing = [
            task for task, rows in first.rows.items() if task not in cell.rows or not rows.same_rows(cell.rows[task])
        ]
        if differing:
            raise CheckpointError(
                f"{_said(first)} and {_said(cell)} were scored on different rows of {listing(differing)}. Run one of "
                "them again."
            )


def _said(cell: CellResults) -> str:
    return f"the run of '{cell.results.method}' with seed {cell.results.seed} ({cell.results.created})"


def _shown(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} {entry}" for key, entry in value.items())
    return listing(value) if isinstance(value, list) else repr(value)


@dataclass(frozen=True)
class _Scores:
    """Scores of one method, or differences of two.

    Attributes:
        seeds: (seeds, tasks).
        draws: (resamples, tasks), each the mean over the seeds drawn.
        counted_seeds: (seeds, tasks), what the scores count in an average over the tasks.
        counted_draws: (resamples, tasks), the same of each draw.
    """

    seeds: Array
    draws: Array
    counted_seeds: Array
    counted_draws: Array

    def by_task(self, tasks: Sequence[str]) -> dict[str, Estimate]:
        return {
            task: _estimate(self.seeds[:, place], self.draws[:, place])
            for place, task in enumerate(tasks)
            if np.isfinite(self.seeds[:, place]).all()
        }

    def average(self) -> Estimate | None:
        if not np.isfinite(self.seeds).all():
            return None
        return _estimate(self.counted_seeds.mean(axis=1), self.counted_draws.mean(axis=1))

    def minus(self, other: _Scores) -> _Scores:
        return _Scores(
            self.seeds - other.seeds,
            self.draws - other.draws,
            self.counted_seeds - other.counted_seeds,
            self.counted_draws - other.counted_draws,
        )


class _Resampled:
    """Scores of several methods on the same draws of seeds and rows."""

    def __init__(self, cells: Mapping[str, Sequence[CellResults]], specs: Specs) -> None:
        self.cells = cells
        self.specs = specs
        any_method = next(iter(cells.values()))
        generator = np.random.default_rng(0)
        seeds = len(any_method)
        self.seed_counts = resample_counts(seeds, RESAMPLES, generator) / seeds  # (resamples, seeds)
        # Tasks on the same images are drawn together: an image that is drawn counts for all of them.
        self.row_counts: dict[str, Counts] = {}
        for task in specs:
            rows = any_method[0].rows[task]
            drawn = rows.drawn_as(task)
            if drawn not in self.row_counts:
                self.row_counts[drawn] = resample_counts(len(rows), RESAMPLES, generator)

    def of(self, method: str) -> _Scores:
        """Return the scores of a method; higher is better."""
        cells, places = self.cells[method], (len(self.cells[method]), len(self.specs))
        draws, measured = np.zeros((RESAMPLES, len(self.specs))), np.zeros(places)
        counted, counted_draws = np.zeros(places), np.zeros_like(draws)
        for place, (task, spec) in enumerate(self.specs.items()):
            for seed, cell in enumerate(cells):
                rows: Any = cell.rows[task]  # of the task's shape
                score = cell.results.scores[next(iter(cell.results.scores))].tasks[task].score
                measured[seed, place] = np.nan if score is None else score
                resampled = rows.resampled(spec, self.row_counts[rows.drawn_as(task)])
                share = self.seed_counts[:, seed]
                draws[:, place] += resampled * share
                counted[seed, place] = rows.for_average(spec, measured[seed, place])
                counted_draws[:, place] += rows.for_average(spec, resampled) * share
        return _Scores(measured, draws, counted, counted_draws)


def _estimate(seeds: Array, draws: Array) -> Estimate:
    tail = 100 * (1 - CONFIDENCE) / 2
    defined = draws[np.isfinite(draws)]
    low, high = np.percentile(defined, [tail, 100 - tail]) if len(defined) else (None, None)
    return Estimate(
        mean=float(seeds.mean()),
        std=float(seeds.std(ddof=1)) if len(seeds) > 1 else None,
        low=None if low is None else float(low),
        high=None if high is None else float(high),
        seeds=[float(value) for value in seeds],
    )
