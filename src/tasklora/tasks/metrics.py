"""Metrics of text tasks, by name; the numbers come from scikit-learn and SciPy where they have them."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from tasklora.tasks.ragged import Array
from tasklora.tasks.row_metrics import MRR, NDCG, NDCG_AT_10, SPAN_F1, TOKEN_ACCURACY, Answers
from tasklora.tasks.text_metrics import EXACT_MATCH, ROUGE_L, WORD_F1


@dataclass(frozen=True)
class Metric:
    """One metric.

    Attributes:
        title: as in tables.
        kinds: the kinds of task it is for.
        compute: answers → value; NaN where it is undefined on the sample.
        higher_is_better: its direction.
        two_classes: whether it is for tasks with two classes only.
    """

    title: str
    kinds: tuple[str, ...]
    compute: Callable[[Answers], float]
    higher_is_better: bool = True
    two_classes: bool = False


def _accuracy(answers: Answers) -> float:
    return float(np.mean(answers.labels == answers.predictions))


def _mcc(answers: Answers) -> float:
    from sklearn.metrics import matthews_corrcoef

    said = _with_a_class_for_none(answers)
    if len(np.union1d(answers.labels, said)) < 2:  # sklearn says 0 too, with a warning for every task of many
        return 0.0
    return float(matthews_corrcoef(answers.labels, said))


def _f1(answers: Answers) -> float:
    return _f1_score(answers, "binary")


def _f1_macro(answers: Answers) -> float:
    return _f1_score(answers, "macro")


def _f1_micro(answers: Answers) -> float:
    return _f1_score(answers, "micro")


def _f1_score(answers: Answers, average: str) -> float:
    from sklearn.metrics import f1_score

    if answers.labels.ndim == 2:
        return float(f1_score(answers.labels, answers.predictions, average=average, zero_division=0.0))
    said = _with_a_class_for_none(answers)
    occur = np.union1d(answers.labels, said[said >= 0])
    classes = [1] if average == "binary" else occur
    return float(f1_score(answers.labels, said, labels=classes, average="macro", zero_division=0.0))


def _with_a_class_for_none(answers: Answers) -> Array:
    """Return the predictions with a class of its own for answers in text that name none, which no row has."""
    return np.where(np.isnan(answers.predictions), -1.0, answers.predictions)


def _subset_accuracy(answers: Answers) -> float:
    from sklearn.metrics import accuracy_score

    return float(accuracy_score(answers.labels, answers.predictions))


def _auc(answers: Answers) -> float:
    """Area under the ROC curve; NaN where the rows are of one class."""
    from sklearn.metrics import roc_auc_score

    if answers.scores is None or len(np.unique(answers.labels)) < 2:
        return math.nan
    return float(roc_auc_score(answers.labels, answers.scores))


def _average_precision(answers: Answers) -> float:
    return math.nan if answers.scores is None else _precision_of_class(answers.labels, answers.scores)


def _mean_average_precision(answers: Answers) -> float:
    """Mean over the classes that some row has; NaN where there is none."""
    if answers.scores is None:
        return math.nan
    values = [
        _precision_of_class(labels, scores)
        for labels, scores in zip(answers.labels.T, answers.scores.T, strict=True)
        if labels.any()
    ]
    return float(np.mean(values)) if values else math.nan


def _precision_of_class(labels: Array, scores: Array) -> float:
    """Average precision Σ_k (R_k − R_{k−1}) P_k; NaN where no row is of the class."""
    from sklearn.metrics import average_precision_score

    return float(average_precision_score(labels, scores)) if labels.any() else math.nan


def _pearson(answers: Answers) -> float:
    from scipy.stats import pearsonr

    return _correlation(pearsonr, answers)


def _spearman(answers: Answers) -> float:
    from scipy.stats import spearmanr

    return _correlation(spearmanr, answers)


def _correlation(compute: Callable[..., object], answers: Answers) -> float:
    """Return a correlation, NaN where one side is constant or there are fewer than two rows."""
    if len(answers.labels) < 2 or np.ptp(answers.labels) == 0 or np.ptp(answers.predictions) == 0:
        return math.nan
    return float(compute(answers.labels, answers.predictions).statistic)  # type: ignore[attr-defined]


def _rmse(answers: Answers) -> float:
    return float(np.sqrt(np.mean((answers.labels - answers.predictions) ** 2)))


_CLASSES = ("classification",)
_NUMBERS = ("regression",)
_SEVERAL = ("multi_label",)
_TOKENS = ("token_classification",)
_RANKING = ("ranking",)
_TEXTS = ("generation",)

METRICS: dict[str, Metric] = {
    "accuracy": Metric("accuracy", ("classification", "multiple_choice"), _accuracy),
    "mcc": Metric("Matthews correlation", _CLASSES, _mcc),
    "f1": Metric("F1 of class 1", _CLASSES, _f1, two_classes=True),
    "f1_macro": Metric("macro F1", ("classification", "multi_label"), _f1_macro),
    "auc": Metric("area under the ROC curve", _CLASSES, _auc, two_classes=True),
    "average_precision": Metric("average precision of class 1", _CLASSES, _average_precision, two_classes=True),
    "pearson": Metric("Pearson correlation", _NUMBERS, _pearson),
    "spearman": Metric("Spearman correlation", _NUMBERS, _spearman),
    "rmse": Metric("root mean squared error", _NUMBERS, _rmse, higher_is_better=False),
    "f1_micro": Metric("micro F1", _SEVERAL, _f1_micro),
    "subset_accuracy": Metric("rows with all labels right", _SEVERAL, _subset_accuracy),
    "map": Metric("mean average precision of the classes", _SEVERAL, _mean_average_precision),
    "token_accuracy": Metric("words with the right tag", _TOKENS, TOKEN_ACCURACY),
    "span_f1": Metric("micro F1 of whole spans", _TOKENS, SPAN_F1),
    "mrr": Metric("mean reciprocal rank", _RANKING, MRR),
    "ndcg": Metric("NDCG", _RANKING, NDCG),
    "ndcg@10": Metric("NDCG of the first 10", _RANKING, NDCG_AT_10),
    "exact_match": Metric("texts with the same words", _TEXTS, EXACT_MATCH),
    "word_f1": Metric("F1 of the words in common", _TEXTS, WORD_F1),
    "rouge_l": Metric("ROUGE-L", _TEXTS, ROUGE_L),
}


def compute_metrics(names: list[str], answers: Answers) -> dict[str, float]:
    """Return the named metrics of one task.

    Args:
        names: keys of :data:`METRICS`.
        answers: what was said of its rows.
    """
    return {name: METRICS[name].compute(answers) for name in names}
