"""The cores of the methods that mix shared up-projections per task: C_t = s · softmax(w_t / τ) ⊗ M_t."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from tasklora.updates.ops import rows_of, wide_softmax


def mixture_cores(logits: Tensor, matrix: Tensor, ids: Tensor, temperature: float, scaling: float) -> Tensor:
    """Return s · softmax(w_t / τ) ⊗ M_t for each entry of `ids`: (*ids.shape, n·r, r).

    Args:
        logits: w (T, n).
        matrix: M (T, r, r), or the diagonals of diagonal ones (T, r).
        ids: the tasks.
        temperature: τ.
        scaling: s.
    """
    if torch.compiler.is_compiling():
        return cores_of_rows(rows_of(logits, ids), rows_of(matrix, ids), temperature, scaling)
    return _MixtureCores.apply(logits, matrix, ids, temperature, scaling)  # type: ignore[no-any-return]


def cores_of_rows(logits: Tensor, matrix: Tensor, temperature: float, scaling: float) -> Tensor:
    """Return s · softmax(w_t / τ) ⊗ M_t (…, n·r, r), plainly, of w_t (…, n) and M_t (…, r, r) or (…, r)."""
    return _outer(*_gates_and_matrices(logits, matrix, temperature, scaling))


def _gates_and_matrices(logits: Tensor, matrix: Tensor, temperature: float, scaling: float) -> tuple[Tensor, Tensor]:
    """Return s · softmax(w_t / τ) (…, n) and M_t (…, r, r)."""
    gates = wide_softmax(logits / temperature, like=logits) * scaling
    return gates, matrix if matrix.dim() == logits.dim() + 1 else torch.diag_embed(matrix)


def _outer(gates: Tensor, matrices: Tensor) -> Tensor:
    return (gates[..., None, None] * matrices[..., None, :, :]).flatten(-3, -2)  # (…, n, r, r) → (…, n·r, r)


class _MixtureCores(torch.autograd.Function):
    """C = q ⊗ M with q = s softmax(w / τ), for the tasks asked for. With G_i the gradient of block i of C:

        ∂/∂M = Σ_i q_i G_i    ∂/∂q_i = ⟨G_i, M⟩    ∂/∂w = (1/τ) q ⊙ (∂/∂q − ⟨q, ∂/∂q⟩ / s)

    One node of the graph in place of ten: for short batches those would cost more than the products.
    """

    @staticmethod
    def forward(ctx: Any, logits: Tensor, matrix: Tensor, ids: Tensor, temperature: float, scaling: float) -> Tensor:
        q, m = _gates_and_matrices(rows_of(logits, ids), rows_of(matrix, ids), temperature, scaling)
        ctx.save_for_backward(logits, matrix, ids)
        ctx.of_tasks, ctx.temperature, ctx.scaling = (q.detach(), m.detach()), temperature, scaling
        return _outer(q, m)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        logits, matrix, ids = ctx.saved_tensors
        q, m = ctx.of_tasks  # (…, n), (…, r, r)
        if torch.is_grad_enabled():  # for second derivatives they must depend on the parameters
            q, m = _gates_and_matrices(rows_of(logits, ids), rows_of(matrix, ids), ctx.temperature, ctx.scaling)
        n, r = q.shape[-1], m.shape[-1]
        q, m = q.reshape(-1, n), m.reshape(-1, r * r)
        g = grads[0].reshape(-1, n, r * r).to(q.dtype)  # (I, n, r²)
        g_m = torch.bmm(q.unsqueeze(1), g).view(-1, r, r)  # (I, r, r)
        along = q * torch.bmm(g, m.to(q.dtype).unsqueeze(2)).squeeze(2)  # (I, n)
        g_logits = torch.addcmul(along, q, along.sum(1, keepdim=True), value=-1 / ctx.scaling) / ctx.temperature
        if matrix.dim() == 2:
            g_m = torch.diagonal(g_m, dim1=1, dim2=2)
        tasks = ids.reshape(-1)
        tables = [
            torch.zeros_like(table).index_add(0, tasks, rows.to(table.dtype))
            for table, rows in ((logits, g_logits), (matrix, g_m))
        ]
        return *tables, None, None, None
