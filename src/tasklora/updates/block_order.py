"""Tokens of several tasks in blocks of one task each, so that a product with a weight per task is one batched product.

R rows of L positions are N = R·L tokens, T is the number of tasks. Where each token goes is found once per forward.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

# Tokens of one task are handled in blocks of this many rows; small enough that a task with few tokens wastes
# little, large enough that the batched product is one of matrices and not of vectors.
BLOCK = 16


def flat(x: Tensor) -> Tensor:
    """Return (R, L, k) as (N, k). A reshape, which batched backwards (``vmap``) can do, and no flatten."""
    return x.reshape(x.shape[0] * x.shape[1], x.shape[2])


@dataclass(frozen=True)
class BlockOrder:
    """Where each token goes so that every block of :data:`BLOCK` slots holds tokens of one task only.

    Attributes:
        slot: (N,) slot of each token among the ``blocks · BLOCK`` slots.
        token: (blocks · BLOCK,) token of each slot; any token for a slot that is empty.
        filled: (blocks, BLOCK, 1) whether there is a token in the slot.
        task: (blocks,) the task of each block.
    """

    slot: Tensor
    token: Tensor
    filled: Tensor
    task: Tensor

    def gather(self, x: Tensor) -> Tensor:
        """Return x (R, L, k) as (blocks, BLOCK, k), with anything in empty slots."""
        return flat(x).index_select(0, self.token).view(-1, BLOCK, x.shape[-1])

    def scatter(self, blocked: Tensor) -> Tensor:
        """Return blocked (blocks, BLOCK, k) as (N, k); the opposite of :meth:`gather`."""
        return flat(blocked).index_select(0, self.slot)


def block_order(ids: Tensor, num_tasks: int) -> BlockOrder:
    """Return a task-pure block order of tokens, without reading any value back to the host.

    The number of blocks is bounded by shapes alone: N // BLOCK full ones and at most one partial block for each task
    that can occur, min(T, N).

    Args:
        ids: (N,) task of each token.
        num_tasks: T, or how many of the tasks occur if that is known.
    """
    tokens = ids.numel()
    blocks = tokens // BLOCK + min(num_tasks, tokens)
    sorted_ids, order = torch.sort(ids, stable=True)
    place = torch.arange(tokens, device=ids.device)
    begins = torch.ones_like(sorted_ids, dtype=torch.bool)
    begins[1:] = sorted_ids[1:] != sorted_ids[:-1]
    run = begins.cumsum(0) - 1  # (N,) which of the tasks that occur, in the order of their ids
    first = torch.full((blocks + 1,), tokens, device=ids.device).scatter_reduce_(0, run, place, "amin")
    counts = torch.zeros_like(first).scatter_add_(0, run, torch.ones_like(run))
    blocks_of_run = (counts + BLOCK - 1) // BLOCK
    last_block = torch.cumsum(blocks_of_run, 0)
    sorted_slot = (last_block - blocks_of_run)[run] * BLOCK + place - first[run]
    slot = torch.empty_like(ids).scatter_(0, order, sorted_slot)
    token = torch.zeros(blocks * BLOCK, dtype=torch.long, device=ids.device).scatter_(0, sorted_slot, order)
    filled = torch.zeros_like(token, dtype=torch.bool).index_fill_(0, slot, True).view(-1, BLOCK, 1)
    task = torch.zeros(blocks, dtype=ids.dtype, device=ids.device).scatter_(0, sorted_slot // BLOCK, sorted_ids)
    return BlockOrder(slot, token, filled, task)
