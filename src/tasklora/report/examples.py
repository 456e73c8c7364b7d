"""Rows that a run got wrong, to read: the report's examples of errors."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from tasklora.evaluation import ScoredRows
from tasklora.tasks import KINDS, TaskSpec
from tasklora.tasks.ragged import is_missing

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
    """Return the worst errors of a task: the surest wrong answers, or those that are furthest off.

    Args:
        task: its name.
        spec: what it is.
        rows: what the shown run said.
        others: title of another method → what it said of the same rows.
    """
    kind = KINDS[spec.kind]
    errors = np.array([kind.error(label, value) for label, value in zip(rows.labels, rows.values, strict=True)])
    wrong = np.flatnonzero(errors > 0)
    if kind.all_or_nothing:
        order = wrong[np.argsort(-rows.confidences[wrong], kind="stable")]
        shown = "shown are those that the model was surest of"
    else:
        order = wrong[np.argsort(-errors[wrong], kind="stable")]
        shown = "shown are those that are furthest off"
    return TaskErrors(
        task,
        f"{kind.error_summary(errors)}; {shown}.",
        [_example(spec, rows, int(place), errors[place], others) for place in order[:PER_TASK]],
    )


def _example(spec: TaskSpec, rows: ScoredRows, place: int, error: float, others: Mapping[str, ScoredRows]) -> Example:
    kind, texts = KINDS[spec.kind], rows.texts[place]
    return Example(
        texts={name: _cut(_joined(value)) for name, value in kind.input_record(spec, texts).items()},
        label=kind.shown(spec, texts, rows.labels[place]),
        prediction=_said(spec, texts, rows.values[place]),
        certainty=_certainty(spec, rows.confidences[place], error),
        others={title: _said(spec, texts, other.values[place]) for title, other in others.items()},
    )


def _said(spec: TaskSpec, texts: list[str], value: Any) -> str:
    return "no option" if is_missing(value) else KINDS[spec.kind].shown(spec, texts, value)


def _certainty(spec: TaskSpec, confidence: float, error: float) -> str:
    kind = KINDS[spec.kind]
    return f"{confidence:.0%} sure" if kind.all_or_nothing and not np.isnan(confidence) else kind.error_shown(error)


def _joined(value: str | list[str]) -> str:
    return value if isinstance(value, str) else " / ".join(value)


def _cut(text: str) -> str:
    return text if len(text) <= LONGEST else text[: LONGEST - 1].rstrip() + "…"
