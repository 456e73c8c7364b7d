"""Exporting a trained multi-task model: the plain LoRA of each task, or the merged model, with its head and a manifest.

OUT/TASK/  adapter_config.json  adapter_model.safetensors  head.safetensors  manifest.json
OUT/TASK/  config.json  model.safetensors  tokenizer…      head.safetensors  manifest.json      (merged)
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import nn

from tasklora.errors import UnsupportedError
from tasklora.evaluation import package_versions, write_text_whole
from tasklora.export.lora import (
    ADAPTER_FILE,
    EXPORT_FORMAT,
    HEAD_FILE,
    MANIFEST_FILE,
    check_output,
    clear_export,
    export_lora,
    export_shared_lora,
)
from tasklora.tasks import MultiTaskModel, SavedModel, sha256_of, share_mode
from tasklora.tuner import find_context, merge_task


def export_task(
    model: MultiTaskModel,
    about: SavedModel,
    task: str,
    directory: str | Path,
    *,
    dtype: torch.dtype = torch.float32,
    overwrite: bool = False,
) -> Path:
    """Write one task of a trained model as plain LoRA, with its head and a manifest beside it.

    Args:
        model: the model.
        about: what it is.
        task: the task's name.
        directory: where to; new or empty unless `overwrite`.
        dtype: of the factors.
        overwrite: replace an earlier export.

    Raises:
        UnknownTaskError: if there is no such task.
        UnsupportedError: if no adapter was trained.
        OutputError: if the directory holds something.
    """
    about.spec_of(task)
    _check_adapter(about)
    if find_context(model.encoder) is None:  # PEFT's own LoRA, shared by all tasks
        path = export_shared_lora(model.encoder, directory, dtype=dtype, overwrite=overwrite)  # type: ignore[arg-type]
    else:
        path = export_lora(model.encoder, task, directory, dtype=dtype, overwrite=overwrite)
    config = json.loads((path / "adapter_config.json").read_text(encoding="utf-8"))
    details = {"kind": "lora", "rank": config["r"], "files": {ADAPTER_FILE: sha256_of(path / ADAPTER_FILE)}}
    _write_beside(model, about, task, path, details)
    return path


def export_merged(
    model: MultiTaskModel,
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
        OutputError: if the directory holds something.
    """
    about.spec_of(task)
    path = check_output(directory, overwrite)
    merged: nn.Module
    if find_context(model.encoder) is not None:
        merged = merge_task(model.encoder, task)
    elif about.encoder != "adapter":
        merged = model.encoder  # nothing to merge: the encoder itself was trained, or left as it was
    else:
        merged = model.encoder.merge_and_unload()  # type: ignore[operator]
    clear_export(path)
    merged.save_pretrained(path)  # type: ignore[operator]
    tokenizer.save_pretrained(path)
    files = {file.name: sha256_of(file) for file in sorted(path.glob("model*.safetensors"))}
    _write_beside(model, about, task, path, {"kind": "merged", "files": files})
    return path


def _check_adapter(about: SavedModel) -> None:
    if about.encoder != "adapter":
        what = "all weights of the encoder" if about.encoder == "full" else "heads only"
        raise UnsupportedError(
            f"this run trained {what}: there is no adapter to export as LoRA. Export the model itself with --merged."
        )


def _write_beside(model: MultiTaskModel, about: SavedModel, task: str, path: Path, details: dict[str, Any]) -> None:
    head = model.heads[task]
    save_file({key: value.cpu().contiguous() for key, value in head.state_dict().items()}, path / HEAD_FILE)
    share_mode(path / HEAD_FILE)
    manifest = {
        "format": EXPORT_FORMAT,
        "version": 1,
        "task": task,
        **details,
        "base": {"name": about.base, "revision": about.revision, "fingerprint": about.fingerprint},
        "head": {
            "file": HEAD_FILE,
            "sha256": sha256_of(path / HEAD_FILE),
            "reads": "[u, v, |u - v|, u * v]" if _is_separate(about, task) else "u",
            "pooling": about.pooling,
            "max_length": about.max_length,
            "task": about.tasks[task].model_dump(mode="json"),
        },
        "versions": package_versions(),
    }
    write_text_whole(path / MANIFEST_FILE, json.dumps(manifest, indent=2) + "\n")


def _is_separate(about: SavedModel, task: str) -> bool:
    return about.tasks[task].is_pair and about.pair_encodings[task] == "separate"
