"""Saved models of either shape, by the path of a run or of the model itself."""

from __future__ import annotations

from pathlib import Path
from typing import Any


def saved_directory(run: Path) -> Path:
    """Return the directory of a run's model, or of a saved model.

    Raises:
        CheckpointError: if there is none, or the run has not finished.
    """
    from tasklora.tasks.saved_model import MODEL_FILE
    from tasklora.training import RunDirectory

    return run if (run / MODEL_FILE).is_file() else RunDirectory(run).model()


def is_dense_run(run: Path) -> bool:
    """Return whether a run's model, or a saved model, is one of dense tasks."""
    from tasklora.vision.saved_model import is_dense

    return is_dense(saved_directory(run))


def load_saved(run: Path, trust_remote_code: bool = False) -> tuple[Any, Any, Any]:
    """Return a model, what it is, and its base, on the accelerator if there is one.

    Raises:
        CheckpointError: if there is none, or it is damaged.
    """
    import torch

    from tasklora.tasks import load_model
    from tasklora.vision.saved_model import is_dense, load_dense_model

    directory = saved_directory(run)
    device = torch.accelerator.current_accelerator() or torch.device("cpu")
    if is_dense(directory):
        return load_dense_model(directory, device=device)
    return load_model(directory, device=device, trust_remote_code=trust_remote_code)
