"""Rows of similar length go through the encoder together: every row once, little padding, and the same numbers."""

import random

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from helpers_runs import EVERY_METHOD, TASKS, randomise, tiny_row, use_method
from tasklora.tasks import model as model_module
from tasklora.tasks.model import MAX_PADDING, MIN_GROUP, length_groups
from tasklora.training import prepare

lengths = st.lists(st.integers(1, 200), min_size=1, max_size=60)


@given(lengths)
def test_every_row_is_in_one_group_longest_first(lengths):
    order = torch.cat(length_groups(torch.tensor(lengths))).tolist()
    assert sorted(order) == list(range(len(lengths)))
    assert [lengths[row] for row in order] == sorted(lengths, reverse=True)


@given(lengths)
def test_groups_are_not_smaller_than_the_least(lengths):
    sizes = [len(rows) for rows in length_groups(torch.tensor(lengths))]
    assert min(sizes) >= min(MIN_GROUP, len(lengths))


@given(lengths)
def test_padding_is_bounded(lengths):
    """Beyond the least size, no row is padded by more than MAX_PADDING, but for the last few that make no group."""
    rows_left = len(lengths)
    for rows in length_groups(torch.tensor(lengths)):
        for place, row in enumerate(rows.tolist()):
            if place >= MIN_GROUP and rows_left - place >= MIN_GROUP:
                assert lengths[row] >= (1 - MAX_PADDING) * lengths[rows[0]]
        rows_left -= len(rows)


@pytest.mark.parametrize(
    ("lengths", "sizes"),
    [([9] * 20, [20]), ([10] * 4 + [7] * 4, [8]), ([10] * 4 + [6] * 4, [4, 4]), ([10] * 4 + [6] * 3, [7])],
)
def test_where_a_group_ends(lengths, sizes):
    assert [len(rows) for rows in length_groups(torch.tensor(lengths))] == sizes


def rows_of_mixed_lengths(count=18):
    """Return rows of all tasks in mixed order, some of them several times as long as others."""
    generator = random.Random(0)
    rows = []
    for place in range(count):
        task = TASKS[place % 3]
        row = tiny_row(task, generator)
        texts = [value for value in row.values() if isinstance(value, str)]
        label = next(value for value in row.values() if not isinstance(value, str))
        rows.append({"task": task, "texts": [f"{text} {'very ' * generator.choice([0, 0, 9])}" for text in texts]})
        rows[-1]["label"] = float(label)
    return rows


def losses_and_gradients(prepared):
    """Return the loss of each row, and the gradient of their mean for everything that is trained."""
    prepared.model.zero_grad()
    losses = prepared.model(**prepared.about.collator(prepared.base.tokenizer)(rows_of_mixed_lengths())).losses
    losses.mean().backward()
    return losses.detach(), {n: p.grad for n, p in prepared.model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("encoding", ["joint", "separate"])
@pytest.mark.parametrize("pooling", ["mean", "cls", "last"])
def test_groups_give_the_losses_and_gradients_of_one_padded_batch(project, monkeypatch, pooling, encoding):
    prepared = project.prepare(f"model.pooling={pooling}", f"model.pair_encoding={encoding}", "model.max_length=48")
    calls = []
    prepared.model.encoder.register_forward_hook(lambda *_: calls.append(1))
    grouped = losses_and_gradients(prepared)
    assert len(calls) > 1
    monkeypatch.setattr(model_module, "MIN_GROUP", 1000)
    padded = losses_and_gradients(prepared)
    torch.testing.assert_close(grouped, padded, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("method", EVERY_METHOD)
def test_so_with_every_method(project, monkeypatch, method):
    prepared = prepare(project.load(use_method(method), "model.max_length=48"))
    randomise(prepared.model, scale=0.1)
    prepared.model.eval()
    grouped = losses_and_gradients(prepared)
    monkeypatch.setattr(model_module, "MIN_GROUP", 1000)
    torch.testing.assert_close(grouped, losses_and_gradients(prepared), rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_rows_without_a_token_are_embedded_too(project):
    """A tokenizer without special tokens makes no token of an empty text."""
    model = project.prepare().model
    mask = torch.zeros(8, 6, dtype=torch.long)
    mask[:4] = 1
    pooled = model.embed(torch.zeros(8, dtype=torch.long), mask, input_ids=torch.full((8, 6), 9))
    assert torch.equal(pooled[4:], torch.zeros(4, pooled.shape[1]))  # the mean over no token
