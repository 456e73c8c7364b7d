"""One LoRA per task, in one adapter.

Source: Hu et al., "LoRA: Low-Rank Adaptation of Large Language Models" (arXiv 2106.09685, 2021), one pair of factors
(section 4.1) for every task. It shares nothing between tasks: the baseline that multi-task adapters must beat.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from tasklora.updates.base import BankUpdate, UpdateOptions


@dataclass
class PerTaskLoraOptions(UpdateOptions):
    """Options of one LoRA per task: those of LoRA."""


class PerTaskLora(BankUpdate):
    """ΔW_t = (α/r) · B_t A_t.

    Parameters: A (T, r, in_features) kaiming-uniform per task, B (T, out_features, r) zero.
    """

    def __init__(self, in_features: int, out_features: int, num_tasks: int, options: PerTaskLoraOptions) -> None:
        super().__init__(in_features, out_features, num_tasks, options)
        self.A = nn.Parameter(torch.empty(num_tasks, self.r, in_features))
        self.B = nn.Parameter(torch.empty(num_tasks, out_features, self.r))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Initialise every task's pair as LoRA does."""
        self.reset_table("A", self.A)
        self.reset_table("B", self.B)
