"""Rows that a run got wrong, to read: the report's examples of errors."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from tasklora.evaluation import ScoredRows
from tasklora.tasks import TaskSpec

PER_TASK = 5
LONGEST = 320


@dataclass(frozen=True)
class Example:
    """One row that was predicted wrongly.

    Attributes:
        texts: name of the input → text, cut if long.
        label: what is right.
        prediction: what was said.
        certainty: how sure the model was, or how far off.
        others: title of another method → what it said.
    """

    texts: dict[str, str]
    label: str
    prediction: str
    certainty: str
    others: dict[str, str]


@dataclass(frozen=True)
class TaskErrors:
    """Errors of one task.

    Attributes:
        summary: how many rows are wrong, or how far off they are on average.
        examples: the worst ones first.
    """

    task: str
    summary: str
    examples: list[Example]


def worst_errors(task: str, spec: TaskSpec, rows: ScoredRows, others: Mapping[str, ScoredRows]) -> TaskErrors:
    """Return the worst errors of a task: the surest wrong classes, or the values that are furthest off.

    Args:
        task: its name.
        spec: what it is.
        rows: what the shown run said.
        others: title of another method → what it said of the same rows.
    """
    off = np.abs(rows.values - rows.labels)
    if spec.kind == "classification":
        wrong = np.flatnonzero(off > 0)
        order = wrong[np.argsort(-rows.confidences[wrong], kind="stable")]
        summary = f"{len(wrong)} of {len(off)} rows are wrong; shown are those that the model was surest of."
    else:
        order = np.argsort(-off, kind="stable")
        summary = f"Predictions are {off.mean():.2f} off on average; shown are the {PER_TASK} that are furthest off."
    return TaskErrors(task, summary, [_example(spec, rows, int(place), others) for place in order[:PER_TASK]])


def _example(spec: TaskSpec, rows: ScoredRows, place: int, others: Mapping[str, ScoredRows]) -> Example:
    certainty = (
        f"{rows.confidences[place]:.0%} sure"
        if spec.kind == "classification"
        else f"{abs(rows.values[place] - rows.labels[place]):.2f} off"
    )
    return Example(
        texts={name: _cut(text) for name, text in zip(spec.inputs, rows.texts[place], strict=True)},
        label=_said(spec, rows.labels[place]),
        prediction=_said(spec, rows.values[place]),
        certainty=certainty,
        others={title: _said(spec, other.values[place]) for title, other in others.items()},
    )


def _said(spec: TaskSpec, value: float) -> str:
    if spec.kind == "classification":
        return str((spec.labels or [])[int(value)])
    return f"{value:.2f}"


def _cut(text: str) -> str:
    return text if len(text) <= LONGEST else text[: LONGEST - 1].rstrip() + "…"
