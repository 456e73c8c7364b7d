"""Heads of every kind: losses by hand, and nothing in a batch changes what is said of a row."""

import math
import random

import pytest
import torch

from helpers_kinds import CASES, every_kind, spec_of
from helpers_runs import tiny_tokenizer
from tasklora.tasks import HEADS, MultiTaskCollator, TaskRows, TaskSpec, head_of, split_by_task
from tasklora.tasks import model as model_module
from tasklora.tasks.data import arranged

NAN, INF = math.nan, math.inf


@pytest.fixture(scope="module")
def loaded(kinds):
    return kinds.rows().split("validation")


def batch_of(prepared, rows):
    return prepared.about.collator(prepared.base.tokenizer)(rows)


def mixed_rows(loaded, each=4):
    """Return rows of every kind in mixed order."""
    rows = [{**row, "task": task} for task, of_task in loaded.items() for row in list(of_task)[:each]]
    random.Random(0).shuffle(rows)
    return rows


def by_row(model, batch):
    """Return the losses, and what is predicted of each row, without what only pads it."""
    output = model(**batch)
    said = [None] * len(batch["task_ids"])
    for task_id, places in output.rows.items():
        predictions = model.head(task_id).predict(output.logits[task_id])
        for place, prediction in zip(places.tolist(), predictions, strict=True):
            said[place] = prediction if prediction.dim() == 0 else prediction[prediction.isfinite()]
    return output.losses, said


@pytest.mark.parametrize("encoding", ["joint", "separate"])
@pytest.mark.parametrize("pooling", ["mean", "cls", "last"])
@torch.no_grad()
def test_a_mixed_batch_of_all_kinds_equals_its_rows_one_by_one(kinds, loaded, pooling, encoding):
    prepared = kinds.prepare(f"model.pooling={pooling}", f"model.pair_encoding={encoding}")
    rows = mixed_rows(loaded)
    assert {row["task"] for row in rows} == set(HEADS)
    losses, said = by_row(prepared.model, batch_of(prepared, rows))
    assert losses.isfinite().all()
    for place, row in enumerate(rows):
        (loss,), (alone,) = by_row(prepared.model, batch_of(prepared, [row]))
        torch.testing.assert_close(losses[place], loss, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(said[place], alone, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("encoding", ["joint", "separate"])
def test_so_are_losses_and_gradients_in_groups_of_similar_length(kinds, loaded, monkeypatch, encoding):
    prepared = kinds.prepare(f"model.pair_encoding={encoding}")
    rows = mixed_rows(loaded, each=8)
    calls = []
    prepared.model.encoder.register_forward_hook(lambda *_: calls.append(1))

    def losses_and_gradients():
        prepared.model.zero_grad()
        losses = prepared.model(**batch_of(prepared, rows)).losses
        losses.mean().backward()
        return losses.detach(), {n: p.grad for n, p in prepared.model.named_parameters() if p.grad is not None}

    grouped = losses_and_gradients()
    assert len(calls) > 1
    assert all(gradient.isfinite().all() for gradient in grouped[1].values())
    monkeypatch.setattr(model_module, "MIN_GROUP", 10_000)
    torch.testing.assert_close(grouped, losses_and_gradients(), rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("encoding", ["joint", "separate"])
@torch.no_grad()
def test_a_mixed_batch_splits_into_one_for_each_task(kinds, loaded, encoding):
    prepared = kinds.prepare(f"model.pair_encoding={encoding}")
    batch = batch_of(prepared, mixed_rows(loaded))
    losses, parts = prepared.model(**batch).losses, split_by_task(batch)
    assert [part["task_ids"].unique().tolist() for part in parts] == [[task_id] for task_id in range(len(HEADS))]
    assert sum(len(part["input_ids"]) for part in parts) == len(batch["input_ids"])
    assert sum(len(part["word_places"]) for part in parts) == len(batch["word_places"])
    for part in parts:
        own = batch["task_ids"] == part["task_ids"][0]
        torch.testing.assert_close(prepared.model(**part).losses, losses[own], rtol=1e-4, atol=1e-5)


@every_kind
@torch.no_grad()
def test_a_head_says_as_much_of_a_row_as_its_label(kinds, loaded, kind):
    prepared = kinds.prepare()
    rows = [{**row, "task": kind} for row in loaded[kind]]
    _, said = by_row(prepared.model, batch_of(prepared, rows))
    for row, prediction in zip(rows, said, strict=True):
        assert prediction.numel() == (len(row["label"]) if isinstance(row["label"], list) else 1)


@every_kind
def test_every_head_learns_from_every_row(kinds, loaded, kind):
    """Each row with something to learn moves its head, and no other."""
    prepared = kinds.prepare()
    head = prepared.model.heads[kind]
    for row in list(loaded[kind])[:4]:
        prepared.model.zero_grad()
        prepared.model(**batch_of(prepared, [{**row, "task": kind}])).losses.sum().backward()
        assert head.linear.weight.grad.abs().sum() > 0
        others = [other.linear.weight.grad for name, other in prepared.model.heads.items() if name != kind]
        assert all(gradient is None or gradient.abs().sum() == 0 for gradient in others)


def softmax_log(values, place):
    return values[place] - math.log(sum(math.exp(value) for value in values))


def head(kind, **changes):
    return head_of(spec_of(kind, **changes), 8, 0.0)


def test_multi_label_loss_by_hand():
    made = head("multi_label")
    made.fit_labels(torch.zeros(1, 3), torch.tensor([2.0, 1.0, 0.5]))
    logits, labels = torch.tensor([[0.3, -1.2, 2.0]]), torch.tensor([[1.0, 0.0, 1.0, NAN]])
    sigmoid = [1 / (1 + math.exp(-z)) for z in (0.3, -1.2, 2.0)]
    expected = -(2 * math.log(sigmoid[0]) + math.log(1 - sigmoid[1]) + 0.5 * math.log(sigmoid[2])) / 3
    torch.testing.assert_close(made.losses(logits, labels), torch.tensor([expected]))
    assert made.predict(logits).tolist() == [[1, 0, 1]]
    torch.testing.assert_close(made.probabilities(logits), torch.tensor([sigmoid]))


def test_multiple_choice_loss_by_hand():
    made = head("multiple_choice")
    logits = torch.tensor([[0.5, 2.0, -INF], [1.0, 0.0, -1.0]])
    labels = torch.tensor([[0.0, NAN], [2.0, NAN]])
    expected = [-softmax_log([0.5, 2.0], 0), -softmax_log([1.0, 0.0, -1.0], 2)]
    torch.testing.assert_close(made.losses(logits, labels), torch.tensor(expected))
    assert made.predict(logits).tolist() == [1, 0]
    assert made.probabilities(logits)[0].isnan().tolist() == [False, False, True]
    torch.testing.assert_close(made.probabilities(logits).nansum(dim=1), torch.ones(2))


def test_ranking_loss_by_hand():
    made = head("ranking")
    logits = torch.tensor([[0.5, 2.0, 1.0, -INF], [1.0, 0.0, -1.0, 0.5], [3.0, -INF, -INF, -INF]])
    labels = torch.tensor([[1.0, 0.0, 3.0], [0.0, 0.0, 0.0], [2.0, NAN, NAN]])
    scores = [0.5, 2.0, 1.0]
    expected = -(0.25 * softmax_log(scores, 0) + 0.75 * softmax_log(scores, 2))
    torch.testing.assert_close(made.losses(logits, labels), torch.tensor([expected, 0.0, 0.0]))
    assert made.predict(logits).isnan().tolist()[0] == [False, False, False, True]


def test_ranking_gradients_are_finite_and_zero_without_a_relevant_document():
    logits = torch.tensor([[0.5, 2.0, 1.0], [1.0, 0.0, -1.0]], requires_grad=True)
    present = torch.tensor([[True, True, False], [True, True, True]])
    losses = head("ranking").losses(
        logits.masked_fill(~present, -INF), torch.tensor([[1.0, 0.0, NAN], [0.0, 0.0, 0.0]])
    )
    losses.sum().backward()
    assert logits.grad.isfinite().all()
    assert logits.grad[1].tolist() == [0, 0, 0]
    assert logits.grad[0, 2] == 0
    torch.testing.assert_close(logits.grad[0, :2], torch.tensor([0.5, 2.0]).softmax(0) - torch.tensor([1.0, 0.0]))


def test_token_loss_by_hand_leaves_out_words_that_were_not_seen():
    made = head("token_classification")
    made.fit_labels(torch.zeros(1, 2), torch.tensor([1.0, 2.0, 1.0, 1.0]))
    words = [[1.0, 0.0, 0.0, 0.5], [0.0, 2.0, 0.0, 0.0], [-INF] * 4]
    logits = torch.tensor([words, [[-INF] * 4] * 3], requires_grad=True)
    labels = torch.tensor([[0.0, 1.0, 3.0], [1.0, 2.0, NAN]])
    losses = made.losses(logits, labels)
    expected = (-softmax_log(words[0], 0) - 2 * softmax_log(words[1], 1)) / 2
    torch.testing.assert_close(losses, torch.tensor([expected, 0.0]))
    losses.sum().backward()
    assert logits.grad.isfinite().all()
    said = made.predict(logits)
    assert said[0].isnan().tolist() == [False, False, True]
    assert said[0, :2].tolist() == [0, 1]
    assert said[1].isnan().all()


def test_a_diverged_head_is_not_hidden_behind_words_that_were_not_seen():
    logits = torch.full((1, 2, 4), NAN)
    assert head("token_classification").losses(logits, torch.tensor([[1.0, 2.0]])).isnan().all()


def text_of(tokenizer, batch, row):
    ids = batch["input_ids"][row][batch["attention_mask"][row].bool()]
    return " ".join(tokenizer.convert_ids_to_tokens(ids))


def test_a_question_is_encoded_once_for_all_its_choices():
    tokenizer = tiny_tokenizer()
    specs = {"pick": spec_of("multiple_choice"), "find": spec_of("ranking")}
    row = {"task": "pick", "texts": ["was it", "good", "bad", "a book"], "label": 2.0}
    other = {"task": "find", "texts": ["the cake", "a room"], "label": [1.0]}
    batch = MultiTaskCollator(tokenizer, specs, dict.fromkeys(specs, "separate"), 32)([row, other])
    assert [text_of(tokenizer, batch, place) for place in range(6)] == [
        f"[CLS] {text} [SEP]" for text in ("was it", "good", "bad", "a book", "the cake", "a room")
    ]
    assert batch["entries"].tolist() == [[0, 0, 0], [4, -1, -1]]
    assert batch["entry_pairs"].tolist() == [[1, 2, 3], [5, -1, -1]]
    assert batch["row_task_ids"].tolist() == [0, 0, 0, 0, 1, 1]
    joint = MultiTaskCollator(tokenizer, specs, dict.fromkeys(specs, "joint"), 32)([row, other])
    assert text_of(tokenizer, joint, 1) == "[CLS] was it [SEP] bad [SEP]"
    assert joint["entries"].tolist() == [[0, 1, 2], [3, -1, -1]]
    assert (joint["entry_pairs"] == -1).all()
    assert joint["labels"].tolist() == [[2.0], [1.0]]


def test_words_are_read_at_their_first_token():
    tokenizer, specs = tiny_tokenizer(), {"tags": spec_of("token_classification")}
    collator = MultiTaskCollator(tokenizer, specs, {"tags": "joint"}, 7)
    long, short = ["bab", "cake", "a"], ["we", "\u200d", "saw", "a", "film", "and", "a", "book"]
    batch = collator([{"task": "tags", "texts": words, "label": [0.0] * len(words)} for words in (long, short)])
    tokens = [tokenizer.convert_ids_to_tokens(ids) for ids in batch["input_ids"]]
    rows, positions = batch["word_places"].T.tolist()
    read = [tokens[row][position] for row, position in zip(rows, positions, strict=True)]
    vectors = batch["entries"] - 2  # after the two encoder rows
    words = [[read[place] if place >= 0 else None for place in row] for row in vectors.tolist()]
    assert words[0][:3] == [tokens[0][1], "cake", "a"]
    assert words[0][3:] == [None] * 5
    assert words[1][0] == "we"
    assert [word for word in words[1] if word is not None][-1] != "book"  # cut off at seven tokens
    assert batch["labels"].shape == (2, 8)
    assert batch["labels"][0, 3:].isnan().all()


@torch.no_grad()
def test_a_word_is_tagged_by_its_own_vector(kinds):
    prepared = kinds.prepare()
    model = prepared.model
    row = {"task": "token_classification", "texts": ["we", "saw", "cake"], "label": [0.0, 0.0, 1.0]}
    batch = batch_of(prepared, [row])
    hidden = model.embed(
        batch["row_task_ids"],
        batch["attention_mask"],
        word_places=torch.tensor([[0, 1], [0, 2], [0, 3]]),
        input_ids=batch["input_ids"],
        token_type_ids=batch["token_type_ids"],
    )
    (logits,) = model(**batch).logits.values()
    torch.testing.assert_close(logits[0], model.heads["token_classification"].linear(hidden[1:]))


def test_words_cut_off_are_in_no_loss(kinds):
    prepared = kinds.prepare("model.max_length=6")
    words = ["a", "b", "c", "d", "e", "f", "g"]
    tags = [0.0, 1.0, 2.0, 3.0, 0.0, 1.0, 2.0]
    row = {"task": "token_classification", "texts": words, "label": tags}
    first = prepared.model(**batch_of(prepared, [row])).losses
    changed = prepared.model(**batch_of(prepared, [{**row, "label": [*tags[:4], 3.0, 3.0, 3.0]}])).losses
    assert first == changed
    said = prepared.model.heads["token_classification"].predict(
        next(iter(prepared.model(**batch_of(prepared, [row])).logits.values()))
    )
    assert said[0].isnan().tolist() == [False] * 4 + [True] * 3


def test_rows_of_every_kind_without_labels_give_a_batch_without_labels(kinds, loaded):
    prepared = kinds.prepare()
    rows = [{"texts": row["texts"], "task": row["task"]} for row in mixed_rows(loaded, each=1)]
    batch = batch_of(prepared, rows)
    assert "labels" not in batch
    assert prepared.model(**batch).losses is None


def test_every_case_is_a_task_that_loads(kinds):
    from datasets import Dataset

    for kind, case in CASES.items():
        lines = case.rows(random.Random(1))
        made = arranged(kind, spec_of(kind), Dataset.from_list(lines), "train")
        assert len(TaskRows(kind, spec_of(kind), made, "train")) == 1


@every_kind
def test_heads_are_saved_as_heads_always_were(kind):
    """Files of runs from before the other kinds have these tensors, and must load."""
    spec = spec_of(kind)
    shapes = {name: tuple(tensor.shape) for name, tensor in head(kind).state_dict().items()}
    outputs = spec.num_outputs
    assert shapes == {
        "linear.weight": (outputs, 8),
        "linear.bias": (outputs,),
        "label_mean": (),
        "label_std": (),
        "class_weights": (outputs,),
    }


def test_a_task_saved_before_the_other_kinds_is_read():
    saved = {
        "kind": "classification", "inputs": ["a", "b"], "input_kind": "text", "label": "label", "labels": ["no", "yes"],
        "range": None, "metrics": ["f1"], "primary": "f1", "class_weights": "none", "hub": None, "description": "",
    }  # fmt: skip
    assert TaskSpec(**saved).is_pair
    assert TaskSpec(**saved).splits == {}
