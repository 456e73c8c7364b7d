"""Heads: what a task makes of the encoder's vectors, with its loss. One class per kind of task.

A head scores entries: a row itself, or its choices, words or documents. Its features are (N, W, f): N rows of the task
in a batch, W the most entries of a row, f the width of what it reads of an entry; ``present`` (N, W) says which there
are. Labels are (N, V), NaN where a row has fewer.
"""

from __future__ import annotations

from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tasklora.tasks.spec import TaskSpec


class TaskHead(nn.Module):
    """Dropout and a linear layer over the features of an entry; the kinds differ in what they make of the outputs.

    Args:
        spec: the task.
        features: width of the features.
        dropout: dropout before the linear layer.

    Attributes:
        several: whether a row has several entries.
        label_mean, label_std, class_weights: statistics of the training labels, saved with the weights; those that the
            kind does not use stay 0, 1 and 1.
    """

    several: ClassVar[bool] = False

    label_mean: Tensor
    label_std: Tensor
    class_weights: Tensor

    def __init__(self, spec: TaskSpec, features: int, dropout: float) -> None:
        super().__init__()
        self.spec = spec
        self.dropout = nn.Dropout(dropout)
        self.linear = nn.Linear(features, spec.num_outputs)
        nn.init.normal_(self.linear.weight, std=0.02)
        nn.init.zeros_(self.linear.bias)
        self.register_buffer("label_mean", torch.zeros(()))
        self.register_buffer("label_std", torch.ones(()))
        self.register_buffer("class_weights", torch.ones(spec.num_outputs))

    def fit_labels(self, labels: Tensor, class_weights: Tensor | None) -> None:
        """Take class weights, and what else the kind needs to know of the labels, from the training rows.

        Args:
            labels: (rows,) or (rows, V) training labels.
            class_weights: (classes,), or None for equal weights.
        """
        if class_weights is not None:
            self.class_weights.copy_(class_weights)

    def forward(self, features: Tensor, present: Tensor) -> Tensor:
        """Return the logits of each row, (N, outputs).

        Args:
            features: (N, W, f).
            present: (N, W), which entries there are.
        """
        logits: Tensor = self.linear(self.dropout(features[:, 0]))
        return logits

    def losses(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Return the loss of each row, (N,), in float32.

        Args:
            logits: as :meth:`forward` returns them.
            labels: (N, V).
        """
        raise NotImplementedError

    def predict(self, logits: Tensor) -> Tensor:
        """Return the answers, (N,) or (N, W): class ids, values, 0 or 1 per class, or scores."""
        raise NotImplementedError

    def probabilities(self, logits: Tensor) -> Tensor | None:
        """Return how probable answers are, (N, classes or entries); None where the kind knows no probabilities."""
        return None


class ClassificationHead(TaskHead):
    """One class: ℓ = −w_y log softmax(z)_y, w the class weights."""

    def losses(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Return the weighted cross-entropy of each row, (N,)."""
        return F.cross_entropy(logits.float(), labels[:, 0].long(), weight=self.class_weights, reduction="none")

    def predict(self, logits: Tensor) -> Tensor:
        """Return the likeliest class of each row, (N,)."""
        return logits.argmax(dim=-1)

    def probabilities(self, logits: Tensor) -> Tensor:
        """Return softmax(z), (N, classes)."""
        return logits.float().softmax(dim=-1)


class RegressionHead(TaskHead):
    """A number: ℓ = (z − (y − mean) / std)², so that its size is comparable to a cross-entropy's."""

    def fit_labels(self, labels: Tensor, class_weights: Tensor | None) -> None:
        """Take mean and standard deviation of the training labels; labels that are all the same keep their scale."""
        spread = labels.std(correction=0)
        self.label_mean.copy_(labels.mean())
        # A tiny divisor would make any other label that is scored later a loss of 1e12.
        self.label_std.copy_(torch.where(spread > 1e-6, spread, 1.0))

    def losses(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Return the squared error of each row's standardised label, (N,)."""
        target = (labels[:, 0] - self.label_mean) / self.label_std
        return (logits.squeeze(-1).float() - target) ** 2

    def predict(self, logits: Tensor) -> Tensor:
        """Return values on the scale of the labels, cut to their range, (N,)."""
        values = logits.squeeze(-1).float() * self.label_std + self.label_mean
        low, high = self.spec.range or (-torch.inf, torch.inf)
        return values.clamp(low, high)


class MultiLabelHead(TaskHead):
    """Any of C classes: ℓ = −1/C Σ_c [w_c y_c log σ(z_c) + (1 − y_c) log(1 − σ(z_c))], w the class weights."""

    def losses(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Return the mean binary cross-entropy over the classes of each row, (N,)."""
        return F.binary_cross_entropy_with_logits(
            logits.float(), _of_width(labels, logits.shape[1]), pos_weight=self.class_weights, reduction="none"
        ).mean(dim=1)

    def predict(self, logits: Tensor) -> Tensor:
        """Return 1 for the classes whose probability is over ½, else 0: (N, classes)."""
        return (logits > 0).float()

    def probabilities(self, logits: Tensor) -> Tensor:
        """Return σ(z), (N, classes)."""
        return logits.float().sigmoid()


class CandidateHead(TaskHead):
    """A score for each entry of a row: logits are (N, W), −∞ where a row has no entry."""

    several: ClassVar[bool] = True

    def forward(self, features: Tensor, present: Tensor) -> Tensor:
        """Return the score of each entry, (N, W)."""
        scores: Tensor = self.linear(self.dropout(features)).squeeze(-1)
        return scores.masked_fill(~present, -torch.inf)


class MultipleChoiceHead(CandidateHead):
    """One of a row's choices: ℓ = −log softmax(s)_y over the scores of its choices."""

    def losses(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Return the cross-entropy over each row's choices, (N,)."""
        return F.cross_entropy(logits.float(), labels[:, 0].long(), reduction="none")

    def predict(self, logits: Tensor) -> Tensor:
        """Return the place of the likeliest choice of each row, (N,)."""
        return logits.argmax(dim=-1)

    def probabilities(self, logits: Tensor) -> Tensor:
        """Return softmax(s), (N, W); NaN where a row has no choice."""
        return logits.float().softmax(dim=-1).masked_fill(logits == -torch.inf, torch.nan)


class RankingHead(CandidateHead):
    """An order of a query's documents: ℓ = −Σ_i (rel_i / Σ_j rel_j) log softmax(s)_i.

    The listwise loss of ListNet (Cao et al., "Learning to Rank: From Pairwise Approach to Listwise Approach", ICML
    2007) for the first place, with the relevances' shares as the probabilities to match, as for one relevant document
    among others. A query without a relevant document says nothing: its loss is 0.
    """

    def losses(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Return the listwise cross-entropy of each query, (N,)."""
        present = logits != -torch.inf
        relevance = _of_width(labels, logits.shape[1]).nan_to_num(0.0)
        shares = relevance / relevance.sum(dim=1, keepdim=True).clamp(min=torch.finfo(torch.float32).tiny)
        log_softmax = logits.float().log_softmax(dim=-1).masked_fill(~present, 0.0)  # 0 · −∞ would be NaN
        return -(shares * log_softmax).sum(dim=1)

    def predict(self, logits: Tensor) -> Tensor:
        """Return the score of each document, (N, W); NaN where a query has none."""
        return logits.float().masked_fill(logits == -torch.inf, torch.nan)


class TokenClassificationHead(TaskHead):
    """A class for each word: ℓ = mean over the row's words of −w_y log softmax(z)_y, w the class weights.

    Logits are (N, W, classes), −∞ for words that the encoder did not see (cut off by truncation): they are not in the
    loss. A row none of whose words is seen has loss 0.
    """

    several: ClassVar[bool] = True

    def forward(self, features: Tensor, present: Tensor) -> Tensor:
        """Return the logits of each word, (N, W, classes)."""
        logits: Tensor = self.linear(self.dropout(features))
        return logits.masked_fill(~present[..., None], -torch.inf)

    @staticmethod
    def _seen(logits: Tensor) -> Tensor:
        return (logits != -torch.inf).any(dim=-1)

    def losses(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Return the mean weighted cross-entropy over the words of each row, (N,)."""
        seen = self._seen(logits)
        labels = _of_width(labels, logits.shape[1])
        counted = seen & labels.isfinite()
        of_words: Tensor = F.cross_entropy(
            logits.float().masked_fill(~seen[..., None], 0.0).flatten(0, 1),
            labels.nan_to_num(0.0).long().flatten(),
            weight=self.class_weights,
            reduction="none",
        )
        return (of_words.reshape(counted.shape) * counted).sum(dim=1) / counted.sum(dim=1).clamp(min=1)

    def predict(self, logits: Tensor) -> Tensor:
        """Return the likeliest class of each word, (N, W); NaN for those that were not seen."""
        return logits.argmax(dim=-1).float().masked_fill(~self._seen(logits), torch.nan)

    def probabilities(self, logits: Tensor) -> Tensor:
        """Return the probability of the class that is said of each word, (N, W); NaN for those that were not seen."""
        seen = self._seen(logits)
        likeliest = logits.float().masked_fill(~seen[..., None], 0.0).softmax(dim=-1).amax(dim=-1)
        return likeliest.masked_fill(~seen, torch.nan)


def _of_width(labels: Tensor, width: int) -> Tensor:
    """Return labels cut or padded to a width: those of a batch are as wide as the longest label of any of its tasks."""
    return F.pad(labels, (0, width - labels.shape[1]), value=torch.nan)


HEADS: dict[str, type[TaskHead]] = {
    "classification": ClassificationHead,
    "regression": RegressionHead,
    "multi_label": MultiLabelHead,
    "multiple_choice": MultipleChoiceHead,
    "token_classification": TokenClassificationHead,
    "ranking": RankingHead,
}


def head_of(spec: TaskSpec, features: int, dropout: float) -> TaskHead:
    """Return a fresh head of a task; the arguments are those of :class:`TaskHead`."""
    return HEADS[spec.kind](spec, features, dropout)
