"""Any number of several classes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from tasklora.errors import listing
from tasklora.tasks.kinds.base import Classes, WrongValueError, class_id, outside
from tasklora.tasks.ragged import Array

if TYPE_CHECKING:
    from tasklora.tasks.spec import TaskSpec


class MultiLabel(Classes):
    """Which of the classes a row has: none, some or all. The label is 0 or 1 for each of them."""

    name: ClassVar[str] = "multi_label"
    settings: ClassVar[frozenset[str]] = frozenset({"labels", "label_separator"})

    def check(self, spec: TaskSpec) -> None:
        """Raise ValueError if a class name could not be told apart in joined labels."""
        super().check(spec)
        separator = spec.label_separator
        if separator == "":
            raise ValueError("label_separator must not be empty")
        broken = [name for name in spec.labels or [] if separator is not None and separator in name]
        if broken:
            raise ValueError(f"label_separator {separator!r} stands in the labels {listing(broken)}")

    def label(self, spec: TaskSpec, value: Any, texts: list[str]) -> list[float]:
        """Return 0 or 1 for each class, of a list of ids or names, or of names that `label_separator` joins."""
        given = self._split(spec, value) if isinstance(value, str) else value
        if not isinstance(given, (list, tuple)):
            raise WrongValueError(outside(value, f"of lists of {listing(spec.labels or [])}"))
        ids = [class_id(spec, item) for item in given]
        if len(set(ids)) != len(ids):
            raise WrongValueError(f"label {value!r} names a class twice.")
        return [float(place in ids) for place in range(self.num_outputs(spec))]

    @staticmethod
    def _split(spec: TaskSpec, value: str) -> list[Any]:
        if spec.label_separator is None:
            raise WrongValueError(
                f"label {value!r} is a text, not a list. If it joins labels, name what joins them: label_separator."
            )
        items = [item.strip() for item in value.split(spec.label_separator)] if value.strip() else []
        return [int(item) if item.isdecimal() and item not in (spec.labels or []) else item for item in items]

    def counts(self, spec: TaskSpec, labels: Array) -> Array:
        """Return how many rows have each class."""
        counts: Array = labels.sum(axis=0)
        return counts

    def balanced_weights(self, spec: TaskSpec, labels: Array) -> Array:
        """Return what a row that has the class weighs beside one that has it not: (n − n_c) / n_c."""
        counts = self.counts(spec, labels)
        with np.errstate(divide="ignore"):
            weights: Array = (len(labels) - counts) / counts
        return weights

    def confidence(self, probabilities: Array) -> float:
        """Return the mean over the classes of the probability of what is said of them."""
        return float(np.maximum(probabilities, 1 - probabilities).mean())

    def scores(self, probabilities: Array) -> Array:
        """Return the probability of each class: (rows, classes)."""
        return probabilities

    def answer(self, spec: TaskSpec, texts: list[str], value: Any) -> list[str]:
        """Return the names of the classes that the row has."""
        return [name for name, has in zip(spec.labels or [], value, strict=True) if has > 0.5]

    def shown(self, spec: TaskSpec, texts: list[str], value: Any) -> str:
        """Return the names of the classes that the row has."""
        return super().shown(spec, texts, value) or "none"

    def error(self, label: Any, value: Any) -> float:
        """Return how many classes are wrong."""
        return float((np.asarray(label) != np.asarray(value)).sum())

    def error_shown(self, error: float) -> str:
        """Return how many classes are wrong."""
        return f"{error:.0f} wrong"
