"""LoRA written as a core update: D = A, U = B, C = I.

Source: Hu et al., "LoRA: Low-Rank Adaptation of Large Language Models" (arXiv 2106.09685, 2021), section 4.1.

It is internal: users take PEFT's own ``LoraConfig``. It exists because it ties the family to a method whose numbers
everyone knows (the tests compare it with PEFT's LoRA).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from tasklora.updates.base import CoreUpdate, UpdateOptions


class LoraCore(CoreUpdate):
    """ΔW = (α/r) · B A, the same for every task.

    Parameters: A (r, in_features) kaiming-uniform, B (out_features, r) zero.
    """

    uses_task_ids = False
    identity_core = True

    def __init__(self, in_features: int, out_features: int, num_tasks: int, options: UpdateOptions) -> None:
        super().__init__(in_features, out_features, num_tasks, options)
        self.A = nn.Parameter(torch.empty(self.r, in_features))
        self.B = nn.Parameter(torch.empty(out_features, self.r))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Initialise as LoRA does: A kaiming-uniform, B zero."""
        nn.init.kaiming_uniform_(self.A, a=math.sqrt(5))
        nn.init.zeros_(self.B)

    def down(self) -> Tensor:
        """Return A (r, in_features)."""
        return self.A

    def up(self) -> Tensor:
        """Return B (out_features, r)."""
        return self.B
