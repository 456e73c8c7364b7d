"""Rows of a task that no adapter was trained for: which known tasks they are most like, as weights of a mixture."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tasklora.errors import ConfigError, TaskIdsError, UnknownTaskError, did_you_mean, listing
from tasklora.tuner.layer import TaskLoraLayer
from tasklora.tuner.model import context_of
from tasklora.tuner.wrappers import active_adapters


@dataclass(frozen=True)
class NearestTasks:
    """How like the known tasks some rows are.

    Attributes:
        similarities: task → cosine in [−1, 1], nearest first.
        weights: task → its weight in the mixture; they are positive and sum to 1. Tasks that are left out are missing.
        task_weights: the same weights as ``task_weights=`` takes them, (T,) in the order of the adapter's ids.
    """

    similarities: dict[str, float]
    weights: dict[str, float]
    task_weights: Tensor


def nearest_tasks(
    model: nn.Module,
    rows: Mapping[str, Any] | Tensor,
    known: Mapping[str, Mapping[str, Any] | Tensor],
    *,
    top: int | None = None,
    temperature: float = 0.1,
) -> NearestTasks:
    """Weigh the known tasks by how like their rows the given rows are, to the frozen base model.

    With μ_t the mean embedding of task t's rows, μ that of the given ones and μ̄ the mean of all μ_t:

        similarity_t = cos(μ − μ̄, μ_t − μ̄)        weight_t = softmax(similarity / temperature)_t

    The mean of the tasks is taken off because embeddings of one model share a large common part, which makes all
    cosines alike. It is a heuristic for a start without any label; with labels, measure the mixtures, or train the task
    (:func:`tasklora.add_tasks`).

    Args:
        model: a model with one active adapter of this family.
        rows: rows of the unknown task: what the model's forward takes, or embeddings (N, d).
        known: task → some of its rows, in the same form; a few dozen serve.
        top: keep only this many tasks, the nearest ones.
        temperature: small values give nearly all weight to the nearest task.

    Raises:
        UnknownTaskError: if `known` names a task that the adapter does not have.
        ConfigError: if there are fewer than two known tasks or no rows, embeddings differ in width, or an option cannot
            be used.

    Example:
        >>> nearest = tasklora.nearest_tasks(model, batch, {"rte": rte_batch, "sst2": sst2_batch})  # doctest: +SKIP
        >>> model(**batch, task_weights=nearest.task_weights)                                       # doctest: +SKIP
    """
    adapters = active_adapters(model)
    if len(adapters) != 1:
        raise TaskIdsError(f"weights are for the tasks of one active adapter, there are {len(adapters)}: {adapters}.")
    names = context_of(model).tasks[adapters[0]]
    if len(known) < 2:
        raise ConfigError(
            f"nearest_tasks compares with rows of at least two known tasks, got {listing(known) or 'none'}."
        )
    for task in known:
        if task not in names.names:
            raise UnknownTaskError(
                f"unknown task '{task}'.{did_you_mean(task, names.names)} This adapter has: {listing(names.names)}."
            )
    if temperature <= 0 or (top is not None and top < 1):
        raise ConfigError(f"temperature must be positive and top at least 1, got {temperature!r} and {top!r}.")
    centres = torch.stack([_centre(model, known[task], task) for task in known])  # (tasks, d)
    centre = _centre(model, rows, "the given rows")
    if centre.shape != centres[0].shape:
        raise ConfigError(
            f"embeddings of width {centre.shape[0]} were given, those of known tasks have {centres.shape[1]}."
        )
    middle = centres.mean(dim=0)
    cosines = F.cosine_similarity(centre - middle, centres - middle, dim=-1)  # (tasks,)
    order = cosines.argsort(descending=True)
    similarities = {list(known)[place]: float(cosines[place]) for place in order.tolist()}
    kept = list(similarities)[:top]
    shares = torch.softmax(torch.tensor([similarities[task] for task in kept]) / temperature, dim=0)
    weights = dict(zip(kept, shares.tolist(), strict=True))
    task_weights = torch.zeros(len(names))
    for task, share in zip(kept, shares, strict=True):
        task_weights[names.id_of(task)] = share
    return NearestTasks(similarities, weights, task_weights)


@torch.no_grad()
def embed_rows(model: nn.Module, rows: Mapping[str, Any]) -> Tensor:
    """Return the mean token vector of each row by the frozen base model, adapters off: (N, d), float32.

    Args:
        model: an adapted model, wrapped in anything.
        rows: what its forward takes (``input_ids``, ``attention_mask``; or ``pixel_values``, …); labels are ignored.
    """
    whole: Any = model
    base = whole.get_base_model() if hasattr(whole, "get_base_model") else whole
    seq_to_seq = getattr(getattr(base, "config", None), "is_encoder_decoder", False)
    body = base.get_encoder() if seq_to_seq else getattr(base, "base_model", base)
    inputs = {name: value for name, value in rows.items() if name != "labels" and not name.startswith("decoder_")}
    was_training = model.training
    model.eval()
    try:
        with _adapters_off(model):
            hidden: Tensor = body(**inputs).last_hidden_state.float()  # (N, L, d)
    finally:
        model.train(was_training)
    mask = inputs.get("attention_mask")
    if mask is None or mask.shape != hidden.shape[:2]:
        return hidden.flatten(1, -2).mean(dim=1)
    weights = mask.unsqueeze(-1).float()
    mean: Tensor = (hidden * weights).sum(dim=1) / weights.sum(dim=1).clamp(min=1)
    return mean


def _centre(model: nn.Module, rows: Mapping[str, Any] | Tensor, what: str) -> Tensor:
    embeddings = rows.float() if isinstance(rows, Tensor) else embed_rows(model, rows)
    if embeddings.dim() != 2 or not len(embeddings):
        raise ConfigError(
            f"{what}: embeddings must have shape (rows, d) with at least one row, got {tuple(embeddings.shape)}."
        )
    return F.normalize(embeddings, dim=-1).mean(dim=0).cpu()


@contextlib.contextmanager
def _adapters_off(model: nn.Module) -> Iterator[None]:
    layers = [module for module in model.modules() if isinstance(module, TaskLoraLayer)]
    before = [layer._disable_adapters for layer in layers]
    for layer in layers:
        layer._disable_adapters = True  # not `enable_adapters(False)`, which would also freeze the adapters
    try:
        yield
    finally:
        for layer, disabled in zip(layers, before, strict=True):
            layer._disable_adapters = disabled
