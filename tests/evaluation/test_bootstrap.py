"""Resampled metrics equal the metrics themselves on the rows drawn, however degenerate the draw."""

import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tasklora.evaluation.bootstrap import resample_counts, resampled_metric
from tasklora.tasks import METRICS

CASES = [
    (name, classes)
    for name, metric in METRICS.items()
    for classes in (2, 3)
    if classes == 2 or (metric.kind == "classification" and not metric.two_classes)
]
seeds = st.integers(0, 2**31)


def one_by_one(metric, labels, predictions, counts):
    """Return the metric on each resample, its rows repeated as often as they were drawn."""
    compute = METRICS[metric].compute
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # scikit-learn warns of draws with one class
        return [compute(np.repeat(labels, drawn), np.repeat(predictions, drawn)) for drawn in counts]


def sample(metric, generator, rows, classes):
    if METRICS[metric].kind == "classification":
        return generator.integers(0, classes, (2, rows)).astype(float)
    return generator.normal(size=(2, rows)).round(1) + 2.7


@given(seed=seeds, rows=st.integers(1, 400), resamples=st.integers(1, 20))
def test_a_resample_has_as_many_rows_as_the_sample(seed, rows, resamples):
    counts = resample_counts(rows, resamples, np.random.default_rng(seed))
    assert counts.shape == (resamples, rows)
    assert counts.sum(axis=1).tolist() == [rows] * resamples
    assert counts.min() >= 0


@pytest.mark.parametrize(("metric", "classes"), CASES)
@settings(max_examples=15)
@given(seed=seeds, rows=st.integers(1, 30))
def test_a_resampled_metric_is_the_metric_of_the_rows_drawn(metric, classes, seed, rows):
    generator = np.random.default_rng(seed)
    labels, predictions = sample(metric, generator, rows, classes)
    counts = resample_counts(rows, 5, generator)
    expected = one_by_one(metric, labels, predictions, counts)
    np.testing.assert_allclose(resampled_metric(metric, labels, predictions, counts), expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("sides", ["predictions", "labels and predictions"])
@pytest.mark.parametrize("metric", METRICS)
@settings(max_examples=15)
@given(seed=seeds, rows=st.integers(2, 40))
def test_so_where_a_side_is_constant_in_some_resamples(metric, sides, seed, rows):
    """One row differs from the others: a third of the resamples do not have it."""
    generator = np.random.default_rng(seed)
    labels, predictions = sample(metric, generator, rows, 2)
    for name, values in (("labels", labels), ("predictions", predictions)):
        if name in sides:
            values[1:] = values[1]
            values[0] = 1.0 - values[1]
    counts = resample_counts(rows, 5, generator)
    expected = one_by_one(metric, labels, predictions, counts)
    np.testing.assert_allclose(resampled_metric(metric, labels, predictions, counts), expected, rtol=1e-9, atol=1e-9)
