"""The trainer of text-to-text models: the loss counts tokens.

The loss of an optimiser step is

    L = −Σ_t λ_t Σ_{response tokens of t} log p  /  (response tokens of the whole step, over accumulation and processes)

with the end of sequence as a response's last token; prompts are not learned.

With `packing`, rows of any tasks go through the model in few sequences, as long as the batch's longest row, and each
token has its row's task. A batch is packed inside the model's forward pass, and its rows' losses come out one by one:
what draws, counts, logs, balances or splits rows does not see it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from tasklora.tasks import TextToTextOutput, split_texts_by_task
from tasklora.training.trainer import MultiTaskTrainer


class TextToTextTrainer(MultiTaskTrainer):
    """Trains a :class:`tasklora.tasks.TextToTextModel`; everything else is as where tasks have heads."""

    def outputs(self, model: nn.Module, inputs: dict[str, Any]) -> TextToTextOutput:
        """Return what the model says of a batch, its rows packed or padded."""
        output: TextToTextOutput = model(**inputs, packed=self.packing)
        return output

    def loss_counts(self, inputs: Mapping[str, Any]) -> Tensor:
        """Return the response tokens of each row of a batch, (N,)."""
        counts: Tensor = inputs["response_tokens"]
        return counts

    def split_by_task(self, inputs: dict[str, Any]) -> list[dict[str, Any]]:
        """Return a batch for each task that this one has, with its rows alone."""
        return split_texts_by_task(inputs)
