"""A causal language model that answers every task in text: no heads, the task ids alone tell tasks apart."""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn

from tasklora.tasks.packing import IGNORED, check_packs_causal, pack_rows
from tasklora.tasks.spec import TaskSpec
from tasklora.tuner import find_context, use_tasks
from tasklora.tuner.sharding import is_sharded


@dataclass
class TextToTextOutput:
    """What the model says about a batch of N rows.

    Attributes:
        rows: task id → (rows of that task,), their places in the batch.
        losses: (N,) −Σ log p of each row's response tokens and its end of sequence, in float32.
    """

    rows: dict[int, Tensor]
    losses: Tensor


class TextToTextModel(nn.Module):
    """A causal language model, adapted per task.

    Args:
        encoder: a causal language model, usually wrapped by PEFT. It stands where a
            :class:`~tasklora.tasks.MultiTaskModel` has its encoder, and is called so for whoever takes either.
        specs: task name → task, in the order of the task ids.

    Attributes:
        heads: none.
    """

    def __init__(self, encoder: nn.Module, specs: Mapping[str, TaskSpec]) -> None:
        super().__init__()
        self.encoder = encoder
        self.specs = dict(specs)
        self.heads = nn.ModuleDict()
        self._has_task_adapter = find_context(encoder) is not None
        wrapped: Any = encoder
        base = wrapped.get_base_model() if hasattr(wrapped, "get_base_model") else wrapped
        # An adapted head routes by the task of each token, and so has to see all of them.
        adapted = isinstance(base.get_output_embeddings(), BaseTunerLayer)
        self._takes_columns = "logits_to_keep" in inspect.signature(base.forward).parameters and not adapted

    @property
    def task_names(self) -> list[str]:
        """Task names in the order of their ids."""
        return list(self.specs)

    def forward(
        self,
        task_ids: Tensor,
        input_ids: Tensor,
        attention_mask: Tensor,
        targets: Tensor,
        packed: bool = False,
        **_: Tensor,
    ) -> TextToTextOutput:
        """Return the loss of each row; the arguments are what :class:`tasklora.tasks.TextToTextCollator` gives.

        Args:
            task_ids: (N,).
            input_ids: (N, L), padded on the right.
            attention_mask: (N, L).
            targets: (N, L).
            packed: run the rows packed into few sequences, each token with its row's task: the same losses of fewer
                tokens, from a model that :meth:`check_packs` lets pass.
        """
        if packed:
            losses = self._losses_packed(task_ids, input_ids, attention_mask, targets)
        else:
            inputs = {"input_ids": input_ids, "attention_mask": attention_mask}
            losses = -self._said(task_ids, targets, inputs)[0].sum(dim=1)
        rows = {int(task): (task_ids == task).nonzero().flatten() for task in torch.unique(task_ids)}
        return TextToTextOutput(rows, losses)

    def check_packs(self) -> None:
        """Raise UnsupportedError unless packed rows give the numbers that they give alone.

        See :func:`tasklora.tasks.check_packs_causal`.
        """
        check_packs_causal(self.encoder, torch.arange(3) % len(self.specs) if self._has_task_adapter else None)

    def _losses_packed(self, task_ids: Tensor, input_ids: Tensor, attention_mask: Tensor, targets: Tensor) -> Tensor:
        """Return the loss of each row, (N,), of rows packed into S sequences of P tokens."""
        packing = pack_rows(attention_mask)
        wanted = packing.pack(targets, IGNORED)  # (S, P): a row's last token has no target, so none crosses a border
        inputs = {"input_ids": packing.pack(input_ids), "position_ids": packing.position_ids}
        said, _ = self._said(packing.pack_tasks(task_ids), wanted, inputs)  # (S, C)
        rows = packing.rows[:, _columns(wanted)].clamp(min=0)  # where nothing is packed, nothing is said: 0
        return said.new_zeros(len(task_ids)).index_add(0, rows.flatten(), -said.flatten())

    def log_probabilities(
        self, task_ids: Tensor, input_ids: Tensor, attention_mask: Tensor, targets: Tensor, **_: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return log p of the targets, (N, C) in float32, and where there is one, (N, C) bool; it is 0 elsewhere.

        C are the places where some row has a target.

        Logits are made for these places alone: with the vocabularies of today the others would cost more memory than
        everything else.
        """
        return self._said(task_ids, targets, {"input_ids": input_ids, "attention_mask": attention_mask})

    def _said(self, task_ids: Tensor, targets: Tensor, inputs: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Return what :meth:`log_probabilities` does, of rows or packed sequences; `task_ids` is (N,) or (S, P)."""
        columns = _columns(targets)
        with self._tasks(task_ids):
            if self._takes_columns:
                logits = self.encoder(**inputs, use_cache=False, logits_to_keep=columns).logits  # (N, C, V)
            else:
                logits = self.encoder(**inputs, use_cache=False).logits[:, columns]
        wanted = targets[:, columns]
        there = wanted != IGNORED  # (N, C)
        said = -F.cross_entropy(logits[there].float(), wanted[there], reduction="none")
        return torch.zeros_like(wanted, dtype=torch.float32).masked_scatter(there, said), there

    def generate(self, task_ids: Tensor, input_ids: Tensor, attention_mask: Tensor, **options: Any) -> Tensor:
        """Return the likeliest tokens after each prompt, (N, new tokens); after the end of sequence comes padding.

        Args:
            task_ids: (N,).
            input_ids: (N, L), padded on the left.
            attention_mask: (N, L).
            **options: ``max_new_tokens``, ``eos_token_id`` and ``pad_token_id``.
        """
        from transformers import GenerationConfig

        encoder: Any = self.encoder
        with self._tasks(task_ids), _without_generation_config(encoder):
            tokens: Tensor = encoder.generate(
                input_ids=input_ids,
                attention_mask=attention_mask,
                generation_config=GenerationConfig(do_sample=False, num_beams=1, **options),
                # Processes that gather parameters together make as many steps as the longest answer needs.
                synced_gpus=is_sharded(self),
            )
        return tokens[:, input_ids.shape[1] :]

    def _tasks(self, task_ids: Tensor) -> contextlib.AbstractContextManager[None]:
        return use_tasks(self.encoder, task_ids) if self._has_task_adapter else contextlib.nullcontext()


@contextlib.contextmanager
def _without_generation_config(encoder: Any) -> Iterator[None]:
    """Leave out a model's own generation config inside the block.

    What a call does not say is taken from it: penalties, guidance, tokens that must not be said.
    """
    from transformers import GenerationConfig

    base = encoder.get_base_model() if hasattr(encoder, "get_base_model") else encoder
    own, base.generation_config = base.generation_config, GenerationConfig()
    try:
        yield
    finally:
        base.generation_config = own


def _columns(targets: Tensor) -> Tensor:
    """Return the places where some row has a target, (C,)."""
    return (targets != IGNORED).any(dim=0).nonzero().flatten()
