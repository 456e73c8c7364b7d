"""Scoring a model: per task, with the task's own metrics."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from tasklora.evaluation.results import ParameterCounts, SplitScores, TaskScore
from tasklora.tasks import METRICS, MultiTaskCollator, MultiTaskModel, TaskRows, compute_metrics
from tasklora.updates import LowRankUpdate
from tasklora.updates.streams import TaskFactors


@dataclass(frozen=True)
class Prediction:
    """Predictions for the rows of one task, in their order.

    Attributes:
        values: (rows,) class ids or values.
        probabilities: (rows, classes), None for regression.
        losses: (rows,) or None without labels.
    """

    values: np.ndarray[Any, Any]
    probabilities: np.ndarray[Any, Any] | None
    losses: np.ndarray[Any, Any] | None


def predict_rows(
    model: MultiTaskModel,
    task: str,
    rows: Sequence[Mapping[str, Any]],
    collator: MultiTaskCollator,
    batch_size: int = 64,
) -> Prediction:
    """Predict rows of one task.

    Args:
        model: the model; it is put into evaluation mode and back.
        task: the task's name.
        rows: ``{"texts": […], "label": …}``, the label optional.
        collator: makes the batches.
        batch_size: rows per batch; rows of similar length go together.
    """
    device = next(model.parameters()).device
    head = model.heads[task]
    order = sorted(range(len(rows)), key=lambda index: sum(map(len, rows[index]["texts"])))
    values, probabilities, losses = np.empty(len(rows)), [None] * len(rows), np.empty(len(rows))
    has_labels = bool(rows) and "label" in rows[0]
    was_training = model.training
    model.eval()
    try:
        with torch.inference_mode():
            for chunk in _chunks(order, batch_size):
                batch = collator([{**rows[index], "task": task} for index in chunk])
                output = model(**{key: value.to(device) for key, value in batch.items()})
                (logits,) = output.logits.values()
                values[chunk] = head.predict(logits).cpu().double().numpy()  # type: ignore[operator, union-attr]
                for index, row in zip(chunk, torch.softmax(logits.float(), dim=-1).cpu().numpy(), strict=True):
                    probabilities[index] = row
                if has_labels:
                    losses[chunk] = output.losses.cpu().double().numpy()
    finally:
        model.train(was_training)
    is_class = model.specs[task].kind == "classification"
    return Prediction(values, np.stack(probabilities) if is_class else None, losses if has_labels else None)  # type: ignore[arg-type]


def predict_tasks(
    model: MultiTaskModel,
    rows: Mapping[str, TaskRows],
    collator: MultiTaskCollator,
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
        metrics = compute_metrics(spec.metrics, rows[name].labels, prediction.values)
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
    model: MultiTaskModel,
    rows: Mapping[str, TaskRows],
    collator: MultiTaskCollator,
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
    """Return the group of :class:`ParameterCounts` that a trained parameter belongs to, by its name in the model."""
    if name.startswith(("heads.", "decoders.")):
        return "heads"
    owner, _, leaf = name.rpartition(".")
    update = model.get_submodule(owner)
    if isinstance(update, (LowRankUpdate, TaskFactors)):
        return "per_task" if update.is_per_task(leaf) else "shared"
    if ".lora_" in name:  # PEFT's own LoRA, one for all tasks
        return "shared"
    return "other"


def _chunks(order: list[int], size: int) -> Iterator[list[int]]:
    return (order[start : start + size] for start in range(0, len(order), size))
