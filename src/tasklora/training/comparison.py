"""Comparing methods: every method on the same rows, in the same order, with the same budget and the same search."""

from __future__ import annotations

import gc
import json
import shutil
from collections.abc import Sequence
from datetime import datetime, timezone
from pathlib import Path

from rich.console import Console
from rich.markup import escape

from tasklora.errors import ConfigError, InterruptedRun, NonFiniteLossError, did_you_mean
from tasklora.evaluation import (
    SINGLE,
    CellResults,
    ComparisonResults,
    RunResults,
    Trial,
    compare_cells,
    read_predictions,
    source_commit,
    write_text_whole,
)
from tasklora.evaluation.results import RECIPE_FILE
from tasklora.training.callbacks import ProgressDisplay
from tasklora.training.comparison_directory import FAILED_FILE, Cell, ComparisonDirectory, Plan
from tasklora.training.contenders import MATCHED_LORA, contender, fixed_keys, title_of
from tasklora.training.dense_recipe import DenseRecipe
from tasklora.training.processes import check_alone
from tasklora.training.recipe import Recipe
from tasklora.training.recipes import changed
from tasklora.training.run import train_recipe
from tasklora.training.search import Settings, check_same_effort, parse_grid, trials_of
from tasklora.training.single_tasks import train_single_tasks
from tasklora.training.workloads import check_recipe, workload_of


def compare_methods(
    recipe: Recipe | DenseRecipe,
    output: str | Path,
    methods: Sequence[str],
    seeds: Sequence[int],
    *,
    search: Sequence[str] = (),
    baseline: str | None = None,
    overwrite: bool = False,
    command: str = "tasklora compare",
    console: Console | None = None,
) -> ComparisonResults:
    """Run every cell of a comparison that is not finished, and summarise all of them.

    With a search, every method first runs all its trials with the first seed; the trial with the best average on
    ``tune`` is run with the other seeds too. What is reported are the scores on the recipe's report split.

    Args:
        recipe: the recipe; its method is the main one, whose options the others share.
        output: the comparison's directory: new, empty, or a comparison of the same recipe to go on with.
        methods: names of the methods; ``METHOD[OPTION=VALUE,…]`` for a variant of one.
        seeds: seeds.
        search: grids; see :func:`tasklora.training.search.parse_grid`.
        baseline: the method that others are measured against: "lora" if it is among them, else the first one.
        overwrite: begin anew in a directory that holds a comparison.
        command: the command line to note.
        console: where progress goes; a quiet one by default.

    Raises:
        ConfigError: on unknown methods, keys or baseline, or unequal searches.
        UnsupportedError: in a group of processes.
        DataError: if rows cannot be had.
        OutputError: if the directory holds something else.
        InterruptedRun: on Ctrl-C; call again to go on.
    """
    check_alone("a comparison")
    console = console or Console(quiet=True)
    plan, contenders, trials = _plan(recipe, methods, seeds, search, baseline, command)
    directory = ComparisonDirectory(output)
    directory.begin(plan, overwrite)
    trial_cells = {
        method: [directory.cell(contenders[method], method, settings, seeds[0]) for settings in trials[method]]
        for method in methods
    }
    total = sum(len(cells) for cells in trial_cells.values()) + len(methods) * (len(seeds) - 1)
    chosen: dict[str, list[Cell]] = {}
    with ProgressDisplay(console) as progress:
        runner = _CellRunner(progress, total, command)
        for method, cells in trial_cells.items():
            for cell in cells:
                runner.finish(cell)
            best = max(cells, key=lambda cell: (cell.failure is None, _tune_average(cell)))  # the first of equals
            chosen[method] = [best]
            if best.failure is None:
                made = contenders[method]
                chosen[method] += [directory.cell(made, method, best.settings, seed) for seed in seeds[1:]]
            for cell in chosen[method][1:]:
                runner.finish(cell)
    return summarise(directory, plan, trial_cells, chosen)


def _plan(
    recipe: Recipe | DenseRecipe,
    methods: Sequence[str],
    seeds: Sequence[int],
    search: Sequence[str],
    baseline: str | None,
    command: str,
) -> tuple[Plan, dict[str, Recipe | DenseRecipe], dict[str, list[Settings]]]:
    """Check everything that can be checked before anything is run."""
    for what, values in (("method", methods), ("seed", seeds)):
        if not values:
            raise ConfigError(f"no {what} to compare: give at least one.")
        if len(set(values)) < len(values):
            raise ConfigError(f"a {what} is named twice: {', '.join(map(str, values))}.")
    contenders = {method: contender(recipe, method) for method in methods}
    for method in methods:
        if method.endswith(SINGLE) and method.removesuffix(SINGLE) not in methods:
            raise ConfigError(
                f"'{method}' is what '{method.removesuffix(SINGLE)}' is measured against: compare that one too."
            )
    baseline = baseline or ("lora" if "lora" in methods else methods[0])
    if baseline not in methods:
        raise ConfigError(
            f"the baseline '{baseline}' is not compared.{did_you_mean(baseline, methods)} Compared: "
            f"{', '.join(methods)}."
        )
    grids = [parse_grid(text, methods, type(recipe)) for text in search]
    trials = {method: trials_of(method, grids) for method in methods}
    if any(settings.keys() & {"method.r", "method.lora_alpha"} for settings in trials.get(MATCHED_LORA, [])):
        raise ConfigError(f"the rank of '{MATCHED_LORA}' follows from the recipe's parameters and is not searched.")
    for method in methods:
        searched = sorted(fixed_keys(method).intersection(*(settings.keys() for settings in trials[method])))
        if searched:
            raise ConfigError(f"'{method}' has a fixed value of {searched[0]}, which cannot be searched too.")
    check_same_effort(trials)
    for method, made in contenders.items():
        for settings in trials[method]:
            check_recipe(changed(made, settings))  # says what is wrong with the options on this base
    training_rows, scored_rows = {}, {}
    for seed in seeds:
        work = workload_of(changed(recipe, {"training.seed": seed}))
        work.load_data(["train", "tune", recipe.tasks.report_on])
        scored_rows[seed] = work.fingerprints()
        training_rows[seed] = scored_rows[seed].pop("train")
    plan = Plan(
        created=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        command=command,
        commit=source_commit(),
        recipe=recipe,
        methods=list(methods),
        seeds=list(seeds),
        search=list(search),
        baseline=baseline,
        training_rows=training_rows,
        scored_rows=scored_rows,
    )
    return plan, contenders, trials


class _CellRunner:
    """Runs cells under one progress display."""

    def __init__(self, progress: ProgressDisplay, total: int, command: str) -> None:
        self.progress = progress
        self.command = command
        self.bar = progress.add_task("cells", total=total, note="")

    def finish(self, cell: Cell) -> None:
        """Run a cell unless it is finished; go on from its last checkpoint if there is one."""
        tried = "".join(f" {k.rpartition('.')[2]}={v}" for k, v in cell.settings.items())
        name = escape(f"{cell.method} seed {cell.seed}{tried}")  # rich takes a variant's brackets for a style
        if cell.is_finished:
            said = "there already"
        else:
            self.progress.update(self.bar, note=name)
            said = self._run(cell)
        self.progress.console.print(f"{name}: {said}", highlight=False)
        self.progress.advance(self.bar)

    def _run(self, cell: Cell) -> str:
        try:
            results = self._train(cell)
        except NonFiniteLossError as error:
            write_text_whole(cell.run.path / FAILED_FILE, json.dumps({"error": str(error)}) + "\n")
            return f"[yellow]failed[/yellow]: {escape(str(error))}"
        except InterruptedRun:
            raise InterruptedRun("interrupted in a run; finished ones are kept. The same command goes on.") from None
        shutil.rmtree(cell.run.checkpoints, ignore_errors=True)  # a finished run needs none; many runs need the room
        gc.collect()  # trainer and model hold each other, and Python does not see how large their tensors are
        (scores,) = results.scores.values()
        tune = results.training.best_tune_average
        return (
            f"average on tune {_number(tune)}, on {next(iter(results.scores))} [bold]{_number(scores.average)}[/bold] "
            f"({results.training.seconds:.0f} s)"
        )

    def _train(self, cell: Cell) -> RunResults:
        if cell.is_single:
            assert isinstance(cell.recipe, Recipe)  # others are refused as contenders
            return train_single_tasks(cell.recipe, cell.run.path, command=self.command, progress=self.progress)
        resume = cell.run.is_run and cell.run.latest_checkpoint() is not None
        if resume:  # the recipe is the same, but its rows may have moved since
            write_text_whole(cell.run.path / RECIPE_FILE, cell.recipe.to_yaml())
        else:  # begun again, whatever a kill has left of it
            shutil.rmtree(cell.run.path, ignore_errors=True)
        results, _ = train_recipe(
            cell.recipe, cell.run.path, resume=resume, command=self.command, progress=self.progress
        )
        return results


def _number(value: float | None) -> str:
    return "undefined" if value is None else f"{value:.4f}"


def _tune_average(cell: Cell) -> float:
    if cell.failure is not None:
        return float("-inf")
    average = RunResults.read(cell.run.results).training.best_tune_average
    return float("-inf") if average is None else average


def summarise(
    directory: ComparisonDirectory, plan: Plan, trials: dict[str, list[Cell]], chosen: dict[str, list[Cell]]
) -> ComparisonResults:
    """Compute and write the results of finished cells."""
    cells = {
        method: [
            CellResults(RunResults.read(cell.run.results), read_predictions(cell.run.predictions))
            for cell in of_method
            if cell.failure is None
        ]
        for method, of_method in chosen.items()
    }
    failed = {method: [cell.failure for cell in of_method if cell.failure] for method, of_method in chosen.items()}
    results = compare_cells(
        cells,
        titles={method: title_of(method, plan.recipe.shape) for method in chosen},
        trials={
            method: [_trial(cell, directory, chosen[method][0]) for cell in of_method]
            for method, of_method in trials.items()
        },
        failures={method: messages for method, messages in failed.items() if messages},
        runs={
            method: [cell.run.path.relative_to(directory.path).as_posix() for cell in of_method if not cell.failure]
            for method, of_method in chosen.items()
        },
        main=plan.recipe.method.name,
        baseline=plan.baseline,
        specs=plan.recipe.task_specs(),
        command=plan.command,
        search=plan.search,
    )
    results.write(directory.results)
    return results


def _trial(cell: Cell, directory: ComparisonDirectory, chosen: Cell) -> Trial:
    average = _tune_average(cell)
    return Trial(
        settings=cell.settings,
        seed=cell.seed,
        run=cell.run.path.relative_to(directory.path).as_posix(),
        tune_average=None if average == float("-inf") else average,
        chosen=cell.run.path == chosen.run.path,
        failed=cell.failure,
    )
