"""What a method adds to the loss of a training step."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from tasklora.tuner.layer import TaskLoraLayer
from tasklora.updates import LowRankUpdate


def auxiliary_loss(model: nn.Module) -> Tensor:
    """Return the mean over adapted layers of what the active adapters add to the loss; 0 where they add nothing.

    TA-LoRA keeps its task directions apart from the shared ones this way. tasklora's own trainer adds it to every step;
    with a loop of your own::

        loss = output.loss + tasklora.auxiliary_loss(model)

    Args:
        model: a model adapted by tasklora, wrapped in anything.

    Returns:
        A scalar with gradients.
    """
    updates = [
        layer.task_updates[adapter]
        for layer in model.modules()
        if isinstance(layer, TaskLoraLayer) and not layer.disable_adapters
        for adapter in layer.active_adapters
        if adapter in layer.task_updates
    ]
    losses = [update.auxiliary_loss() for update in updates if isinstance(update, LowRankUpdate)]
    added = [loss for loss in losses if loss is not None]
    return torch.stack([loss.to(added[0].device) for loss in added]).mean() if added else torch.zeros(())
