"""Bootstrap intervals of scores, over the rows that they were measured on.

A resample of n rows is a vector of counts (how often each row was drawn); metrics that depend on sums over rows are
computed for all resamples at once from the counts, the others one by one.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from tasklora.tasks import METRICS, Answers
from tasklora.tasks.row_metrics import RowSums

Array = NDArray[np.float64]
Counts = NDArray[np.int64]


def resample_counts(rows: int, resamples: int, generator: np.random.Generator) -> Counts:
    """Return how often each row is drawn in each resample with replacement: (resamples, rows)."""
    return generator.multinomial(rows, np.full(rows, 1.0 / rows), size=resamples)


def resampled_metric(metric: str, answers: Answers, counts: Counts) -> Array:
    """Return a metric on each resample, NaN where it is undefined on the rows drawn.

    Args:
        metric: a key of :data:`tasklora.tasks.METRICS`.
        answers: labels, predictions and scores of the rows.
        counts: (resamples, rows), as of :func:`resample_counts`.

    Returns:
        (resamples,)
    """
    with np.errstate(invalid="ignore", divide="ignore"):
        return _form(metric, answers)(answers, counts)


Resampled: TypeAlias = Callable[[Answers, Counts], Array]
"""(answers, counts) → the metric on each resample."""


def _form(metric: str, answers: Answers) -> Resampled:
    """Return the quickest way to a metric of many resamples."""
    compute = METRICS[metric].compute
    if isinstance(compute, RowSums):
        sums = compute
        return lambda answers, counts: sums.finish(counts @ sums.statistics(answers))
    several = answers.labels.ndim == 2
    return (_OF_SEVERAL_LABELS if several else _OF_ONE_LABEL).get(metric) or partial(_one_by_one, compute)


def _one_by_one(compute: Callable[[Answers], float], answers: Answers, counts: Counts) -> Array:
    def drawn(values: Array, of: NDArray[np.int64]) -> Array:
        return np.repeat(values, of, axis=0)

    scores = answers.scores
    return np.array(
        [
            compute(
                Answers(
                    drawn(answers.labels, of),
                    drawn(answers.predictions, of),
                    None if scores is None else drawn(scores, of),
                    answers.classes,
                )
            )
            for of in counts
        ]
    )


def _from_confusion(compute: Callable[[Array], Array]) -> Resampled:
    """Return a metric of (resamples, label, prediction) counts; the last prediction may be none at all."""

    def of_counts(answers: Answers, counts: Counts) -> Array:
        labels, unread = answers.labels, np.isnan(answers.predictions)
        classes = int(max(labels.max(), answers.predictions[~unread].max(initial=0.0))) + 1
        width = classes + int(unread.any())
        predictions = np.where(unread, classes, answers.predictions)
        cells = np.zeros((len(labels), classes * width))
        cells[np.arange(len(labels)), (labels * width + predictions).astype(int)] = 1.0
        return compute((counts @ cells).reshape(-1, classes, width))

    return of_counts


def _accuracy(confusion: Array) -> Array:
    right: Array = confusion.trace(axis1=1, axis2=2) / confusion.sum(axis=(1, 2))
    return right


def _mcc(confusion: Array) -> Array:
    """Gorodkin's R_K; NaN where the labels are constant, 0 where the predictions are."""
    rows, true, said = confusion.sum(axis=(1, 2)), confusion.sum(axis=2), confusion.sum(axis=1)
    covariance = confusion.trace(axis1=1, axis2=2) * rows - (true * said[:, : true.shape[1]]).sum(axis=1)
    true_spread, said_spread = rows**2 - (true**2).sum(axis=1), rows**2 - (said**2).sum(axis=1)
    found = np.where(said_spread > 0, covariance / np.sqrt(true_spread * said_spread), 0.0)
    return np.where(true_spread > 0, found, np.nan)


def _f1_by_class(confusion: Array) -> Array:
    """F1 of each class (resamples, classes); NaN for a class that neither side has."""
    right = np.diagonal(confusion, axis1=1, axis2=2)
    f1: Array = 2 * right / (confusion.sum(axis=2) + confusion.sum(axis=1)[:, : confusion.shape[1]])
    return f1


def _f1(confusion: Array) -> Array:
    if confusion.shape[1] < 2:
        return np.zeros(len(confusion))
    return np.nan_to_num(_f1_by_class(confusion)[:, 1])


def _f1_macro(confusion: Array) -> Array:
    return np.asarray(np.nanmean(_f1_by_class(confusion), axis=1))


def _auc(answers: Answers, counts: Counts) -> Array:
    """Σ over tied groups of P_g (N below g + N_g / 2) / (P N): the share of pairs that are in the right order."""
    if answers.scores is None:
        return np.full(len(counts), np.nan)
    positives, negatives = _by_score(answers.labels, answers.scores, counts)  # the highest scores first
    below = negatives.sum(axis=1, keepdims=True) - negatives.cumsum(axis=1)
    pairs = positives.sum(axis=1) * negatives.sum(axis=1)
    return np.where(pairs > 0, (positives * (below + negatives / 2)).sum(axis=1) / pairs, np.nan)


def _average_precision(answers: Answers, counts: Counts) -> Array:
    if answers.scores is None:
        return np.full(len(counts), np.nan)
    return _precision_of_class(answers.labels, answers.scores, counts)


def _precision_of_class(labels: Array, scores: Array, counts: Counts) -> Array:
    """Σ_g P_g / P · precision at g, over tied groups g."""
    positives, negatives = _by_score(labels, scores, counts)
    precision = positives.cumsum(axis=1) / (positives + negatives).cumsum(axis=1)
    total = positives.sum(axis=1)
    return np.where(total > 0, np.nansum(positives * precision, axis=1) / total, np.nan)


def _by_score(labels: Array, scores: Array, counts: Counts) -> tuple[Array, Array]:
    """Return how many rows of class 1, and of class 0, were drawn of each score, the highest first: (resamples, G)."""
    groups = np.unique(-scores, return_inverse=True)[1]
    order = np.argsort(groups, kind="stable")
    starts = np.flatnonzero(np.diff(groups[order], prepend=-1))
    of_class = [np.add.reduceat((counts * (labels == one))[:, order], starts, axis=1) for one in (1, 0)]
    return of_class[0].astype(np.float64), of_class[1].astype(np.float64)


def _mean_average_precision(answers: Answers, counts: Counts) -> Array:
    if answers.scores is None:
        return np.full(len(counts), np.nan)
    of_classes = [
        _precision_of_class(labels, scores, counts)
        for labels, scores in zip(answers.labels.T, answers.scores.T, strict=True)
    ]
    return _mean_of_defined(np.stack(of_classes, axis=1))


def _mean_of_defined(values: Array) -> Array:
    """Return the mean over the second axis of what is not NaN; NaN where nothing is."""
    defined = np.isfinite(values).sum(axis=1)
    return np.where(defined > 0, np.nansum(values, axis=1) / np.maximum(defined, 1), np.nan)


def _counts_by_class(answers: Answers, counts: Counts) -> tuple[Array, Array]:
    """Return of each of several labels how often it is right, and label plus prediction: (resamples, classes)."""
    return counts @ (answers.labels * answers.predictions), counts @ (answers.labels + answers.predictions)


def _f1_micro_of_several(answers: Answers, counts: Counts) -> Array:
    right, both = _counts_by_class(answers, counts)
    return np.asarray(np.nan_to_num(2 * right.sum(axis=1) / both.sum(axis=1)))


def _f1_macro_of_several(answers: Answers, counts: Counts) -> Array:
    right, both = _counts_by_class(answers, counts)
    return np.asarray(np.nan_to_num(2 * right / both).mean(axis=1))


def _subset_accuracy(answers: Answers, counts: Counts) -> Array:
    return np.asarray(counts @ (answers.labels == answers.predictions).all(axis=1) / counts.sum(axis=1))


def _pearson(answers: Answers, counts: Counts) -> Array:
    x = answers.labels - answers.labels.mean()  # centred first: less cancellation
    y = answers.predictions - answers.predictions.mean()
    rows = counts.sum(axis=1)
    mean_x, mean_y = counts @ x / rows, counts @ y / rows
    square_x, square_y = counts @ x**2 / rows, counts @ y**2 / rows
    covariance = counts @ (x * y) / rows - mean_x * mean_y
    variance_x, variance_y = square_x - mean_x**2, square_y - mean_y**2
    # What rounding leaves of the variance of a constant is not zero, but far below this.
    varies = (variance_x > 1e-12 * square_x) & (variance_y > 1e-12 * square_y)
    return np.where(varies, covariance / np.sqrt(np.where(varies, variance_x * variance_y, 1.0)), np.nan)


def _rmse(answers: Answers, counts: Counts) -> Array:
    mean: Array = np.sqrt(counts @ (answers.labels - answers.predictions) ** 2 / counts.sum(axis=1))
    return mean


_OF_ONE_LABEL: dict[str, Resampled] = {
    "accuracy": _from_confusion(_accuracy),
    "mcc": _from_confusion(_mcc),
    "f1": _from_confusion(_f1),
    "f1_macro": _from_confusion(_f1_macro),
    "auc": _auc,
    "average_precision": _average_precision,
    "pearson": _pearson,
    "rmse": _rmse,
}
_OF_SEVERAL_LABELS: dict[str, Resampled] = {
    "f1_micro": _f1_micro_of_several,
    "f1_macro": _f1_macro_of_several,
    "subset_accuracy": _subset_accuracy,
    "map": _mean_average_precision,
}
