"""Plain LoRA of one task, in the format that every engine loads.

Of a task t the family gives ΔW_t = B' A' exactly (see :mod:`tasklora.updates.base`), so PEFT, vLLM, SGLang or
llama.cpp can serve it without tasklora:

- uniform rank, smaller ones padded with zeros; ``lora_alpha`` = r, the scaling is folded into the factors;
- ``target_modules`` is a list of leaf names; where a leaf name also matches modules that were not adapted (BERT's
  ``dense``), those get zero factors, so that the file is complete for every loader;
- nothing else is in the file: heads and modules trained in full stand beside it.

It is exact unless a smaller rank is asked for (see :mod:`tasklora.export.reduction`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel, get_peft_model_state_dict
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from tasklora.errors import BrokenAdapterError, UnsupportedError, listing
from tasklora.export.adapted import (
    base_facts,
    base_of,
    config_of,
    exportable_adapter,
    head_tensors,
    linears,
    method_facts,
    resolve,
    task_facts,
    updates_of,
)
from tasklora.export.files import (
    ADAPTER_FILE,
    CONFIG_FILE,
    HEAD_FILE,
    check_output,
    dtype_name,
    filling,
    read_manifest,
    write_json,
    write_manifest,
    write_tensors,
)
from tasklora.export.reduction import reduce_rank
from tasklora.export.serving import PAGE, serving_commands, serving_facts, serving_page
from tasklora.tuner import context_of

WITH_CLASSIFIER = ("SEQ_CLS", "TOKEN_CLS", "QUESTION_ANS")
_FACTORS = (".lora_A.weight", ".lora_B.weight")
_Factors = Mapping[str, tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class Beside:
    """What a caller that knows more than the PEFT model puts beside the LoRA.

    Attributes:
        head: the head's tensors.
        facts: entries of the manifest that replace those found in the model.
    """

    head: Mapping[str, Tensor]
    facts: Mapping[str, Any]


def export_lora(
    model: nn.Module,
    task: str | int | None = None,
    directory: str | Path = "",
    *,
    task_weights: Tensor | None = None,
    rank: int | None = None,
    dtype: torch.dtype = torch.float32,
    overwrite: bool = False,
    beside: Beside | None = None,
) -> Path:
    """Write one task (or one mixture of tasks) as a plain PEFT LoRA with a manifest.

    Args:
        model: a PEFT model with one active adapter of this family.
        task: the task's name or id.
        directory: where to; must be new or empty unless `overwrite`.
        task_weights: instead of a task, a mixture (T,).
        rank: None for the exact LoRA; a smaller rank for the nearest one of that rank, whose error the manifest tells.
        dtype: of the written factors.
        overwrite: replace the files of an earlier export.
        beside: for callers that keep heads elsewhere.

    Returns:
        The directory.

    Raises:
        UnknownTaskError: if the adapter has no such task.
        UnsupportedError: if the method has no plain LoRA per task, several adapters are active, or modules of
            the backbone are trained in full with it.
        ConfigError: if `rank` is not below the exact rank.
        BrokenAdapterError: if a factor is NaN or infinite (float16 overflows easily).
        OutputError: if the directory holds something.
    """
    adapter, assignment = resolve(model, task, task_weights)
    with torch.no_grad():
        factors = {path: update.lora_factors(assignment) for path, update in updates_of(model, adapter).items()}
    facts = {**method_facts(model, adapter), **task_facts(model, adapter, assignment)}
    return _write(model, adapter, factors, directory, facts, rank, dtype, overwrite, beside)


def export_all(
    model: nn.Module,
    directory: str | Path,
    *,
    rank: int | None = None,
    dtype: torch.dtype = torch.float32,
    overwrite: bool = False,
) -> dict[str, Path]:
    """Write every task of an adapter as a plain LoRA into a folder of its own, and how to serve them together.

    DIRECTORY/TASK/ holds what :func:`export_lora` writes; DIRECTORY/README.md the commands, for causal language models.

    Args:
        model: a PEFT model with one active adapter of this family.
        directory: where to; must be new or empty unless `overwrite`.
        rank: as in :func:`export_lora`.
        dtype: of the written factors.
        overwrite: replace earlier exports.

    Returns:
        Task → its directory.

    Raises:
        UnsupportedError: as :func:`export_lora`; also if the adapter has no task names.
        OutputError: if the directory holds something.
    """
    root = check_output(directory, overwrite)
    names = context_of(model).tasks[exportable_adapter(model)].names
    if not names:
        raise UnsupportedError("the adapter has no task names: one plain LoRA is all it has. Use export_lora.")
    targets = {name: root / name for name in names}
    for name, target in targets.items():
        export_lora(model, name, target, rank=rank, dtype=dtype, overwrite=overwrite)
    write_serving_page(root, targets)
    return targets


def write_serving_page(root: Path, exports: Mapping[str, Path]) -> bool:
    """Write how to serve several exports together into `root`, if they can be served; return whether."""
    manifests = [read_manifest(directory) for directory in exports.values()]
    if not manifests or not all(manifest.get("commands") for manifest in manifests):
        return False
    base = manifests[0]["base"]["name"]
    commands = serving_commands(base, exports, max(manifest["rank"] for manifest in manifests))
    (root / PAGE).write_text(serving_page(commands, exports), encoding="utf-8")
    return True


def export_shared_lora(
    model: PeftModel,
    directory: str | Path,
    *,
    rank: int | None = None,
    dtype: torch.dtype = torch.float32,
    overwrite: bool = False,
    beside: Beside | None = None,
) -> Path:
    """Write PEFT's own LoRA in the same format: uniform rank, scaling folded in, every matching module present.

    Args:
        model: a PEFT model with one active LoRA adapter.
        directory: where to; must be new or empty unless `overwrite`.
        rank: as in :func:`export_lora`.
        dtype: of the written factors.
        overwrite: replace the files of an earlier export.
        beside: for callers that keep heads elsewhere.

    Raises:
        UnsupportedError: if the adapter is more than factors A and B (DoRA, trained biases or modules).
        ConfigError: if `rank` is not below the exact rank.
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
    facts: dict[str, Any] = {"method": "lora", "tasks": [], "task": None, "task_weights": None}
    return _write(model, adapter, factors, directory, facts, rank, dtype, overwrite, beside)


def _write(
    model: nn.Module,
    adapter: str,
    factors: _Factors,
    directory: str | Path,
    facts: dict[str, Any],
    rank: int | None,
    dtype: torch.dtype,
    overwrite: bool,
    beside: Beside | None,
) -> Path:
    trained = head_tensors(model, adapter)
    head = {**trained, **(beside.head if beside else {})}
    directory = check_output(directory, overwrite)
    reduction = None
    if rank is not None:
        factors, reduction = reduce_rank(factors, rank)
    tensors, targets, written_rank = lora_tensors(model, factors, dtype)
    broken = [name for name, tensor in tensors.items() if not torch.isfinite(tensor).all()]
    if broken:
        raise BrokenAdapterError(
            f"NaN or infinity in {len(broken)} of {len(tensors)} factors as {dtype} ({listing(broken, 2)}): nothing is "
            "written. Export in float32, or use another checkpoint."
        )
    config = config_of(model, adapter)
    transposed = any(kind is Conv1D for path, _, _, kind in linears(base_of(model)) if path in factors)
    with filling(directory) as folder:
        write_tensors(folder / ADAPTER_FILE, tensors)
        write_json(folder / CONFIG_FILE, _config(config, targets, written_rank, transposed))
        if head:
            write_tensors(folder / HEAD_FILE, head)
        facts = {
            "kind": "lora",
            **facts,
            "rank": written_rank,
            "dtype": dtype_name(dtype),
            "reduction": reduction.record() if reduction else None,
            **({"head": {"file": HEAD_FILE, "tensors": sorted(head)}} if head else {}),
            **(beside.facts if beside else {}),
        }
        if "base" not in facts:
            facts["base"] = base_facts(model, adapter)
        exports = {facts["task"] or directory.name: directory}
        served = serving_facts(base_of(model), facts["base"]["name"], exports, written_rank, head=bool(head))
        write_manifest(folder, {**facts, **served})
    return directory


def lora_tensors(model: nn.Module, factors: _Factors, dtype: torch.dtype) -> tuple[dict[str, Tensor], list[str], int]:
    """Return the tensors of a plain LoRA, its target leaf names and its rank.

    Args:
        model: the adapted model.
        factors: path of each adapted layer → A' (k, in) and B' (out, k).
        dtype: of the tensors.

    Raises:
        UnsupportedError: if an embedding or a convolution is adapted.
    """
    rank = max(down.shape[0] for down, _ in factors.values())
    targets = sorted({path.rpartition(".")[2] for path in factors})
    tensors: dict[str, Tensor] = {}
    found = linears(base_of(model))
    others = sorted(set(factors) - {path for path, *_ in found})
    if others:
        raise UnsupportedError(
            f"{listing(others, 2)} is an embedding or a convolution: a plain LoRA that every engine loads holds linear "
            "layers only. Nothing was written; export the merged model instead (merge_task, or --merged)."
        )
    for path, in_features, out_features, _ in found:
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


def _config(config: Any, targets: list[str], rank: int, transposed: bool) -> dict[str, Any]:
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
        "fan_in_fan_out": transposed,  # what PEFT calls GPT-2's Conv1D, whose weight is stored transposed
        "init_lora_weights": True,
        "inference_mode": True,
        "modules_to_save": None,
        "use_dora": False,
        "use_rslora": False,
        "rank_pattern": {},
        "alpha_pattern": {},
    }
