"""Text-to-text models: likelihoods and generation in batches are those of rows asked one by one."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from test_text_batches import ROWS, SPECS, collator_of

from helpers_runs import randomise
from helpers_text import CLASSES, SIZES, row_of, small_tokenizer
from tasklora.evaluation import predict_rows
from tasklora.evaluation.text_answers import generated_texts, option_scores
from tasklora.tasks import TextToTextModel, training_method
from tasklora.tasks.text_collate import IGNORED

KINDS = sorted(CLASSES)


def model_of(kind="llama", method="mtl_lora", **options):
    """Return a random decoder with a random adapter, in evaluation mode."""
    torch.manual_seed(0)
    tokenizer = small_tokenizer(kind)
    config_cls, model_cls = CLASSES[kind]
    base = model_cls(config_cls(**{**SIZES, "initializer_range": 0.3}, eos_token_id=tokenizer.eos_token_id))
    settings = {"r": 4, "lora_alpha": 8, **options} if training_method(method).config else {}
    model = TextToTextModel(training_method(method).adapt(base, list(SPECS), settings, "CAUSAL_LM"), SPECS)
    if training_method(method).config:
        randomise(model)
    return model.eval()


def rows_of(task, count=9):
    """Return rows of one task of many lengths."""
    generator = random.Random(task)
    rows = []
    for _ in range(count):
        made = row_of(task, generator)
        label = made.pop("label")
        texts = [text for value in made.values() for text in (value if isinstance(value, list) else [value])]
        texts[0] += " and so on" * generator.randrange(4)
        rows.append({"task": task, "texts": texts, "label": label})
    return rows


def by_hand(model, collator, row, answer):
    """Return Σ log p of a response without its end, from the whole logits of one unpadded sequence."""
    one = collator.asked(row, [answer])
    tokens = torch.tensor([[*one.prompt, *one.responses[0]]])
    task = torch.tensor([model.task_names.index(row["task"])])
    with torch.no_grad(), model._tasks(task):
        said = model.encoder(input_ids=tokens).logits[0].float().log_softmax(dim=-1)
    first = len(one.prompt)
    places = range(first, tokens.shape[1] - 1)
    return float(sum(said[place - 1, tokens[0, place]] for place in places))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("task", ["mood", "pick"])
def test_likelihoods_of_options_in_batches_are_those_of_one_sequence_at_a_time(kind, task):
    model, collator, rows = model_of(kind), collator_of(kind), rows_of(task)
    with torch.no_grad():
        sums, _ = option_scores(model, task, rows, collator, batch_size=8)
    for row, scores in zip(rows, sums, strict=True):
        expected = [by_hand(model, collator, row, name) for name in collator.options(row)]
        np.testing.assert_allclose(scores, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("method", ["mtl_lora", "lora", "full_fine_tuning"])
def test_generation_in_batches_is_generation_one_by_one(kind, method):
    model, collator = model_of(kind, method), collator_of(kind, evaluation="greedy")
    rows = [*rows_of("echo", 7), {"task": "echo", "texts": ["x"], "label": "y"}]
    with torch.no_grad():
        together = generated_texts(model, "echo", rows, collator, batch_size=8)
        alone = [generated_texts(model, "echo", [row], collator, 1)[0] for row in rows]
    assert together == alone
    assert len(set(together)) > 1  # the prompts differ, and so does what is said


def test_generation_goes_on_with_the_likeliest_token_of_the_task():
    """Against a loop without cache, padding or transformers' generate."""
    model, collator, row = model_of(), collator_of(), rows_of("echo", 1)[0]
    tokens = torch.tensor([collator.prompt(row)])
    start, task = tokens.shape[1], torch.tensor([model.task_names.index("echo")])
    for _ in range(collator.text.max_new_tokens):
        with torch.no_grad(), model._tasks(task):
            likeliest = model.encoder(input_ids=tokens).logits[0, -1].argmax()
        if likeliest == collator.tokenizer.eos_token_id:
            break
        tokens = torch.cat([tokens, likeliest.reshape(1, 1)], dim=1)
    expected = collator.tokenizer.decode(tokens[0, start:], skip_special_tokens=True)
    assert generated_texts(model, "echo", [row], collator, 4) == [expected]


def test_tasks_are_told_apart_by_their_ids_alone():
    model, collator = model_of(), collator_of()
    batch = collator(ROWS)
    with torch.no_grad():
        own = model(**batch).losses
        other = model(**{**batch, "task_ids": batch["task_ids"].flip(0)}).losses
    assert not torch.isclose(own, other).any()


@pytest.mark.parametrize("kind", KINDS)
def test_the_loss_of_a_row_does_not_depend_on_its_batch(kind):
    model, collator = model_of(kind), collator_of(kind)
    batch = collator(ROWS)
    with torch.no_grad():
        output = model(**batch)
        alone = torch.cat([model(**collator([row])).losses for row in ROWS])
        logits = model.encoder(batch["input_ids"], attention_mask=batch["attention_mask"], task_ids=batch["task_ids"])
    torch.testing.assert_close(output.losses, alone, rtol=1e-5, atol=1e-5)
    said = torch.nn.functional.cross_entropy(
        logits.logits.transpose(1, 2), batch["targets"], ignore_index=IGNORED, reduction="none"
    ).sum(dim=1)
    torch.testing.assert_close(output.losses, said, rtol=1e-5, atol=1e-5)
    assert {task: rows.tolist() for task, rows in output.rows.items()} == {0: [0], 1: [1], 2: [2], 3: [3]}


def test_prompts_get_no_gradient_of_their_own():
    """The loss reads the logits of the places before response tokens, and no others."""
    model, collator = model_of(), collator_of()
    batch = collator(ROWS[:1])
    seen = {}
    head = model.encoder.get_base_model().lm_head
    handle = head.register_forward_hook(lambda module, inputs, output: seen.update(shape=tuple(output.shape)))
    model(**batch).losses.sum().backward()
    handle.remove()
    assert seen["shape"] == (1, int(batch["response_tokens"][0]), head.out_features)


def test_scores_per_character_divide_by_the_length_of_the_response():
    model, rows = model_of(), rows_of("mood")
    rows = [{**row, "task": "mood"} for row in rows]
    collator = collator_of()
    with torch.no_grad():
        sums, _ = option_scores(model, "mood", rows, collator, 4)
    said = predict_rows(model, "mood", rows, collator_of(evaluation="likelihood_per_character"))
    lengths = np.array([len(" bad"), len(" good")])
    expected = np.array(sums) / lengths
    shares = np.exp(expected) / np.exp(expected).sum(axis=1, keepdims=True)
    np.testing.assert_allclose(said.probabilities, shares, rtol=1e-6)
    assert said.values.tolist() == expected.argmax(axis=1).tolist()


@pytest.mark.parametrize("evaluation", ["likelihood", "greedy"])
def test_losses_are_those_of_training_per_token(evaluation):
    model, rows, collator = model_of(), rows_of("pick"), collator_of(evaluation=evaluation)
    said = predict_rows(model, "pick", rows, collator, 4)
    with torch.no_grad():
        batches = [collator([row]) for row in rows]
        expected = [float(model(**batch).losses / batch["response_tokens"]) for batch in batches]
    np.testing.assert_allclose(said.losses, expected, rtol=1e-5)
    assert (said.texts is None) is (evaluation == "likelihood")


def test_an_answer_that_names_no_option_is_wrong_and_not_a_class():
    model, rows = model_of(), rows_of("mood")
    said = predict_rows(model, "mood", rows, collator_of(evaluation="greedy"))
    named = [any(name in text.split() for name in ("bad", "good")) for text in said.texts]
    assert np.isnan(said.values).tolist() == [not one for one in named]
    assert said.probabilities is None


def test_a_models_own_generation_config_does_not_change_what_is_said():
    model, row, collator = model_of(), rows_of("echo", 1)[0], collator_of()
    before = generated_texts(model, "echo", [row], collator, 1)
    config = model.encoder.get_base_model().generation_config
    config.update(do_sample=True, temperature=3.0, top_p=0.9, repetition_penalty=5.0, num_return_sequences=2)
    said = collator.tokenizer(before[0], add_special_tokens=False)["input_ids"]
    config.update(suppress_tokens=said, guidance_scale=3.0, forced_eos_token_id=0)
    assert generated_texts(model, "echo", [row], collator, 1) == before
    assert model.encoder.get_base_model().generation_config is config


def test_a_decoder_learns_to_answer_and_to_stop():
    """All weights of a random LLaMA, on four rows: what is generated afterwards is the response and no more."""
    model, collator = model_of(method="full_fine_tuning"), collator_of(evaluation="greedy")
    pairs = {"the lamp": "a", "the film": "good", "the cake": "no", "the walk": "warm"}
    rows = [{"task": "echo", "texts": [text], "label": label} for text, label in pairs.items()]
    batch = collator(rows)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    model.train()
    for _ in range(60):
        optimizer.zero_grad()
        loss = model(**batch).losses.sum() / batch["response_tokens"].sum()
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.05
    said = predict_rows(model, "echo", rows, collator)
    assert said.texts == [f" {label}" for label in pairs.values()]
    assert said.values.tolist() == list(pairs.values())
    ends = [len(collator.asked(row).responses[0]) for row in rows]
    assert min(ends) < collator.text.max_new_tokens  # it could have gone on
