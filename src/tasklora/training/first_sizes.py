"""How much ``tasklora init`` lets a first run do: rows, steps, and tokens that hold nearly all texts."""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from tasklora.errors import ConfigError, listing
from tasklora.tasks.base_model import is_decoder
from tasklora.tasks.data import TUNE_FRACTION, TUNE_MAX_ROWS
from tasklora.tasks.guessing import Proposal
from tasklora.tasks.guessing.guess import Guess
from tasklora.tasks.spec import TaskSpec
from tasklora.tasks.templates import Template
from tasklora.tasks.text_forms import TEXT_FORMS, check_text_task
from tasklora.tasks.text_metrics import count_words
from tasklora.training.recipe import ModelSection

LENGTHS = (32, 64, 128, 256)
TEXT_LENGTHS = (*LENGTHS, 512, 1024, 2048)
STEP = 256  # of lengths beyond these
WRITTEN_LENGTHS = (16, 32, 64, 128, 256, 512)
TOKENS_PER_WORD = 1.4  # of English texts, a little more than most tokenizers make
BYTES_PER_TOKEN = 2.5  # fewer than texts of most languages have: a response that finds no room stops the run
ONE_NUMBER = len("-0.123456")


@dataclass(frozen=True)
class FirstRun:
    """What a first run with one view of the tasks begins with.

    Attributes:
        model: the base that is adapted where the user names none.
        kind: what kind of model that is, with its article.
        rows: training rows of all tasks together, at most.
        tune: of more rows than that, those of a task that choose the best step, at most.
        validation: likewise, those that are scored.
        epochs: passes over the rows.
        batch: rows a step.
        learning_rate: as written.
    """

    model: str
    kind: str
    rows: int
    tune: int
    validation: int
    epochs: int
    batch: int
    learning_rate: str


FIRST_RUNS = {
    "heads": FirstRun(
        model="sentence-transformers/all-MiniLM-L6-v2",
        kind="an encoder",
        rows=3000,
        tune=300,
        validation=500,
        epochs=3,
        batch=32,
        learning_rate="1.0e-3",
    ),
    "text_to_text": FirstRun(
        model="HuggingFaceTB/SmolLM2-135M",
        kind="a decoder",
        rows=1000,
        tune=50,
        validation=100,
        epochs=1,
        batch=16,
        learning_rate="3.0e-4",
    ),
}


@dataclass(frozen=True)
class Sizes:
    """How much a first run does.

    Attributes:
        limits: split → rows per task at most; empty if all are taken.
        rows: training rows of all tasks in an epoch.
        batch: rows a step.
        steps: optimiser steps in all.
    """

    limits: dict[str, int]
    rows: int
    batch: int
    steps: int


def view_of(proposals: Sequence[Proposal], config: Any | None) -> str:
    """Return how a model is to see the tasks: ``text_to_text`` if it writes any, or is made to write; else ``heads``.

    Args:
        proposals: the tasks.
        config: the model's configuration, where it is known.
    """
    return "text_to_text" if written(proposals) or is_decoder(config) else "heads"


def check_view(proposals: Sequence[Proposal], view: str) -> None:
    """Raise ConfigError if a task cannot be seen like this, or not together with the others."""
    texts = written(proposals)
    if view == "heads" and texts:
        raise ConfigError(f"--view heads: {listing(texts)} has texts to write, which no head can. Leave --view out.")
    others = [proposal for proposal in proposals if proposal.guess.kind not in TEXT_FORMS]
    if view == "text_to_text" and others:
        named = listing([f"{proposal.task} ({proposal.guess.kind})" for proposal in others])
        wanted = f"{listing(texts)} has texts to write, which takes a decoder" if texts else "a decoder answers in text"
        raise ConfigError(
            f"{wanted}, and {named} has no answer of a few words that a decoder could give. Write a recipe for each: "
            "give their files to `tasklora init` apart."
        )


def written(proposals: Sequence[Proposal]) -> list[str]:
    """Return the tasks whose answers are texts of any words."""
    return [proposal.task for proposal in proposals if proposal.guess.writes is not None]


def sizes_of(proposals: Sequence[Proposal], view: str) -> Sizes:
    """Return how much a first run on these tasks does."""
    first = FIRST_RUNS[view]
    kept = [after_tuning(proposal) for proposal in proposals]
    limits: dict[str, int] = {}
    if sum(kept) > first.rows:
        each = max(100, first.rows // len(proposals) // 100 * 100)
        limits = {"train": each, "tune": min(first.tune, each), "validation": first.validation}
        kept = [min(each, rows) for rows in kept]
    steps = math.ceil(sum(kept) / first.batch) * first.epochs
    return Sizes(limits, sum(kept), first.batch, steps)


def after_tuning(proposal: Proposal) -> int:
    """Return the rows that are left when those of tune are held out."""
    rows = proposal.train_rows
    return rows if "tune" in proposal.rows else rows - max(1, min(TUNE_MAX_ROWS, int(rows * TUNE_FRACTION)))


def settings_in(guess: Guess, view: str) -> dict[str, Any]:
    """Return a task's settings without those that the view has no use for."""
    return {key: value for key, value in guess.settings.items() if view == "heads" or key != "class_weights"}


def template_of(proposal: Proposal) -> Template:
    """Return how a task's rows are written where nothing else is said.

    Raises:
        ConfigError: if the task cannot be answered in text.
    """
    spec = TaskSpec(**settings_in(proposal.guess, "text_to_text"))
    check_text_task(proposal.task, spec, None, "likelihood")
    return TEXT_FORMS[spec.kind].default(spec)


def lengths_of_texts(
    proposals: Sequence[Proposal], separate: bool, positions: int | None = None
) -> dict[str, tuple[int, str]]:
    """Return key of the model → (tokens, why), so that 19 of 20 rows of every task fit into an encoder's longest one.

    Args:
        proposals: the tasks.
        separate: whether the texts of a pair are read apart.
        positions: tokens that the model can read at most, where that is known.
    """
    words = max(_long_row(proposal, separate and not proposal.guess.parts) for proposal in proposals)
    fits = _fitting(LENGTHS, words * TOKENS_PER_WORD + 3)
    length = min(fits or LENGTHS[-1], positions or LENGTHS[-1])
    cut = "longer ones are cut" if length == fits else "what is longer is cut"
    return {"max_length": (length, f"tokens; 19 of 20 rows have at most {round(words)} words, {cut}")}


def lengths_of_answers(proposals: Sequence[Proposal], positions: int | None = None) -> dict[str, tuple[int, str]]:
    """Return key of the model → (tokens, why), so that every response and 19 of 20 prompts fit.

    Args:
        proposals: the tasks.
        positions: tokens that the model can read at most, what it generates included, where that is known.
    """
    prompt = max(_long_prompt(proposal) for proposal in proposals)
    response = max(_longest_response(proposal) for proposal in proposals)
    generated = ModelSection.model_fields["max_new_tokens"].default
    lengths: dict[str, tuple[int, str]] = {}
    outputs = [proposal.guess.writes for proposal in proposals if proposal.guess.writes is not None]
    if outputs:
        words = max(_most([_words(text) for text in output.values]) for output in outputs)
        fits = _fitting(WRITTEN_LENGTHS, words * TOKENS_PER_WORD + 3)
        generated = min(fits or WRITTEN_LENGTHS[-1], (positions or sys.maxsize) // 4)
        cut = "longer ones are cut" if generated == fits else "what is longer is cut"
        why = f"tokens of what is generated; 19 of 20 responses have at most {round(words)} words, {cut}"
        lengths["max_new_tokens"] = (generated, why)
    wanted = prompt + response
    fits = _fitting(TEXT_LENGTHS, wanted) or STEP * math.ceil(wanted / STEP)
    most = sys.maxsize if positions is None else max(1, positions - generated)
    why = (
        f"tokens of prompt and response; 19 of 20 prompts have at most about {round(prompt)}, longer ones can lose "
        f"their beginning; the longest response has {round(response)} or fewer"
    )
    if fits > most:
        why += f", which may be too many for the model's {positions:,}"
    return {"max_length": (min(fits, most), why), **lengths}


def _fitting(lengths: Sequence[int], tokens: float) -> int | None:
    """Return the first length that tokens fit into; None if they fit into none."""
    return next((length for length in lengths if tokens <= length), None)


def _long_row(proposal: Proposal, apart: bool) -> float:
    """Return the words of a row that is longer than 19 of 20: of its longest text, where texts are read apart."""
    lengths = [[_words(value) for value in row] for row in _rows(proposal)]
    return _most([max(row) if apart else sum(row) for row in lengths])


def _long_prompt(proposal: Proposal) -> float:
    """Return about how many tokens a prompt has that is longer than 19 of 20."""
    around = template_of(proposal).prompt + "/".join(proposal.guess.settings.get("labels") or [])
    words = _most([sum(map(_all_words, row)) for row in _rows(proposal)])
    return words * TOKENS_PER_WORD + _bytes(around) / BYTES_PER_TOKEN


def _longest_response(proposal: Proposal) -> float:
    """Return how many tokens a task's longest response has at most, by its bytes."""
    guess = proposal.guess
    names = [_bytes(name) for name in guess.settings.get("labels") or []]
    longest = max(names, default=ONE_NUMBER) if guess.writes is None else guess.writes.longest
    return longest / BYTES_PER_TOKEN + 2  # a space before it, and the end


def _rows(proposal: Proposal) -> list[tuple[Any, ...]]:
    """Return the texts of a sample of rows."""
    return list(zip(*(column.sample for column in proposal.guess.reads), strict=True))


def _most(counts: Sequence[int]) -> float:
    """Return what 19 of 20 are at most."""
    return float(np.percentile(counts, 95))


def _bytes(text: str) -> int:
    return len(text.encode())


def _words(value: Any) -> int:
    """Return the words of a text, of a list of words, or of the longest text of a list."""
    if isinstance(value, list):
        return max(len(value), *(_words(element) for element in value), 0)
    return count_words(str(value or ""))


def _all_words(value: Any) -> int:
    """Return the words of a text, or of all texts of a list."""
    return sum(map(_words, value)) if isinstance(value, list) else _words(value)
