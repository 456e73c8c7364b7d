"""One text or a pair of texts, and one label: a class or a number."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, ClassVar

from tasklora.tasks.kinds.base import Classes, Kind, WrongValueError, class_id, outside
from tasklora.tasks.ragged import Array

if TYPE_CHECKING:
    from tasklora.tasks.spec import TaskSpec


class Classification(Classes):
    """One class of several."""

    name: ClassVar[str] = "classification"
    all_or_nothing: ClassVar[bool] = True

    def label(self, spec: TaskSpec, value: Any, texts: list[str]) -> float:
        """Return the id of a class that is given by id or name."""
        return float(class_id(spec, value))

    def scores(self, probabilities: Array) -> Array | None:
        """Return the probability of class 1, where there are two: (rows,)."""
        return probabilities[:, 1] if probabilities.shape[1] == 2 else None

    def answer(self, spec: TaskSpec, texts: list[str], value: Any) -> str:
        """Return the class's name."""
        return (spec.labels or [])[int(value)]

    def error(self, label: Any, value: Any) -> float:
        """Return 1 for a wrong class."""
        return float(label != value)

    def error_shown(self, error: float) -> str:
        """Return whether it is wrong."""
        return "wrong" if error else "right"


class Regression(Kind):
    """A number in a range."""

    name: ClassVar[str] = "regression"
    settings: ClassVar[frozenset[str]] = frozenset({"range"})

    def check(self, spec: TaskSpec) -> None:
        """Raise ValueError without a range."""
        super().check(spec)
        if spec.range is None or spec.range[0] >= spec.range[1]:
            raise ValueError("a regression task needs `range: [lowest, highest]`")

    def label(self, spec: TaskSpec, value: Any, texts: list[str]) -> float:
        """Return a number that is inside the range."""
        low, high = spec.range or (-math.inf, math.inf)
        if not isinstance(value, (int, float)) or not math.isfinite(value) or not low <= value <= high:
            raise WrongValueError(outside(value, f"{low} … {high}"))
        return float(value)

    def answer(self, spec: TaskSpec, texts: list[str], value: Any) -> float:
        """Return the number."""
        return round(float(value), 4)

    def shown(self, spec: TaskSpec, texts: list[str], value: Any) -> str:
        """Return the number with two digits."""
        return f"{value:.2f}"

    def error(self, label: Any, value: Any) -> float:
        """Return how far off it is."""
        return float(abs(value - label))

    def error_shown(self, error: float) -> str:
        """Return how far off it is."""
        return f"{error:.2f} off"

    def error_summary(self, errors: Array) -> str:
        """Return how far off predictions are on average."""
        return f"Predictions are {errors.mean():.2f} off on average"
