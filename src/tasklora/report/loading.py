"""What a report is made of: the files of one run, of several, or of a comparison."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from tasklora.errors import CheckpointError, ConfigError, did_you_mean
from tasklora.evaluation import (
    SHOWN_FILE,
    SINGLE,
    CellResults,
    ComparisonResults,
    Diagnostics,
    GradientCosines,
    RunResults,
    Scored,
    ShownImage,
    Trial,
    compare_cells,
    read_diagnostics,
    read_gradient_cosines,
    read_predictions,
    read_shown_images,
)
from tasklora.evaluation.diagnostics import DIAGNOSTICS_FILE
from tasklora.evaluation.gradients import GRADIENT_COSINES_FILE
from tasklora.evaluation.predictions import PREDICTIONS_FILE
from tasklora.evaluation.results import COMPARISON_FILE, LOG_FILE, RECIPE_FILE, RESULTS_FILE
from tasklora.tasks import TaskSpec, read_about
from tasklora.vision.saved_model import is_dense, read_dense_about
from tasklora.vision.spec import DenseTaskSpec


@dataclass(frozen=True)
class RunFiles:
    """A finished run, read when asked for."""

    path: Path

    @cached_property
    def results(self) -> RunResults:
        """Its results."""
        return RunResults.read(self.path / RESULTS_FILE)

    @cached_property
    def rows(self) -> dict[str, Scored]:
        """What it said of each row."""
        return read_predictions(self.path / PREDICTIONS_FILE)

    @cached_property
    def diagnostics(self) -> Diagnostics:
        """What its updates say of the tasks."""
        return read_diagnostics(self.path / DIAGNOSTICS_FILE)

    @cached_property
    def gradient_cosines(self) -> list[GradientCosines]:
        """The cosines of its tasks' gradients; none where they were not measured."""
        return read_gradient_cosines(self.path / GRADIENT_COSINES_FILE)

    @cached_property
    def shown_images(self) -> list[ShownImage] | None:
        """A few images with its predictions; None for a run that kept none, as dense runs of an older version."""
        path = self.path / SHOWN_FILE
        specs: Any = self.specs
        return read_shown_images(path, specs) if self.is_dense and path.is_file() else None

    @cached_property
    def is_dense(self) -> bool:
        """Whether its rows are images that have all tasks."""
        return is_dense(self.path / "best")

    @cached_property
    def specs(self) -> dict[str, TaskSpec] | dict[str, DenseTaskSpec]:
        """Its tasks; of a run that extends another, those that it trained."""
        best = self.path / "best"
        if self.is_dense:
            return dict(read_dense_about(best).tasks)
        tasks = read_about(best).tasks
        return {name: tasks[name] for name in self.results.tasks}

    @cached_property
    def recipe(self) -> str:
        """Its recipe, as YAML."""
        return (self.path / RECIPE_FILE).read_text(encoding="utf-8")

    @cached_property
    def log(self) -> list[dict[str, Any]]:
        """The records of its log; a damaged line (a crash while it was written) is left out."""
        records = []
        for line in (self.path / LOG_FILE).read_text(encoding="utf-8").splitlines():
            try:
                records.append(json.loads(line))
            except ValueError:
                continue
        return records

    def curve(self, key: str) -> tuple[list[int], list[float]]:
        """Return steps and values of one key of the log; a step that was run twice (after a crash) counts once."""
        points = {record["step"]: record[key] for record in self.log if record.get(key) is not None}
        steps = sorted(points)
        return steps, [points[step] for step in steps]


@dataclass(frozen=True)
class Source:
    """What a report shows.

    Attributes:
        title: its heading.
        results: one method or several, summarised.
        runs: method → its runs, one per seed.
        comparison: whether methods are compared.
    """

    title: str
    results: ComparisonResults
    runs: Mapping[str, list[RunFiles]]

    @property
    def comparison(self) -> bool:
        """Whether several methods are compared."""
        return len(self.results.methods) > 1

    @property
    def shown(self) -> RunFiles:
        """The run that examples and diagnostics are taken from: the main method's first, else the baseline's."""
        return self.runs[self.shown_method][0]

    @property
    def shown_method(self) -> str:
        """The method of that run."""
        return self.results.main if self.runs.get(self.results.main) else self.results.baseline.removesuffix(SINGLE)

    @property
    def specs(self) -> dict[str, TaskSpec] | dict[str, DenseTaskSpec]:
        """The tasks."""
        return self.shown.specs

    @cached_property
    def is_dense(self) -> bool:
        """Whether the rows are images that have all tasks. Kept results without their runs do not say so."""
        return bool(self.runs) and self.shown.is_dense


def load_source(paths: Sequence[Path], baseline: str | None = None) -> Source:
    """Read a comparison, a run, or several runs that are then compared.

    Args:
        paths: one comparison, or runs.
        baseline: the method that others are measured against, where several runs are given.

    Raises:
        CheckpointError: if something is missing or unfinished, or runs are of different suites, versions or rows.
        ConfigError: if the runs do not make up a table.
    """
    comparisons = [path for path in paths if (path / COMPARISON_FILE).is_file()]
    if comparisons and len(paths) > 1:
        raise ConfigError(f"{comparisons[0]} is a comparison: report it alone, or give runs only.")
    if comparisons:
        return _comparison(comparisons[0], baseline)
    for path in paths:
        if not (path / RECIPE_FILE).is_file():
            if not path.exists():
                siblings = [other.name for other in path.parent.iterdir()] if path.parent.is_dir() else []
                near = did_you_mean(path.name, siblings)
                raise CheckpointError(f"nothing is at {path}.{near} Give the directory of a run or of a comparison.")
            raise CheckpointError(f"{path} is neither a run directory nor a comparison.")
    return _runs(paths, baseline)


def _comparison(path: Path, baseline: str | None) -> Source:
    results = ComparisonResults.read(path / RESULTS_FILE)
    if baseline not in (None, results.baseline):
        raise ConfigError(
            f"the comparison {path} was made against '{results.baseline}'. Run `tasklora compare` again with "
            f"--baseline {baseline}: finished runs are kept."
        )
    runs = {method.name: [RunFiles(path / run) for run in method.runs] for method in results.methods}
    return Source(f"{path.name}: {len(results.methods)} methods on {results.suite}", results, runs)


def _runs(paths: Sequence[Path], baseline: str | None) -> Source:
    found: dict[str, list[RunFiles]] = {}
    for path in paths:
        run = RunFiles(path)
        of_method = found.setdefault(run.results.method, [])
        for other in of_method:
            if other.results.seed == run.results.seed:
                raise ConfigError(
                    f"{other.path} and {path} are both '{run.results.method}' with seed {run.results.seed}: a report "
                    "shows one of them. Compare settings of one method with `tasklora compare --search`."
                )
        of_method.append(run)
    for of_method in found.values():
        of_method.sort(key=lambda run: run.results.seed)
    seeds = {method: [run.results.seed for run in of_method] for method, of_method in found.items()}
    if len({tuple(of_method) for of_method in seeds.values()}) > 1:
        said = ", ".join(f"{method} {of_method}" for method, of_method in seeds.items())
        raise ConfigError(f"the runs cannot be paired, their seeds differ: {said}. Give every method the same seeds.")
    baseline = baseline or ("lora" if "lora" in found else next(iter(found)))
    if baseline not in found:
        raise ConfigError(
            f"no run is of the baseline '{baseline}'.{did_you_mean(baseline, found)} There are: {', '.join(found)}."
        )
    first = next(iter(found.values()))[0]
    results = compare_cells(
        {method: [CellResults(run.results, run.rows) for run in of_method] for method, of_method in found.items()},
        titles={method: _title(method, of_method[0]) for method, of_method in found.items()},
        trials={
            method: [
                Trial(
                    settings={},
                    seed=of_method[0].results.seed,
                    run=str(of_method[0].path),
                    tune_average=of_method[0].results.training.best_tune_average,
                    chosen=True,
                )
            ]
            for method, of_method in found.items()
        },
        failures={},
        runs={method: [str(run.path) for run in of_method] for method, of_method in found.items()},
        main=next((method for method in found if method != baseline), baseline),
        baseline=baseline,
        specs=first.specs,
        command=first.results.command,
        search=[],
    )
    if len(paths) == 1:
        title = f"{first.path.name}: {_title(first.results.method, first)} on {first.results.suite}"
    else:
        title = f"{len(paths)} runs on {first.results.suite}"
    return Source(title, results, found)


def _title(method: str, run: RunFiles) -> str:
    from tasklora.tasks import TRAINING_METHODS
    from tasklora.vision.methods import DENSE_METHODS

    known: Mapping[str, Any] = DENSE_METHODS if run.is_dense else TRAINING_METHODS
    return str(known[method].title) if method in known else method
