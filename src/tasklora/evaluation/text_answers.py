"""What a text-to-text model answers: by the likelihood of a row's options, or by what it generates.

Rows of one batch differ in length, so their sequences are padded: on the right where likelihoods are read, with a mask,
and on the left where the model goes on after the prompts. Answers are those of rows asked one by one.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch

from tasklora.tasks import TEXT_FORMS, TextToTextCollator, TextToTextModel
from tasklora.tasks.ragged import Array
from tasklora.tasks.text_collate import Asked

Row = Mapping[str, Any]


class TextAnswers(NamedTuple):
    """What was said of the rows of a task, in their order.

    Attributes:
        values: class ids, places of choices, values or texts; NaN where a generated text names no option.
        probabilities: of each row's options; None where there are none.
        losses: mean −log p of each row's response tokens and its end of sequence; None without labels.
        texts: what was generated; None where nothing was.
    """

    values: list[Any]
    probabilities: list[list[float]] | None
    losses: Array | None
    texts: list[str] | None


def answer_rows(
    model: TextToTextModel, task: str, rows: Sequence[Row], collator: TextToTextCollator, batch_size: int
) -> TextAnswers:
    """Return the answers to rows of one task.

    Args:
        model: the model, in evaluation mode.
        task: the task's name.
        rows: ``{"texts": […], "label": …, "columns": {…}}``, the label optional.
        collator: writes the rows.
        batch_size: sequences per batch: prompts, or prompts with an option each.
    """
    rows = [{**row, "task": task} for row in rows]
    generated = collator.text.evaluation == "greedy" or not TEXT_FORMS[model.specs[task].kind].has_options
    return (_by_text if generated else _by_likelihood)(model, task, rows, collator, batch_size)


def option_scores(
    model: TextToTextModel, task: str, rows: Sequence[Row], collator: TextToTextCollator, batch_size: int
) -> tuple[list[Array], list[Array]]:
    """Return, of each row, Σ log p of each option's response (K,), and the mean −log p of its tokens with the end (K,).

    The sum leaves out the end of sequence, the mean has it: that is what is trained.

    Args:
        model: the model.
        task: the task's name.
        rows: with their "task".
        collator: writes the rows.
        batch_size: options per batch.
    """
    task_id = model.task_names.index(task)
    device = next(model.parameters()).device
    asked = [collator.asked(row, collator.options(row)) for row in rows]
    places = [(row, option) for row, one in enumerate(asked) for option in range(len(one.responses))]
    sums = [np.zeros(len(one.responses)) for one in asked]
    losses = [np.zeros(len(one.responses)) for one in asked]
    for chunk in _by_length(places, [_length(asked[row], option) for row, option in places], batch_size):
        batch = collator.batch([(asked[row].prompt, asked[row].responses[option], task_id) for row, option in chunk])
        moved = {name: value.to(device) for name, value in batch.items()}
        said, there = model.log_probabilities(**moved)  # (chunk, C)
        for (row, option), of_row, its in zip(chunk, said.double().cpu(), there.cpu(), strict=True):
            tokens = of_row[its]
            sums[row][option] = float(tokens[:-1].sum())
            losses[row][option] = -float(tokens.mean())
    return sums, losses


def _by_likelihood(
    model: TextToTextModel, task: str, rows: Sequence[Row], collator: TextToTextCollator, batch_size: int
) -> TextAnswers:
    spec, template = model.specs[task], collator.text.templates[task]
    form = TEXT_FORMS[spec.kind]
    options = [collator.options(row) for row in rows]
    sums, option_losses = option_scores(model, task, rows, collator, batch_size)
    if collator.text.evaluation == "likelihood_per_character":
        sums = [
            scores / [len(template.respond(name)) for name in names]
            for scores, names in zip(sums, options, strict=True)
        ]
    answers = [form.of_scores(spec, names, scores) for names, scores in zip(options, sums, strict=True)]
    losses = None
    if rows and "label" in rows[0]:
        named = [form.answer(spec, names, row["label"]) for names, row in zip(options, rows, strict=True)]
        right = [names.index(name) for names, name in zip(options, named, strict=True)]
        losses = np.array([of_row[place] for of_row, place in zip(option_losses, right, strict=True)])
    probabilities = [of_row for _, of_row in answers if of_row is not None]
    return TextAnswers([value for value, _ in answers], probabilities or None, losses, None)


def _by_text(
    model: TextToTextModel, task: str, rows: Sequence[Row], collator: TextToTextCollator, batch_size: int
) -> TextAnswers:
    spec, template = model.specs[task], collator.text.templates[task]
    form = TEXT_FORMS[spec.kind]
    texts = generated_texts(model, task, rows, collator, batch_size)
    values = [form.of_text(spec, template, collator.options(row), text) for row, text in zip(rows, texts, strict=True)]
    losses = _losses(model, rows, collator, batch_size) if rows and "label" in rows[0] else None
    return TextAnswers(values, None, losses, texts)


def generated_texts(
    model: TextToTextModel, task: str, rows: Sequence[Row], collator: TextToTextCollator, batch_size: int
) -> list[str]:
    """Return what the model says after each row's prompt, always the likeliest token; the arguments are as above."""
    device = next(model.parameters()).device
    prompts = [collator.prompt(row) for row in rows]
    texts = [""] * len(rows)
    for chunk in _by_length(list(range(len(rows))), [len(prompt) for prompt in prompts], batch_size):
        batch = {name: value.to(device) for name, value in collator.padded([prompts[i] for i in chunk], True).items()}
        tokens = model.generate(
            torch.full((len(chunk),), model.task_names.index(task), device=device),
            **batch,
            max_new_tokens=collator.text.max_new_tokens,
            eos_token_id=collator.tokenizer.eos_token_id,
            pad_token_id=collator.pad_token_id,
        )
        for place, of_row in zip(chunk, tokens.tolist(), strict=True):
            end = collator.tokenizer.eos_token_id
            said = of_row[: of_row.index(end)] if end in of_row else of_row
            texts[place] = collator.tokenizer.decode(said, skip_special_tokens=True)
    return texts


def _losses(model: TextToTextModel, rows: Sequence[Row], collator: TextToTextCollator, batch_size: int) -> Array:
    """Return the mean loss of each row's response tokens."""
    device = next(model.parameters()).device
    losses = np.empty(len(rows))
    lengths = [sum(map(len, row["texts"])) for row in rows]
    for chunk in _by_length(list(range(len(rows))), lengths, batch_size):
        batch = {name: value.to(device) for name, value in collator([rows[place] for place in chunk]).items()}
        losses[chunk] = (model(**batch).losses / batch["response_tokens"]).double().cpu().numpy()
    return losses


def _length(asked: Asked, option: int) -> int:
    return len(asked.prompt) + len(asked.responses[option])


def _by_length(items: list[Any], lengths: list[int], size: int) -> Iterator[list[Any]]:
    """Return the items in batches of similar lengths, the longest first: what does not fit into memory fails early."""
    order = sorted(range(len(items)), key=lambda place: -lengths[place])
    for start in range(0, len(order), size):
        yield [items[place] for place in order[start : start + size]]
