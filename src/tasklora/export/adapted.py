"""What an export reads of an adapted model: its one active adapter, updates, heads, and the plain base weights."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import torch
from peft import PeftModel
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils.other import AuxiliaryTrainingWrapper, ModulesToSaveWrapper
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from tasklora.errors import TaskIdsError, UnsupportedError
from tasklora.tasks.base_model import fingerprint
from tasklora.tuner import TaskLoraLayer, active_adapters, context_of, method_of
from tasklora.tuner.base_layers import is_quantised_linear
from tasklora.tuner.sharding import check_not_sharded
from tasklora.updates import LowRankUpdate, TaskAssignment


def base_of(model: nn.Module) -> nn.Module:
    """Return the base model inside a PEFT model, its layers still wrapped."""
    return model.get_base_model() if isinstance(model, PeftModel) else model


def updates_of(model: nn.Module, adapter: str) -> dict[str, LowRankUpdate]:
    """Return path → update of every layer that an adapter of this family adapts."""
    return {
        path: cast("LowRankUpdate", module.task_updates[adapter])
        for path, module in base_of(model).named_modules()
        if isinstance(module, TaskLoraLayer) and adapter in module.task_updates
    }


def linears(base: nn.Module) -> list[tuple[str, int, int, type]]:
    """Return (path, in, out, class) of every linear layer of the base model, adapted or not."""
    sizes: dict[type, Callable[[Any], tuple[int, int]]] = {
        nn.Linear: lambda layer: (layer.in_features, layer.out_features),
        Conv1D: lambda layer: (layer.nx, layer.nf),
    }
    found = []
    for path, module in base.named_modules():
        if "base_layer" in path.split("."):
            continue
        layer = module.get_base_layer() if isinstance(module, BaseTunerLayer) else module
        kind = next((kind for kind in sizes if isinstance(layer, kind)), None)
        if kind is not None:
            found.append((path, *sizes[kind](layer), kind))
        elif is_quantised_linear(layer):  # those that are no nn.Linear
            quantised = cast("Any", layer)
            found.append((path, quantised.in_features, quantised.out_features, type(layer)))
    return found


def resolve(model: nn.Module, task: str | int | None, task_weights: Tensor | None) -> tuple[str, TaskAssignment]:
    """Return the one active adapter and the one task or mixture that is meant.

    Raises:
        UnknownTaskError: if the adapter has no such task.
        TaskIdsError: if not exactly one task or one mixture is named.
        UnsupportedError: if nothing is adapted, several adapters are active, one is merged, or its method is routed.
    """
    adapter = exportable_adapter(model)
    names = context_of(model).tasks[adapter]
    if task is None and task_weights is None and (not names.needs_ids or len(names) == 1):
        return adapter, TaskAssignment(ids=torch.zeros((), dtype=torch.long))
    if not len(names):
        raise TaskIdsError("this adapter has no task names, it is the same for every task: leave the task out.")
    assignment = names.assign(task, task_weights)
    if assignment.rows is not None:
        raise TaskIdsError("an export is of one task (its name or id) or of one mixture (task_weights of shape (T,)).")
    return adapter, assignment


def exportable_adapter(model: nn.Module) -> str:
    """Return the one active adapter.

    Raises:
        UnsupportedError: if nothing is adapted, several adapters are active, one is merged, its method is routed, or
            the parameters are sharded.
    """
    adapter = the_adapter(model)
    check_not_sharded(model, "exporting")
    if context_of(model).merged:
        raise UnsupportedError("the adapter is merged into the base weights; call model.unmerge_adapter() first.")
    method = method_of(config_of(model, adapter))
    if method.update_cls.kind == "routed":
        raise UnsupportedError(
            f"{method.title} ({method.name}) has no plain LoRA and cannot be merged: its gate reads every token, so "
            "its ΔW is not one matrix. Nothing was written; serve it with tasklora."
        )
    return adapter


def the_adapter(model: nn.Module) -> str:
    """Return the one active adapter of this family.

    Raises:
        UnsupportedError: if nothing is adapted, or several adapters are active.
    """
    context_of(model)  # says so where nothing is adapted
    adapters = active_adapters(model)
    if len(adapters) != 1:
        raise UnsupportedError(
            f"this needs exactly one active adapter, there are {len(adapters)}: {adapters}. "
            "Use model.set_adapter(name)."
        )
    return adapters[0]


def config_of(model: nn.Module, adapter: str) -> Any:
    """Return the PEFT config of an adapter."""
    return cast("Any", model).peft_config[adapter]


def method_facts(model: nn.Module, adapter: str) -> dict[str, Any]:
    """Return the manifest's entries on the method and its tasks."""
    config = config_of(model, adapter)
    return {"method": method_of(config).name, "tasks": list(config.tasks)}


def task_facts(model: nn.Module, adapter: str, assignment: TaskAssignment) -> dict[str, Any]:
    """Return the manifest's entries on which task, or which mixture, was exported."""
    names = context_of(model).tasks[adapter].names
    if assignment.ids is not None:
        return {"task": names[int(assignment.ids)] if names else None, "task_weights": None}
    return {"task": None, "task_weights": dict(zip(names, assignment.tensor.tolist(), strict=True))}


def base_facts(model: nn.Module, adapter: str) -> dict[str, Any]:
    """Return the manifest's entries on the base: name, revision and fingerprint of its plain weights."""
    config = config_of(model, adapter)
    return {
        "name": config.base_model_name_or_path or None,
        "revision": config.revision,
        "fingerprint": fingerprint(base_state(base_of(model))),
    }


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
        if adapter in module.modules_to_save:
            for name, tensor in module.modules_to_save[adapter].state_dict().items():
                tensors[f"{path}.{name}"] = tensor
    return tensors


def base_state(base: nn.Module, adapter: str | None = None) -> dict[str, Tensor]:
    """Return the weights of an adapted base model under the names that the plain model has.

    Args:
        base: the base model, its layers wrapped.
        adapter: take modules trained in full (``modules_to_save``) as this adapter has them; None: as the base has
            them.
    """
    copies = tuple(name for name, module in base.named_modules() if isinstance(module, ModulesToSaveWrapper))
    state: dict[str, Tensor] = {}
    for key, tensor in base.state_dict().items():
        parts = key.split(".")
        if "task_updates" in parts:
            continue
        owner = next((name for name in copies if key.startswith(f"{name}.")), None)
        if owner is not None:
            wanted = f"{owner}.original_module." if adapter is None else f"{owner}.modules_to_save.{adapter}."
            if key.startswith(wanted):
                state[f"{owner}.{key.removeprefix(wanted)}"] = tensor
            continue
        state[".".join(part for part in parts if part != "base_layer")] = tensor
    return state
