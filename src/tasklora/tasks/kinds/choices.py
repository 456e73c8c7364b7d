"""A question and several texts to choose from, as many as the row has."""

from __future__ import annotations

import string
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from tasklora.errors import DataError
from tasklora.tasks.kinds.base import Kind, WrongValueError, checked_text, checked_texts

if TYPE_CHECKING:
    from tasklora.tasks.spec import TaskSpec


class MultipleChoice(Kind):
    """Which choice is right. A row's texts are the question and its choices; the label is a choice's place, from 0."""

    name: ClassVar[str] = "multiple_choice"
    settings: ClassVar[frozenset[str]] = frozenset({"choices"})
    most_inputs: ClassVar[int] = 1
    all_or_nothing: ClassVar[bool] = True

    def check(self, spec: TaskSpec) -> None:
        """Raise ValueError without choices."""
        super().check(spec)
        if not spec.choices or (isinstance(spec.choices, list) and len(spec.choices) < 2):
            raise ValueError(
                "a multiple_choice task needs `choices`: a column with a list of texts, or two columns or more with "
                "one text each"
            )

    def is_pair(self, spec: TaskSpec) -> bool:
        """Return True: the question with one choice."""
        return True

    def text_columns(self, spec: TaskSpec) -> list[str]:
        """Return the question's column and those of the choices."""
        return [*spec.inputs, *([spec.choices] if isinstance(spec.choices, str) else spec.choices or [])]

    def texts(self, spec: TaskSpec, values: Sequence[Any]) -> list[str]:
        """Return the question and the choices; of several columns, the last ones may be empty (null)."""
        question = checked_text(spec.inputs[0], values[0])
        if isinstance(spec.choices, str):
            return [question, *checked_texts(spec.choices, values[1], 2, "at least two choices")]
        given = list(values[1:])
        while given and given[-1] is None:
            given.pop()
        if len(given) < 2:
            raise WrongValueError(f"columns {', '.join(spec.choices or [])} hold fewer than two choices.")
        return [question, *(checked_text(c, v) for c, v in zip(spec.choices or [], given, strict=False))]

    def label(self, spec: TaskSpec, value: Any, texts: list[str]) -> float:
        """Return the place of the right choice: given as such, by its text, or by its letter.

        A text that is one choice's text, or a letter A, B, …, counts where it can mean one choice only. Digits as
        texts do not: nobody says whether they begin at 0 or 1.
        """
        choices = texts[1:]
        if isinstance(value, (int, np.integer)) and not isinstance(value, bool) and 0 <= value < len(choices):
            return float(value)
        if isinstance(value, str):
            meant = {place for place, choice in enumerate(choices) if choice == value}
            letters = string.ascii_uppercase[: len(choices)]
            if len(value) == 1 and value in letters:
                meant.add(letters.index(value))
            if len(meant) == 1:
                return float(meant.pop())
        raise WrongValueError(
            f"label {value!r} is none of the {len(choices)} choices {choices}, or not one alone. Give its place "
            f"(0 … {len(choices) - 1}), its text or its letter."
        )

    def length(self, texts: list[str]) -> int:
        """Return the length of the question with its longest choice."""
        return len(texts[0]) + max(map(len, texts[1:]))

    def sequences(self, texts: list[str]) -> int:
        """Return the number of choices."""
        return len(texts) - 1

    def from_arguments(self, spec: TaskSpec, task: str, given: list[str]) -> list[list[str]]:
        """Return one row: a question and its choices."""
        if len(given) < 3:
            raise DataError(f"task '{task}' reads a question and its choices: give the question, then each choice.")
        return [given]

    def from_line(self, line: str) -> list[str]:
        """Refuse: a line has no choices."""
        raise DataError("a line of a .txt has no choices: give a .jsonl or .csv with the task's columns.")

    def input_record(self, spec: TaskSpec, texts: list[str]) -> dict[str, Any]:
        """Return the question and the choices."""
        return {spec.inputs[0]: texts[0], "choices": texts[1:]}

    def answer(self, spec: TaskSpec, texts: list[str], value: Any) -> str:
        """Return the choice's text."""
        return texts[1 + int(value)]

    def error(self, label: Any, value: Any) -> float:
        """Return 1 for a wrong choice."""
        return float(label != value)

    def error_shown(self, error: float) -> str:
        """Return whether it is wrong."""
        return "wrong" if error else "right"
