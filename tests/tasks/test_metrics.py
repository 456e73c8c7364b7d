"""Metrics equal their textbook formulas and the libraries' numbers, and are NaN where they are undefined."""

import math

import numpy as np
import pytest
import scipy.stats
import sklearn.metrics
from hypothesis import given
from hypothesis import strategies as st

from tasklora.tasks import METRICS, Answers, compute_metrics

seeds = st.integers(0, 2**31)


def one(name, labels, predictions):
    return compute_metrics([name], Answers(np.asarray(labels, float), np.asarray(predictions, float)))[name]


@given(seed=seeds, rows=st.integers(2, 60))
def test_metrics_of_two_classes(seed, rows):
    generator = np.random.default_rng(seed)
    labels, predictions = generator.integers(0, 2, (2, rows))
    tp, tn = np.sum((labels == 1) & (predictions == 1)), np.sum((labels == 0) & (predictions == 0))
    fp, fn = np.sum((labels == 0) & (predictions == 1)), np.sum((labels == 1) & (predictions == 0))
    root = math.sqrt(float((tp + fp) * (tp + fn) * (tn + fp) * (tn + fn)))
    values = compute_metrics(["accuracy", "mcc", "f1"], Answers(labels.astype(float), predictions.astype(float)))
    assert values["accuracy"] == pytest.approx((tp + tn) / rows)
    one_class = math.nan if np.ptp(labels) == 0 else 0.0
    assert values["mcc"] == pytest.approx((tp * tn - fp * fn) / root if root else one_class, nan_ok=True)
    assert values["f1"] == pytest.approx(2 * tp / (2 * tp + fp + fn) if tp + fp + fn else 0.0)


@given(seed=seeds, rows=st.integers(2, 60), classes=st.integers(3, 6))
def test_metrics_of_many_classes(seed, rows, classes):
    labels, predictions = np.random.default_rng(seed).integers(0, classes, (2, rows))
    assert one("accuracy", labels, predictions) == pytest.approx(sklearn.metrics.accuracy_score(labels, predictions))
    if np.ptp(labels):
        assert one("mcc", labels, predictions) == pytest.approx(sklearn.metrics.matthews_corrcoef(labels, predictions))
    seen = np.union1d(labels, predictions)
    of_each = [one("f1", labels == c, predictions == c) for c in seen]
    assert one("f1_macro", labels, predictions) == pytest.approx(np.mean(of_each))


@given(seed=seeds, rows=st.integers(3, 60))
def test_metrics_of_numbers(seed, rows):
    generator = np.random.default_rng(seed)
    labels = generator.integers(0, 6, rows) + np.where(np.arange(rows) == 0, 0.5, 0.0)  # with ties, never constant
    predictions = generator.normal(size=rows)
    assert one("pearson", labels, predictions) == pytest.approx(np.corrcoef(labels, predictions)[0, 1])
    assert one("spearman", labels, predictions) == pytest.approx(scipy.stats.spearmanr(labels, predictions).statistic)
    ranks = scipy.stats.rankdata(labels), scipy.stats.rankdata(predictions)
    assert one("spearman", labels, predictions) == pytest.approx(np.corrcoef(*ranks)[0, 1])
    assert one("rmse", labels, predictions) == pytest.approx(math.sqrt(np.mean((labels - predictions) ** 2)))


@pytest.mark.parametrize("name", ["pearson", "spearman"])
@pytest.mark.parametrize(
    ("labels", "predictions"), [([1, 2, 3], [2, 2, 2]), ([1, 1, 1], [1, 2, 3]), ([1], [1])], ids=str
)
def test_a_correlation_with_a_constant_is_undefined(name, labels, predictions):
    assert math.isnan(one(name, labels, predictions))


@pytest.mark.parametrize("predictions", [[1, 1, 1], [1, 0, 1], [np.nan, 1, 1]], ids=str)
def test_rows_of_one_class_have_no_correlation_curve_or_rare_class(predictions):
    answers = Answers(np.ones(3), np.array(predictions), np.array([0.9, 0.2, 0.6]))
    values = compute_metrics(["accuracy", "mcc", "auc"], answers)
    assert [math.isnan(value) for value in values.values()] == [False, True, True]
    without = Answers(np.zeros(3), np.zeros(3), np.array([0.9, 0.2, 0.6]))
    assert math.isnan(compute_metrics(["average_precision"], without)["average_precision"])
    # Predictions of one class are another thing: they found nothing.
    assert one("mcc", [0, 1, 1], [1, 1, 1]) == 0.0


def test_only_errors_are_better_when_lower():
    assert [name for name, metric in METRICS.items() if not metric.higher_is_better] == ["rmse"]
