"""Metrics of lists: equal to scikit-learn's where it has them, to the published definitions where not."""

import math

import numpy as np
import pytest
import sklearn.metrics
from hypothesis import given
from hypothesis import strategies as st

from helpers_kinds import CASES, TAGS
from tasklora.tasks import METRICS, Answers
from tasklora.tasks.row_metrics import reciprocal_ranks, spans

seeds = st.integers(0, 2**31)
NAN = math.nan


def one(metric, answers):
    return METRICS[metric].compute(answers)


@given(seed=seeds, rows=st.integers(2, 50))
def test_scores_of_two_classes(seed, rows):
    answers = CASES["classification"].answers(np.random.default_rng(seed), rows)
    if len(set(answers.labels)) < 2:
        assert math.isnan(one("auc", answers))
    else:
        positives, negatives = (answers.scores[answers.labels == label] for label in (1, 0))
        pairs = np.sign(positives[:, None] - negatives[None]) / 2 + 0.5
        assert one("auc", answers) == pytest.approx(pairs.mean())
    if answers.labels.any():
        expected = sklearn.metrics.average_precision_score(answers.labels, answers.scores)
        assert one("average_precision", answers) == pytest.approx(expected)
    else:
        assert math.isnan(one("average_precision", answers))


@given(seed=seeds, rows=st.integers(2, 50))
def test_metrics_of_several_labels(seed, rows):
    answers = CASES["multi_label"].answers(np.random.default_rng(seed), rows)
    labels, said = answers.labels.astype(bool), answers.predictions.astype(bool)
    right, both = (labels & said).sum(), labels.sum() + said.sum()
    assert one("f1_micro", answers) == pytest.approx(2 * right / both if both else 0.0)
    of_each = [sklearn.metrics.f1_score(a, b, zero_division=0.0) for a, b in zip(labels.T, said.T, strict=True)]
    assert one("f1_macro", answers) == pytest.approx(np.mean(of_each))
    assert one("subset_accuracy", answers) == pytest.approx((labels == said).all(axis=1).mean())
    precisions = [
        sklearn.metrics.average_precision_score(a, b)
        for a, b in zip(labels.T, answers.scores.T, strict=True)
        if a.any()
    ]
    assert one("map", answers) == pytest.approx(np.mean(precisions) if precisions else NAN, nan_ok=True)


@pytest.mark.parametrize(
    ("tags", "expected"),
    [
        ("O B-PER I-PER O B-LOC", {("PER", 1, 3), ("LOC", 4, 5)}),  # IOB2
        ("B-PER B-PER I-PER", {("PER", 0, 1), ("PER", 1, 3)}),  # two neighbours of one type
        ("I-PER I-PER O I-PER", {("PER", 0, 2), ("PER", 3, 4)}),  # IO
        ("O I-PER I-LOC I-LOC", {("PER", 1, 2), ("LOC", 2, 4)}),  # another type begins another span
        ("B-PER I-LOC", {("PER", 0, 1), ("LOC", 1, 2)}),  # what strict IOB2 would not allow
        ("PER PER O LOC PER", {("PER", 0, 2), ("LOC", 3, 4), ("PER", 4, 5)}),  # types without prefixes
        ("B-PER E-PER S-LOC S-LOC B-PER", {("PER", 0, 2), ("LOC", 2, 3), ("LOC", 3, 4), ("PER", 4, 5)}),  # IOBES
        ("B-PER L-PER U-LOC I-LOC", {("PER", 0, 2), ("LOC", 2, 3), ("LOC", 3, 4)}),  # BILOU
        ("B-mid-air I-mid-air", {("mid-air", 0, 2)}),
        ("O O", set()),
        ("", set()),
    ],
)
def test_spans_as_conlleval_reads_them(tags, expected):
    assert spans(tags.split()) == expected


def test_span_f1_counts_whole_spans_over_all_rows():
    # seqeval's own example: one of two spans is right, in all 2 true and 2 said
    tags = ["O", "B-MISC", "I-MISC", "B-PER", "I-PER"]
    labels = np.array([[0, 0, 0, 1, 2, 2, 0], [3, 4, 0, NAN, NAN, NAN, NAN]])
    said = np.array([[0, 0, 1, 2, 2, 2, 0], [3, 4, 0, NAN, NAN, NAN, NAN]])
    assert one("span_f1", Answers(labels, said, classes=tags)) == pytest.approx(0.5)
    assert one("token_accuracy", Answers(labels, said, classes=tags)) == pytest.approx(0.8)


def test_words_that_were_not_seen_are_wrong_and_outside():
    labels = np.array([[0.0, 1, 2, 1]])
    whole = Answers(labels, labels, classes=TAGS)
    cut = Answers(labels, np.array([[0.0, 1, 2, NAN]]), classes=TAGS)
    assert (one("token_accuracy", whole), one("span_f1", whole)) == (1.0, 1.0)
    assert one("token_accuracy", cut) == 0.75
    assert one("span_f1", cut) == pytest.approx(2 / 3)  # one of two spans said, and it is right


def test_no_spans_anywhere_is_zero_as_in_seqeval():
    outside = np.zeros((2, 3))
    assert one("span_f1", Answers(outside, outside, classes=TAGS)) == 0.0


@given(seed=seeds, rows=st.integers(1, 20))
def test_ranking_metrics(seed, rows):
    answers = CASES["ranking"].answers(np.random.default_rng(seed), rows)
    ranks, gains, gains_10 = [], [], []
    for labels, scores in zip(answers.labels, answers.predictions, strict=True):
        labels, scores = labels[np.isfinite(labels)], scores[np.isfinite(labels)]
        if not (labels > 0).any():
            continue
        # an irrelevant document with the same score stands before a relevant one
        order = sorted(range(len(labels)), key=lambda place: (-scores[place], labels[place] > 0))
        ranks.append(1 / (1 + next(place for place, of in enumerate(order) if labels[of] > 0)))
        if len(labels) == 1:
            gains.append(1.0)
            gains_10.append(1.0)
        else:
            gains.append(sklearn.metrics.ndcg_score([labels], [scores]))
            gains_10.append(sklearn.metrics.ndcg_score([labels], [scores], k=10))
    for metric, values in (("mrr", ranks), ("ndcg", gains), ("ndcg@10", gains_10)):
        assert one(metric, answers) == pytest.approx(np.mean(values) if values else NAN, nan_ok=True)


def test_ndcg_by_hand():
    answers = Answers(np.array([[0.0, 2.0, 1.0]]), np.array([[3.0, 2.0, 1.0]]))
    expected = (2 / math.log2(3) + 1 / 2) / (2 + 1 / math.log2(3))
    assert one("ndcg", answers) == pytest.approx(expected)


def test_a_constant_score_wins_nothing():
    answers = Answers(np.array([[1.0, 0.0, 0.0, 0.0]]), np.zeros((1, 4)))
    assert reciprocal_ranks(answers).tolist() == [0.25]


def test_queries_without_a_relevant_document_are_left_out():
    answers = Answers(np.array([[1.0, 0.0], [0.0, 0.0]]), np.array([[2.0, 1.0], [2.0, 1.0]]))
    assert [one(metric, answers) for metric in ("mrr", "ndcg", "ndcg@10")] == [1.0, 1.0, 1.0]
    none = Answers(answers.labels[1:], answers.predictions[1:])
    assert all(math.isnan(one(metric, none)) for metric in ("mrr", "ndcg", "ndcg@10"))
