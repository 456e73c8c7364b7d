"""A shared encoder with one head per task."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from tasklora.errors import ConfigError
from tasklora.tasks.heads import TaskHead, head_of
from tasklora.tasks.spec import TaskSpec
from tasklora.tuner import find_context, use_tasks
from tasklora.tuner.sharding import is_sharded

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
        logits: task id → logits of the rows of that task, as their head gives them, for the tasks that occur.
        rows: task id → (rows of that task,), their places in the batch.
        losses: (N,) loss of each row, unreduced; None without labels.
    """

    logits: dict[int, Tensor]
    rows: dict[int, Tensor]
    losses: Tensor | None = None


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
            {name: head_of(spec, hidden_size * self._parts(name), head_dropout) for name, spec in self.specs.items()}
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
        entries: Tensor,
        entry_pairs: Tensor,
        word_places: Tensor,
        labels: Tensor | None = None,
        **encoder_inputs: Any,
    ) -> MultiTaskOutput:
        """Return logits per task and, with labels, the loss of each row.

        The arguments are what :class:`tasklora.tasks.MultiTaskCollator` gives:

        Args:
            task_ids: (N,).
            row_task_ids: (R,) task of each encoder row.
            entries: (N, W) vectors that each row's head reads, −1 where there is none.
            entry_pairs: (N, W) encoder rows of the second texts of separate pairs, −1 where there is none.
            word_places: (K, 2) encoder row and position of each word that is read.
            labels: (N, V).
            **encoder_inputs: the tokenizer's (R, L) tensors.
        """
        vectors = self.embed(row_task_ids, word_places=word_places, **encoder_inputs)  # (R + K, d)
        output = MultiTaskOutput(
            {}, {}, None if labels is None else vectors.new_zeros(len(task_ids), dtype=torch.float32)
        )
        for task_id in torch.unique(task_ids).tolist():  # heads differ in size; a batch has few tasks
            head = self.head(task_id)
            rows = (task_ids == task_id).nonzero().flatten()
            width = entries.shape[1] if head.several else 1
            read, pairs = entries[rows, :width], entry_pairs[rows, :width]  # (N_t, W)
            features = self._features(vectors, read, pairs, self._parts(self.task_names[task_id]))
            logits = head(features, read >= 0)
            output.logits[task_id], output.rows[task_id] = logits, rows
            if labels is not None and output.losses is not None:
                output.losses = output.losses.index_copy(0, rows, head.losses(logits, labels[rows]))
        return output

    def embed(
        self,
        row_task_ids: Tensor,
        attention_mask: Tensor,
        word_places: Tensor | None = None,
        **encoder_inputs: Any,
    ) -> Tensor:
        """Return the vectors that heads read, (R + K, d): the pooled encoder rows, then the words of `word_places`.

        On a CPU, rows of similar length go through the encoder together (:func:`length_groups`), so that little
        arithmetic is spent on padding: a GPU would lose more by the smaller batches than it wins, and processes that
        gather parameters together must run the encoder equally often.
        """
        inputs = {**encoder_inputs, "attention_mask": attention_mask, "row_task_ids": row_task_ids}
        words = row_task_ids.new_empty(0, 2) if word_places is None else word_places  # (K, 2)
        if attention_mask.device.type != "cpu" or is_sharded(self):
            return torch.cat(self._embed(words, **inputs))
        lengths = (attention_mask * torch.arange(1, attention_mask.shape[1] + 1)).amax(dim=1)  # up to the last token
        groups = length_groups(lengths)
        if len(groups) == 1:
            return torch.cat(self._embed(words, **inputs))
        pooled, of_words, word_order = [], [], []
        place_in_group = torch.empty_like(row_task_ids)
        for rows in groups:
            longest = max(1, int(lengths[rows].max()))  # rows without a token are all padding
            place_in_group.fill_(-1)[rows] = torch.arange(len(rows))
            own = (place_in_group[words[:, 0]] >= 0).nonzero().flatten()
            own_words = torch.stack([place_in_group[words[own, 0]], words[own, 1]], dim=1)
            cut = {name: value[rows] for name, value in inputs.items()}
            vectors = self._embed(own_words, **{n: v[:, :longest] if v.dim() > 1 else v for n, v in cut.items()})
            pooled.append(vectors[0])
            of_words.append(vectors[1])
            word_order.append(own)
        return torch.cat(
            [torch.cat(pooled)[torch.cat(groups).argsort()], torch.cat(of_words)[torch.cat(word_order).argsort()]]
        )

    def _embed(
        self, words: Tensor, row_task_ids: Tensor, attention_mask: Tensor, **encoder_inputs: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return the pooled rows (R, d) and the vectors of words (K, d)."""
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
        dtype = next(self.heads.parameters()).dtype
        return pooled.to(dtype), hidden[words[:, 0], words[:, 1]].to(dtype)

    @staticmethod
    def _features(vectors: Tensor, entries: Tensor, pairs: Tensor, parts: int) -> Tensor:
        """Return what a head reads of each entry, (N_t, W, f): u, or [u, v, |u − v|, u ⊙ v] for a separate pair."""
        u = vectors[entries.clamp(min=0)]  # entries that are not there read something; heads leave it out
        if parts == 1:
            return u
        v = vectors[pairs.clamp(min=0)]
        return torch.cat([u, v, (u - v).abs(), u * v], dim=-1)
