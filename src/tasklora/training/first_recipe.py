"""The recipe that ``tasklora init`` writes: commented YAML, sized for a first run of minutes on a CPU."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import yaml

from tasklora.errors import counted
from tasklora.tasks.data import TUNE_FRACTION, TUNE_MAX_ROWS
from tasklora.tasks.guessing import Proposal
from tasklora.tasks.guessing.answers import FEWEST_TO_WEIGH
from tasklora.tasks.methods import training_method
from tasklora.training.sections import OptimisationSection

WIDTH = 110
EPOCHS, BATCH = 3, 32
FEWEST_LOGS = 10  # of losses in a run, so that they make curves
FIRST_ROWS = 3000  # training rows of all tasks together
LENGTHS = (32, 64, 128, 256)
TOKENS_PER_WORD = 1.4  # of English texts, a little more than most tokenizers make
EMBEDS_SENTENCES = "sentence-transformers/"


@dataclass(frozen=True)
class Sizes:
    """How much a first run does.

    Attributes:
        limits: split → rows per task at most; empty if all are taken.
        rows: training rows of all tasks in an epoch.
        steps: optimiser steps in all.
    """

    limits: dict[str, int]
    rows: int
    steps: int


def sizes_of(proposals: Sequence[Proposal]) -> Sizes:
    """Return how much a first run on these tasks does."""
    kept = [_after_tuning(proposal) for proposal in proposals]
    limits: dict[str, int] = {}
    if sum(kept) > FIRST_ROWS:
        each = max(100, FIRST_ROWS // len(proposals) // 100 * 100)
        limits = {"train": each, "tune": min(300, each), "validation": 500}
        kept = [min(each, rows) for rows in kept]
    steps = math.ceil(sum(kept) / BATCH) * EPOCHS
    return Sizes(limits, sum(kept), steps)


def _after_tuning(proposal: Proposal) -> int:
    """Return the rows that are left when those of tune are held out."""
    rows = proposal.train_rows
    return rows if "tune" in proposal.rows else rows - max(1, min(TUNE_MAX_ROWS, int(rows * TUNE_FRACTION)))


def first_recipe(proposals: Sequence[Proposal], model: str, method: str, directory: str, command: str) -> str:
    """Return the text of a recipe that trains the proposed tasks as it is.

    Args:
        proposals: the tasks.
        model: name or folder of the base encoder.
        method: name of a training method.
        directory: the run directory.
        command: the command line that the recipe comes from.

    Raises:
        ConfigError: if there is no such method.
    """
    sizes = sizes_of(proposals)
    separate = model.startswith(EMBEDS_SENTENCES) and any(len(_inputs(p)) == 2 and not p.guess.parts for p in proposals)
    length, why_length = _length(proposals, separate)
    page = Page()
    page.comment(
        f"Written by `{command}`. What was guessed has its reason beside it: correct what is wrong, then run\n\n"
        "  tasklora train THIS_FILE\n\n"
        f"which makes {sizes.steps:,} steps of {BATCH} rows. Relative paths begin at the folder that tasklora is "
        "started in. All keys: docs/recipes.md."
    )
    page.line(0, "model:")
    page.line(1, f"name: {_yaml(model)}", "an encoder: a public name or a folder")
    page.line(1, f"max_length: {length}", why_length)
    if separate:
        why = "such a model embeds single sentences: pairs are embedded apart and compared by the head"
        page.line(1, "pair_encoding: separate", why)
    page.line(0, "tasks:")
    page.line(1, "define:")
    for proposal in proposals:
        _write_task(page, proposal, sizes)
    parts = [proposal.task for proposal in proposals if separate and proposal.guess.parts]
    if parts:
        page.line(1, "options:")
        for task in parts:
            page.line(2, f"{_yaml(task)}: {{pair_encoding: joint}}", "two parts of one text, not two to compare")
    if sizes.limits:
        why = "rows per task at most, for a first run of minutes; without this line it takes all"
        page.line(1, f"limits: {_yaml(sizes.limits)}", why)
    page.line(0, "method:")
    page.line(1, f"name: {method}", "`tasklora methods` lists them")
    for option, value in training_method(method).scale.items():
        page.line(1, f"{option}: {value}")
    page.line(0, "training:")
    page.line(1, f"epochs: {EPOCHS}", f"over {sizes.rows:,} rows")
    page.line(1, f"batch_size: {BATCH}")
    page.line(1, "learning_rate: 1.0e-3")
    every = max(1, sizes.steps // FEWEST_LOGS)
    if every < OptimisationSection.model_fields["logging_steps"].default:
        page.line(1, f"logging_steps: {every}", "so short a run logs its losses more often")
    page.line(0, "output:")
    page.line(1, f"directory: {_yaml(directory)}")
    return page.text()


class Page:
    """Lines of YAML, each with its comment: beside it where there is room, else above."""

    def __init__(self) -> None:
        self._lines: list[str] = []

    def comment(self, text: str, indent: int = 0) -> None:
        """Write a comment of several lines."""
        space = "  " * indent
        for paragraph in text.split("\n"):
            for line in textwrap.wrap(paragraph, WIDTH - len(space) - 2, drop_whitespace=True) or [""]:
                lead = paragraph[: len(paragraph) - len(paragraph.lstrip())]
                self._lines.append(f"{space}# {lead}{line.strip()}".rstrip())

    def line(self, indent: int, text: str, comment: str = "") -> None:
        """Write a line, with a comment on it."""
        line = "  " * indent + text
        if comment and len(line) + len(comment) + 4 > WIDTH:
            self.comment(comment, indent)
            comment = ""
        self._lines.append(f"{line}  # {comment}" if comment else line)

    def text(self) -> str:
        """Return what was written."""
        return "\n".join(self._lines) + "\n"


def _write_task(page: Page, proposal: Proposal, sizes: Sizes) -> None:
    guess = proposal.guess
    rarest = guess.rarest * sizes.limits.get("train", math.inf)
    if guess.settings.get("class_weights") == "balanced" and rarest < FEWEST_TO_WEIGH:
        why = f"balanced without the limits below: of so few rows, about {round(rarest)} are of the rarest class"
        settings, reasons = {**guess.settings, "class_weights": "none"}, {**guess.why, "class_weights": why}
        guess = replace(guess, settings=settings, why=reasons)
    rows = ", ".join(f"{split} {count:,}" for split, count in proposal.rows.items())
    page.line(2, f"{_yaml(proposal.task)}:", f"rows: {rows}")
    for key, value in guess.settings.items():
        why = guess.why.get(key, "")
        text = f"{key}: {_yaml(value)}"
        if isinstance(value, list) and len(text) > WIDTH - 6:
            page.line(3, f"{key}:", why)
            for entry in value:
                page.line(4, f"- {_yaml(entry)}")
        else:
            page.line(3, text, why)
    if "class_weights" not in guess.settings and guess.why.get("class_weights"):
        page.comment(guess.why["class_weights"], 3)
    if proposal.files is not None:
        page.line(
            3, f"files: {_yaml(proposal.files)}" if isinstance(proposal.files, str) else "files:", _held(proposal)
        )
        for split, path in proposal.files.items() if isinstance(proposal.files, dict) else ():
            page.line(4, f"{split}: {_yaml(path)}")
    else:
        page.line(3, f"hub: {_yaml(dict(proposal.place.hub or {}))}")
    left_out = "; ".join(f"{name} ({why})" for name, why in guess.left_out.items())
    if left_out:
        page.comment(f"not used: {left_out}", 3)
    for note in proposal.notes:
        page.comment(note, 3)


def _held(proposal: Proposal) -> str:
    """Return what is held out of the training rows, and what for."""
    held = []
    if "validation" not in proposal.rows:
        count = counted(proposal.held_out, "row")
        are = "is" if proposal.held_out == 1 else "are"
        held.append(f"{count} {are} held out of train for validation, the same for every seed")
    if "tune" not in proposal.rows:
        rows = proposal.train_rows - _after_tuning(proposal)
        of_train = f"{rows:,} more" if held else f"{counted(rows, 'row')} of train"
        held.append(f"{of_train} choose{'s' if rows == 1 else ''} the best step")
    return "; ".join(held)


def _inputs(proposal: Proposal) -> list[str]:
    inputs: list[str] = proposal.guess.settings["inputs"]
    return inputs


def _length(proposals: Sequence[Proposal], separate: bool) -> tuple[int, str]:
    """Return the longest sequence, in tokens, and why: so that 19 of 20 rows of every task fit, if any length does."""
    words = max(_long_row(proposal, separate and not proposal.guess.parts) for proposal in proposals)
    length = next((length for length in LENGTHS if words * TOKENS_PER_WORD + 3 <= length), LENGTHS[-1])
    cut = " longer ones are cut" if words * TOKENS_PER_WORD + 3 <= length else " what is longer is cut"
    return length, f"tokens; 19 of 20 rows have at most {round(words)} words,{cut}"


def _long_row(proposal: Proposal, apart: bool) -> float:
    """Return the words of a row that is longer than 19 of 20: of its longest text, where texts are read apart."""
    rows = zip(*(column.sample for column in proposal.guess.reads), strict=True)
    lengths = [[_words(value) for value in row] for row in rows]
    return float(np.percentile([max(row) if apart else sum(row) for row in lengths], 95))


def _words(value: Any) -> int:
    """Return the words of a text, of a list of words, or of the longest text of a list."""
    if isinstance(value, list):
        return max(len(value), *(_words(element) for element in value), 0)
    return len(str(value or "").split())


def _yaml(value: Any) -> str:
    """Return a value as YAML on one line."""
    text = yaml.safe_dump(value, default_flow_style=True, width=10**9, allow_unicode=True, sort_keys=False)
    return text.removesuffix("\n").removesuffix("\n...")
