"""Mixing: how many rows of each task an epoch draws, and in which order."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tasklora.errors import ConfigError
from tasklora.training import MixedRows, MixingPlan, MixingSection, TaskMixingSampler
from tasklora.training.mixing import SharedBatches, apportion

SIZES = [100, 300, 600]
some_sizes = st.lists(st.integers(1, 12), min_size=1, max_size=4)


def plan(sizes=SIZES, rows_per_step=1, epochs=1.0, max_steps=None, **mixing):
    named = {f"t{place}": size for place, size in enumerate(sizes)}
    return MixingPlan(named, MixingSection.model_validate(mixing), rows_per_step, epochs, max_steps)


def weighted(weights):
    return {"strategy": "weights", "weights": {f"t{place}": weight for place, weight in enumerate(weights)}}


@pytest.mark.parametrize(
    ("mixing", "expected"),
    [
        ({}, [100, 300, 600]),
        ({"strategy": "equal"}, [334, 333, 333]),
        ({"strategy": "capped", "cap": 200}, [100, 200, 200]),
        ({"strategy": "capped", "cap": 1000}, [100, 300, 600]),
        # √100 : √300 : √600 = 10 : 17.32 : 24.49, of 1,000 rows
        ({"strategy": "temperature", "temperature": 2.0}, [193, 334, 473]),
        ({"strategy": "temperature", "temperature": 1.0}, [100, 300, 600]),
        ({"strategy": "temperature", "temperature": 1e9}, [333, 333, 334]),
        (weighted([3, 1, 6]), [300, 100, 600]),
        (weighted([0.5, 0.25, 0.25]), [500, 250, 250]),
        ({"epoch_rows": 50}, [5, 15, 30]),
        ({"epoch_rows": 5000}, [500, 1500, 3000]),
        ({"strategy": "capped", "cap": 200, "epoch_rows": 10}, [2, 4, 4]),
        ({**weighted([1e-9, 1, 1]), "epoch_rows": 11}, [1, 5, 5]),
    ],
)
def test_rows_of_an_epoch(mixing, expected):
    assert plan(**mixing).counts(0) == expected
    assert plan(**mixing).rows == sum(expected)


def test_every_task_is_drawn_at_least_once():
    assert plan([1, 100_000], strategy="temperature", temperature=1.0).counts(0) == [1, 100_000]
    for temperature in (0.1, 1e-4):
        assert plan([1, 10_000_000], strategy="temperature", temperature=temperature).counts(0) == [1, 10_000_000]
    with pytest.raises(ConfigError, match=r"epoch_rows is 2, but there are 3 tasks"):
        plan(epoch_rows=2)


@given(weights=st.lists(st.floats(1e-12, 1e6), min_size=1, max_size=30), more=st.integers(0, 10_000))
def test_counts_add_up_and_are_the_nearest(weights, more):
    shares, rows = np.array(weights) / sum(weights), len(weights) + more
    counts = apportion(shares, rows)
    assert sum(counts) == rows
    assert min(counts) >= 1
    if (shares * rows >= 1).all():
        assert np.abs(counts - shares * rows).max() < 1


def drawn(the_plan, seed=0, epoch=0, lengths=None):
    sampler = TaskMixingSampler(the_plan, seed, lengths)
    sampler.set_epoch(epoch)
    order = list(sampler)
    assert len(order) == len(sampler)
    return order


def tasks_of(order, sizes=SIZES):
    return np.searchsorted(np.cumsum(sizes), order, side="right")


@given(sizes=some_sizes, seed=st.integers(0, 99), epoch=st.integers(0, 99))
def test_proportional_draws_every_row_exactly_once(sizes, seed, epoch):
    assert sorted(drawn(plan(sizes), seed, epoch)) == list(range(sum(sizes)))


@given(sizes=some_sizes, data=st.data())
def test_rows_are_repeated_only_after_all_others(sizes, data):
    per_epoch = [data.draw(st.integers(1, 40)) for _ in sizes]
    counts, start = Counter(drawn(plan(sizes, **weighted(per_epoch), epoch_rows=sum(per_epoch)))), 0
    for size, wanted in zip(sizes, per_epoch, strict=True):
        of_task = [counts[row] for row in range(start, start + size)]
        assert sum(of_task) == wanted
        assert max(of_task) - min(of_task) <= 1
        start += size


def test_with_replacement_each_row_is_drawn_from_all_of_its_task():
    with_it = plan(replacement=True)
    epochs = [drawn(with_it, epoch=epoch) for epoch in range(200)]
    assert all(np.bincount(tasks_of(order)).tolist() == SIZES for order in epochs)
    assert all(len(set(order)) < len(order) for order in epochs)
    counts = np.bincount(np.concatenate(epochs), minlength=1000)  # each row is Poisson-like with mean 200
    assert counts.min() > 120
    assert counts.max() < 280
    assert 150 < counts.var() < 250  # without replacement it is 0
    assert drawn(with_it) == drawn(with_it)


def test_the_order_depends_on_seed_and_epoch():
    first = drawn(plan())
    assert drawn(plan()) == first
    assert drawn(plan(), epoch=1) != first
    assert drawn(plan(), seed=1) != first
    part = [set(drawn(plan([50], epoch_rows=10), epoch=epoch)) for epoch in range(2)]
    assert part[0] != part[1]  # a task that is drawn in part gives another part


def test_tasks_are_mixed():
    tasks = tasks_of(drawn(plan())).reshape(-1, 20)
    assert all(len(set(batch)) > 1 for batch in tasks.tolist())


@given(sizes=some_sizes, batch_size=st.integers(1, 7), seed=st.integers(0, 99))
def test_grouping_by_length_draws_the_same_rows(sizes, batch_size, seed):
    lengths = np.random.default_rng(seed).integers(1, 50, sum(sizes))
    assert sorted(drawn(plan(sizes, batch_size), seed, lengths=lengths)) == list(range(sum(sizes)))


def test_grouping_by_length_saves_padding_and_keeps_tasks_mixed():
    lengths = np.random.default_rng(0).integers(1, 100, 1000)

    def padding(order):
        batches = lengths[order].reshape(-1, 20)
        return (batches.max(axis=1, keepdims=True) - batches).mean()

    grouped = drawn(plan(rows_per_step=20), lengths=lengths)
    assert padding(grouped) < 0.5 * padding(drawn(plan()))
    assert drawn(plan(rows_per_step=20), lengths=lengths, epoch=1) != grouped
    tasks = tasks_of(grouped).reshape(-1, 20)
    assert sum(len(set(batch)) > 1 for batch in tasks.tolist()) > 45


def test_mixed_rows_stand_task_after_task(project):
    train = project.rows().split("train")
    mixed = MixedRows(train)
    assert mixed.sizes == [36, 54, 24]
    assert len(mixed) == 114
    expected = [{**row, "task": name} for name, rows in train.items() for row in rows]
    assert [mixed[index] for index in range(114)] == expected
    assert mixed.lengths().tolist() == [max(map(len, row["texts"])) for row in expected]


# --- schedules


def test_annealed_temperatures_are_those_of_stickland_and_murray():
    epochs = 25
    annealed = {"schedule": {"strategy": "temperature", "temperature": 5.0}}
    the_plan = plan(epochs=epochs, **annealed)
    for epoch in range(epochs):
        alpha = 1 - 0.8 * epoch / (epochs - 1)  # their e counts from 1
        expected = np.array(SIZES) ** alpha
        assert the_plan.shares(epoch)[0] == pytest.approx(expected / expected.sum())
        assert the_plan.counts(epoch) == apportion(expected / expected.sum(), 1000)


def test_linear_and_step_schedules():
    ends = {**weighted([0.8, 0.1, 0.1]), "schedule": {**weighted([0.2, 0.4, 0.4]), "shape": "linear"}}
    assert [plan(epochs=3, **ends).counts(epoch) for epoch in range(3)] == [
        [800, 100, 100],
        [500, 250, 250],
        [200, 400, 400],
    ]
    ends["schedule"] |= {"shape": "step", "at": 0.5}
    assert [plan(epochs=3, **ends).counts(epoch)[0] for epoch in range(3)] == [800, 200, 200]
    assert [plan(epochs=2.5, **ends).counts(epoch)[0] for epoch in range(4)] == [800, 200, 200, 200]


@pytest.mark.parametrize("lengths", [None, np.random.default_rng(0).integers(1, 100, 1000)], ids=["", "by length"])
@pytest.mark.parametrize("length", [{"max_steps": 400}, {"max_steps": 50}, {"epochs": 2.0}])
def test_a_schedule_over_steps_moves_within_epochs(length, lengths):
    ends = {**weighted([8, 1, 1]), "schedule": {**weighted([2, 4, 4]), "shape": "linear", "every": "step"}}
    the_plan = plan(rows_per_step=10, **length, **ends)
    steps = the_plan.epochs * 100
    tasks = np.concatenate([tasks_of(drawn(the_plan, epoch=epoch, lengths=lengths)) for epoch in range(4)])
    tasks = tasks[: int(10 * steps)]
    for part in range(5):  # a fifth of the run each
        rows = tasks[part * len(tasks) // 5 : (part + 1) * len(tasks) // 5]
        assert (rows == 0).mean() == pytest.approx(0.8 - 0.6 * (part + 0.5) / 5, abs=0.12 if len(rows) < 200 else 0.06)


def test_shares_that_jump_within_an_epoch_jump_there():
    ends = {**weighted([98, 1, 1]), "schedule": {**weighted([1, 1, 98]), "shape": "step", "at": 0.3, "every": "step"}}
    tasks = tasks_of(drawn(plan(rows_per_step=10, max_steps=100, **ends)))
    assert (tasks[:290] == 0).mean() > 0.9
    assert (tasks[310:] == 2).mean() > 0.9


@pytest.mark.parametrize(
    "mixing",
    [
        {},
        {"strategy": "equal", "replacement": True, "epoch_rows": 333},
        {"schedule": {"strategy": "equal"}},
        {"schedule": {"strategy": "equal", "every": "step"}, "epoch_rows": 777},
    ],
)
def test_what_was_drawn_before_a_step_is_what_the_epochs_gave(mixing):
    the_plan = plan(rows_per_step=32, epochs=3, **mixing)
    sampler = TaskMixingSampler(the_plan, 5, np.random.default_rng(0).integers(1, 100, 1000))
    steps = [sampler.order(e)[s * 32 : (s + 1) * 32] for e in range(3) for s in range(the_plan.steps_per_epoch)]
    for done in (0, 1, the_plan.steps_per_epoch, the_plan.steps_per_epoch + 3, len(steps)):
        rows = np.concatenate([np.zeros(0, dtype=int), *steps[:done]])
        assert sampler.drawn_before(done).tolist() == np.bincount(tasks_of(rows), minlength=3).tolist()


@pytest.mark.parametrize("length", [{"epochs": 1.0}, {"epochs": 0.5}, {"epochs": 9.0, "max_steps": 90}])
def test_a_schedule_over_epochs_needs_two_of_them(length):
    with pytest.raises(ConfigError, match=r"moves the shares at every epoch.*schedule.every: step"):
        plan(rows_per_step=10, **length, schedule={"strategy": "equal"})


# --- several processes


@given(st.integers(1, 90), st.integers(1, 4), st.integers(1, 6), st.integers(1, 3))
def test_processes_share_the_batches_of_one(rows, processes, per_process, accumulation):
    size, step = per_process * processes, per_process * processes * accumulation
    sizes = {"t": max(rows, processes)}
    the_plan = MixingPlan(sizes, None, step, 2.0, None, processes, accumulation)
    sampler = TaskMixingSampler(the_plan, 0)
    sampler.set_epoch(1)
    order = list(sampler)
    shares = [list(SharedBatches(sampler, size, rank, processes)) for rank in range(processes)]
    assert len({len(share) for share in shares}) == 1  # else some would wait for ever
    assert all(batch for share in shares for batch in share)
    together = [[row for share in shares for row in share[place]] for place in range(len(shares[0]))]
    assert [row for batch in together for row in batch] == order  # every row once, in the order of one process
    assert all(len(batch) == size for batch in together[:-1])
    assert len(together[-1]) < size + processes
    assert max(len(share[-1]) for share in shares) - min(len(share[-1]) for share in shares) <= 1
    assert the_plan.steps_per_epoch == -(-len(together) // accumulation)


def test_fewer_rows_than_processes_are_refused():
    with pytest.raises(ConfigError, match=r"an epoch has 3 rows, fewer than there are processes \(4\)\. Start fewer\."):
        MixingPlan({"t": 3}, None, 8, processes=4)
