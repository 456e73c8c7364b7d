"""Parameters that FSDP has sharded: outside a forward a process holds parts of them only."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from tasklora.errors import UnsupportedError

_GATHER = (
    "Gather them on every process with torch.distributed.checkpoint.state_dict.get_model_state_dict and "
    "StateDictOptions(full_state_dict=True, cpu_offload=True), save with model.save_pretrained(…, state_dict=…), and "
    "merge or export what one process has loaded."
)


def check_not_sharded(model: nn.Module, action: str, instead: str = _GATHER) -> None:
    """Raise if a process does not hold the whole parameters of `model`.

    Args:
        model: the model, or a layer of it.
        action: what needs whole parameters, for the error.
        instead: what to do, for the error.

    Raises:
        UnsupportedError: if one of them is sharded.
    """
    if any(is_shard(parameter) for parameter in model.parameters()):
        raise UnsupportedError(f"{action} needs whole parameters, but this model's are sharded (FSDP). {instead}")


def is_shard(value: Any) -> bool:
    """Return whether a process holds a part of a tensor only."""
    if not torch.distributed.is_available():
        return False
    from torch.distributed.tensor import DTensor

    return isinstance(value, DTensor)


def is_sharded(model: nn.Module) -> bool:
    """Return whether FSDP2 gathers the parameters of a model for each of its forwards, all processes together."""
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return False
    from torch.distributed.fsdp import FSDPModule

    return isinstance(model, FSDPModule)


def reshard(model: nn.Module) -> None:
    """Let go of parameters that a forward without backward has left gathered; what is loaded would not reach them."""
    if is_sharded(model):
        from torch.distributed.fsdp import FSDPModule

        for module in model.modules():
            if isinstance(module, FSDPModule):
                module.reshard()


def writes(model: nn.Module) -> bool:
    """Return whether this process writes the model's files: of a sharded model, which all gather, the first one."""
    return not is_sharded(model) or torch.distributed.get_rank() == 0


def whole(value: Any) -> Any:
    """Return a value, or a nest of dicts and lists of them, its shards gathered; called by all processes in step.

    The first process gets them on its CPU. The others, which take part only, get empty tensors.
    """
    if isinstance(value, Mapping):
        return {key: whole(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [whole(inner) for inner in value]
    if not is_shard(value):
        return value
    gathered = value.detach().full_tensor()
    return gathered.cpu() if torch.distributed.get_rank() == 0 else gathered.new_empty(0, device="cpu")


def placed_like(value: torch.Tensor, target: Any) -> torch.Tensor:
    """Return a whole tensor, which every process has, as the part that this one holds of `target`, where it is sharded.

    No process waits for another.
    """
    if not is_shard(target):
        return value
    from torch.distributed.tensor import distribute_tensor

    mesh = target.device_mesh
    # Each process cuts its own part: the first one's need not be sent around.
    part: torch.Tensor = distribute_tensor(value.to(target.device), mesh, target.placements, src_data_rank=None)
    return part
