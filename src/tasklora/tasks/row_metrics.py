"""Metrics that are made of a few numbers per row: sums of these numbers give the metric of any rows.

So a resample of the rows needs no second pass over them; see :mod:`tasklora.evaluation.bootstrap`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from tasklora.tasks.kinds import OUTSIDE
from tasklora.tasks.ragged import Array


@dataclass(frozen=True)
class Answers:
    """What was said of the rows of a task, and what is right.

    Attributes:
        labels: (rows,), or (rows, W) where a row has several: NaN where it has fewer.
        predictions: of the shape of `labels`; NaN also where nothing was said.
        scores: what metrics on scores read: (rows,) probability of class 1, or (rows, classes) of several labels.
        classes: names of the classes.
    """

    labels: Array
    predictions: Array
    scores: Array | None = None
    classes: Sequence[str] = ()


@dataclass(frozen=True)
class RowSums:
    """A metric of sums.

    Attributes:
        statistics: answers → (rows, K).
        finish: sums (…, K) → values (…), NaN where undefined.
    """

    statistics: Callable[[Answers], Array]
    finish: Callable[[Array], Array]

    def __call__(self, answers: Answers) -> float:
        """Return the metric of all rows."""
        return float(self.finish(self.statistics(answers).sum(axis=0)))


def mean_of_rows(value: Callable[[Answers], Array]) -> RowSums:
    """Return the mean of a number per row, over the rows where it is defined (not NaN)."""

    def statistics(answers: Answers) -> Array:
        values = value(answers)
        return np.stack([np.nan_to_num(values), np.isfinite(values)], axis=-1)

    return RowSums(statistics, lambda sums: ratio(sums[..., 0], sums[..., 1]))


def ratio(numerator: Array, denominator: Array) -> Array:
    """Return a quotient, NaN where there is nothing to divide by."""
    defined = denominator > 0
    return np.where(defined, numerator / np.where(defined, denominator, 1.0), np.nan)


def _words(answers: Answers) -> Array:
    there = np.isfinite(answers.labels)
    return np.stack([(there & (answers.labels == answers.predictions)).sum(axis=1), there.sum(axis=1)], axis=-1).astype(
        np.float64
    )


def spans(tags: Sequence[str]) -> set[tuple[str, int, int]]:
    """Return the spans of a sentence's tags: (type, first word, one after the last).

    A tag is ``O``, or a type with a prefix: ``B-`` begins a span, ``I-`` goes on with one of the same type and begins
    one where there is none (IOB2, IOB1, IO); ``E-`` and ``L-`` end one, ``S-`` and ``U-`` are one (IOBES, BILOU). A
    tag without a prefix is a type whose neighbours of the same name make up a span. Source: the evaluation script of
    CoNLL-2000 (conlleval), which seqeval follows in its default mode.
    """
    found = set()
    begun, current, previous = 0, "", "O"
    for place, tag in enumerate([*tags, OUTSIDE]):
        head, dash, rest = tag.partition("-")
        prefix, name = (head, rest) if dash and head in {"B", "I", "E", "L", "S", "U"} else ("I", tag)
        if tag == OUTSIDE:
            prefix, name = "O", ""
        begins = prefix in {"B", "S", "U"} or previous in {"E", "L", "S", "U"} or name != current
        if current and (begins or prefix == "O"):
            found.add((current, begun, place))
        if begins:
            begun = place
        current, previous = name, prefix
    return found


def _spans(answers: Answers) -> Array:
    """Return (right, said, true) spans of each row; words that were not seen are outside of any."""
    counts = []
    for labels, predictions in zip(answers.labels, answers.predictions, strict=True):
        there = np.isfinite(labels)
        true = spans([answers.classes[int(tag)] for tag in labels[there]])
        said = spans([OUTSIDE if np.isnan(tag) else answers.classes[int(tag)] for tag in predictions[there]])
        counts.append((len(true & said), len(said), len(true)))
    return np.array(counts, dtype=np.float64)


def _f1_of_counts(sums: Array) -> Array:
    """Return 2 right / (said + true), 0 where there is neither, as for the F1 of a class."""
    return np.nan_to_num(ratio(2 * sums[..., 0], sums[..., 1] + sums[..., 2]))


def reciprocal_ranks(answers: Answers) -> Array:
    """Return 1 / rank of the first relevant document of each query: (rows,), NaN where none is relevant.

    Documents with the same score as a relevant one count as standing before it, so that a constant score wins nothing.
    """
    relevant = answers.labels > 0
    best = np.where(relevant, answers.predictions, -np.inf).max(axis=1)
    before = ((answers.labels == 0) & (answers.predictions >= best[:, None])).sum(axis=1)
    return np.where(relevant.any(axis=1), 1.0 / (1.0 + before), np.nan)


def discounted_gains(most: int | None) -> Callable[[Answers], Array]:
    """Return what computes scikit-learn's NDCG of each query, NaN where no document is relevant.

    NDCG = DCG / best DCG, DCG = Σ_i rel_i / log2(1 + rank_i), averaged over the orders of equal scores.

    Args:
        most: ranks that count; None for all.
    """

    def compute(answers: Answers) -> Array:
        from sklearn.metrics import ndcg_score

        values = np.full(len(answers.labels), np.nan)
        for place, (labels, scores) in enumerate(zip(answers.labels, answers.predictions, strict=True)):
            there = np.isfinite(labels)
            if not (labels[there] > 0).any():
                continue
            # A single document stands first whatever its score; scikit-learn refuses to say so.
            alone = there.sum() == 1
            values[place] = 1.0 if alone else ndcg_score(labels[there][None], scores[there][None], k=most)
        return values

    return compute


TOKEN_ACCURACY = RowSums(_words, lambda sums: ratio(sums[..., 0], sums[..., 1]))
SPAN_F1 = RowSums(_spans, _f1_of_counts)
MRR = mean_of_rows(reciprocal_ranks)
NDCG = mean_of_rows(discounted_gains(None))
NDCG_AT_10 = mean_of_rows(discounted_gains(10))
