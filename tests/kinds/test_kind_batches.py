"""Rows of all kinds in one batch: those of similar length go through the encoder together, with the same numbers."""

import pytest
import torch

from helpers_runs import randomise
from tasklora.tasks import model as model_module
from tasklora.training import prepare


def losses_and_gradients(model, batch):
    model.zero_grad()
    losses = model(**batch).losses
    losses.mean().backward()
    return losses.detach(), {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("encoding", ["joint", "separate"])
def test_groups_of_similar_length_change_no_loss_and_no_gradient(kinds, monkeypatch, encoding):
    prepared = prepare(kinds.load(f"model.pair_encoding={encoding}"))
    randomise(prepared.model, scale=0.1)
    prepared.model.eval()
    rows = [{**rows[place], "task": name} for name, rows in kinds.rows().split("train").items() for place in range(3)]
    for row in rows[::4]:
        row["texts"] = [f"{text} and that was it we had this one day" for text in row["texts"]]
        if row["task"] == "token_classification":  # its texts are words: none gets longer
            row["texts"] = [text.split()[0] for text in row["texts"]]
    batch = prepared.about.collator(prepared.base.tokenizer)(rows)
    calls = []
    prepared.model.encoder.register_forward_hook(lambda *_: calls.append(1))
    grouped = losses_and_gradients(prepared.model, batch)
    assert len(calls) > 1
    monkeypatch.setattr(model_module, "MIN_GROUP", 1000)
    torch.testing.assert_close(grouped, losses_and_gradients(prepared.model, batch), rtol=1e-5, atol=1e-5)
