"""The arithmetic of the updates: products of activations with small per-row matrices.

Shapes are written as comments on the lines that reshape: R rows, L positions per row, N = R·L tokens, T tasks.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

# Tokens of one task are handled in blocks of this many rows; small enough that a task with few tokens wastes
# little, large enough that the batched product is one of matrices and not of vectors.
BLOCK = 16


def wide_softmax(logits: Tensor, like: Tensor) -> Tensor:
    """Return softmax over the last dimension, computed in the wider of `like`'s dtype and float32."""
    return torch.softmax(logits, dim=-1, dtype=torch.promote_types(like.dtype, torch.float32))


def _three_dimensional(x: Tensor) -> Tensor:
    """Return (R, in) or (R, …, in) as (R, L, in); unlike a reshape with -1, also for batches without any rows."""
    return x.unsqueeze(1) if x.dim() == 2 else x.flatten(1, -2)


def core_product(h: Tensor, core: Tensor) -> Tensor:
    """Return C h for every token.

    Args:
        h: (R, …, k_d), the down-projected input.
        core: (k_u, k_d) for all rows, (R, k_u, k_d) per row, or (R, L, k_u, k_d) per token (then h is (R, L, k_d)).

    Returns:
        (R, …, k_u).
    """
    if core.dim() == 2:
        return F.linear(h, core)
    if core.dim() == 4:
        return torch.matmul(core, h.unsqueeze(-1)).squeeze(-1)  # (R, L, k_u, k_d) @ (R, L, k_d, 1) → (R, L, k_u)
    mixed = torch.bmm(_three_dimensional(h), core.transpose(1, 2))  # (R, L, k_u)
    return mixed.reshape(*h.shape[:-1], core.shape[1])


def bank_product(x: Tensor, down: Tensor, up: Tensor) -> Tensor:
    """Return B_t (A_t x) with one pair of factors per row.

    Args:
        x: (R, …, in).
        down: (R, r, in), A of each row's task; or (r, in) for all rows.
        up: (R, out, r), B of each row's task; or (out, r) for all rows.

    Returns:
        (R, …, out).
    """
    if down.dim() == 2:
        return F.linear(F.linear(x, down), up)
    hidden = torch.bmm(_three_dimensional(x), down.transpose(1, 2))  # (R, L, r)
    return torch.bmm(hidden, up.transpose(1, 2)).reshape(*x.shape[:-1], up.shape[1])


@dataclass(frozen=True)
class BlockOrder:
    """Where each token goes so that every block of :data:`BLOCK` slots holds tokens of one task only.

    Attributes:
        slot: (N,) slot of each token among the ``blocks · BLOCK`` slots.
        task: (blocks,) the task of each block.
    """

    slot: Tensor
    task: Tensor


def block_order(ids: Tensor, num_tasks: int) -> BlockOrder:
    """Return a task-pure block order of tokens, without reading any value back to the host.

    The number of blocks is bounded by shapes alone: N // BLOCK full ones and at most one partial block for each task
    that can occur, min(T, N).

    Args:
        ids: (N,) task of each token.
        num_tasks: T.
    """
    tokens = ids.numel()
    blocks = tokens // BLOCK + min(num_tasks, tokens)
    order = torch.argsort(ids, stable=True)
    sorted_ids = ids[order]
    counts = torch.zeros(num_tasks, dtype=torch.long, device=ids.device).scatter_add_(0, ids, torch.ones_like(ids))
    blocks_per_task = (counts + BLOCK - 1) // BLOCK
    last_block = torch.cumsum(blocks_per_task, 0)
    first_token = torch.cumsum(counts, 0) - counts
    place_in_task = torch.arange(tokens, device=ids.device) - first_token[sorted_ids]
    slot = torch.empty_like(ids)
    slot[order] = (last_block - blocks_per_task)[sorted_ids] * BLOCK + place_in_task
    block_index = torch.arange(blocks, device=ids.device)
    task = torch.searchsorted(last_block, block_index, right=True).clamp_(max=num_tasks - 1)
    return BlockOrder(slot=slot, task=task)


def grouped_bank_product(x: Tensor, down: Tensor, up: Tensor, order: BlockOrder) -> Tensor:
    """Return B_t (A_t x) with a task per token.

    Args:
        x: (R, L, in).
        down: (blocks, r, in), A of each block's task.
        up: (blocks, out, r), B of each block's task.
        order: block order of the R·L tokens.

    Returns:
        (R, L, out).
    """
    flat = x.reshape(-1, x.shape[-1])  # (N, in)
    slots = order.task.numel() * BLOCK
    padded = flat.new_zeros(slots, flat.shape[-1]).index_copy(0, order.slot, flat)
    blocked = padded.reshape(-1, BLOCK, flat.shape[-1])  # (blocks, BLOCK, in)
    out = bank_product(blocked, down, up)  # (blocks, BLOCK, out)
    return out.flatten(0, 1)[order.slot].reshape(*x.shape[:-1], up.shape[1])  # (slots, out) → (N, out) → (R, L, out)
