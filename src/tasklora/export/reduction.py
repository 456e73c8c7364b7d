"""The best plain LoRA of a smaller rank, from the factors alone.

Of ΔW = B A (rank r) the nearest matrix of rank k in the Frobenius norm keeps the k largest singular values (Eckart and
Young, 1936). With B = Q_B R_B and Aᵀ = Q_A R_A the small core R_B R_Aᵀ (r × r) has the singular values of ΔW:

    R_B R_Aᵀ = P S Vᵀ    B' = Q_B P_k √S_k    A' = √S_k V_kᵀ Q_Aᵀ    ‖ΔW − B' A'‖² = Σ_{i > k} S_i²

so the out × in matrix is never formed.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tasklora.errors import ConfigError
from tasklora.updates import is_number


@dataclass(frozen=True)
class Reduction:
    """What a rank-reduced export lost.

    Attributes:
        exact_rank: rank of the exact export.
        rank: rank that was kept.
        relative_error: ‖ΔW − ΔW'‖_F / ‖ΔW‖_F over all layers together; 0 where ΔW is zero.
        layers: path → the same of one layer.
    """

    exact_rank: int
    rank: int
    relative_error: float
    layers: dict[str, float]

    def record(self) -> dict[str, Any]:
        """Return it as plain data, for the manifest."""
        return {
            "exact_rank": self.exact_rank,
            "rank": self.rank,
            "relative_error": self.relative_error,
            "layers": self.layers,
        }


@torch.no_grad()
def truncate(down: Tensor, up: Tensor, rank: int) -> tuple[Tensor, Tensor, float, float]:
    """Return the best factors of rank `rank` for ΔW = up · down, and what they lose.

    Computed in float64.

    Args:
        down: A (r, in).
        up: B (out, r).
        rank: k, at least 1.

    Returns:
        A' (k', in) and B' (out, k') with k' = min(k, r, in, out); ‖ΔW − B'A'‖² and ‖ΔW‖².
    """
    q_up, r_up = torch.linalg.qr(up.double())
    q_down, r_down = torch.linalg.qr(down.double().mT)
    left, values, right = torch.linalg.svd(r_up @ r_down.mT, full_matrices=False)
    root = values[:rank].sqrt()
    squares = values.square()
    new_down = (root[:, None] * right[:rank]) @ q_down.mT
    new_up = (q_up @ left[:, :rank]) * root
    return new_down.to(down.dtype), new_up.to(up.dtype), float(squares[rank:].sum()), float(squares.sum())


def reduce_rank(
    factors: Mapping[str, tuple[Tensor, Tensor]], rank: int
) -> tuple[dict[str, tuple[Tensor, Tensor]], Reduction]:
    """Return the factors of all layers at rank `rank` at most, and what was lost; smaller ones stay as they are.

    Args:
        factors: path → A (r, in) and B (out, r).
        rank: the rank to keep.

    Raises:
        ConfigError: if `rank` is no positive integer, or is not smaller than the exact rank.
    """
    if not is_number(rank) or not isinstance(rank, int) or rank < 1:
        raise ConfigError(f"rank must be a positive integer, got {rank!r}.")
    exact = max(down.shape[0] for down, _ in factors.values())
    if rank >= exact:
        raise ConfigError(
            f"rank {rank} reduces nothing: the exact plain LoRA has rank {exact}. Leave rank out for the exact export, "
            f"or give one below {exact}."
        )
    reduced, errors = {}, {}
    lost = total = 0.0
    for path, (down, up) in factors.items():
        if not (torch.isfinite(down).all() and torch.isfinite(up).all()):
            reduced[path] = (down, up)  # the export refuses it by name
            continue
        kept_down, kept_up, loss, size = truncate(down, up, rank)
        exactly = down.shape[0] <= rank
        reduced[path] = (down, up) if exactly else (kept_down, kept_up)
        loss = 0.0 if exactly else loss
        errors[path] = math.sqrt(loss / size) if size else 0.0
        lost, total = lost + loss, total + size
    return reduced, Reduction(exact, rank, math.sqrt(lost / total) if total else 0.0, errors)
