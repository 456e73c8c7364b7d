"""Scoring a model: per task, with the task's own metrics."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from tasklora.evaluation.results import ParameterCounts, SplitScores, TaskScore
from tasklora.evaluation.text_answers import answer_rows
from tasklora.tasks import (
    KINDS,
    METRICS,
    Answers,
    Collator,
    MultiTaskCollator,
    MultiTaskModel,
    TaskModel,
    TaskRows,
    TextToTextCollator,
    TextToTextModel,
    compute_metrics,
)
from tasklora.tasks.ragged import Array, fitted, padded
from tasklora.tuner.sharding import is_sharded
from tasklora.updates import LowRankUpdate
from tasklora.updates.streams import TaskFactors


@dataclass(frozen=True)
class Prediction:
    """Predictions for the rows of one task, in their order.

    Attributes:
        values: (rows,) class ids, places of choices, values or texts; (rows, W) for each class, word or document, NaN
            where a row has fewer, or a word was cut off, or where a generated text names no option.
        probabilities: (rows, classes), (rows, choices) or (rows, words); None where the kind has none.
        losses: (rows,) or None without labels; of text-to-text models, means over a row's response tokens.
        texts: what was generated of each row; None where nothing was.
    """

    values: Array
    probabilities: Array | None
    losses: Array | None
    texts: list[str] | None = None

    def answers(self, rows: TaskRows) -> Answers:
        """Return what metrics are computed of."""
        scores = None if self.probabilities is None else rows.kind.scores(self.probabilities)
        return Answers(rows.labels, fitted(self.values, rows.labels), scores, rows.spec.labels or ())


def predict_rows(
    model: TaskModel,
    task: str,
    rows: Sequence[Mapping[str, Any]],
    collator: Collator,
    batch_size: int = 64,
) -> Prediction:
    """Predict rows of one task.

    Args:
        model: the model; it is put into evaluation mode and back.
        task: the task's name.
        rows: ``{"texts": […], "label": …}``, the label optional.
        collator: makes the batches.
        batch_size: rows per batch, a row of several choices or documents counting as often; rows of similar length go
            together.
    """
    # FSDP2 gathers into tensors that training uses again, which those of inference mode cannot be.
    with _evaluating(model), torch.no_grad() if is_sharded(model) else torch.inference_mode():
        # FSDP2 makes a subclass of the class of what it shards.
        predict = next(_PREDICT[cls] for cls in type(model).__mro__ if cls in _PREDICT)
        return predict(model, task, rows, collator, batch_size)


@contextlib.contextmanager
def _evaluating(model: TaskModel) -> Iterator[None]:
    """Put a model into evaluation mode and back, if it is not in it: of many tasks, it has many modules to tell."""
    if not model.training:
        yield
        return
    model.eval()
    try:
        yield
    finally:
        model.train()


def _predict_texts(
    model: TextToTextModel,
    task: str,
    rows: Sequence[Mapping[str, Any]],
    collator: TextToTextCollator,
    batch_size: int,
) -> Prediction:
    said = answer_rows(model, task, rows, collator, batch_size)
    probabilities = None if said.probabilities is None else padded(said.probabilities)
    return Prediction(padded(said.values), probabilities, said.losses, said.texts)


def _predict_heads(
    model: MultiTaskModel,
    task: str,
    rows: Sequence[Mapping[str, Any]],
    collator: MultiTaskCollator,
    batch_size: int,
) -> Prediction:
    device = next(model.parameters()).device
    head: Any = model.heads[task]
    kind = KINDS[model.specs[task].kind]
    order = sorted(range(len(rows)), key=lambda index: sum(map(len, rows[index]["texts"])))
    values: list[Any] = [None] * len(rows)
    probabilities: list[Any] = [None] * len(rows)
    losses = np.empty(len(rows))
    has_labels = bool(rows) and "label" in rows[0]
    for chunk in _chunks(order, [kind.sequences(row["texts"]) for row in rows], batch_size):
        batch = collator([{**rows[index], "task": task} for index in chunk])
        output = model(**{key: value.to(device) for key, value in batch.items()})
        (logits,) = output.logits.values()
        _spread(values, chunk, head.predict(logits))
        _spread(probabilities, chunk, head.probabilities(logits))
        if has_labels:
            losses[chunk] = output.losses.cpu().double().numpy()
    has_probabilities = bool(rows) and probabilities[0] is not None
    return Prediction(
        padded(values), padded(probabilities) if has_probabilities else None, losses if has_labels else None
    )


_PREDICT: dict[type, Callable[..., Prediction]] = {MultiTaskModel: _predict_heads, TextToTextModel: _predict_texts}


def predict_tasks(
    model: TaskModel,
    rows: Mapping[str, TaskRows],
    collator: Collator,
    batch_size: int = 64,
    progress: Callable[[str], None] | None = None,
) -> dict[str, Prediction]:
    """Predict the rows of every task of one split.

    Args:
        model: the model.
        rows: task name → its rows.
        collator: makes the batches.
        batch_size: rows per batch.
        progress: called with each task's name before its rows are predicted.
    """
    predictions = {}
    with _evaluating(model):
        for name, task_rows in rows.items():
            if progress is not None:
                progress(name)
            predictions[name] = predict_rows(model, name, list(task_rows), collator, batch_size)
    return predictions


def scores_of(rows: Mapping[str, TaskRows], predictions: Mapping[str, Prediction]) -> SplitScores:
    """Return the scores of the predictions of :func:`predict_tasks`."""
    scores = {}
    for name, prediction in predictions.items():
        spec = rows[name].spec
        assert prediction.losses is not None
        metrics = compute_metrics(spec.metrics, prediction.answers(rows[name]))
        value = metrics[spec.primary]
        signed = value if METRICS[spec.primary].higher_is_better else -value
        scores[name] = TaskScore(
            rows=len(rows[name]),
            metrics=metrics,  # type: ignore[arg-type]
            primary=spec.primary,
            score=None if math.isnan(value) else signed,
            loss=float(prediction.losses.mean()),
        )
    return SplitScores.of(scores)


def score_tasks(
    model: TaskModel,
    rows: Mapping[str, TaskRows],
    collator: Collator,
    batch_size: int = 64,
    progress: Callable[[str], None] | None = None,
) -> SplitScores:
    """Score every task of one split; the arguments are those of :func:`predict_tasks`."""
    return scores_of(rows, predict_tasks(model, rows, collator, batch_size, progress))


def count_parameters(model: nn.Module) -> ParameterCounts:
    """Count the parameters of a model of either shape by group; see :class:`ParameterCounts`."""
    groups = {"shared": 0, "per_task": 0, "heads": 0, "other": 0}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            groups[parameter_group(model, name)] += parameter.numel()
    return ParameterCounts(
        trainable=sum(groups.values()), total=sum(p.numel() for p in model.parameters()), groups=groups
    )


def parameter_group(model: nn.Module, name: str) -> str:
    """Return which group of :class:`ParameterCounts` a parameter of a model of either shape belongs to."""
    if name.startswith(("heads.", "decoders.")):
        return "heads"
    owner, _, leaf = name.rpartition(".")
    update = model.get_submodule(owner)
    if isinstance(update, (LowRankUpdate, TaskFactors)):
        return "per_task" if update.is_per_task(leaf) else "shared"
    if ".lora_" in name:  # PEFT's own LoRA, one for all tasks
        return "shared"
    return "other"


def _chunks(order: list[int], sizes: list[int], most: int) -> Iterator[list[int]]:
    """Return the rows in batches whose sizes add up to no more than `most`; a larger row is alone."""
    chunk: list[int] = []
    size = 0
    for index in order:
        if chunk and size + sizes[index] > most:
            yield chunk
            chunk, size = [], 0
        chunk.append(index)
        size += sizes[index]
    if chunk:
        yield chunk


def _spread(target: list[Any], places: list[int], rows: torch.Tensor | None) -> None:
    """Put the rows of a batch into their places."""
    if rows is not None:
        for place, row in zip(places, rows.cpu().double().numpy(), strict=True):
            target[place] = row
