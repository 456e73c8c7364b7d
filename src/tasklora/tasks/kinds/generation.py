"""A text or a pair of texts, and a text for an answer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from tasklora.tasks.kinds.base import Kind, WrongValueError

if TYPE_CHECKING:
    from tasklora.tasks.spec import TaskSpec


class Generation(Kind):
    """A text of any words. It has no head: only ``model.view: text_to_text`` can train it."""

    name: ClassVar[str] = "generation"

    def texts(self, spec: TaskSpec, values: Sequence[Any]) -> list[str]:
        """Return a row's texts; of a pair one may be missing, as an instruction often has no further input."""
        if len(values) == 2 and sum(value is None for value in values) == 1:
            values = ["" if value is None else value for value in values]
        return super().texts(spec, values)

    def label(self, spec: TaskSpec, value: Any, texts: list[str]) -> str:  # type: ignore[override]
        """Return the text that is to be said."""
        if not isinstance(value, str) or not value.strip():
            raise WrongValueError(f"label {value!r} is no text, or a blank one. Give what is to be said.")
        return value

    def answer(self, spec: TaskSpec, texts: list[str], value: Any) -> str:
        """Return the text."""
        return str(value)

    def error(self, label: Any, value: Any) -> float:
        """Return 1 minus the F1 of the words that the two texts share."""
        from tasklora.tasks.text_metrics import word_f1

        return 1.0 - word_f1(str(label), str(value))

    def error_shown(self, error: float) -> str:
        """Return how many words are right."""
        return f"word F1 {1 - error:.2f}"
