"""Mixing tasks: one epoch draws from every task, and every batch may hold several."""

from __future__ import annotations

import functools
import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import Dataset, Sampler

from tasklora.errors import ConfigError, listing
from tasklora.tasks import TaskRows
from tasklora.training.mixing_section import MixingSection, MixSection

Integers: TypeAlias = NDArray[np.int64]
Floats: TypeAlias = NDArray[np.float64]


STREAM_PLACES = 2**40
"""Places of a task with streamed rows in the index of all rows: a stream has no end, but no run draws more."""


class MixedRows(Dataset[dict[str, Any]]):
    """The rows of several tasks behind one index: task after task.

    Args:
        tasks: task name → its rows, in the order of the task ids.

    Attributes:
        sizes: rows of each task; None where that is unknown.
        streams: the tasks whose rows are streamed; each has :data:`STREAM_PLACES` places.
    """

    def __init__(self, tasks: Mapping[str, TaskRows]) -> None:
        self.tasks = list(tasks.items())
        self.sizes = [rows.size for _, rows in self.tasks]
        self.streams = [name for name, rows in self.tasks if rows.streamed]
        places = [STREAM_PLACES if rows.streamed else len(rows) for _, rows in self.tasks]
        self._starts = np.concatenate([[0], np.cumsum(places)])

    def check_lengths(self) -> None:
        """Raise ConfigError if not every row's length is known before training."""
        if self.streams:
            raise ConfigError(
                f"training.group_by_length needs the lengths of all rows, but those of {listing(self.streams)} are "
                "streamed. Leave it out: without saying, they are not grouped."
            )

    def lengths(self) -> Integers:
        """Return the length of each row's longest text in characters, to group rows that need little padding."""
        self.check_lengths()
        return np.concatenate([rows.lengths() for _, rows in self.tasks])

    def __len__(self) -> int:
        return int(self._starts[-1])

    def __getitem__(self, index: int) -> dict[str, Any]:
        place = int(np.searchsorted(self._starts, index, side="right")) - 1
        name, rows = self.tasks[place]
        return {**rows.drawn(int(index - self._starts[place])), "task": name}


def task_shares(sizes: Mapping[str, int | None], mix: MixSection) -> Floats:
    """Return p_t, the share of each task in what is drawn; they add up to 1.

    ``proportional`` p_t ∝ n_t; ``equal`` p_t = 1/T; ``temperature`` p_t ∝ n_t^(1/temperature); ``capped``
    p_t ∝ min(n_t, cap); ``weights`` p_t ∝ weight_t.

    Args:
        sizes: task → n_t, its rows; None if unknown, for strategies that do not go by it.
        mix: strategy and what it needs.

    Returns:
        (T,), in the order of `sizes`.
    """
    counts = np.array(list(sizes.values()), dtype=np.float64)
    if mix.strategy == "equal":
        counts = np.ones_like(counts)
    elif mix.strategy == "temperature":
        counts = (counts / counts.max()) ** (1.0 / mix.temperature)  # the same shares, and nothing can overflow
    elif mix.strategy == "capped":
        assert mix.cap is not None
        counts = np.minimum(counts, mix.cap)
    elif mix.strategy == "weights":
        assert mix.weights is not None
        counts = np.array([mix.weights[name] for name in sizes])
    return np.asarray(np.maximum(counts / counts.sum(), np.finfo(np.float64).tiny))


def apportion(shares: Floats, rows: int) -> list[int]:
    """Return whole numbers that add up to `rows`, as near to its shares as can be, none below one.

    What is left after rounding down goes to the largest remainders (the method of Hamilton).

    Args:
        shares: (T,), adding up to 1; T is at most `rows`.
        rows: how many.
    """
    ideal = shares * rows
    counts = np.maximum(np.floor(ideal).astype(np.int64), 1)
    while (left := rows - int(counts.sum())) != 0:  # below 0 where tasks with tiny shares got the one row they need
        order = np.argsort((counts - ideal) * np.sign(left), kind="stable")
        if left < 0:
            order = order[counts[order] > 1]
        counts[order[: abs(left)]] += np.sign(left)
    return [int(count) for count in counts]


CELLS = 512
"""Parts of an epoch whose shares are told apart, where they move within it."""


class MixingPlan:
    """How many rows of each task every epoch of a run draws, and where in it; a function of the epoch alone.

    All epochs have the same number of rows, whatever the shares.

    Args:
        sizes: task → its rows, in the order of the task ids.
        mixing: the section of the recipe.
        rows_per_step: rows of an optimiser step, over accumulation and processes.
        epochs: length of the run.
        max_steps: the same in optimiser steps; overrides `epochs`.
        processes: how many share each batch; see :class:`SharedBatches`.
        batches_per_step: batches of an optimiser step, one after the other.
        streams: tasks whose rows are streamed: they are drawn in the order of the stream.

    Attributes:
        rows: rows of an epoch.
        is_streamed: (T,) which tasks are streamed.
        ends: (T,) where each task's places end in :class:`MixedRows`.

    Raises:
        ConfigError: if an epoch has fewer rows than there are tasks, a schedule over epochs has only one, or a number
            of rows that is unknown is needed.
    """

    def __init__(
        self,
        sizes: Mapping[str, int | None],
        mixing: MixingSection | None = None,
        rows_per_step: int = 1,
        epochs: float = 1.0,
        max_steps: int | None = None,
        processes: int = 1,
        batches_per_step: int = 1,
        streams: Collection[str] = (),
    ) -> None:
        self.mixing = mixing or MixingSection()
        self.mixing.check_tasks(sizes)
        self.mixing.check_sizes([name for name, size in sizes.items() if size is None], streams)
        self.sizes = dict(sizes)
        self.is_streamed = np.array([name in streams for name in sizes])
        places = [STREAM_PLACES if name in streams else size or 0 for name, size in sizes.items()]
        self.ends = np.cumsum(places)
        self.rows_per_step = rows_per_step
        known = [size for size in sizes.values() if size is not None]
        self.rows = self.mixing.epoch_rows or sum(min(size, self.mixing.cap or size) for size in known)
        if self.rows < len(sizes):
            raise ConfigError(
                f"training.mixing.epoch_rows is {self.rows}, but there are {len(sizes)} tasks: an epoch draws at least "
                "one row of each."
            )
        if self.rows < processes:
            raise ConfigError(
                f"an epoch has {self.rows} rows, fewer than there are processes ({processes}). Start fewer."
            )
        batches = len(shared_bounds(self.rows, rows_per_step // batches_per_step, processes))
        self.steps_per_epoch = math.ceil(batches / batches_per_step)
        self.epochs = max_steps / self.steps_per_epoch if max_steps else epochs
        schedule = self.mixing.schedule
        if schedule is not None and schedule.every == "epoch" and math.ceil(self.epochs) < 2:
            raise ConfigError(
                f"training.mixing.schedule moves the shares at every epoch, but the run has only {self.epochs:.3g} "
                f"epochs of {self.rows} rows. Let it move at every step (schedule.every: step), make epochs shorter "
                "(mixing.epoch_rows), or train for longer."
            )
        self._counts = functools.cache(self._count)

    @property
    def moves_within_epochs(self) -> bool:
        """Whether the shares change inside an epoch."""
        return self.mixing.schedule is not None and self.mixing.schedule.every == "step"

    def shares(self, epoch: int) -> Floats:
        """Return the shares in an epoch.

        Returns:
            (cells, T): in :data:`CELLS` equal parts of the epoch where they change inside it, else in one.
        """
        start, schedule = task_shares(self.sizes, self.mixing), self.mixing.schedule
        if schedule is None:
            return start[None]
        end = task_shares(self.sizes, schedule)
        if schedule.every == "epoch":
            progress = np.array([epoch / (math.ceil(self.epochs) - 1)])
        else:
            progress = (epoch + (np.arange(CELLS) + 0.5) / CELLS) / self.epochs
        u = np.minimum(progress, 1.0)[:, None]
        if schedule.shape == "step":
            assert schedule.at is not None
            return np.where(u < schedule.at, start, end)
        if schedule.shape == "linear":
            return np.asarray((1 - u) * start + u * end)
        mixed = start ** (1 - u) * end**u
        return np.asarray(mixed / mixed.sum(axis=1, keepdims=True))

    def counts(self, epoch: int) -> list[int]:
        """Return how many rows of each task an epoch draws; they add up to :attr:`rows`."""
        return list(self._counts(epoch if self.mixing.schedule is not None else 0))

    def counts_before(self, epoch: int) -> Integers:
        """Return how many rows of each task the epochs before one draw: (T,)."""
        counts = np.zeros(len(self.sizes), dtype=np.int64)
        for one in range(epoch):
            counts += self._counts(one if self.mixing.schedule is not None else 0)
        return counts

    def mean_counts(self) -> dict[str, float]:
        """Return how many rows of each task an epoch of the run draws on average."""
        counts = np.zeros(len(self.sizes))
        for epoch in range(math.ceil(self.epochs)):
            counts += min(1.0, self.epochs - epoch) * np.asarray(self.counts(epoch))
        return dict(zip(self.sizes, (counts / self.epochs).tolist(), strict=True))

    def _count(self, epoch: int) -> Sequence[int]:
        return apportion(self.shares(epoch).mean(axis=0), self.rows)


# Rows are grouped by length within this many batches: enough for little padding, few enough for random batches.
GROUPED_BATCHES = 8


class TaskMixingSampler(Sampler[int]):
    """Draws the rows of an epoch, tasks mixed in random order.

    A task that is drawn more often than it has rows is gone through again and again, each time in a new order; one that
    is drawn less often gives a new random part every epoch. With `replacement` each row is drawn from all of its task.
    The order depends on plan, seed and epoch only, so a resumed run draws the same rows. Of a task whose rows are
    streamed, the next ones of its stream are drawn, in its order.

    Where the shares move within an epoch, each row gets a random time of the density that its task's share has over the
    epoch, and rows come in the order of their times; with shares that stay, that is a random order.

    Args:
        plan: how many rows of each task an epoch draws; its tasks lie one after the other, as in :class:`MixedRows`.
        seed: of the order.
        lengths: length of each row; with them, rows of similar length come into the same batch of a step.
    """

    def __init__(self, plan: MixingPlan, seed: int, lengths: Integers | None = None) -> None:
        self.plan = plan
        self.seed = seed
        self.lengths = lengths
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch whose order is drawn next; the Trainer calls this."""
        self.epoch = epoch

    def __len__(self) -> int:
        return self.plan.rows

    def __iter__(self) -> Iterator[int]:
        return iter(self.order(self.epoch).tolist())

    def order(self, epoch: int) -> Integers:
        """Return the rows of an epoch in their order."""
        generator = np.random.default_rng([self.seed, epoch])
        drawn, start = [], 0
        counts = self.plan.counts(epoch)
        before = self.plan.counts_before(epoch) if self.plan.is_streamed.any() else np.zeros_like(self.plan.ends)
        for place, (size, count) in enumerate(zip(self.plan.sizes.values(), counts, strict=True)):
            if self.plan.is_streamed[place]:
                order = before[place] + np.arange(count)
            elif self.plan.mixing.replacement:
                order = generator.integers(size or 0, size=count)
            else:
                rounds = -(-count // (size or 1))
                order = np.concatenate([generator.permutation(size or 0) for _ in range(rounds)])[:count]
            drawn.append(start + order)
            start = self.plan.ends[place]
        rows = np.concatenate(drawn)
        if self.plan.moves_within_epochs:
            mixed = rows[np.argsort(self._times(epoch, counts, generator), kind="stable")]
        else:
            mixed = generator.permutation(rows)
        if self.plan.is_streamed.any():
            self._put_in_order(mixed)
        return mixed if self.lengths is None else self._grouped(mixed, generator)

    def drawn_before(self, steps: int) -> Integers:
        """Return how many rows of each task the first optimiser steps of the run draw: (T,)."""
        epochs, more = divmod(steps, self.plan.steps_per_epoch)
        counts = self.plan.counts_before(epochs)
        if more:
            begun = self.order(epochs)[: more * self.plan.rows_per_step]
            counts += np.bincount(self._tasks(begun), minlength=len(counts))
        return counts

    def _tasks(self, rows: Integers) -> Integers:
        """Return the task of each row."""
        return np.searchsorted(self.plan.ends, rows, side="right").astype(np.int64)

    def _put_in_order(self, mixed: Integers) -> None:
        """Let the rows of each stream among `mixed` come in its order; which task comes when stays as it is."""
        tasks = self._tasks(mixed)
        places = np.flatnonzero(self.plan.is_streamed[tasks])
        mixed[places[np.argsort(tasks[places], kind="stable")]] = np.sort(mixed[places])

    def _times(self, epoch: int, counts: list[int], generator: np.random.Generator) -> Floats:
        """Return a random time in [0, 1] for each row of the epoch, task after task."""
        shares = self.plan.shares(epoch)
        until = np.concatenate([np.zeros((1, len(counts))), np.cumsum(shares, axis=0)]) / shares.sum(axis=0)
        edges = np.linspace(0.0, 1.0, len(until))
        return np.concatenate(
            [np.interp(generator.random(count), until[:, task], edges) for task, count in enumerate(counts)]
        )

    def _grouped(self, mixed: Integers, generator: np.random.Generator) -> Integers:
        """Return `mixed` sorted by length within groups of batches, the batches in random order.

        The batches of the whole epoch, or those of each group where the shares move within an epoch.
        """
        assert self.lengths is not None
        batch = self.plan.rows_per_step
        size = batch * GROUPED_BATCHES
        groups = [mixed[start : start + size] for start in range(0, len(mixed), size)]
        ordered = [group[np.argsort(self.lengths[group], kind="stable")] for group in groups]
        if self.plan.moves_within_epochs:
            return np.concatenate([_shuffled(group, batch, generator) for group in ordered])
        return _shuffled(np.concatenate(ordered), batch, generator)


def _shuffled(rows: Integers, batch: int, generator: np.random.Generator) -> Integers:
    """Return rows with their batches in random order, an incomplete one last."""
    whole = len(rows) // batch * batch
    batches = generator.permutation(rows[:whole].reshape(-1, batch))
    return np.concatenate([batches.reshape(-1), rows[whole:]])


def shared_bounds(rows: int, size: int, processes: int) -> list[tuple[int, int]]:
    """Return where each batch begins and ends that processes share.

    Rows that are too few for each process to have one go to the batch before.

    Args:
        rows: of an epoch.
        size: rows of a batch, over all processes.
        processes: how many.
    """
    starts = list(range(0, rows, size))
    if len(starts) > 1 and rows - starts[-1] < processes:
        starts.pop()
    return list(zip(starts, [*starts[1:], rows], strict=True))


class SharedBatches(Sampler[list[int]]):
    """The part of one process in batches that several share.

    Together they draw the very batches that one process with a batch of `size` draws, in the same order; each takes an
    equal part of every batch, also of an epoch's last one, which may be shorter. No row comes twice to fill it up.

    Args:
        rows: draws the rows of an epoch.
        size: rows of a batch, over all processes.
        rank: which process.
        processes: how many.
    """

    def __init__(self, rows: TaskMixingSampler, size: int, rank: int, processes: int) -> None:
        self.batch_sampler = rows  # where the Trainer looks for `set_epoch`
        self.bounds = shared_bounds(len(rows), size, processes)
        self.rank = rank
        self.processes = processes

    def __len__(self) -> int:
        return len(self.bounds)

    def __iter__(self) -> Iterator[list[int]]:
        order = list(self.batch_sampler)
        for start, end in self.bounds:
            edges = [start + (end - start) * rank // self.processes for rank in (self.rank, self.rank + 1)]
            yield order[edges[0] : edges[1]]
