"""Exact plain LoRA of one task, in the format that every engine loads.

Of a task t the family gives ΔW_t = B' A' exactly (see :mod:`tasklora.updates.base`), so PEFT, vLLM, SGLang or
llama.cpp can serve it without tasklora:

- uniform rank, smaller ones padded with zeros; ``lora_alpha`` = r, the scaling is folded into the factors;
- ``target_modules`` is a list of leaf names; where a leaf name also matches modules that were not adapted (BERT's
  ``dense``), those get zero factors, so that the file is complete for every loader;
- nothing else is in the file: heads and modules trained in full stand beside it.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel, get_peft_model_state_dict
from peft.tuners.lora import LoraLayer
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils.other import AuxiliaryTrainingWrapper, ModulesToSaveWrapper
from safetensors.torch import save_file
from torch import Tensor, nn

from tasklora.errors import BrokenAdapterError, OutputError, TaskIdsError, UnsupportedError, listing
from tasklora.tasks import share_mode
from tasklora.tuner import TaskLoraLayer, active_adapters, context_of
from tasklora.updates import TaskAssignment

ADAPTER_FILE = "adapter_model.safetensors"
CONFIG_FILE = "adapter_config.json"
HEAD_FILE = "head.safetensors"
WITH_CLASSIFIER = ("SEQ_CLS", "TOKEN_CLS", "QUESTION_ANS")
MANIFEST_FILE = "manifest.json"
EXPORT_FORMAT = "tasklora/export"
_FACTORS = (".lora_A.weight", ".lora_B.weight")
_Factors = Mapping[str, tuple[Tensor, Tensor]]


def export_lora(
    model: nn.Module,
    task: str | int | None = None,
    directory: str | Path = "",
    *,
    task_weights: Tensor | None = None,
    dtype: torch.dtype = torch.float32,
    overwrite: bool = False,
) -> Path:
    """Write one task (or one mixture of tasks) as a plain PEFT LoRA.

    Args:
        model: a PEFT model with one active adapter of this family.
        task: the task's name or id.
        directory: where to; must be new or empty unless `overwrite`.
        task_weights: instead of a task, a mixture (T,).
        dtype: of the written factors.
        overwrite: replace the files of an earlier export.

    Returns:
        The directory.

    Raises:
        UnknownTaskError: if the adapter has no such task.
        UnsupportedError: if the method has no plain LoRA per task, several adapters are active, or modules of
            the backbone are trained in full with it.
        BrokenAdapterError: if a factor is NaN or infinite (float16 overflows easily).
        OutputError: if the directory holds something.
    """
    adapter, assignment = _resolve(model, task, task_weights)
    with torch.no_grad():
        factors = {
            path: module.task_updates[adapter].lora_factors(assignment)  # type: ignore[operator]
            for path, module in base_of(model).named_modules()
            if isinstance(module, TaskLoraLayer) and adapter in module.task_updates
        }
    return _write(model, adapter, factors, directory, dtype, overwrite)


def export_shared_lora(
    model: PeftModel, directory: str | Path, *, dtype: torch.dtype = torch.float32, overwrite: bool = False
) -> Path:
    """Write PEFT's own LoRA in the same format: uniform rank, scaling folded in, every matching module present.

    Args:
        model: a PEFT model with one active LoRA adapter.
        directory: where to; must be new or empty unless `overwrite`.
        dtype: of the written factors.
        overwrite: replace the files of an earlier export.

    Raises:
        UnsupportedError: if the adapter is more than factors A and B (DoRA, trained biases or modules).
        OutputError: if the directory holds something.
    """
    (adapter,) = model.active_adapters
    more = [key for key in get_peft_model_state_dict(model, save_embedding_layers=False) if not key.endswith(_FACTORS)]
    if more:
        raise UnsupportedError(f"this LoRA is more than its factors A and B: {listing(more, 4)}. Export it merged.")
    with torch.no_grad():
        factors = {
            path: (module.lora_A[adapter].weight, module.lora_B[adapter].weight * module.scaling[adapter])
            for path, module in base_of(model).named_modules()
            if isinstance(module, LoraLayer) and adapter in module.lora_A
        }
    return _write(model, adapter, factors, directory, dtype, overwrite)


def _write(
    model: nn.Module, adapter: str, factors: _Factors, directory: str | Path, dtype: torch.dtype, overwrite: bool
) -> Path:
    heads = head_tensors(model, adapter)
    directory = check_output(directory, overwrite)
    tensors, targets, rank = lora_tensors(model, factors, dtype)
    broken = [name for name, tensor in tensors.items() if not torch.isfinite(tensor).all()]
    if broken:
        raise BrokenAdapterError(
            f"NaN or infinity in {len(broken)} of {len(tensors)} factors as {dtype} ({listing(broken, 2)}): nothing is "
            "written. Export in float32, or use another checkpoint."
        )
    config = model.peft_config[adapter]  # type: ignore[index, operator]
    clear_export(directory)
    write_lora(directory, tensors, _config(config, targets, rank))
    if heads:
        save_file(heads, directory / HEAD_FILE, metadata={"format": "pt"})
        share_mode(directory / HEAD_FILE)
    return directory


def head_tensors(model: nn.Module, adapter: str) -> dict[str, Tensor]:
    """Return the weights of heads trained in full (a classifier), which are written beside the LoRA.

    Raises:
        UnsupportedError: if a module inside the backbone was trained in full: the LoRA alone would give other numbers.
    """
    base = base_of(model)
    backbone = getattr(base, "base_model_prefix", "")
    tensors: dict[str, Tensor] = {}
    for path, module in base.named_modules():
        if not isinstance(module, AuxiliaryTrainingWrapper):
            continue
        inside = not hasattr(base, backbone) or path.startswith(f"{backbone}.")
        if inside or not isinstance(module, ModulesToSaveWrapper):
            raise UnsupportedError(
                f"'{path}' was trained in full and has no place in a plain LoRA. Export the merged model instead "
                "(merge_task, or --merged)."
            )
        for name, tensor in module.modules_to_save[adapter].state_dict().items():
            tensors[f"{path}.{name}"] = tensor.detach().cpu().contiguous()
    return tensors


def lora_tensors(model: nn.Module, factors: _Factors, dtype: torch.dtype) -> tuple[dict[str, Tensor], list[str], int]:
    """Return the tensors of a plain LoRA, its target leaf names and its rank.

    Args:
        model: the adapted model.
        factors: path of each adapted layer → A' (k, in) and B' (out, k).
        dtype: of the tensors.
    """
    base = base_of(model)
    rank = max(down.shape[0] for down, _ in factors.values())
    targets = sorted({path.rpartition(".")[2] for path in factors})
    tensors: dict[str, Tensor] = {}
    for path, in_features, out_features in _linears(base):
        if path.rpartition(".")[2] not in targets:
            continue
        lora_a = torch.zeros(rank, in_features, dtype=dtype)
        lora_b = torch.zeros(out_features, rank, dtype=dtype)
        if path in factors:
            down, up = factors[path]
            lora_a[: down.shape[0]] = down
            lora_b[:, : up.shape[1]] = up
        tensors[f"base_model.model.{path}.lora_A.weight"] = lora_a
        tensors[f"base_model.model.{path}.lora_B.weight"] = lora_b
    return tensors, targets, rank


def base_of(model: nn.Module) -> nn.Module:
    """Return the base model inside a PEFT model, its layers still wrapped."""
    return model.get_base_model() if isinstance(model, PeftModel) else model


def _linears(base: nn.Module) -> list[tuple[str, int, int]]:
    """Return (path, in, out) of every linear layer of the base model, adapted or not."""
    found = []
    for path, module in base.named_modules():
        if "base_layer" in path.split("."):
            continue
        layer = module.get_base_layer() if isinstance(module, BaseTunerLayer) else module
        if isinstance(layer, nn.Linear):
            found.append((path, layer.in_features, layer.out_features))
    return found


def _resolve(model: nn.Module, task: str | int | None, task_weights: Tensor | None) -> tuple[str, TaskAssignment]:
    context = context_of(model)
    adapters = active_adapters(model)
    if len(adapters) != 1:
        raise UnsupportedError(
            f"export needs exactly one active adapter, there are {len(adapters)}: {adapters}. "
            "Use model.set_adapter(name)."
        )
    names = context.tasks[adapters[0]]
    if context.merged:
        raise UnsupportedError("the adapter is merged into the base weights; call model.unmerge_adapter() first.")
    if task is None and task_weights is None and (not names.needs_ids or len(names) == 1):
        return adapters[0], TaskAssignment(ids=torch.zeros((), dtype=torch.long))
    assignment = names.assign(task, task_weights)
    if assignment.rows is not None:
        raise TaskIdsError("an export is of one task (its name or id) or of one mixture (task_weights of shape (T,)).")
    return adapters[0], assignment


def _config(config: Any, targets: list[str], rank: int) -> dict[str, Any]:
    return {
        "peft_type": "LORA",
        # With one of these task types PEFT would look for a classifier among the LoRA's tensors.
        "task_type": None if config.task_type in WITH_CLASSIFIER else config.task_type,
        "base_model_name_or_path": config.base_model_name_or_path,
        "revision": config.revision,
        "r": rank,
        "lora_alpha": rank,
        "lora_dropout": 0.0,
        "target_modules": targets,
        "bias": "none",
        "fan_in_fan_out": False,
        "init_lora_weights": True,
        "inference_mode": True,
        "modules_to_save": None,
        "use_dora": False,
        "use_rslora": False,
        "rank_pattern": {},
        "alpha_pattern": {},
    }


def write_lora(directory: Path, tensors: dict[str, Tensor], config: dict[str, Any]) -> None:
    """Write the two files of a plain LoRA, whole or not at all."""
    directory.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=directory.parent, prefix=f".{directory.name}-") as scratch:
        save_file(tensors, Path(scratch) / ADAPTER_FILE, metadata={"format": "pt"})
        (Path(scratch) / CONFIG_FILE).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
        for name in (ADAPTER_FILE, CONFIG_FILE):
            share_mode(Path(scratch) / name)
            os.replace(Path(scratch) / name, directory / name)


def clear_export(directory: Path) -> None:
    """Empty a directory that holds an earlier export: a LoRA left beside a merged model would be applied twice."""
    try:
        manifest = json.loads((directory / MANIFEST_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return
    if isinstance(manifest, dict) and manifest.get("format") == EXPORT_FORMAT:
        shutil.rmtree(directory)
        directory.mkdir()


def check_output(directory: str | Path, overwrite: bool) -> Path:
    """Return `directory` as a path that may be written to.

    Raises:
        OutputError: if none was given, it is a file, or it holds something and `overwrite` is not set.
    """
    if not str(directory):
        raise OutputError("no output directory was given: pass directory=….")
    path = Path(directory)
    if path.exists() and not path.is_dir():
        raise OutputError(f"{path} is a file, not a directory. Choose another output directory.")
    if path.is_dir() and any(path.iterdir()) and not overwrite:
        raise OutputError(f"the output directory {path} is not empty. Choose another, or use --overwrite.")
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(
            f"cannot write to {path}: {error.strerror or error}. Choose another output directory."
        ) from None
    if not os.access(path, os.W_OK):
        raise OutputError(f"cannot write to {path}: permission denied. Choose another output directory.")
    return path
