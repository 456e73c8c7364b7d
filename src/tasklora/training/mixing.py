"""Mixing tasks: one epoch draws from every task, and every batch may hold several."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from torch.utils.data import Dataset, Sampler

from tasklora.tasks import TaskRows


class MixedRows(Dataset[dict[str, Any]]):
    """The rows of several tasks behind one index: task after task.

    Args:
        tasks: task name → its rows, in the order of the task ids.
    """

    def __init__(self, tasks: Mapping[str, TaskRows]) -> None:
        self.tasks = list(tasks.items())
        self.sizes = [len(rows) for _, rows in self.tasks]
        self._starts = np.concatenate([[0], np.cumsum(self.sizes)])

    def lengths(self) -> np.ndarray[Any, np.dtype[np.int64]]:
        """Return the length of each row's longest text in characters, to group rows that need little padding."""
        return np.concatenate([rows.lengths() for _, rows in self.tasks])

    def __len__(self) -> int:
        return int(self._starts[-1])

    def __getitem__(self, index: int) -> dict[str, Any]:
        place = int(np.searchsorted(self._starts, index, side="right")) - 1
        name, rows = self.tasks[place]
        return {**rows[int(index - self._starts[place])], "task": name}


def rows_per_epoch(sizes: list[int], strategy: str, temperature: float = 2.0, cap: int | None = None) -> list[int]:
    """Return how many rows of each task an epoch draws.

    ``proportional`` draws every row once (n_t); ``capped`` min(n_t, cap); ``equal`` and ``temperature`` share the
    Σ n_t rows of an epoch by p_t = 1/T and p_t ∝ n_t^(1/temperature) (rounded, at least one row each).

    Args:
        sizes: n_t, rows of each task.
        strategy: one of the four names.
        temperature: 1 is proportional, ∞ is equal.
        cap: largest count of a task.
    """
    counts = np.asarray(sizes, dtype=np.float64)
    if strategy == "proportional":
        return list(sizes)
    if strategy == "capped":
        assert cap is not None
        return [min(size, cap) for size in sizes]
    shares = np.ones_like(counts) if strategy == "equal" else counts ** (1.0 / temperature)
    return [max(1, int(n)) for n in np.rint(shares / shares.sum() * counts.sum())]


# Rows are grouped by length within this many batches: enough for little padding, few enough for random batches.
GROUPED_BATCHES = 8


class TaskMixingSampler(Sampler[int]):
    """Draws the rows of an epoch, tasks mixed in random order.

    A task that is drawn more often than it has rows is gone through again and again, each time in a new order; one that
    is drawn less often gives a new random part every epoch. The order depends on seed and epoch only, so a
    resumed run draws the same rows.

    Args:
        sizes: rows of each task, as in :class:`MixedRows`.
        per_epoch: rows of each task to draw per epoch; see :func:`rows_per_epoch`.
        seed: of the order.
        lengths: length of each row; with them, rows of similar length come into the same batch.
        batch_size: rows per batch, where rows are grouped by length.
    """

    def __init__(
        self,
        sizes: list[int],
        per_epoch: list[int],
        seed: int,
        lengths: np.ndarray[Any, np.dtype[np.int64]] | None = None,
        batch_size: int = 1,
    ) -> None:
        self.sizes = sizes
        self.per_epoch = per_epoch
        self.seed = seed
        self.lengths = lengths
        self.batch_size = batch_size
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch whose order is drawn next; the Trainer calls this."""
        self.epoch = epoch

    def __len__(self) -> int:
        return sum(self.per_epoch)

    def __iter__(self) -> Iterator[int]:
        generator = np.random.default_rng([self.seed, self.epoch])
        drawn, start = [], 0
        for size, count in zip(self.sizes, self.per_epoch, strict=True):
            rounds = -(-count // size)
            order = np.concatenate([generator.permutation(size) for _ in range(rounds)])[:count]
            drawn.append(start + order)
            start += size
        mixed = generator.permutation(np.concatenate(drawn))
        return iter((mixed if self.lengths is None else self._grouped(mixed, generator)).tolist())

    def _grouped(
        self, mixed: np.ndarray[Any, np.dtype[np.int64]], generator: np.random.Generator
    ) -> np.ndarray[Any, np.dtype[np.int64]]:
        """Return `mixed` sorted by length within groups of batches, the batches of the epoch in random order."""
        assert self.lengths is not None
        size = self.batch_size * GROUPED_BATCHES
        groups = [mixed[start : start + size] for start in range(0, len(mixed), size)]
        ordered = np.concatenate([group[np.argsort(self.lengths[group], kind="stable")] for group in groups])
        whole = len(ordered) // self.batch_size * self.batch_size
        batches = generator.permutation(ordered[:whole].reshape(-1, self.batch_size))
        return np.concatenate([batches.reshape(-1), ordered[whole:]])
