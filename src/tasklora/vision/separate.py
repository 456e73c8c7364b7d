"""A backbone for each task, with nothing shared: what single-task training gives, in one model."""

from __future__ import annotations

import copy
from typing import Any, Literal

from torch import nn

DenseEncoderKind = Literal["adapter", "full", "separate", "frozen"]
"""What is trained of the encoder: an adapter on it, tensors of its own, those of a copy per task, or nothing."""


class SeparateEncoders(nn.ModuleList):
    """As many copies of a backbone as there are tasks, in the order of their ids; copy t feeds decoder t alone.

    Trained together, on the sum of the tasks' losses, they are trained apart: no parameter is reached by two tasks, and
    Adam's steps do not depend on a loss's scale. What they do share is the batch order, the schedule, the norm that
    gradients are clipped by, and the step that is kept.

    Args:
        base: the backbone; it becomes the first copy.
        count: number of tasks.
    """

    def __init__(self, base: nn.Module, count: int) -> None:
        super().__init__([base, *(copy.deepcopy(base) for _ in range(count - 1))])

    def gradient_checkpointing_enable(self, **options: Any) -> None:
        """Recompute the activations of every copy in backward."""
        for encoder in self.children():
            encoder.gradient_checkpointing_enable(**options)  # type: ignore[operator]
