"""Exporting a trained multi-task model: the plain LoRA of each task, or the merged model, with its head and a manifest.

OUT/TASK/  adapter_config.json  adapter_model.safetensors  head.safetensors  manifest.json
OUT/TASK/  config.json  model.safetensors  tokenizer…      head.safetensors  manifest.json      (merged)
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn

from tasklora.errors import UnsupportedError
from tasklora.export.adapted import exportable_adapter, method_facts
from tasklora.export.files import HEAD_FILE, check_output, dtype_name, filling, write_manifest, write_tensors
from tasklora.export.lora import Beside, export_lora, export_shared_lora
from tasklora.tasks import KINDS, SavedModel, TaskModel
from tasklora.tuner import find_context, merge_task


def export_task(
    model: TaskModel,
    about: SavedModel,
    task: str,
    directory: str | Path,
    *,
    rank: int | None = None,
    dtype: torch.dtype = torch.float32,
    overwrite: bool = False,
) -> Path:
    """Write one task of a trained model as plain LoRA, with its head and a manifest beside it.

    Args:
        model: the model.
        about: what it is.
        task: the task's name.
        directory: where to; new or empty unless `overwrite`.
        rank: None for the exact LoRA; see :func:`tasklora.export_lora`.
        dtype: of the factors.
        overwrite: replace an earlier export.

    Raises:
        UnknownTaskError: if there is no such task.
        UnsupportedError: if no adapter was trained, or its method has no plain LoRA.
        ConfigError: if `rank` is not below the exact rank.
        OutputError: if the directory holds something.
    """
    about.spec_of(task)
    _check_adapter(about)
    options: dict[str, Any] = {"rank": rank, "dtype": dtype, "overwrite": overwrite}
    beside = Beside(_head(model, task), _facts(about, task))
    if find_context(model.encoder) is None:  # PEFT's own LoRA, shared by all tasks
        return export_shared_lora(model.encoder, directory, beside=beside, **options)  # type: ignore[arg-type]
    return export_lora(model.encoder, task, directory, beside=beside, **options)


def export_task_merged(
    model: TaskModel,
    about: SavedModel,
    task: str,
    directory: str | Path,
    tokenizer: Any,
    *,
    overwrite: bool = False,
) -> Path:
    """Write the base model with one task merged into its weights: a plain transformers model, no overhead.

    The adapter is consumed: load the model again to export another task.

    Args:
        model: the model.
        about: what it is.
        task: the task's name.
        directory: where to; new or empty unless `overwrite`.
        tokenizer: saved with the model.
        overwrite: replace an earlier export.

    Raises:
        UnknownTaskError: if there is no such task.
        UnsupportedError: if the method has no plain LoRA, or the adapter was merged before.
        OutputError: if the directory holds something.
    """
    about.spec_of(task)
    method: dict[str, Any] = {"method": None}
    if find_context(model.encoder) is not None:
        method = method_facts(model.encoder, exportable_adapter(model.encoder))
    elif about.encoder == "adapter":
        if not any(isinstance(module, BaseTunerLayer) for module in model.encoder.modules()):
            raise UnsupportedError(
                "this model has no adapter left: it was merged before, for one task. Load the run again."
            )
        method = {"method": "lora"}
    path = check_output(directory, overwrite)
    merged: nn.Module
    if find_context(model.encoder) is not None:
        merged = merge_task(model.encoder, task)
    elif about.encoder != "adapter":
        merged = model.encoder  # nothing to merge: the encoder itself was trained, or left as it was
    else:
        merged = model.encoder.merge_and_unload()  # type: ignore[operator]
    with filling(path) as folder:
        merged.save_pretrained(folder)  # type: ignore[operator]
        tokenizer.save_pretrained(folder)
        if head := _head(model, task):
            write_tensors(folder / HEAD_FILE, head)
        dtype = dtype_name(next(merged.parameters()).dtype)
        write_manifest(folder, {"kind": "merged", **method, "dtype": dtype, **_facts(about, task)})
    return path


def _check_adapter(about: SavedModel) -> None:
    if about.encoder != "adapter":
        what = "all weights of the encoder" if about.encoder == "full" else "heads only"
        raise UnsupportedError(
            f"this run trained {what}: there is no adapter to export as LoRA. Export the model itself with --merged."
        )


def _head(model: TaskModel, task: str) -> dict[str, Tensor]:
    """Return a task's head; nothing of a text-to-text model."""
    return dict(model.heads[task].state_dict()) if task in model.heads else {}


def _facts(about: SavedModel, task: str) -> dict[str, Any]:
    """Return what a trained model's manifest says of its task, base and head, or of the template it is asked with."""
    facts = {
        "tasks": list(about.tasks),
        "task": task,
        "base": {"name": about.base, "revision": about.revision, "fingerprint": about.fingerprint},
    }
    if about.text_to_text is not None:
        asked = {
            "template": about.text_to_text.templates[task].model_dump(mode="json"),
            "evaluation": about.text_to_text.evaluation,
            "max_length": about.max_length,
            "task": about.tasks[task].model_dump(mode="json"),
        }
        return {**facts, "text_to_text": asked}
    return {
        **facts,
        "head": {
            "file": HEAD_FILE,
            "reads": "[u, v, |u - v|, u * v]" if _is_separate(about, task) else KINDS[about.tasks[task].kind].reads,
            "pooling": about.pooling,
            "max_length": about.max_length,
            "task": about.tasks[task].model_dump(mode="json"),
        },
    }


def _is_separate(about: SavedModel, task: str) -> bool:
    return about.tasks[task].is_pair and about.pair_encodings[task] == "separate"
