"""A guess of what a table's task is."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from tasklora.tasks.guessing.columns import Column


@dataclass(frozen=True)
class Guess:
    """What a task is taken for.

    Attributes:
        settings: fields of a :class:`~tasklora.tasks.TaskSpec`, in the order they are written in.
        why: field → the reason for it; not every field has one.
        reads: the columns of texts.
        writes: the column of texts that are the answers, where they are texts of any words.
        parts: whether two texts are parts of one.
        left_out: column → why it is not used.
        rarest: share of the rarest class, of classes.
    """

    settings: dict[str, Any]
    why: dict[str, str]
    reads: tuple[Column, ...]
    writes: Column | None = field(default=None, kw_only=True)
    parts: bool = False
    left_out: dict[str, str] = field(default_factory=dict)
    rarest: float = 1.0

    @property
    def kind(self) -> str:
        """The kind of task."""
        return str(self.settings["kind"])

    @property
    def label(self) -> str:
        """The label's column."""
        return str(self.settings["label"])


def settings_of(kind: str, inputs: list[str], label: str, metrics: list[str], **more: Any) -> dict[str, Any]:
    """Return the fields of a task, in the order they are written in; the first metric is the primary one."""
    more = {key: value for key, value in more.items() if value is not None}
    return {"kind": kind, "inputs": inputs, "label": label, **more, "metrics": metrics, "primary": metrics[0]}


def shown_values(column: Column) -> str:
    """Return what a label column holds, in a few words."""
    if column.names:
        return f"{len(column.names)} named classes"
    count = len(column.counts)
    if column.holds == "truth values":
        return "true and false"
    what = "whole numbers" if column.is_number else "words" if column.words < 2 else "short texts"
    return f"{count} different {what}"
