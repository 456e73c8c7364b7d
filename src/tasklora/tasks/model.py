"""A shared encoder with one head per task."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tasklora.errors import ConfigError
from tasklora.tasks.spec import TaskSpec
from tasklora.tuner import find_context, use_tasks

Pooling = Literal["mean", "cls", "last"]


# A group ends where padding its shorter rows would waste more than this share of the arithmetic; smaller groups than
# MIN_GROUP do not keep the cores busy. Measured with MiniLM on two cores.
MAX_PADDING, MIN_GROUP = 0.3, 4


def length_groups(lengths: Tensor) -> list[Tensor]:
    """Return the rows in groups of similar length, longest first.

    Args:
        lengths: (R,) tokens of each row.
    """
    order = lengths.argsort(descending=True, stable=True)
    ordered = lengths[order].tolist()
    starts = [0]
    for place, length in enumerate(ordered):
        begun = place - starts[-1]
        if (
            begun >= MIN_GROUP
            and len(ordered) - place >= MIN_GROUP
            and length < (1 - MAX_PADDING) * ordered[starts[-1]]
        ):
            starts.append(place)
    return list(order.tensor_split(starts[1:]))


@dataclass
class MultiTaskOutput:
    """What the model says about a batch of N rows.

    Attributes:
        logits: task id → (rows of that task, outputs), for the tasks that occur.
        rows: task id → (rows of that task,), their places in the batch.
        losses: (N,) loss of each row, unreduced; None without labels.
    """

    logits: dict[int, Tensor]
    rows: dict[int, Tensor]
    losses: Tensor | None = None


class TaskHead(nn.Module):
    """Dropout and a linear layer over pooled features, with the loss of its task.

    Classification: cross-entropy, weighted by class. Regression: squared error of the standardised label
    (y − mean) / std, so that its size is comparable to a cross-entropy's.

    Args:
        spec: the task.
        features: width of the pooled features.
        dropout: dropout before the linear layer.
    """

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
        """Take label statistics and class weights from the training rows.

        Args:
            labels: (rows,) training labels.
            class_weights: (classes,), or None for equal weights.
        """
        if self.spec.kind == "regression":
            self.label_mean.copy_(labels.mean())
            self.label_std.copy_(labels.std(correction=0).clamp(min=1e-6))
        elif class_weights is not None:
            self.class_weights.copy_(class_weights)

    def forward(self, features: Tensor) -> Tensor:
        """Return logits (rows, outputs)."""
        logits: Tensor = self.linear(self.dropout(features))
        return logits

    def losses(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Return the loss of each row, (rows,), in float32."""
        if self.spec.kind == "regression":
            target = (labels - self.label_mean) / self.label_std
            return (logits.squeeze(-1).float() - target) ** 2
        return F.cross_entropy(logits.float(), labels.long(), weight=self.class_weights, reduction="none")

    def predict(self, logits: Tensor) -> Tensor:
        """Return predictions (rows,): class ids, or values on the scale of the labels, cut to their range."""
        if self.spec.kind == "regression":
            values = logits.squeeze(-1).float() * self.label_std + self.label_mean
            low, high = self.spec.range or (-torch.inf, torch.inf)
            return values.clamp(low, high)
        return logits.argmax(dim=-1)


class MultiTaskModel(nn.Module):
    """A shared encoder, adapted per task, with one head per task.

    Args:
        encoder: a transformers encoder, usually wrapped by PEFT; task ids reach it if it is adapted by tasklora.
        specs: task name → task, in the order of the task ids.
        pair_encodings: task name → "joint" or "separate".
        hidden_size: width of the encoder's output.
        pooling: "mean" over tokens, the first token ("cls"), or the last one that is no padding.
        head_dropout: dropout before each head.

    Raises:
        ConfigError: on a task's name that no module can have.
    """

    def __init__(
        self,
        encoder: nn.Module,
        specs: Mapping[str, TaskSpec],
        pair_encodings: Mapping[str, str],
        hidden_size: int,
        pooling: Pooling = "mean",
        head_dropout: float = 0.1,
    ) -> None:
        super().__init__()
        self.encoder = encoder
        self.specs = dict(specs)
        self.pair_encodings = dict(pair_encodings)
        self.pooling = pooling
        for name in self.specs:
            if "." in name or hasattr(nn.ModuleDict(), name):
                raise ConfigError(
                    f"task '{name}' cannot have a head: torch takes no dots and not this name; rename it."
                )
        self.heads = nn.ModuleDict(
            {name: TaskHead(spec, hidden_size * self._parts(name), head_dropout) for name, spec in self.specs.items()}
        )
        self._has_task_adapter = find_context(encoder) is not None

    def _parts(self, name: str) -> int:
        """Return how many vectors of the encoder's width a head reads."""
        return 4 if self.specs[name].is_pair and self.pair_encodings[name] == "separate" else 1

    @property
    def task_names(self) -> list[str]:
        """Task names in the order of their ids."""
        return list(self.specs)

    def head(self, task_id: int) -> TaskHead:
        """Return the head of a task by id."""
        head = self.heads[self.task_names[task_id]]
        assert isinstance(head, TaskHead)
        return head

    def forward(
        self,
        task_ids: Tensor,
        row_task_ids: Tensor,
        pair_rows: Tensor,
        labels: Tensor | None = None,
        **encoder_inputs: Any,
    ) -> MultiTaskOutput:
        """Return logits per task and, with labels, the loss of each row.

        Args:
            task_ids: (N,).
            row_task_ids: (R,) task of each encoder row.
            pair_rows: (N,) encoder row of a pair's second text, −1 where there is none.
            labels: (N,).
            **encoder_inputs: the tokenizer's (R, L) tensors.
        """
        pooled = self.embed(row_task_ids, **encoder_inputs)  # (R, d)
        output = MultiTaskOutput(
            {}, {}, None if labels is None else pooled.new_zeros(len(task_ids), dtype=torch.float32)
        )
        for task_id in torch.unique(task_ids).tolist():  # heads differ in size; a batch has few tasks
            head = self.head(task_id)
            rows = (task_ids == task_id).nonzero().flatten()
            logits = head(self._features(pooled, rows, pair_rows, self._parts(self.task_names[task_id])))
            output.logits[task_id], output.rows[task_id] = logits, rows
            if labels is not None and output.losses is not None:
                output.losses = output.losses.index_copy(0, rows, head.losses(logits, labels[rows]))
        return output

    def embed(self, row_task_ids: Tensor, attention_mask: Tensor, **encoder_inputs: Any) -> Tensor:
        """Return pooled embeddings (R, d).

        On a CPU, rows of similar length go through the encoder together (:func:`length_groups`), so that little
        arithmetic is spent on padding: a GPU would lose more by the smaller batches than it wins.
        """
        inputs = {**encoder_inputs, "attention_mask": attention_mask, "row_task_ids": row_task_ids}
        if attention_mask.device.type != "cpu":
            return self._embed(**inputs)
        lengths = (attention_mask * torch.arange(1, attention_mask.shape[1] + 1)).amax(dim=1)  # up to the last token
        groups = length_groups(lengths)
        if len(groups) == 1:
            return self._embed(**inputs)
        parts = []
        for rows in groups:
            longest = max(1, int(lengths[rows].max()))  # rows without a token are all padding
            cut = {name: value[rows] for name, value in inputs.items()}
            parts.append(self._embed(**{name: v[:, :longest] if v.dim() > 1 else v for name, v in cut.items()}))
        return torch.cat(parts)[torch.cat(groups).argsort()]

    def _embed(self, row_task_ids: Tensor, attention_mask: Tensor, **encoder_inputs: Tensor) -> Tensor:
        tasks = use_tasks(self.encoder, row_task_ids) if self._has_task_adapter else contextlib.nullcontext()
        with tasks:
            hidden: Tensor = self.encoder(
                attention_mask=attention_mask, **encoder_inputs
            ).last_hidden_state  # (R, L, d)
        if self.pooling == "cls":
            pooled = hidden[:, 0]
        elif self.pooling == "last":
            places = torch.arange(hidden.shape[1], device=hidden.device)
            last = (attention_mask * places).argmax(dim=1)  # (R,)
            pooled = hidden[torch.arange(hidden.shape[0], device=hidden.device), last]
        else:
            mask = attention_mask.unsqueeze(-1).float()  # (R, L, 1); in half precision a long sum would be inexact
            pooled = (hidden.float() * mask).sum(dim=1) / mask.sum(dim=1).clamp(min=1)
        return pooled.to(next(self.heads.parameters()).dtype)

    @staticmethod
    def _features(pooled: Tensor, rows: Tensor, pair_rows: Tensor, parts: int) -> Tensor:
        """Return what a head reads: u, or [u, v, |u − v|, u ⊙ v] for a separately encoded pair."""
        u = pooled[rows]
        if parts == 1:
            return u
        v = pooled[pair_rows[rows]]
        return torch.cat([u, v, (u - v).abs(), u * v], dim=-1)
