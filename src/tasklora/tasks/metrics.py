"""Metrics of text tasks, by name; the numbers come from scikit-learn and SciPy."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Metric:
    """One metric.

    Attributes:
        title: as in tables.
        kind: the kind of task it is for.
        compute: (labels, predictions) → value; NaN where it is undefined on the sample.
        higher_is_better: its direction.
        two_classes: whether it is for tasks with two classes only.
    """

    title: str
    kind: Literal["classification", "regression"]
    compute: Callable[[Array, Array], float]
    higher_is_better: bool = True
    two_classes: bool = False


def _accuracy(labels: Array, predictions: Array) -> float:
    return float(np.mean(labels == predictions))


def _mcc(labels: Array, predictions: Array) -> float:
    from sklearn.metrics import matthews_corrcoef

    return float(matthews_corrcoef(labels, predictions))


def _f1(labels: Array, predictions: Array) -> float:
    from sklearn.metrics import f1_score

    return float(f1_score(labels, predictions, pos_label=1, average="binary", zero_division=0.0))


def _f1_macro(labels: Array, predictions: Array) -> float:
    from sklearn.metrics import f1_score

    return float(f1_score(labels, predictions, average="macro", zero_division=0.0))


def _pearson(labels: Array, predictions: Array) -> float:
    from scipy.stats import pearsonr

    return _correlation(lambda: pearsonr(labels, predictions).statistic, labels, predictions)


def _spearman(labels: Array, predictions: Array) -> float:
    from scipy.stats import spearmanr

    return _correlation(lambda: spearmanr(labels, predictions).statistic, labels, predictions)


def _correlation(compute: Callable[[], float], labels: Array, predictions: Array) -> float:
    """Return a correlation, NaN where one side is constant or there are fewer than two rows."""
    if len(labels) < 2 or np.ptp(labels) == 0 or np.ptp(predictions) == 0:
        return math.nan
    return float(compute())


def _rmse(labels: Array, predictions: Array) -> float:
    return float(np.sqrt(np.mean((labels - predictions) ** 2)))


METRICS: dict[str, Metric] = {
    "accuracy": Metric("accuracy", "classification", _accuracy),
    "mcc": Metric("Matthews correlation", "classification", _mcc),
    "f1": Metric("F1 of class 1", "classification", _f1, two_classes=True),
    "f1_macro": Metric("macro F1", "classification", _f1_macro),
    "pearson": Metric("Pearson correlation", "regression", _pearson),
    "spearman": Metric("Spearman correlation", "regression", _spearman),
    "rmse": Metric("root mean squared error", "regression", _rmse, higher_is_better=False),
}


def compute_metrics(names: list[str], labels: Array, predictions: Array) -> dict[str, float]:
    """Return the named metrics of one task.

    Args:
        names: keys of :data:`METRICS`.
        labels: (rows,) class ids or values.
        predictions: (rows,) class ids or values.
    """
    return {name: METRICS[name].compute(labels, predictions) for name in names}
