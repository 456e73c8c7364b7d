"""TA-LoRA: task embeddings gate the directions of a low-rank update that is kept apart from a shared one.

It was described in prose only ("task-adaptive" LoRA): task-identifier embeddings gate low-rank projections, a shared
subspace is decoupled from the tasks' subspaces, and inference costs nothing extra. This is our reading of it:

    y = W x + b + (α/r) · (B_s A_s + B diag(σ(G e_t / τ)) A) dropout(x)

As a core update: D = [A_s; A], U = [B_s, B], C_t = (α/r) · blockdiag(I, diag(σ(G e_t / τ))).

"Decoupled" is a term of the loss, without which equal gates would be one more shared LoRA:

    orthogonality · ( ‖A_s Aᵀ‖² / (‖A_s‖² ‖A‖²) + ‖B_sᵀ B‖² / (‖B_s‖² ‖B‖²) )        each fraction in [0, 1]
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from tasklora.errors import ConfigError
from tasklora.updates.base import CoreUpdate, UpdateOptions, check_positive, check_positive_integer, is_number


@dataclass
class TALoraOptions(UpdateOptions):
    """Options of TA-LoRA; `r` counts the directions that tasks gate."""

    r_shared: int | None = field(default=None, metadata={"help": "Number of shared directions; None for r."})
    task_embedding: int = field(default=16, metadata={"help": "Length of the task embeddings e_t."})
    temperature: float = field(default=1.0, metadata={"help": "τ of σ(G e_t / τ); must be positive."})
    orthogonality: float = field(
        default=0.1, metadata={"help": "Weight of the loss that keeps the task directions apart from the shared ones."}
    )

    def check(self) -> None:
        """Raise ConfigError if a value cannot be used."""
        super().check()
        if self.r_shared is not None:
            check_positive_integer("r_shared", self.r_shared)
        check_positive_integer("task_embedding", self.task_embedding)
        check_positive("temperature", self.temperature)
        if not is_number(self.orthogonality) or self.orthogonality < 0:
            raise ConfigError(f"orthogonality must be zero or positive, got {self.orthogonality!r}.")


class TALora(CoreUpdate):
    """ΔW_t = (α/r) · (B_s A_s + B diag(σ(G e_t / τ)) A).

    Parameters: A (r_shared + r, in_features) = [A_s; A] kaiming-uniform; B (out_features, r_shared + r) = [B_s, B],
    zero; e (T, task_embedding) normal(0, 1); G (r, task_embedding) kaiming-uniform.
    """

    per_task_parameters = ("e",)
    no_decay_parameters = ("e", "G")

    def __init__(self, in_features: int, out_features: int, num_tasks: int, options: TALoraOptions) -> None:
        super().__init__(in_features, out_features, num_tasks, options)
        self.r_shared = options.r if options.r_shared is None else options.r_shared
        self.temperature = options.temperature
        self.orthogonality = options.orthogonality
        self.A = nn.Parameter(torch.empty(self.r_shared + self.r, in_features))
        self.B = nn.Parameter(torch.empty(out_features, self.r_shared + self.r))
        self.e = nn.Parameter(torch.empty(num_tasks, options.task_embedding))
        self.G = nn.Parameter(torch.empty(self.r, options.task_embedding))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Initialise A and G kaiming-uniform, B zero, the embeddings normal(0, 1)."""
        nn.init.kaiming_uniform_(self.A, a=math.sqrt(5))
        nn.init.zeros_(self.B)
        self.reset_table("e", self.e)
        nn.init.kaiming_uniform_(self.G, a=math.sqrt(5))

    def reset_table(self, name: str, table: Tensor) -> None:
        """Initialise embeddings of tasks: normal(0, 1)."""
        nn.init.normal_(table)

    @torch.no_grad()
    def begin_as(self, down: Tensor, up: Tensor, task: int | None) -> None:
        """Become a plain LoRA for every task: it takes the shared directions, those of tasks begin at zero."""
        self._fill(self.A[: self.r_shared], self.B[:, : self.r_shared], down, up)
        self.B[:, self.r_shared :].zero_()

    def down(self) -> Tensor:
        """Return [A_s; A] (r_shared + r, in_features)."""
        return self.A

    def up(self) -> Tensor:
        """Return [B_s, B] (out_features, r_shared + r)."""
        return self.B

    def gates(self, ids: Tensor) -> Tensor:
        """Return σ(G e_t / τ) for each entry of `ids`: (*ids.shape, r)."""
        return torch.sigmoid(self.rows("e", ids) @ self.G.T / self.temperature)

    def core(self, ids: Tensor) -> Tensor:
        """Return (α/r) · blockdiag(I, diag(σ(G e_t / τ))) for each entry of `ids`."""
        gates = self.gates(ids)
        ones = gates.new_ones(*ids.shape, self.r_shared)
        return torch.diag_embed(torch.cat([ones, gates], dim=-1) * self.scaling)

    def auxiliary_loss(self) -> Tensor | None:
        """Return orthogonality times how much the shared and the task directions overlap, a number in [0, 2]."""
        if not self.orthogonality:
            return None
        down = _overlap(self.A[: self.r_shared], self.A[self.r_shared :])
        up = _overlap(self.B[:, : self.r_shared].T, self.B[:, self.r_shared :].T)
        return self.orthogonality * (down + up)

    def diagnostics(self) -> dict[str, Tensor]:
        """Return how far each task opens its directions, and how they stand to the shared ones.

        With S = B_s A_s and O_t = B diag(σ(G e_t / τ)) A, both NaN while one of them is zero (B begins so):
        ``task_gates`` (T, r): σ(G e_t / τ). ``task_share`` (T,): ‖O_t‖² / (‖S‖² + ‖O_t‖²). ``shared_cosine`` (T,):
        ⟨S, O_t⟩ / (‖S‖ ‖O_t‖), Frobenius: 0 where they are kept apart.
        """
        gates = self.gates(torch.arange(self.num_tasks, device=self.e.device))
        downs, ups = self.A @ self.A.T, self.B.T @ self.B
        inner = downs * ups  # entry (i, j): ⟨b_i a_iᵀ, b_j a_jᵀ⟩ of the rank-one parts
        shared, own = inner[: self.r_shared, : self.r_shared].sum(), inner[self.r_shared :, self.r_shared :]
        own = torch.einsum("ti,ij,tj->t", gates, own, gates).clamp(min=0)  # ‖O_t‖²
        across = gates @ inner[self.r_shared :, : self.r_shared].sum(dim=1)
        return {
            "task_gates": gates,
            "task_share": own / (shared + own),
            "shared_cosine": across / (shared.clamp(min=0) * own).sqrt(),
        }


def _overlap(shared: Tensor, own: Tensor) -> Tensor:
    """Return ‖S Oᵀ‖² / (‖S‖² ‖O‖²) of S (k, d) and O (m, d); 0 where one of them is zero, as B is at the start."""
    sizes = shared.square().sum() * own.square().sum()
    return (shared @ own.T).square().sum() / sizes.clamp(min=torch.finfo(sizes.dtype).tiny)
