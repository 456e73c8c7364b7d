"""What ``tasklora evaluate`` does."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from tasklora.cli.loading import is_dense_run, load_saved
from tasklora.errors import ConfigError
from tasklora.evaluation import SplitScores, score_tasks
from tasklora.tasks import Split, load_tasks
from tasklora.training import RunDirectory, workload_of
from tasklora.training.selection import read_choices, score_choices


def score_saved(
    run: Path, split: Split, data_root: Path | None, trust_remote_code: bool, said: Callable[[str], None]
) -> SplitScores:
    """Return the scores of a run, or of a saved text model, on a split.

    Where the run chose a step for each task, each is scored with the model of its own.

    Args:
        run: the run directory, or the saved model's.
        split: which split.
        data_root: where the rows are; where the run has them by default.
        trust_remote_code: run code that comes with the base.
        said: called with what is being done.

    Raises:
        CheckpointError: if there is no model, or it is damaged.
        ConfigError: if nothing says where the rows are.
        DataError: if they cannot be had.
    """
    directory = RunDirectory(run)
    if directory.is_run:
        work = workload_of(directory.recipe())
        if data_root is not None:
            work.recipe.tasks.data_root = str(data_root)
        work.take(*load_saved(run, trust_remote_code))
        work.load_data([split])
        work.progress = lambda what: said(f"scoring {what}")
        said("scoring")
        choices = read_choices(directory.best_per_task)
        if choices:
            return score_choices(work, split, None, directory.best_per_task, choices)
        return work.score(split)
    if data_root is None:
        raise ConfigError(f"{run} is a saved model without a recipe: say where the rows are, with --data-root DIR.")
    if is_dense_run(run):
        raise ConfigError(
            f"{run} is a saved model of images without a recipe, which would say how their labels lie. Evaluate the "
            "run's directory."
        )
    model, about, base = load_saved(run, trust_remote_code)
    rows = load_tasks(about.tasks, [split], data_root, keep=about.columns()).split(split)
    return score_tasks(model, rows, about.collator(base.tokenizer), progress=lambda task: said(f"scoring {task}"))
