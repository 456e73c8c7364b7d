"""Parameters that FSDP has sharded: outside a forward a process holds parts of them only."""

from __future__ import annotations

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
    if not torch.distributed.is_available():
        return
    from torch.distributed.tensor import DTensor

    if any(isinstance(parameter, DTensor) for parameter in model.parameters()):
        raise UnsupportedError(f"{action} needs whole parameters, but this model's are sharded (FSDP). {instead}")
