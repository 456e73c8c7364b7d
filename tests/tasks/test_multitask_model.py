"""The shared encoder with one head per task: what each head reads, its losses, and what padding must not change."""

import pytest
import torch
import torch.nn.functional as F

from helpers_runs import METHODS, use_method
from tasklora.errors import ConfigError
from tasklora.tasks import MultiTaskModel, TaskSpec, head_of

ROWS = [
    {"task": "heat", "texts": ["the cake was very very very good", "icy"], "label": 3.0},
    {"task": "mood", "texts": ["good"], "label": 1.0},
    {"task": "answer", "texts": ["is it a film", "maybe so"], "label": 1.0},
    {"task": "mood", "texts": ["the dull dull walk and the book"], "label": 0.0},
    {"task": "answer", "texts": ["a", "no"], "label": 2.0},
    {"task": "heat", "texts": ["a room", "it was a very hot day"], "label": 1.5},
]


def batch_of(prepared, rows=ROWS):
    return prepared.about.collator(prepared.base.tokenizer)(rows)


def logits_by_row(prepared, rows=ROWS):
    """Return the logits of each row, in the order of the rows."""
    output = prepared.model(**batch_of(prepared, rows))
    found = {}
    for task_id, places in output.rows.items():
        for place, logits in zip(places.tolist(), output.logits[task_id], strict=True):
            found[place] = logits
    return [found[place] for place in range(len(rows))]


@pytest.mark.parametrize("encoding", ["joint", "separate"])
@pytest.mark.parametrize("pooling", ["mean", "cls", "last"])
@torch.no_grad()
def test_a_padded_mixed_batch_equals_its_rows_one_by_one(project, pooling, encoding):
    prepared = project.prepare(f"model.pooling={pooling}", f"model.pair_encoding={encoding}")
    together = logits_by_row(prepared)
    for row, logits in zip(ROWS, together, strict=True):
        (alone,) = logits_by_row(prepared, [row])
        torch.testing.assert_close(alone, logits, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("method", METHODS)
@torch.no_grad()
def test_heads_have_the_sizes_of_their_tasks(project, method):
    prepared = project.prepare(use_method(method))
    assert {name: head.linear.out_features for name, head in prepared.model.heads.items()} == {
        "mood": 2,
        "answer": 3,
        "heat": 1,
    }
    assert [len(logits) for logits in logits_by_row(prepared)] == [1, 2, 3, 2, 3, 1]


@torch.no_grad()
def test_losses_are_those_of_each_rows_own_task(project):
    prepared = project.prepare()
    model = prepared.model
    weights = torch.tensor([0.5, 2.0, 3.0])
    model.heads["answer"].fit_labels(torch.tensor([0.0, 1.0]), weights)
    model.heads["heat"].fit_labels(torch.tensor([0.0, 4.0, 2.0, 2.0]), None)
    mean, std = 2.0, 2.0**0.5
    losses = model(**batch_of(prepared)).losses
    expected = []
    for row, logits in zip(ROWS, logits_by_row(prepared), strict=True):
        if row["task"] == "heat":
            expected.append((logits[0] - (row["label"] - mean) / std) ** 2)
        else:
            label = int(row["label"])
            weight = weights[label] if row["task"] == "answer" else 1.0
            expected.append(-weight * F.log_softmax(logits, dim=-1)[label])
    torch.testing.assert_close(losses, torch.stack(expected))


@torch.no_grad()
def test_a_separate_pair_is_compared_by_its_head(project):
    prepared = project.prepare("tasks.options={heat: {pair_encoding: separate}}")
    model, batch = prepared.model, batch_of(prepared)
    assert model.heads["heat"].linear.in_features == 4 * model.heads["answer"].linear.in_features
    pooled = model.embed(batch["row_task_ids"], batch["attention_mask"], input_ids=batch["input_ids"])
    first, second = pooled[0], pooled[1]  # the second text of row 0 is the encoder's second row
    features = torch.cat([first, second, (first - second).abs(), first * second])
    expected = model.heads["heat"].linear(features)
    del batch["labels"], batch["token_type_ids"]
    torch.testing.assert_close(model(**batch).logits[2][0], expected)


@torch.no_grad()
def test_the_same_text_is_embedded_by_task(project):
    prepared = project.prepare()
    batch = batch_of(prepared, [{"task": task, "texts": ["good cake"]} for task in ("mood", "answer", "mood")])
    pooled = prepared.model.embed(batch["row_task_ids"], batch["attention_mask"], input_ids=batch["input_ids"])
    assert torch.equal(pooled[0], pooled[2])
    assert (pooled[0] - pooled[1]).abs().max() > 1e-3


def test_only_adapter_and_heads_are_trained(project):
    model = project.prepare().model
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert trained
    assert all(name.startswith("heads.") or ".task_updates." in name for name in trained)


def test_standardised_labels_come_back():
    spec = TaskSpec(kind="regression", inputs=["a", "b"], range=(0, 5), metrics=["rmse"], primary="rmse")
    head = head_of(spec, 8, 0.0)
    labels = torch.tensor([0.5, 4.0, 3.0, 2.5])
    head.fit_labels(labels, None)
    standardised = (labels - labels.mean()) / labels.std(correction=0)
    torch.testing.assert_close(head.predict(standardised[:, None]), labels)
    torch.testing.assert_close(head.losses(standardised[:, None], labels[:, None]), torch.zeros(4), atol=1e-12, rtol=0)
    assert head.predict(torch.tensor([[99.0], [-99.0]])).tolist() == [5.0, 0.0]  # cut to the range


def test_constant_labels_are_survived():
    spec = TaskSpec(kind="regression", inputs=["a", "b"], range=(0, 5), metrics=["rmse"], primary="rmse")
    head = head_of(spec, 8, 0.0)
    head.fit_labels(torch.tensor([3.0, 3.0]), None)
    assert head.losses(torch.zeros(1, 1), torch.tensor([[3.0]])).tolist() == [0.0]
    assert head.losses(torch.zeros(1, 1), torch.tensor([[4.5]])).tolist() == [2.25]  # their scale stays
    assert head.predict(torch.tensor([[0.5]])).tolist() == [3.5]


@pytest.mark.parametrize("name", ["mnli.matched", "type", "keys"])
def test_a_name_that_no_head_can_have_is_refused(project, name):
    spec = project.load().task_specs()["mood"]
    with pytest.raises(ConfigError, match=f"task '{name}' .* rename it"):
        MultiTaskModel(torch.nn.Identity(), {name: spec}, {name: "joint"}, 8)
