"""MultiLoRA: several LoRAs in parallel, each output direction scaled by a learned factor that begins at zero.

Source: Wang et al., "MultiLoRA: Democratizing LoRA for Better Multi-Task Learning" (arXiv 2311.11501, 2023):

    y = W x + b + (α/r) · Σ_i diag(s_i) B_i A_i dropout(x)

It knows no tasks: all rows get the same ΔW, of rank n·r. As a core update: D = [A_1; … A_n],
U = [diag(s_1) B_1 … diag(s_n) B_n], C = (α/r) · I.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from tasklora.updates.base import CoreUpdate, UpdateOptions, check_positive_integer


@dataclass
class MultiLoraOptions(UpdateOptions):
    """Options of MultiLoRA; `r` is the rank of each of the n modules."""

    parallel_modules: int = field(default=3, metadata={"help": "n, the number of parallel LoRAs."})

    def check(self) -> None:
        """Raise ConfigError if a value cannot be used."""
        super().check()
        check_positive_integer("parallel_modules", self.parallel_modules)


class MultiLora(CoreUpdate):
    """ΔW = (α/r) · Σ_i diag(s_i) B_i A_i, the same for every task.

    Parameters: A (n·r, in_features) = [A_1; … A_n] and B (out_features, n, r), B_i = B[:, i], kaiming-uniform, each
    module over its own inputs; s (n, out_features) zero.
    """

    uses_task_ids = False
    identity_core = True
    no_decay_parameters = ("s",)

    def __init__(self, in_features: int, out_features: int, num_tasks: int, options: MultiLoraOptions) -> None:
        super().__init__(in_features, out_features, num_tasks, options)
        self.n = options.parallel_modules
        self.A = nn.Parameter(torch.empty(self.n * self.r, in_features))
        self.B = nn.Parameter(torch.empty(out_features, self.n, self.r))
        self.s = nn.Parameter(torch.empty(self.n, out_features))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Initialise as the paper does: A_i and B_i kaiming-uniform, s zero."""
        nn.init.kaiming_uniform_(self.A, a=math.sqrt(5))
        for index in range(self.n):  # the fan-in of B_i is r, not n·r
            nn.init.kaiming_uniform_(self.B[:, index], a=math.sqrt(5))
        nn.init.zeros_(self.s)

    def down(self) -> Tensor:
        """Return [A_1; … A_n] (n·r, in_features)."""
        return self.A

    def up(self) -> Tensor:
        """Return [diag(s_1) B_1 … diag(s_n) B_n] (out_features, n·r)."""
        return (self.B * self.s.T.unsqueeze(-1)).flatten(1)
