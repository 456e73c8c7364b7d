"""What every kind of task says of itself: its columns, its labels, and words for people."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from tasklora.errors import DataError, did_you_mean, listing
from tasklora.tasks.ragged import Array

if TYPE_CHECKING:
    import datasets

    from tasklora.tasks.spec import TaskSpec


class WrongValueError(ValueError):
    """A row that cannot be used; whoever reads the rows adds which one it is."""


class Kind(ABC):
    """One kind of task. A row in memory is a list of texts and a label: a number, or a list of numbers.

    Its head is in :mod:`tasklora.tasks.heads`, how its rows become batches in :mod:`tasklora.tasks.collate`, and its
    metrics in :mod:`tasklora.tasks.metrics`, each under the kind's name.

    Attributes:
        name: as in ``kind:`` of a suite.
        settings: the keys of a task that only some kinds have and this one reads.
        most_inputs: how many input columns it has at most.
        takes_class_weights: whether ``class_weights: balanced`` means something.
        all_or_nothing: whether a row is either right or wrong.
        gathers_rows: whether a row of the task is made of several ones of the table.
        reads: what its head reads of texts that are not a separate pair, with u for the pooled vector.
    """

    name: ClassVar[str]
    settings: ClassVar[frozenset[str]] = frozenset()
    most_inputs: ClassVar[int] = 2
    takes_class_weights: ClassVar[bool] = False
    all_or_nothing: ClassVar[bool] = False
    gathers_rows: ClassVar[bool] = False
    reads: ClassVar[str] = "u"

    # --- the task

    def check(self, spec: TaskSpec) -> None:
        """Raise ValueError if the task's keys do not make up a task of this kind."""
        if len(spec.inputs) > self.most_inputs:
            raise ValueError(f"a {self.name} task has {self.most_inputs} input column, got {listing(spec.inputs)}")

    def num_outputs(self, spec: TaskSpec) -> int:
        """Return the width of the head."""
        return 1

    def is_pair(self, spec: TaskSpec) -> bool:
        """Return whether what is scored is a pair of texts."""
        return len(spec.inputs) == 2

    def text_columns(self, spec: TaskSpec) -> list[str]:
        """Return the columns that a row's texts come from."""
        return spec.inputs

    # --- rows

    def arranged(self, spec: TaskSpec, rows: datasets.Dataset, where: str, labelled: bool = True) -> datasets.Dataset:
        """Return a table of one row per row of the task, of one that may have several.

        Args:
            spec: the task.
            rows: as read.
            where: what an error message begins with.
            labelled: whether the rows have labels.
        """
        return rows

    def for_training(self, spec: TaskSpec, rows: datasets.Dataset) -> datasets.Dataset:
        """Return the rows as they are trained on."""
        return rows

    def texts(self, spec: TaskSpec, values: Sequence[Any]) -> list[str]:
        """Return a row's texts.

        Args:
            spec: the task.
            values: what the row holds in :meth:`text_columns`.

        Raises:
            WrongValueError: if they are none.
        """
        for column, value in zip(spec.inputs, values, strict=True):
            checked_text(column, value)
        return list(values)

    @abstractmethod
    def label(self, spec: TaskSpec, value: Any, texts: list[str]) -> float | list[float]:
        """Return a row's label as numbers.

        Args:
            spec: the task.
            value: what the row holds in the label's column.
            texts: the row's texts.

        Raises:
            WrongValueError: if it is none; says what is allowed.
        """

    def length(self, texts: list[str]) -> int:
        """Return how long the longest sequence is that the encoder reads of a row, in characters."""
        return max(map(len, texts))

    def sequences(self, texts: list[str]) -> int:
        """Return how many texts of a row the encoder reads for its answer: the candidates, where there are some."""
        return 1

    def counts(self, spec: TaskSpec, labels: Array) -> Array:
        """Return how often each class occurs: (outputs,)."""
        seen = labels[np.isfinite(labels)].astype(int)
        return np.bincount(seen, minlength=self.num_outputs(spec)).astype(np.float64)

    def balanced_weights(self, spec: TaskSpec, labels: Array) -> Array:
        """Return n / (C · n_c): (outputs,); infinite for a class that does not occur."""
        counts = self.counts(spec, labels)
        with np.errstate(divide="ignore"):
            weights: Array = counts.sum() / (len(counts) * counts)
        return weights

    # --- words for people

    def confidence(self, probabilities: Array) -> float:
        """Return how sure the model is of a row: the probability of what it says."""
        return float(np.nanmax(probabilities))

    def scores(self, probabilities: Array) -> Array | None:
        """Return what metrics on scores read, of (rows, classes); None if they have no use for it."""
        return None

    def from_arguments(self, spec: TaskSpec, task: str, given: list[str]) -> list[list[str]]:
        """Return the texts of the rows that a command line's texts make up.

        Raises:
            DataError: if they do not.
        """
        size = len(spec.inputs)
        if len(given) % size:
            raise DataError(f"task '{task}' reads pairs ({', '.join(spec.inputs)}): give two texts for each row.")
        return [given[start : start + size] for start in range(0, len(given), size)]

    def from_line(self, line: str) -> list[str]:
        """Return the texts of a row that a line of a text file is."""
        return [line]

    def input_record(self, spec: TaskSpec, texts: list[str]) -> dict[str, Any]:
        """Return a row's texts by the names of their columns."""
        return dict(zip(spec.inputs, texts, strict=True))

    @abstractmethod
    def answer(self, spec: TaskSpec, texts: list[str], value: Any) -> Any:
        """Return a label or a prediction as JSON that people read: names for classes."""

    def shown(self, spec: TaskSpec, texts: list[str], value: Any) -> str:
        """Return a label or a prediction as a text."""
        answer = self.answer(spec, texts, value)
        return ", ".join(map(str, answer)) if isinstance(answer, list) else str(answer)

    @abstractmethod
    def error(self, label: Any, value: Any) -> float:
        """Return how wrong a prediction is; 0 where it is right."""

    @abstractmethod
    def error_shown(self, error: float) -> str:
        """Return an error as a text."""

    def error_summary(self, errors: Array) -> str:
        """Return what the errors of all rows come to."""
        wrong = int((errors > 0).sum())
        return f"{wrong} of {len(errors)} rows are wrong"


class Classes(Kind):
    """A kind whose labels are classes with names."""

    settings: ClassVar[frozenset[str]] = frozenset({"labels"})
    takes_class_weights: ClassVar[bool] = True

    def check(self, spec: TaskSpec) -> None:
        """Raise ValueError if the class names are missing."""
        super().check(spec)
        if not spec.labels or len(spec.labels) < 2:
            raise ValueError(f"a {self.name} task needs `labels`: at least two class names")

    def num_outputs(self, spec: TaskSpec) -> int:
        """Return the number of classes."""
        return len(spec.labels or [])


def require_columns(rows: datasets.Dataset, columns: Iterable[str], where: str) -> None:
    """Raise DataError naming the first column that a table lacks."""
    for column in columns:
        if column not in rows.column_names:
            raise DataError(
                f"{where}: no column '{column}'.{did_you_mean(column, rows.column_names)} "
                f"The file has: {listing(rows.column_names)}."
            )


def checked_text(column: str, value: Any) -> str:
    """Return `value` if it is a text, else raise WrongValueError."""
    if not isinstance(value, str):
        raise WrongValueError(f"column '{column}' holds {value!r}, not a text.")
    return value


def checked_texts(column: str, value: Any, least: int, what: str) -> list[str]:
    """Return `value` if it is a list of at least `least` texts, else raise WrongValueError."""
    if not isinstance(value, (list, tuple)) or len(value) < least or not all(isinstance(text, str) for text in value):
        raise WrongValueError(f"column '{column}' holds {value!r}, not a list of {what}.")
    return list(value)


def class_id(spec: TaskSpec, value: Any) -> int:
    """Return the id of a class, given by id or name.

    Whole numbers are ids, unless all classes are called by whole numbers: of labels ["1", "2"], 1 is the first one.
    They may be written as 1.0, which is what pandas makes of a column of them where one is missing.

    Raises:
        WrongValueError: if there is no such class.
    """
    names = spec.labels or []
    given = value
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    is_number = isinstance(value, (int, np.integer)) and not isinstance(value, bool)
    if is_number and all(name.removeprefix("-").isdecimal() for name in names):
        value = str(value)
    if isinstance(value, str) and value in names:
        return names.index(value)
    if isinstance(value, (int, np.integer)) and 0 <= value < len(names):
        return int(value)
    raise WrongValueError(outside(given, f"0 … {len(names) - 1} ({listing(names)})"))


def outside(value: Any, allowed: str) -> str:
    """Return what is said of a label that is not allowed."""
    return f"label {value!r} is outside the head's range {allowed}. Mend the row, or the task's labels."
