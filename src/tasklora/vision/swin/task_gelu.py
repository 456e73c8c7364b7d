"""What a task's own hidden layer contributes, without ever keeping that layer."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

# Rows are taken so many at a time that what is made of them, for all tasks, stays in a core's cache.
CHUNK_BYTES = 4 << 20


def task_gelu(frozen: Tensor, h: Tensor, up: Tensor, down: Tensor) -> Tensor:
    """Return z_t = D_t GELU(P + U_t h_t) of every task.

    The hidden layer of a task's MLP, (R, 4C), enters the rest of the network only through the low-rank factor D_t of
    the second linear layer, whose frozen product is of the shared input. So neither P + U_t h_t nor its GELU is kept
    for backward: both are made again there, some rows of all tasks at a time.

    Args:
        frozen: P, (R, d).
        h: (T, R, r).
        up: U_tᵀ, (T, r, d).
        down: D_t, (T, k, d).

    Returns:
        (T, R, k).
    """
    if torch.is_autocast_enabled(frozen.device.type):
        dtype = torch.get_autocast_dtype(frozen.device.type)
        frozen, h, up, down = (part.to(dtype) for part in (frozen, h, up, down))
    if torch.compiler.is_compiling():
        return torch.nn.functional.gelu(frozen + h @ up) @ down.mT
    return _TaskGelu.apply(frozen, h, up.to(h.dtype), down.to(h.dtype))  # type: ignore[no-any-return]


def _chunks(h: Tensor, width: int) -> range:
    count, rows, _ = h.shape
    return range(0, rows, max(1, CHUNK_BYTES // (count * width * h.element_size())))


def _hidden(frozen: Tensor, h: Tensor, up: Tensor, rows: slice) -> Tensor:
    return torch.baddbmm(frozen[rows].expand(h.shape[0], -1, -1), h[:, rows], up)  # (T, chunk, d)


class _TaskGelu(torch.autograd.Function):
    """With u_t = P + U_t h_t, a_t = GELU(u_t) and g_t = ∂/∂z_t:

    ∂/∂u_t = (D_tᵀ g_t) ⊙ GELU'(u_t)    ∂/∂P = Σ_t ∂/∂u_t    ∂/∂h_t = U_tᵀ ∂/∂u_t    ∂/∂U_t = ∂/∂u_t h_tᵀ
    ∂/∂D_t = g_t a_tᵀ
    """

    @staticmethod
    def forward(ctx: Any, frozen: Tensor, h: Tensor, up: Tensor, down: Tensor) -> Tensor:
        ctx.save_for_backward(frozen, h, up, down)
        out = h.new_empty(*h.shape[:2], down.shape[1])
        with torch.autocast(h.device.type, enabled=False):
            chunks = _chunks(h, frozen.shape[1])
            for start in chunks:
                rows = slice(start, start + chunks.step)
                hidden = torch.ops.aten.gelu_(_hidden(frozen, h, up, rows))
                out[:, rows] = hidden @ down.mT
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (g,) = grads
        frozen, h, up, down = ctx.saved_tensors
        g_frozen, g_h = torch.empty_like(frozen), torch.empty_like(h)
        g_up, g_down = torch.zeros_like(up), torch.zeros_like(down)
        with torch.autocast(h.device.type, enabled=False):
            chunks = _chunks(h, frozen.shape[1])
            for start in chunks:
                rows = slice(start, start + chunks.step)
                hidden = _hidden(frozen, h, up, rows)
                own = g[:, rows]
                g_down += own.mT @ torch.nn.functional.gelu(hidden)
                g_hidden = torch.ops.aten.gelu_backward(own @ down, hidden)
                g_frozen[rows] = g_hidden.sum(0)
                g_h[:, rows] = g_hidden @ up.mT
                g_up += h[:, rows].mT @ g_hidden
        return g_frozen, g_h, g_up, g_down
