"""MoELoRA: a LoRA cut into experts that each task weights by a gate on its embedding.

Source: Liu et al., "When MOE Meets LLMs: Parameter Efficient Fine-tuning for Multi-task Medical Applications"
(arXiv 2310.18339, SIGIR 2024), section 3, and the published code of MTL-LoRA, which compares with it:

    y = W x + b + (α/r) · Σ_i softmax(G e_t)_i · B_i A_i dropout(x)        A_i (r/n × in), B_i (out × r/n)

As a core update: D = [A_1; … A_n], U = [B_1 … B_n], C_t = (α/r) · diag(softmax(G e_t)) ⊗ I.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from tasklora.errors import ConfigError
from tasklora.updates.base import CoreUpdate, UpdateOptions, check_positive_integer
from tasklora.updates.ops import wide_softmax


@dataclass
class MoELoraOptions(UpdateOptions):
    """Options of MoELoRA; `r` is the rank of all experts together, so each has r / experts."""

    experts: int = field(default=4, metadata={"help": "n, the number of experts; must divide r."})
    task_embedding: int = field(default=64, metadata={"help": "Length of the task embeddings e_t."})

    def check(self) -> None:
        """Raise ConfigError if a value cannot be used."""
        super().check()
        check_positive_integer("experts", self.experts)
        check_positive_integer("task_embedding", self.task_embedding)
        if self.r % self.experts:
            raise ConfigError(
                f"r is the rank of all experts together and must be a multiple of experts ({self.experts}), "
                f"got {self.r}."
            )


class MoELora(CoreUpdate):
    """ΔW_t = (α/r) · Σ_i softmax(G e_t)_i · B_i A_i.

    Parameters: A (r, in_features) = [A_1; … A_n] normal(0, 0.01); B (out_features, r) = [B_1 … B_n] zero;
    e (T, task_embedding) normal(0, 1); G (n, task_embedding) kaiming-uniform.
    """

    per_task_parameters = ("e",)
    no_decay_parameters = ("e", "G")

    def __init__(self, in_features: int, out_features: int, num_tasks: int, options: MoELoraOptions) -> None:
        options.check()  # here too, as a rank_pattern gives layers ranks that the config has not seen
        super().__init__(in_features, out_features, num_tasks, options)
        self.n = options.experts
        self.A = nn.Parameter(torch.empty(self.r, in_features))
        self.B = nn.Parameter(torch.empty(out_features, self.r))
        self.e = nn.Parameter(torch.empty(num_tasks, options.task_embedding))
        self.G = nn.Parameter(torch.empty(self.n, options.task_embedding))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Initialise as the published code does."""
        nn.init.normal_(self.A, std=0.01)
        nn.init.zeros_(self.B)
        self.reset_table("e", self.e)
        nn.init.kaiming_uniform_(self.G, a=math.sqrt(5))

    def reset_table(self, name: str, table: Tensor) -> None:
        """Initialise embeddings of tasks: normal(0, 1)."""
        nn.init.normal_(table)

    def down(self) -> Tensor:
        """Return [A_1; … A_n] (r, in_features)."""
        return self.A

    def up(self) -> Tensor:
        """Return [B_1 … B_n] (out_features, r)."""
        return self.B

    def gates(self, ids: Tensor) -> Tensor:
        """Return softmax(G e_t) for each entry of `ids`: (*ids.shape, n)."""
        return wide_softmax(self.rows("e", ids) @ self.G.T, like=self.e)

    def core(self, ids: Tensor) -> Tensor:
        """Return (α/r) · diag(softmax(G e_t)) ⊗ I for each entry of `ids`: (*ids.shape, r, r)."""
        per_direction = self.gates(ids).repeat_interleave(self.r // self.n, dim=-1)
        return torch.diag_embed(per_direction * self.scaling)

    def diagnostics(self) -> dict[str, Tensor]:
        """Return ``expert_weights`` (T, n): how each task weights the experts."""
        return {"expert_weights": self.gates(torch.arange(self.num_tasks, device=self.e.device))}
