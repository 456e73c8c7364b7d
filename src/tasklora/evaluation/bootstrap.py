"""Bootstrap intervals of scores, over the rows that they were measured on.

A resample of n rows is a vector of counts (how often each row was drawn); metrics that depend on sums over rows are
computed for all resamples at once from the counts, the others one by one.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from tasklora.tasks import METRICS

Array = NDArray[np.float64]
Counts = NDArray[np.int64]


def resample_counts(rows: int, resamples: int, generator: np.random.Generator) -> Counts:
    """Return how often each row is drawn in each resample with replacement: (resamples, rows)."""
    return generator.multinomial(rows, np.full(rows, 1.0 / rows), size=resamples)


def resampled_metric(metric: str, labels: Array, predictions: Array, counts: Counts) -> Array:
    """Return a metric on each resample, NaN where it is undefined on the rows drawn.

    Args:
        metric: a key of :data:`tasklora.tasks.METRICS`.
        labels: (rows,).
        predictions: (rows,).
        counts: (resamples, rows), as of :func:`resample_counts`.

    Returns:
        (resamples,)
    """
    if metric in _FROM_CONFUSION:
        classes = int(max(labels.max(), predictions.max())) + 1
        cells = np.zeros((len(labels), classes * classes))
        cells[np.arange(len(labels)), (labels * classes + predictions).astype(int)] = 1.0
        confusion = (counts @ cells).reshape(-1, classes, classes)  # (resamples, label, prediction)
        with np.errstate(invalid="ignore", divide="ignore"):
            return _FROM_CONFUSION[metric](confusion)
    if metric in _FROM_ROWS:
        with np.errstate(invalid="ignore", divide="ignore"):
            return _FROM_ROWS[metric](labels, predictions, counts)
    compute = METRICS[metric].compute
    return np.array([compute(np.repeat(labels, drawn), np.repeat(predictions, drawn)) for drawn in counts])


def _accuracy(confusion: Array) -> Array:
    right: Array = confusion.trace(axis1=1, axis2=2) / confusion.sum(axis=(1, 2))
    return right


def _mcc(confusion: Array) -> Array:
    """Gorodkin's R_K; 0 where one side is constant, as scikit-learn has it."""
    rows, true, said = confusion.sum(axis=(1, 2)), confusion.sum(axis=2), confusion.sum(axis=1)
    covariance = confusion.trace(axis1=1, axis2=2) * rows - (true * said).sum(axis=1)
    spread = np.sqrt((rows**2 - (true**2).sum(axis=1)) * (rows**2 - (said**2).sum(axis=1)))
    return np.where(spread > 0, covariance / spread, 0.0)


def _f1_by_class(confusion: Array) -> Array:
    """F1 of each class (resamples, classes); NaN for a class that neither side has."""
    right = np.diagonal(confusion, axis1=1, axis2=2)
    f1: Array = 2 * right / (confusion.sum(axis=2) + confusion.sum(axis=1))
    return f1


def _f1(confusion: Array) -> Array:
    if confusion.shape[1] < 2:
        return np.zeros(len(confusion))
    return np.nan_to_num(_f1_by_class(confusion)[:, 1])


def _f1_macro(confusion: Array) -> Array:
    return np.asarray(np.nanmean(_f1_by_class(confusion), axis=1))


def _pearson(labels: Array, predictions: Array, counts: Counts) -> Array:
    x, y = labels - labels.mean(), predictions - predictions.mean()  # centred first: less cancellation
    rows = counts.sum(axis=1)
    mean_x, mean_y = counts @ x / rows, counts @ y / rows
    square_x, square_y = counts @ x**2 / rows, counts @ y**2 / rows
    covariance = counts @ (x * y) / rows - mean_x * mean_y
    variance_x, variance_y = square_x - mean_x**2, square_y - mean_y**2
    # What rounding leaves of the variance of a constant is not zero, but far below this.
    varies = (variance_x > 1e-12 * square_x) & (variance_y > 1e-12 * square_y)
    return np.where(varies, covariance / np.sqrt(np.where(varies, variance_x * variance_y, 1.0)), np.nan)


def _rmse(labels: Array, predictions: Array, counts: Counts) -> Array:
    mean: Array = np.sqrt(counts @ (labels - predictions) ** 2 / counts.sum(axis=1))
    return mean


_FROM_CONFUSION: dict[str, Callable[[Array], Array]] = {
    "accuracy": _accuracy,
    "mcc": _mcc,
    "f1": _f1,
    "f1_macro": _f1_macro,
}
_FROM_ROWS: dict[str, Callable[[Array, Array, Counts], Array]] = {"pearson": _pearson, "rmse": _rmse}
