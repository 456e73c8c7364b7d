"""Mixing: how many rows of each task an epoch draws, and in which order."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tasklora.training import MixedRows, TaskMixingSampler, rows_per_epoch

SIZES = [100, 300, 600]
some_sizes = st.lists(st.integers(1, 12), min_size=1, max_size=4)


@pytest.mark.parametrize(
    ("strategy", "options", "expected"),
    [
        ("proportional", {}, [100, 300, 600]),
        ("equal", {}, [333, 333, 333]),
        ("capped", {"cap": 200}, [100, 200, 200]),
        ("capped", {"cap": 1000}, [100, 300, 600]),
        # √100 : √300 : √600 = 10 : 17.32 : 24.49, of 1,000 rows
        ("temperature", {"temperature": 2.0}, [193, 334, 473]),
        ("temperature", {"temperature": 1.0}, [100, 300, 600]),
        ("temperature", {"temperature": 1e9}, [333, 333, 333]),
    ],
)
def test_rows_of_an_epoch(strategy, options, expected):
    assert rows_per_epoch(SIZES, strategy, **options) == expected


def test_every_task_is_drawn_at_least_once():
    assert rows_per_epoch([1, 100_000], "temperature", 1.0) == [1, 100_000]
    assert min(rows_per_epoch([1, 10_000_000], "temperature", 0.1)) == 1


def drawn(sizes, per_epoch, seed=0, epoch=0, lengths=None, batch_size=1):
    sampler = TaskMixingSampler(sizes, per_epoch, seed, lengths, batch_size)
    sampler.set_epoch(epoch)
    order = list(sampler)
    assert len(order) == len(sampler)
    return order


@given(sizes=some_sizes, seed=st.integers(0, 99), epoch=st.integers(0, 99))
def test_proportional_draws_every_row_exactly_once(sizes, seed, epoch):
    assert sorted(drawn(sizes, sizes, seed, epoch)) == list(range(sum(sizes)))


@given(sizes=some_sizes, data=st.data())
def test_rows_are_repeated_only_after_all_others(sizes, data):
    per_epoch = [data.draw(st.integers(1, 40)) for _ in sizes]
    counts, start = Counter(drawn(sizes, per_epoch)), 0
    for size, wanted in zip(sizes, per_epoch, strict=True):
        of_task = [counts[row] for row in range(start, start + size)]
        assert sum(of_task) == wanted
        assert max(of_task) - min(of_task) <= 1
        start += size


def test_the_order_depends_on_seed_and_epoch():
    first = drawn(SIZES, SIZES)
    assert drawn(SIZES, SIZES) == first
    assert drawn(SIZES, SIZES, epoch=1) != first
    assert drawn(SIZES, SIZES, seed=1) != first
    part = [set(drawn([50], [10], epoch=epoch)) for epoch in range(2)]
    assert part[0] != part[1]  # a task that is drawn in part gives another part


def test_tasks_are_mixed():
    tasks = np.searchsorted([100, 400], drawn(SIZES, SIZES), side="right").reshape(-1, 20)
    assert all(len(set(batch)) > 1 for batch in tasks.tolist())


@given(sizes=some_sizes, batch_size=st.integers(1, 7), seed=st.integers(0, 99))
def test_grouping_by_length_draws_the_same_rows(sizes, batch_size, seed):
    lengths = np.random.default_rng(seed).integers(1, 50, sum(sizes))
    assert sorted(drawn(sizes, sizes, seed, lengths=lengths, batch_size=batch_size)) == list(range(sum(sizes)))


def test_grouping_by_length_saves_padding_and_keeps_tasks_mixed():
    lengths = np.random.default_rng(0).integers(1, 100, 1000)

    def padding(order):
        batches = lengths[order].reshape(-1, 20)
        return (batches.max(axis=1, keepdims=True) - batches).mean()

    grouped = drawn(SIZES, SIZES, lengths=lengths, batch_size=20)
    assert padding(grouped) < 0.5 * padding(drawn(SIZES, SIZES))
    assert drawn(SIZES, SIZES, lengths=lengths, batch_size=20, epoch=1) != grouped
    tasks = np.searchsorted([100, 400], grouped, side="right").reshape(-1, 20)
    assert sum(len(set(batch)) > 1 for batch in tasks.tolist()) > 45


def test_mixed_rows_stand_task_after_task(project):
    train = project.rows().split("train")
    mixed = MixedRows(train)
    assert mixed.sizes == [36, 54, 24]
    assert len(mixed) == 114
    expected = [{**row, "task": name} for name, rows in train.items() for row in rows]
    assert [mixed[index] for index in range(114)] == expected
    assert mixed.lengths().tolist() == [max(map(len, row["texts"])) for row in expected]
