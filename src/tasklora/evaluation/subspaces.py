"""How alike the tasks' updates are: principal angles and cosines of ΔW_t = B_t A_t, from the factors alone.

The column space of ΔW_t is where an update writes to, its row space what it reads. The principal angles
0 ≤ θ_1 ≤ … ≤ θ_k ≤ π/2 between two subspaces with orthonormal bases Q and P are

    cos θ_i = σ_i(Qᵀ P)        (Björck & Golub, "Numerical methods for computing angles between linear subspaces", 1973)

No out × in matrix is formed: with the thin QR decompositions B = Q_B R_B and Aᵀ = Q_A R_A,

    ΔW = Q_B (R_B R_Aᵀ) Q_Aᵀ,        R_B R_Aᵀ = X Σ Yᵀ of size k × k,

so Q_B X and Q_A Y, without the columns of zero singular values, are orthonormal bases of the column and the row space.

Conventions: everything is computed in float64. Singular values below :data:`RANK_TOLERANCE` of the largest count as
zero. ΔW = 0 (B at the start) spans nothing and has no angles, and its cosine with anything is undefined (NaN). Of
spaces of ranks p and q there are min(p, q) angles. By the arccosine, angles below 1e-8 rad are not resolved.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

import torch
from torch import Tensor

RANK_TOLERANCE = 1e-6

Factors = Sequence[tuple[Tensor, Tensor]]
"""Per task A (k, in) and B (out, k) with ΔW = B A, as of ``lora_factors``."""


def pairs_of(count: int) -> list[tuple[int, int]]:
    """Return the pairs of `count` tasks in the order in which everything about pairs is kept: (0, 1), (0, 2), …"""
    return list(combinations(range(count), 2))


@dataclass(frozen=True)
class UpdateSpaces:
    """Orthonormal bases of the tasks' updates of one layer; columns of zeros fill them up to a common width k.

    Attributes:
        columns: (T, out, k), of the column spaces.
        rows: (T, in, k), of the row spaces.
        ranks: (T,).
    """

    columns: Tensor
    rows: Tensor
    ranks: Tensor


@torch.no_grad()
def update_spaces(factors: Factors) -> UpdateSpaces:
    """Return the bases of the tasks' updates; see the module for the equations.

    Args:
        factors: per task A (k_t, in) and B (out, k_t).
    """
    columns, rows, ranks = [], [], []
    for down, up in factors:
        q_up, r_up = torch.linalg.qr(up.double())  # (out, min(out, k)), (min(out, k), k)
        q_down, r_down = torch.linalg.qr(down.double().mT)
        x, values, y = torch.linalg.svd(r_up @ r_down.mT, full_matrices=False)
        kept = values > RANK_TOLERANCE * values[:1]  # strictly: of zero nothing is kept
        columns.append(q_up @ (x * kept))
        rows.append(q_down @ (y.mT * kept))
        ranks.append(kept.sum())
    return UpdateSpaces(_stacked(columns), _stacked(rows), torch.stack(ranks))


def _stacked(bases: list[Tensor]) -> Tensor:
    width = max(basis.shape[1] for basis in bases)
    return torch.stack([torch.nn.functional.pad(basis, (0, width - basis.shape[1])) for basis in bases])


@torch.no_grad()
def angle_cosines(bases: Tensor, ranks: Tensor) -> list[Tensor]:
    """Return the cosines of the principal angles of every pair of tasks, the smallest angle first.

    Args:
        bases: (T, m, k), as of :func:`update_spaces`.
        ranks: (T,).

    Returns:
        Per pair, in the order of :func:`pairs_of`, (min(p, q),): empty where one update is zero.
    """
    pairs = pairs_of(len(bases))
    if not pairs:
        return []
    first, second = (torch.tensor(side) for side in zip(*pairs, strict=True))
    products = _block_products(bases).transpose(1, 2)[first, second]  # (pairs, k, k)
    values = torch.linalg.svdvals(products).clamp(0.0, 1.0)  # (pairs, k)
    shared = torch.minimum(ranks[first], ranks[second]).tolist()
    return [of_pair[:rank] for of_pair, rank in zip(values, shared, strict=True)]


def principal_angles(one: tuple[Tensor, Tensor], other: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """Return the principal angles between the column and between the row spaces of two updates, in radians.

    Args:
        one: A (k, in) and B (out, k) with ΔW = B A.
        other: the same of another update of the same layer.

    Returns:
        Two tensors (min(p, q),), ascending; empty where one update is zero.
    """
    spaces = update_spaces([one, other])
    (columns,), (rows,) = angle_cosines(spaces.columns, spaces.ranks), angle_cosines(spaces.rows, spaces.ranks)
    return columns.acos(), rows.acos()


@torch.no_grad()
def inner_products(factors: Factors) -> Tensor:
    """Return ⟨ΔW_t, ΔW_s⟩ = tr(ΔW_tᵀ ΔW_s) = Σ_ij (B_tᵀ B_s)_ij (A_t A_sᵀ)_ij of all tasks: (T, T), Frobenius.

    Args:
        factors: per task A (k_t, in) and B (out, k_t).
    """
    downs = _block_products(_stacked([down.double().mT for down, _ in factors]))
    ups = _block_products(_stacked([up.double() for _, up in factors]))
    return (downs * ups).sum(dim=(1, 3))


def _block_products(bases: Tensor) -> Tensor:
    """Return the products of all pairs of matrices, (T, k, T, k), of (T, m, k)."""
    count, _, width = bases.shape
    stacked = bases.transpose(0, 1).flatten(1)  # (m, T·k): all of them are blocks of one product
    return (stacked.mT @ stacked).view(count, width, count, width)


def cosines_of(inner: Tensor) -> Tensor:
    """Return the cosines (T, T) of inner products (T, T); NaN where a norm is zero."""
    norms = inner.diagonal().clamp(min=0).sqrt()
    cosines: Tensor = (inner / (norms[:, None] * norms)).clamp(-1.0, 1.0)
    return cosines
