"""The base model with one task merged into its weights, as files: a plain transformers model, no overhead."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import torch
from peft.utils.other import AuxiliaryTrainingWrapper, ModulesToSaveWrapper
from torch import Tensor, nn

from tasklora.errors import UnsupportedError
from tasklora.export.adapted import base_facts, base_of, base_state, method_facts, resolve, task_facts
from tasklora.export.files import check_output, dtype_name, filling, write_manifest
from tasklora.tuner import TaskLoraLayer, use_tasks


def export_merged(
    model: nn.Module,
    task: str | int | None = None,
    directory: str | Path = "",
    *,
    task_weights: Tensor | None = None,
    tokenizer: Any = None,
    overwrite: bool = False,
) -> Path:
    """Write W + ΔW_t as a plain transformers model. The adapted model is left as it was, bit by bit.

    Modules trained in full (``modules_to_save``) are written as trained; the weights keep their dtype. While it writes,
    the adapted layers' base weights are in memory twice. To go on in this process, use :func:`tasklora.merge_task`.

    Args:
        model: a PEFT model of transformers with one active adapter of this family.
        task: the task's name or id.
        directory: where to; must be new or empty unless `overwrite`.
        task_weights: instead of a task, a mixture (T,).
        tokenizer: saved with the model, if given.
        overwrite: replace the files of an earlier export.

    Returns:
        The directory.

    Raises:
        UnknownTaskError: if the adapter has no such task.
        UnsupportedError: if a base weight is quantised, the method has no plain LoRA per task, the adapter is merged
            already, or the base is no transformers model.
        BrokenAdapterError: if an update holds NaN or infinity.
        OutputError: if the directory holds something.
    """
    adapter, assignment = resolve(model, task, task_weights)
    base = base_of(model)
    if not hasattr(base, "save_pretrained"):
        raise UnsupportedError(
            f"{type(base).__name__} is no transformers model and has no files of its own: "
            "save tasklora.merge_task(model, …).state_dict()."
        )
    for name, module in base.named_modules():
        if isinstance(module, AuxiliaryTrainingWrapper) and not isinstance(module, ModulesToSaveWrapper):
            raise UnsupportedError(
                f"'{name}' has trained tokens of its own: use tasklora.merge_task(model, …), then save."
            )
    path = check_output(directory, overwrite)
    facts = {
        "kind": "merged",
        **method_facts(model, adapter),
        **task_facts(model, adapter, assignment),
        "dtype": dtype_name(next(base.parameters()).dtype),
        "base": base_facts(model, adapter),
    }
    chosen = assignment.ids if assignment.ids is not None else None
    with _merged(model, None if chosen is None else int(chosen), assignment.weights), filling(path) as folder:
        cast("Any", base).save_pretrained(folder, state_dict=base_state(base, adapter))
        if tokenizer is not None:
            tokenizer.save_pretrained(folder)
        write_manifest(folder, facts)
    return path


@contextlib.contextmanager
def _merged(model: nn.Module, task: int | None, weights: Tensor | None) -> Iterator[None]:
    """Merge one task inside the ``with`` block; all layers are checked before the first is changed."""
    layers = [module for module in model.modules() if isinstance(module, TaskLoraLayer)]
    with use_tasks(model, task, task_weights=weights), torch.no_grad():
        for layer in layers:
            for adapter in layer.active_adapters:
                if adapter in layer.task_updates:
                    layer.check_mergeable(adapter)
        try:
            for layer in layers:
                layer.merge(safe_merge=True)
            yield
        finally:
            for layer in layers:
                layer.unmerge()
