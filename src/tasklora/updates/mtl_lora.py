"""MTL-LoRA: shared down-projection, task matrices, and several up-projections mixed per task.

Source: Yang et al., "MTL-LoRA: Low-Rank Adaptation for Multi-Task Learning" (arXiv 2410.09437, AAAI 2025), section 3,
and the published code of the paper, whose scripts use full task matrices:

    y = W x + b + (α/r) · Σ_i softmax(w_t / τ)_i · B_i Λ_t A dropout(x)

As a core update: D = A, U = [B_1 … B_n], C_t = (α/r) · softmax(w_t / τ) ⊗ Λ_t.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from tasklora.errors import ConfigError, did_you_mean
from tasklora.updates.base import CoreUpdate, UpdateOptions, check_positive, check_positive_integer
from tasklora.updates.mixtures import cores_of_rows, mixture_cores
from tasklora.updates.ops import wide_softmax

TASK_MATRICES = ("full", "diagonal")


@dataclass
class MTLLoraOptions(UpdateOptions):
    """Options of MTL-LoRA."""

    up_projections: int = field(default=3, metadata={"help": "n, the number of shared up-projections B_i."})
    temperature: float = field(default=0.5, metadata={"help": "τ of softmax(w_t / τ); must be positive."})
    task_matrix: str = field(default="full", metadata={"help": "Λ_t is 'full' (r × r) or 'diagonal' (r numbers)."})

    def check(self) -> None:
        """Raise ConfigError if a value cannot be used."""
        super().check()
        check_positive_integer("up_projections", self.up_projections)
        check_positive("temperature", self.temperature)
        if self.task_matrix not in TASK_MATRICES:
            raise ConfigError(
                f"task_matrix must be one of {TASK_MATRICES}, got {self.task_matrix!r}."
                f"{did_you_mean(self.task_matrix, TASK_MATRICES)}"
            )


class MTLLora(CoreUpdate):
    """ΔW_t = (α/r) · Σ_i softmax(w_t / τ)_i · B_i Λ_t A.

    Parameters: A (r, in_features) kaiming-uniform; Lambda (T, r, r), or (T, r) when diagonal, the identity;
    B (out_features, n, r) zero, B_i = B[:, i]; w (T, n) kaiming-uniform, so that the B_i do not stay identical.
    """

    per_task_parameters = ("Lambda", "w")
    no_decay_parameters = ("Lambda", "w")

    def __init__(self, in_features: int, out_features: int, num_tasks: int, options: MTLLoraOptions) -> None:
        super().__init__(in_features, out_features, num_tasks, options)
        self.n = options.up_projections
        self.temperature = options.temperature
        self.diagonal = options.task_matrix == "diagonal"
        self.A = nn.Parameter(torch.empty(self.r, in_features))
        self.Lambda = nn.Parameter(torch.empty(num_tasks, *([self.r] if self.diagonal else [self.r, self.r])))
        self.B = nn.Parameter(torch.empty(out_features, self.n, self.r))
        self.w = nn.Parameter(torch.empty(num_tasks, self.n))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Initialise as the published code does: A and w kaiming-uniform, Λ_t = I, B_i = 0."""
        nn.init.kaiming_uniform_(self.A, a=math.sqrt(5))
        self.reset_table("w", self.w)
        nn.init.zeros_(self.B)
        self.reset_table("Lambda", self.Lambda)

    def reset_table(self, name: str, table: Tensor) -> None:
        """Initialise rows of Λ with the identity, rows of w kaiming-uniform."""
        if name == "w":
            nn.init.kaiming_uniform_(table, a=math.sqrt(5))
            return
        with torch.no_grad():
            table.copy_(torch.ones(self.r) if self.diagonal else torch.eye(self.r))

    @torch.no_grad()
    def begin_as(self, down: Tensor, up: Tensor, task: int | None) -> None:
        """Become a plain LoRA for every task: every B_i is its B, gates sum to one, and Λ_t = I."""
        for place in range(self.n):
            self._fill(self.A, self.B[:, place], down, up)
        for task_id in range(self.num_tasks):
            self.reset_table("Lambda", self.row("Lambda", task_id))

    def down(self) -> Tensor:
        """Return A (r, in_features)."""
        return self.A

    def up(self) -> Tensor:
        """Return [B_1 … B_n] (out_features, n·r), a view of B."""
        return self.B.flatten(1)

    def gates(self, ids: Tensor) -> Tensor:
        """Return softmax(w_t / τ) for each entry of `ids`: (*ids.shape, n)."""
        return wide_softmax(self.rows("w", ids) / self.temperature, like=self.w)

    def core(self, ids: Tensor) -> Tensor:
        """Return (α/r) · softmax(w_t / τ) ⊗ Λ_t for each entry of `ids`: (*ids.shape, n·r, r)."""
        if self.new_tasks:
            return cores_of_rows(self.rows("w", ids), self.rows("Lambda", ids), self.temperature, self.scaling)
        return mixture_cores(self.w, self.Lambda, ids, self.temperature, self.scaling)

    def diagnostics(self) -> dict[str, Tensor]:
        """Return how each task mixes the up-projections, and how far its Λ_t moved.

        ``up_projection_weights`` (T, n): softmax(w_t / τ). ``task_matrix_change`` (T,): ‖Λ_t − I‖_F / √r, the length
        of the change relative to that of the identity it began as.
        """
        identity = torch.ones(self.r) if self.diagonal else torch.eye(self.r)
        change = (self.table("Lambda") - identity.to(self.Lambda)).flatten(1).norm(dim=1) / math.sqrt(self.r)
        return {
            "up_projection_weights": self.gates(torch.arange(self.num_tasks, device=self.w.device)),
            "task_matrix_change": change,
        }

    def pair_diagnostics(self) -> dict[str, Tensor]:
        """Return ``task_matrix_distance`` (T, T): ‖Λ_t − Λ_s‖_F / √r, in the unit of ``task_matrix_change``."""
        matrices = self.table("Lambda").flatten(1)
        apart = torch.cdist(matrices, matrices, compute_mode="donot_use_mm_for_euclid_dist")
        return {"task_matrix_distance": apart / math.sqrt(self.r)}
