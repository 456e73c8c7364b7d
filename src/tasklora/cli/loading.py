"""Saved models of either shape, by the path of a run or of the model itself."""

from __future__ import annotations

from pathlib import Path
from typing import Any


def saved_directory(run: Path, task: str | None = None) -> Path:
    """Return the directory of a run's model, or of a saved model.

    Args:
        run: the run, or the saved model, which is taken as it is.
        task: with it, the model of the task's own best step, where the run chose one per task.

    Raises:
        CheckpointError: if there is none, or the run has not finished.
    """
    from tasklora.tasks.saved_model import MODEL_FILE
    from tasklora.training import RunDirectory

    return run if (run / MODEL_FILE).is_file() else RunDirectory(run).model(task)


def chosen_per_task(run: Path) -> bool:
    """Return whether a run chose a step for each task, with ``selection: per_task``."""
    from tasklora.training import RunDirectory

    return RunDirectory(run).best_per_task.is_dir()


def origin(run: Path, model: Path) -> str:
    """Return a remark on which of a run's models a task has; empty for a run with one for all tasks."""
    if not chosen_per_task(run):
        return ""
    place = model.relative_to(run)
    return f"{'its own best step' if place.parts[1:] else 'the best step of all tasks together'}, {place}"


def is_dense_run(run: Path) -> bool:
    """Return whether a run's model, or a saved model, is one of dense tasks."""
    from tasklora.vision.saved_model import is_dense

    return is_dense(saved_directory(run))


def load_saved(run: Path, trust_remote_code: bool = False, task: str | None = None) -> tuple[Any, Any, Any]:
    """Return a model, what it is, and its base, on the accelerator if there is one; see :func:`saved_directory`.

    Raises:
        CheckpointError: if there is none, or it is damaged.
    """
    import torch

    from tasklora.tasks import load_model
    from tasklora.vision.saved_model import is_dense, load_dense_model

    directory = saved_directory(run, task)
    device = torch.accelerator.current_accelerator() or torch.device("cpu")
    if is_dense(directory):
        return load_dense_model(directory, device=device)
    return load_model(directory, device=device, trust_remote_code=trust_remote_code)
