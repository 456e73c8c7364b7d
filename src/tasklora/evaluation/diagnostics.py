"""diagnostics.json: what each layer's update says of its tasks after training."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from tasklora.errors import CheckpointError
from tasklora.tasks import write_text_whole
from tasklora.updates import LowRankUpdate

DIAGNOSTICS_FILE = "diagnostics.json"

Diagnostics = dict[str, dict[str, Any]]
"""Name of a diagnostic → layer → one entry (a number or a list) per task."""


@torch.no_grad()
def diagnose(model: nn.Module, task_ids: Sequence[int] | None = None) -> Diagnostics:
    """Return every update's :meth:`~tasklora.updates.LowRankUpdate.diagnostics`, by name and layer.

    Args:
        model: the model.
        task_ids: the tasks whose entries are wanted, in this order; None for all.
    """
    found: Diagnostics = {}
    for name, module in model.named_modules():
        if isinstance(module, LowRankUpdate):
            for diagnostic, values in module.diagnostics().items():
                chosen = values if task_ids is None else values[list(task_ids)]
                found.setdefault(diagnostic, {})[_layer_name(name)] = chosen.float().cpu().tolist()
    return found


def write_diagnostics(path: Path, diagnostics: Diagnostics) -> None:
    """Write the file."""
    write_text_whole(path, json.dumps(diagnostics) + "\n")


def read_diagnostics(path: Path) -> Diagnostics:
    """Read the file; a run made before there were diagnostics has none.

    Raises:
        CheckpointError: if it is damaged.
    """
    if not path.is_file():
        return {}
    try:
        found: Diagnostics = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"cannot read {path}: {error}. Remove it, or run that run again.") from None
    return found


def _layer_name(module: str) -> str:
    """Return the path of an adapted layer inside the base model: no wrappers, no name of the adapter."""
    path = module.partition("base_model.model.")[2] or module
    return ".".join(part for part in path.split(".")[:-2])
