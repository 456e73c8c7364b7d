"""Rows of any tasks → one padded batch of a tokenizer's inputs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch

PairEncoding = Literal["joint", "separate"]


class MultiTaskCollator:
    """Tokenises and pads rows of mixed tasks.

    A pair of texts is encoded jointly, as one sequence with a separator (a cross-encoder), or separately, as two rows
    of the encoder whose embeddings the head compares (a bi-encoder; what sentence-embedding models were trained for).

    Args:
        tokenizer: a fast tokenizer with a padding token.
        tasks: task name → how its pairs are encoded, in the order of the task ids.
        max_length: longest sequence, in tokens; longer ones are truncated.

    Returns (when called with rows ``{"task", "texts", "label"}``):
        ``input_ids``, ``attention_mask`` (and what else the tokenizer gives): (R, L), R encoder rows: first the N rows
        of the batch, then the second texts of separately encoded pairs;
        ``row_task_ids`` (R,); ``task_ids`` (N,);
        ``pair_rows`` (N,): encoder row of the second text, −1 where there is none;
        ``labels`` (N,), float, if the rows have labels.
    """

    def __init__(self, tokenizer: Any, tasks: Mapping[str, PairEncoding], max_length: int) -> None:
        self.tokenizer = tokenizer
        self.tasks = dict(tasks)
        self.max_length = max_length
        self._ids = {name: index for index, name in enumerate(self.tasks)}

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, torch.Tensor]:
        """Return the batch of `rows`; see the class."""
        task_ids = [self._ids[row["task"]] for row in rows]
        first: list[tuple[str, ...]] = []
        second: list[tuple[str, ...]] = []
        pair_rows, second_tasks = [], []
        for row, task_id in zip(rows, task_ids, strict=True):
            texts = row["texts"]
            if len(texts) == 2 and self.tasks[row["task"]] == "separate":
                pair_rows.append(len(rows) + len(second))
                first.append((texts[0],))
                second.append((texts[1],))
                second_tasks.append(task_id)
            else:
                pair_rows.append(-1)
                first.append(tuple(texts))
        batch = dict(self._tokenize([*first, *second]))
        batch["task_ids"] = torch.tensor(task_ids)
        batch["row_task_ids"] = torch.tensor(task_ids + second_tasks)
        batch["pair_rows"] = torch.tensor(pair_rows)
        if rows and "label" in rows[0]:
            batch["labels"] = torch.tensor([row["label"] for row in rows], dtype=torch.float32)
        return batch

    def _tokenize(self, texts: list[tuple[str, ...]]) -> Any:
        encoded = [self.tokenizer(*parts, truncation=True, max_length=self.max_length) for parts in texts]
        return self.tokenizer.pad(encoded, return_tensors="pt")


def split_by_task(batch: Mapping[str, torch.Tensor]) -> list[dict[str, torch.Tensor]]:
    """Return a batch for each task of a mixed one, in the order of the ids, cut to its own longest sequence.

    Args:
        batch: as :class:`MultiTaskCollator` makes it.
    """
    task_ids, row_task_ids = batch["task_ids"], batch["row_task_ids"]
    batches = []
    for task_id in torch.unique(task_ids).tolist():
        rows = (task_ids == task_id).nonzero().flatten()
        encoder_rows = (row_task_ids == task_id).nonzero().flatten()  # those of the first texts come first
        places = torch.full_like(row_task_ids, -1)
        places[encoder_rows] = torch.arange(len(encoder_rows), device=places.device)
        used = batch["attention_mask"][encoder_rows].any(dim=0).nonzero()
        longest = int(used.max()) + 1 if len(used) else 1
        cut = {}
        for name, value in batch.items():
            if name == "pair_rows":
                pairs = value[rows]
                cut[name] = torch.where(pairs >= 0, places[pairs.clamp(min=0)], pairs)
            elif name in ("task_ids", "labels"):
                cut[name] = value[rows]
            else:
                cut[name] = value[encoder_rows][:, :longest] if value.dim() > 1 else value[encoder_rows]
        batches.append(cut)
    return batches
