"""The trainer of text-to-text models: the loss counts tokens.

The loss of an optimiser step is

    L = −Σ_t λ_t Σ_{response tokens of t} log p  /  (response tokens of the whole step, over accumulation and processes)

with the end of sequence as a response's last token; prompts are not learned.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from tasklora.tasks import split_texts_by_task
from tasklora.training.trainer import MultiTaskTrainer


class TextToTextTrainer(MultiTaskTrainer):
    """Trains a :class:`tasklora.tasks.TextToTextModel`; everything else is as where tasks have heads."""

    def loss_counts(self, inputs: Mapping[str, Any]) -> Tensor:
        """Return the response tokens of each row of a batch, (N,)."""
        counts: Tensor = inputs["response_tokens"]
        return counts

    def split_by_task(self, inputs: dict[str, Any]) -> list[dict[str, Any]]:
        """Return a batch for each task that this one has, with its rows alone."""
        return split_texts_by_task(inputs)
