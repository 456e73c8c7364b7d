"""The recipe that ``tasklora init`` writes: commented YAML, sized for a first run of minutes."""

from __future__ import annotations

import json
import math
import textwrap
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import yaml

from tasklora.errors import counted, listing
from tasklora.tasks.guessing import Proposal
from tasklora.tasks.guessing.answers import FEWEST_TO_WEIGH
from tasklora.tasks.methods import training_method
from tasklora.training.first_sizes import (
    FIRST_RUNS,
    Sizes,
    after_tuning,
    lengths_of_answers,
    lengths_of_texts,
    settings_in,
    sizes_of,
    template_of,
    written,
)
from tasklora.training.sections import OptimisationSection

WIDTH = 110
FEWEST_LOGS = 10  # of losses in a run, so that they make curves
EMBEDS_SENTENCES = "sentence-transformers/"


def first_recipe(
    proposals: Sequence[Proposal],
    view: str,
    model: str | None,
    method: str,
    directory: str,
    command: str,
    config: Any | None = None,
) -> str:
    """Return the text of a recipe that trains the proposed tasks as it is.

    Args:
        proposals: the tasks.
        view: "heads" or "text_to_text".
        model: name or folder of the base; None for a small one of the view.
        method: name of a training method.
        directory: the run directory.
        command: the command line that the recipe comes from.
        config: the base's configuration, where it is known.

    Raises:
        ConfigError: if there is no such method, or a task cannot be answered in text where it must be.
    """
    first, sizes = FIRST_RUNS[view], sizes_of(proposals, view)
    model = model or first.model
    pairs = any(len(_inputs(p)) == 2 and not p.guess.parts for p in proposals)
    separate = view == "heads" and model.startswith(EMBEDS_SENTENCES) and pairs
    most = getattr(config, "max_position_embeddings", None)
    positions = most if isinstance(most, int) else None
    page = Page()
    page.comment(
        f"Written by `{command}`. What was guessed has its reason beside it: correct what is wrong, then run\n\n"
        "  tasklora train THIS_FILE\n\n"
        f"which makes {sizes.steps:,} steps of {sizes.batch} rows. Relative paths begin at the folder that tasklora is "
        "started in. All keys: docs/recipes.md."
    )
    page.line(0, "model:")
    page.line(1, f"name: {_yaml(model)}", f"{first.kind}: a public name or a folder")
    if view == "text_to_text":
        _write_text_view(page, proposals, positions)
    else:
        _write_heads_view(page, proposals, separate, positions)
    page.line(0, "tasks:")
    page.line(1, "define:")
    for proposal in proposals:
        _write_task(page, proposal, sizes, view)
    if view == "text_to_text":
        _write_templates(page, proposals)
    elif separate:
        _write_joint_texts(page, proposals)
    if sizes.limits:
        why = "rows per task at most, for a first run of minutes; without this line it takes all"
        page.line(1, f"limits: {_yaml(sizes.limits)}", why)
    page.line(0, "method:")
    page.line(1, f"name: {method}", "`tasklora methods` lists them")
    for option, value in training_method(method).scale.items():
        page.line(1, f"{option}: {value}")
    page.line(0, "training:")
    page.line(1, f"epochs: {first.epochs}", f"over {sizes.rows:,} rows")
    page.line(1, f"batch_size: {first.batch}")
    page.line(1, f"learning_rate: {first.learning_rate}")
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


def _write_heads_view(page: Page, proposals: Sequence[Proposal], separate: bool, positions: int | None) -> None:
    for key, (tokens, why) in lengths_of_texts(proposals, separate, positions).items():
        page.line(1, f"{key}: {tokens}", why)
    if separate:
        why = "such a model embeds single sentences: pairs are embedded apart and compared by the head"
        page.line(1, "pair_encoding: separate", why)


def _write_joint_texts(page: Page, proposals: Sequence[Proposal]) -> None:
    parts = [proposal.task for proposal in proposals if proposal.guess.parts]
    if parts:
        page.line(1, "options:")
        for task in parts:
            page.line(2, f"{_yaml(task)}: {{pair_encoding: joint}}", "two parts of one text, not two to compare")


def _write_text_view(page: Page, proposals: Sequence[Proposal], positions: int | None) -> None:
    texts = written(proposals)
    why = f"texts to write: {listing(texts)}; " if texts else ""
    page.line(1, "view: text_to_text", f"{why}every task is asked and answered in text (docs/decoders.md)")
    for key, (tokens, reason) in lengths_of_answers(proposals, positions).items():
        page.line(1, f"{key}: {tokens}", reason)


def _write_templates(page: Page, proposals: Sequence[Proposal]) -> None:
    page.line(1, "options:", "how a row is written: a column's name in braces stands for its text")
    for proposal in proposals:
        template = template_of(proposal)
        page.line(2, f"{_yaml(proposal.task)}:")
        page.line(3, "template:")
        page.line(4, f"prompt: {_quoted(template.prompt)}")
        page.line(4, f"response: {_quoted(template.response)}")


def _write_task(page: Page, proposal: Proposal, sizes: Sizes, view: str) -> None:
    guess = replace(proposal.guess, settings=settings_in(proposal.guess, view))
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
    if view == "heads" and "class_weights" not in guess.settings and guess.why.get("class_weights"):
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
        rows = proposal.train_rows - after_tuning(proposal)
        of_train = f"{rows:,} more" if held else f"{counted(rows, 'row')} of train"
        held.append(f"{of_train} choose{'s' if rows == 1 else ''} the best step")
    return "; ".join(held)


def _inputs(proposal: Proposal) -> list[str]:
    inputs: list[str] = proposal.guess.settings["inputs"]
    return inputs


def _quoted(text: str) -> str:
    """Return a text as YAML in double quotes, with its line breaks written out."""
    return json.dumps(text, ensure_ascii=False)


def _yaml(value: Any) -> str:
    """Return a value as YAML on one line."""
    text = yaml.safe_dump(value, default_flow_style=True, width=10**9, allow_unicode=True, sort_keys=False)
    return text.removesuffix("\n").removesuffix("\n...")
