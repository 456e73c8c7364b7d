"""The block order of per-token ids: every block holds one task, slots are distinct, and nothing is read back.

The number of blocks follows from shapes alone, so a compiled graph or a GPU queue never waits for values.
"""

import torch
from hypothesis import given
from hypothesis import strategies as st

from tasklora.updates.block_order import BLOCK, block_order


@given(st.integers(0, 200), st.integers(1, 40), st.integers(0, 50))
def test_blocks_hold_one_task_each(tokens, num_tasks, seed):
    generator = torch.Generator().manual_seed(seed)
    used = int(torch.randint(1, num_tasks + 1, (), generator=generator))
    ids = torch.randint(used, (tokens,), generator=generator)
    order = block_order(ids, num_tasks)
    assert order.slot.unique().numel() == tokens
    assert torch.equal(order.task[order.slot // BLOCK], ids)
    assert order.task.numel() == tokens // BLOCK + min(num_tasks, tokens)
    assert ((order.task >= 0) & (order.task < num_tasks)).all()


def test_worst_case_fits_the_bound():
    """Every task has one token more than full blocks: no bound from shapes alone could be lower."""
    num_tasks = 5
    ids = torch.arange(num_tasks).repeat_interleave(BLOCK + 1)
    order = block_order(ids, num_tasks)
    assert int(order.slot.max()) // BLOCK < order.task.numel()
    assert torch.equal(order.task[order.slot // BLOCK], ids)


def test_no_value_is_read():
    """Tensors on the meta device have no values: reading one would raise."""
    order = block_order(torch.zeros(100, dtype=torch.long, device="meta"), 7)
    assert order.task.shape == (100 // BLOCK + 7,)
