"""A tag for every word of a sentence."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from tasklora.errors import DataError
from tasklora.tasks.kinds.base import Classes, WrongValueError, checked_texts, class_id
from tasklora.tasks.ragged import Array

if TYPE_CHECKING:
    from tasklora.tasks.spec import TaskSpec

OUTSIDE = "O"
"""The tag of words that are part of nothing."""


class TokenClassification(Classes):
    """One class per word. A row's texts are its words; its label is a class id for each.

    Words that truncation cuts off, and words that the tokenizer makes nothing of, are not seen: they are not in the
    loss, and their prediction is missing (NaN), which metrics take for wrong, and for outside of any span.
    """

    name: ClassVar[str] = "token_classification"
    most_inputs: ClassVar[int] = 1

    def is_pair(self, spec: TaskSpec) -> bool:
        """Return False: words are tagged where they stand."""
        return False

    def texts(self, spec: TaskSpec, values: Sequence[Any]) -> list[str]:
        """Return the words."""
        (column,) = spec.inputs
        words = checked_texts(column, values[0], 1, "words")
        for word in words:
            if not word.strip():
                raise WrongValueError(f"column '{column}' holds {words!r}: the word {word!r} is blank.")
        return words

    def label(self, spec: TaskSpec, value: Any, texts: list[str]) -> list[float]:
        """Return the id of each word's tag, given by ids or names."""
        if not isinstance(value, (list, tuple)) or len(value) != len(texts):
            raise WrongValueError(f"label {value!r} is not a list of {len(texts)} tags, one for each word of {texts}.")
        return [float(class_id(spec, tag)) for tag in value]

    def length(self, texts: list[str]) -> int:
        """Return the length of the sentence."""
        return sum(map(len, texts)) + len(texts)

    def confidence(self, probabilities: Array) -> float:
        """Return the mean over the words of the probability of their tag; NaN where no word is seen."""
        return float(np.nanmean(probabilities)) if np.isfinite(probabilities).any() else float("nan")

    def from_arguments(self, spec: TaskSpec, task: str, given: list[str]) -> list[list[str]]:
        """Return one row for each text, its words parted by spaces."""
        return [self.from_line(text) for text in given]

    def from_line(self, line: str) -> list[str]:
        """Return the words of a line, parted by spaces."""
        if not line.split():
            raise DataError("a text without words cannot be tagged.")
        return line.split()

    def input_record(self, spec: TaskSpec, texts: list[str]) -> dict[str, Any]:
        """Return the words."""
        return {spec.inputs[0]: texts}

    def answer(self, spec: TaskSpec, texts: list[str], value: Any) -> list[str | None]:
        """Return the words' tags; None for a word that was not seen."""
        tags = [None if np.isnan(tag) else (spec.labels or [])[int(tag)] for tag in value[: len(texts)]]
        return tags + [None] * (len(texts) - len(tags))

    def shown(self, spec: TaskSpec, texts: list[str], value: Any) -> str:
        """Return the words that are not outside, with their tags."""
        tags = zip(texts, self.answer(spec, texts, value), strict=True)
        found = [f"{word}: {tag or 'not seen'}" for word, tag in tags if tag != OUTSIDE]
        return ", ".join(found) or f"all {OUTSIDE}"

    def error(self, label: Any, value: Any) -> float:
        """Return how many words are wrong; those that are not seen are."""
        return float((np.isfinite(label) & (np.asarray(label) != np.asarray(value))).sum())

    def error_shown(self, error: float) -> str:
        """Return how many words are wrong."""
        return f"{error:.0f} words wrong"
