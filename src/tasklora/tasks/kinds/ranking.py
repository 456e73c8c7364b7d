"""A query and several documents, some of which are relevant to it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from tasklora.errors import DataError
from tasklora.tasks.kinds.base import Kind, WrongValueError, checked_text, checked_texts, require_columns
from tasklora.tasks.ragged import Array

if TYPE_CHECKING:
    import datasets

    from tasklora.tasks.spec import TaskSpec


class Ranking(Kind):
    """In which order the documents answer the query.

    The table has a row per query and document; those of one query become one row of the task. Its texts are the query
    and the documents, its label a relevance ≥ 0 for each document, its prediction a score for each.
    """

    name: ClassVar[str] = "ranking"
    settings: ClassVar[frozenset[str]] = frozenset({"group", "max_candidates"})
    gathers_rows: ClassVar[bool] = True

    def check(self, spec: TaskSpec) -> None:
        """Raise ValueError without a query and a document."""
        if len(spec.inputs) != 2:
            raise ValueError(f"a ranking task has two input columns, the query and a document, got {spec.inputs}")

    def arranged(self, spec: TaskSpec, rows: datasets.Dataset, where: str, labelled: bool = True) -> datasets.Dataset:
        """Return a row per query: its text, the list of its documents and the list of their labels.

        Queries stand in the order of their first rows, documents in that of theirs.

        Raises:
            DataError: on a missing column, and naming a row that cannot be used.
        """
        from datasets import Dataset

        query, document = spec.inputs
        key = spec.group or query
        wanted = dict.fromkeys([query, document, key, *([spec.label] if labelled else [])])
        require_columns(rows, wanted, where)
        groups: dict[Any, tuple[str, list[str], list[float]]] = {}
        for index, values in enumerate(zip(*(rows[column] for column in wanted), strict=True)):
            row = dict(zip(wanted, values, strict=True))
            try:
                text = checked_text(query, row[query])
                of_query = groups.setdefault(_hashable(key, row[key]), (text, [], []))
                if of_query[0] != text:
                    raise WrongValueError(
                        f"the rows of '{key}' {row[key]!r} have different queries: {of_query[0]!r} and {text!r}."
                    )
                of_query[1].append(checked_text(document, row[document]))
                of_query[2].append(_relevance(row[spec.label]) if labelled else math.nan)
            except WrongValueError as error:
                raise DataError(f"{where}, row {index}: {error}") from None
        found = list(groups.values())
        columns: dict[str, Any] = {query: [text for text, _, _ in found], document: [texts for _, texts, _ in found]}
        if labelled:
            columns[spec.label] = [labels for _, _, labels in found]
        return Dataset.from_dict(columns)

    def for_training(self, spec: TaskSpec, rows: datasets.Dataset) -> datasets.Dataset:
        """Return the rows with at most `max_candidates` documents each: the most relevant ones, then the first ones."""
        most = spec.max_candidates
        if most is None or all(len(labels) <= most for labels in rows[spec.label]):
            return rows
        from datasets import Dataset

        kept = [np.sort(np.argsort(-np.asarray(labels), kind="stable")[:most]) for labels in rows[spec.label]]
        cut = {
            column: [[values[place] for place in places] for values, places in zip(rows[column], kept, strict=True)]
            for column in (spec.inputs[1], spec.label)
        }
        return Dataset.from_dict({spec.inputs[0]: list(rows[spec.inputs[0]]), **cut})

    def texts(self, spec: TaskSpec, values: Sequence[Any]) -> list[str]:
        """Return the query and its documents."""
        query, document = spec.inputs
        return [checked_text(query, values[0]), *checked_texts(document, values[1], 1, "documents")]

    def label(self, spec: TaskSpec, value: Any, texts: list[str]) -> list[float]:
        """Return the relevance of each document."""
        if not isinstance(value, (list, tuple)) or len(value) != len(texts) - 1:
            raise WrongValueError(f"label {value!r} is not a list of {len(texts) - 1} numbers, one for each document.")
        return [_relevance(relevance) for relevance in value]

    def length(self, texts: list[str]) -> int:
        """Return the length of the query with its longest document."""
        return len(texts[0]) + max(map(len, texts[1:]))

    def sequences(self, texts: list[str]) -> int:
        """Return the number of documents."""
        return len(texts) - 1

    def from_arguments(self, spec: TaskSpec, task: str, given: list[str]) -> list[list[str]]:
        """Return one row: a query and its documents."""
        if len(given) < 2:
            raise DataError(f"task '{task}' reads a query and documents: give the query, then each document.")
        return [given]

    def from_line(self, line: str) -> list[str]:
        """Refuse: a line has no documents."""
        raise DataError("a line of a .txt has no documents: give a .jsonl or .csv with the task's columns.")

    def input_record(self, spec: TaskSpec, texts: list[str]) -> dict[str, Any]:
        """Return the query and the documents."""
        return {spec.inputs[0]: texts[0], spec.inputs[1]: texts[1:]}

    def answer(self, spec: TaskSpec, texts: list[str], value: Any) -> list[float]:
        """Return the score of each document."""
        return [round(float(score), 4) for score in value[: len(texts) - 1]]

    def shown(self, spec: TaskSpec, texts: list[str], value: Any) -> str:
        """Return the documents' numbers, from 1, the best ones first, each with its score."""
        scores = self.answer(spec, texts, value)
        best = sorted(range(len(scores)), key=lambda place: -scores[place])[:5]
        return ", ".join(f"{place + 1} ({scores[place]:g})" for place in best)

    def error(self, label: Any, value: Any) -> float:
        """Return how many documents that are not relevant stand before the first relevant one."""
        label, value = np.asarray(label), np.asarray(value)
        relevant = label > 0
        if not relevant.any():
            return 0.0
        return float((value[(label == 0)] >= value[relevant].max()).sum())

    def error_shown(self, error: float) -> str:
        """Return the rank of the first relevant document."""
        return f"first relevant one at rank {error + 1:.0f}"

    def error_summary(self, errors: Array) -> str:
        """Return for how many queries an irrelevant document is ranked first."""
        wrong = int((errors > 0).sum())
        return f"An irrelevant document stands first for {wrong} of {len(errors)} queries"


def _relevance(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value) or value < 0:
        raise WrongValueError(f"label {value!r} is no relevance: a number of 0 or more.")
    return float(value)


def _hashable(column: str, value: Any) -> Any:
    if not isinstance(value, (str, int)):
        raise WrongValueError(f"column '{column}' holds {value!r}: rows are grouped by texts or whole numbers.")
    return value
