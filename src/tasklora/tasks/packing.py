"""Rows of any tasks packed into few sequences, with hardly any padding and attention kept inside each row.

R padded rows of L positions become S sequences of P positions. Position ids begin anew with every row and every token
keeps the task of its row, so that each row's numbers are those of the padded batch.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from tasklora.errors import ConfigError, UnsupportedError

IGNORED = -100  # the label of a token that has none, as in torch and transformers


def first_fit_decreasing(lengths: list[int], capacity: int) -> list[list[int]]:
    """Return which rows go into each sequence: the longest row first, each into the first sequence that has room.

    It never takes more than 11/9 of the fewest possible sequences, and 6/9 of one more (Dósa 2007).

    Args:
        lengths: tokens of each row; rows without a token are left out.
        capacity: tokens of a sequence, at least the longest row's.
    """
    sequences: list[list[int]] = []
    room: list[int] = []
    for row in sorted(range(len(lengths)), key=lambda row: -lengths[row]):
        length = lengths[row]
        if length == 0:
            continue
        place = next((place for place, left in enumerate(room) if left >= length), len(room))
        if place == len(room):
            sequences.append([])
            room.append(capacity)
        sequences[place].append(row)
        room[place] -= length
    return sequences


@dataclass(frozen=True)
class Packing:
    """Where the tokens of a padded batch lie in packed sequences.

    Attributes:
        source: (S, P) the place of each packed token among the R·L of the padded batch, −1 where nothing is packed.
        target: (R, L) the place of each padded token among the S·P of the packed sequences, −1 for padding.
    """

    source: Tensor
    target: Tensor

    @property
    def rows(self) -> Tensor:
        """The row of each packed token, (S, P); −1 where nothing is packed."""
        return self.source.div(max(1, self.target.shape[1]), rounding_mode="floor")

    @property
    def position_ids(self) -> Tensor:
        """The position of each packed token in its own row, (S, P); 0 where nothing is packed."""
        return torch.where(self.source >= 0, self.source % max(1, self.target.shape[1]), 0)

    def pack(self, x: Tensor, empty: int = 0) -> Tensor:
        """Return x (R, L) as (S, P), with `empty` where nothing is packed."""
        return torch.where(self.source >= 0, x.reshape(-1)[self.source.clamp(min=0)], empty)

    def pack_tasks(self, task_ids: Tensor) -> Tensor:
        """Return the task of each packed token, (S, P), of the rows' tasks (R,): all of them tasks that occur."""
        return task_ids[self.rows.clamp(min=0)]

    def unpack(self, packed: Tensor) -> Tensor:
        """Return packed (S, P, d) as (R, L, d), zero at padding; the opposite of :meth:`pack`."""
        size, length = self.target.shape
        values = packed.reshape(-1, packed.shape[-1]).index_select(0, self.target.reshape(-1).clamp(min=0))
        return values.view(size, length, -1).masked_fill((self.target < 0).unsqueeze(-1), 0)

    def attention_mask(self, dtype: torch.dtype, causal: bool = False) -> Tensor:
        """Return what to add to attention scores, (S, 1, P, P): 0 within a row, the least number elsewhere."""
        rows = self.rows
        same = rows.unsqueeze(2) == rows.unsqueeze(1)  # places where nothing is packed see each other: no empty softmax
        if causal:
            same = same.tril()
        least = torch.finfo(dtype).min
        return torch.zeros((), dtype=dtype, device=rows.device).where(same, least).unsqueeze(1)


def pack_rows(attention_mask: Tensor, capacity: int | None = None) -> Packing:
    """Return how the rows of a padded batch are packed.

    Args:
        attention_mask: (R, L) 1 for tokens, 0 for padding, which is on the right.
        capacity: tokens of a sequence at most; the longest row's by default. Attention over a dense mask costs
            S·P², so that sequences longer than their rows cost more than they save.

    Raises:
        ConfigError: if a row has padding before a token, or more tokens than `capacity`; if no row has a token.
    """
    size, length = attention_mask.shape
    is_token = attention_mask.bool()
    counts = is_token.sum(dim=1)
    if bool((is_token != (torch.arange(length, device=counts.device) < counts.unsqueeze(1))).any()):
        raise ConfigError("rows are packed that have their padding on the right; set padding_side='right'.")
    lengths = counts.tolist()
    longest = max(lengths, default=0)
    if not longest:
        raise ConfigError(f"none of the {size} rows has a token, so there is nothing to pack.")
    capacity = longest if capacity is None else capacity
    if capacity < longest:
        raise ConfigError(f"a row has {longest} tokens, which do not fit into a sequence of {capacity}.")
    sequences = first_fit_decreasing(lengths, capacity)
    width = max((sum(lengths[row] for row in rows) for rows in sequences), default=0)
    starts = [0] * size
    for place, rows in enumerate(sequences):
        begin = place * width
        for row in rows:
            starts[row] = begin
            begin += lengths[row]
    column = torch.arange(length, device=counts.device)
    target = torch.where(is_token, torch.tensor(starts, device=counts.device).unsqueeze(1) + column, -1)
    source = torch.full((len(sequences) * width,), -1, device=counts.device)
    source[target[is_token]] = is_token.reshape(-1).nonzero().flatten()
    return Packing(source.view(len(sequences), width), target)


def pack_causal(batch: Mapping[str, Tensor], capacity: int | None = None) -> dict[str, Any]:
    """Return a padded batch of a causal language model packed: the same loss and gradients from fewer tokens.

    Position ids alone keep the rows apart: transformers finds where they begin anew, and masks accordingly, where it is
    given neither a mask nor a cache. A row's first label is left out, as it is in a padded batch, where nothing stands
    before it. With dropout the two differ as two draws do.

    Args:
        batch: ``input_ids`` and ``attention_mask`` (R, L), padded on the right; ``labels`` (R, L), −100 where a token
            has none; ``task_ids`` (R,). The last two may be missing.
        capacity: tokens of a sequence at most; the longest row's by default.

    Returns:
        What the model is called with: ``input_ids``, ``position_ids``, ``labels``, ``task_ids``, all (S, P), and
        ``use_cache`` False.

    Raises:
        ConfigError: on padding before a token, labels on padding, rows beyond `capacity`, or a key that cannot be
            packed.
    """
    unknown = sorted(set(batch) - {"input_ids", "attention_mask", "labels", "task_ids"})
    if unknown:
        raise ConfigError(
            f"a batch with {', '.join(unknown)} cannot be packed: its keys are input_ids, attention_mask, labels and "
            "task_ids."
        )
    mask = batch["attention_mask"]
    packing = pack_rows(mask, capacity)
    packed: dict[str, Any] = {
        "input_ids": packing.pack(batch["input_ids"]),
        "position_ids": packing.position_ids,
        "use_cache": False,
    }
    if "labels" in batch:
        if bool((batch["labels"][mask == 0] != IGNORED).any()):
            raise ConfigError(f"labels stand on padding; they must be {IGNORED} there.")
        labels = packing.pack(batch["labels"], IGNORED)
        packed["labels"] = labels.masked_fill(packing.position_ids == 0, IGNORED)
    if "task_ids" in batch:
        packed["task_ids"] = packing.pack_tasks(batch["task_ids"])
    return packed


@torch.no_grad()
def check_packs_causal(model: nn.Module, task_ids: Tensor | None = None) -> None:
    """Raise UnsupportedError unless a causal language model gives packed rows the logits that it gives them alone.

    It is tried on three rows of a few tokens, in eval mode: models whose attention, state or positions run on from one
    packed row into the next (recurrent ones, position tables that ignore position ids) give other numbers.

    Args:
        model: the model, adapted or not.
        task_ids: (3,) tasks of the rows, where the model needs them.
    """
    device = next(model.parameters()).device
    mask = torch.tensor([[1] * 5, [1] * 3 + [0] * 2, [1] * 2 + [0] * 3], device=device)
    batch = {"input_ids": torch.arange(15, device=device).view(3, 5) % 7 * mask, "attention_mask": mask}
    if task_ids is not None:
        batch["task_ids"] = task_ids.to(device)
    packing = pack_rows(mask)
    was_training = model.training
    model.eval()
    try:
        alone = model(**batch, use_cache=False).logits * mask.unsqueeze(-1)
        together = packing.unpack(model(**pack_causal(batch)).logits)
    except torch.OutOfMemoryError:  # says nothing of packing
        raise
    except (TypeError, ValueError, RuntimeError, IndexError) as error:
        raise UnsupportedError(f"{type(model).__name__} does not take packed rows: {error}") from error
    finally:
        model.train(was_training)
    difference = float((alone - together).abs().max() / alone.abs().max().clamp(min=torch.finfo(alone.dtype).tiny))
    if not difference <= math.sqrt(torch.finfo(alone.dtype).eps):
        raise UnsupportedError(
            f"packed rows change the numbers of {type(model).__name__} (by {difference:.1e} of the largest logit): its "
            "attention, state or positions run on from one row into the next. Train it with padded batches."
        )
