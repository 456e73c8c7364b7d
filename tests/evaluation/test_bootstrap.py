"""Resampled metrics equal the metrics themselves on the rows drawn, however degenerate the draw."""

import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from helpers_kinds import CASES as KIND_CASES
from helpers_kinds import text_answers
from tasklora.evaluation.bootstrap import resample_counts, resampled_metric
from tasklora.tasks import METRICS, Answers

CASES = [(name, kind) for name, metric in METRICS.items() for kind in metric.kinds]
NUMBERS = [(name, kind) for name, kind in CASES if kind in KIND_CASES]  # generation has texts
seeds = st.integers(0, 2**31)


def one_by_one(metric, answers, counts):
    """Return the metric on each resample, its rows repeated as often as they were drawn."""

    def drawn(values, of):
        return None if values is None else np.repeat(values, of, axis=0)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # scikit-learn warns of draws with one class
        return [
            METRICS[metric].compute(
                Answers(
                    drawn(answers.labels, of),
                    drawn(answers.predictions, of),
                    drawn(answers.scores, of),
                    answers.classes,
                )
            )
            for of in counts
        ]


def answers_of(kind, generator, rows):
    return (KIND_CASES[kind].answers if kind in KIND_CASES else text_answers)(generator, rows)


def check(metric, answers, counts):
    expected = one_by_one(metric, answers, counts)
    np.testing.assert_allclose(resampled_metric(metric, answers, counts), expected, rtol=1e-9, atol=1e-9)


@given(seed=seeds, rows=st.integers(1, 400), resamples=st.integers(1, 20))
def test_a_resample_has_as_many_rows_as_the_sample(seed, rows, resamples):
    counts = resample_counts(rows, resamples, np.random.default_rng(seed))
    assert counts.shape == (resamples, rows)
    assert counts.sum(axis=1).tolist() == [rows] * resamples
    assert counts.min() >= 0


@pytest.mark.parametrize(("metric", "kind"), CASES)
@settings(max_examples=15)
@given(seed=seeds, rows=st.integers(1, 30))
def test_a_resampled_metric_is_the_metric_of_the_rows_drawn(metric, kind, seed, rows):
    generator = np.random.default_rng(seed)
    answers = answers_of(kind, generator, rows)
    check(metric, answers, resample_counts(rows, 5, generator))


@pytest.mark.parametrize(
    "metric", [name for name, m in METRICS.items() if "classification" in m.kinds and not m.two_classes]
)
@settings(max_examples=15)
@given(seed=seeds, rows=st.integers(1, 30))
def test_so_with_three_classes(metric, seed, rows):
    generator = np.random.default_rng(seed)
    labels, predictions = generator.integers(0, 3, (2, rows)).astype(float)
    check(metric, Answers(labels, predictions), resample_counts(rows, 5, generator))


@pytest.mark.parametrize("sides", ["predictions", pytest.param("labels and predictions", marks=pytest.mark.slow)])
@pytest.mark.parametrize(("metric", "kind"), NUMBERS)
@settings(max_examples=15)
@given(seed=seeds, rows=st.integers(2, 40))
def test_so_where_a_side_is_constant_in_some_resamples(metric, kind, sides, seed, rows):
    """One row differs from the others: a third of the resamples do not have it."""
    generator = np.random.default_rng(seed)
    answers = KIND_CASES[kind].answers(generator, rows)
    for name, values in (("labels", answers.labels), ("predictions", answers.predictions)):
        if name in sides:
            values[1:] = values[1]
            values[0] = np.where(np.isnan(values[1]), np.nan, np.abs(1.0 - values[1]))
    if answers.labels.ndim == 2:  # of several values, both sides have as many as the labels
        answers.predictions[:] = np.where(np.isnan(answers.labels), np.nan, np.nan_to_num(answers.predictions))
    check(metric, answers, resample_counts(rows, 5, generator))
