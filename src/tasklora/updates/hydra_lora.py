"""HydraLoRA: one shared A and several B_i that a router mixes token by token.

Source: Tian et al., "HydraLoRA: An Asymmetric LoRA Architecture for Efficient Fine-Tuning" (arXiv 2404.19245,
NeurIPS 2024), section 3:

    y = W x + b + (α/r) · Σ_i softmax(R x)_i · B_i A dropout(x)

The router reads x before dropout. It knows no tasks, and as its ΔW depends on the token it has no plain LoRA.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from tasklora.updates.base import RoutedUpdate, UpdateOptions, check_positive_integer


@dataclass
class HydraLoraOptions(UpdateOptions):
    """Options of HydraLoRA."""

    up_projections: int = field(default=3, metadata={"help": "n, the number of up-projections B_i."})

    def check(self) -> None:
        """Raise ConfigError if a value cannot be used."""
        super().check()
        check_positive_integer("up_projections", self.up_projections)


class HydraLora(RoutedUpdate):
    """ΔW x = (α/r) · Σ_i softmax(R x)_i · B_i A x.

    Parameters: A (r, in_features) and R (n, in_features) kaiming-uniform, B (out_features, n, r) zero, B_i = B[:, i].
    """

    def __init__(self, in_features: int, out_features: int, num_tasks: int, options: HydraLoraOptions) -> None:
        super().__init__(in_features, out_features, num_tasks, options)
        self.n = options.up_projections
        self.A = nn.Parameter(torch.empty(self.r, in_features))
        self.B = nn.Parameter(torch.empty(out_features, self.n, self.r))
        self.R = nn.Parameter(torch.empty(self.n, in_features))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Initialise as the published code does: A and R kaiming-uniform, B_i zero."""
        nn.init.kaiming_uniform_(self.A, a=math.sqrt(5))
        nn.init.zeros_(self.B)
        nn.init.kaiming_uniform_(self.R, a=math.sqrt(5))

    def down(self) -> Tensor:
        """Return A (r, in_features)."""
        return self.A

    def up(self) -> Tensor:
        """Return [B_1 … B_n] (out_features, n·r), a view of B."""
        return self.B.flatten(1)

    def router(self) -> Tensor:
        """Return R (n, in_features)."""
        return self.R
