"""The multi-task trainer: mixed-task batches and the family's loss.

The loss of an optimiser step is

    L = Σ_t λ_t Σ_{rows of t} ℓ  /  (rows of the whole step, over accumulation and processes)

so batch 8 equals batch 2 accumulated 4 times.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import TrainerCallback, TrainingArguments

from tasklora.evaluation import SplitScores, score_tasks
from tasklora.tasks import (
    MultiTaskCollator,
    MultiTaskModel,
    MultiTaskOutput,
    SavedModel,
    TaskRows,
    load_weights,
    read_about,
    save_model,
    split_by_task,
)
from tasklora.training.balancer import TaskLosses
from tasklora.training.balancing import BalancingSection
from tasklora.training.base_trainer import TasksTrainer
from tasklora.training.mixing import MixedRows, TaskMixingSampler, rows_per_epoch
from tasklora.training.recipe import MixingSection
from tasklora.tuner import auxiliary_loss


class MultiTaskTrainer(TasksTrainer):
    """Trains a :class:`tasklora.tasks.MultiTaskModel` on several tasks at once.

    Args:
        model: the model.
        about: what it is; written beside its weights in every checkpoint.
        args: transformers' training arguments.
        train_rows: task name → training rows, in the order of the task ids.
        tune_rows: task name → rows that choose the best checkpoint.
        collator: makes the batches.
        mixing: how often each task is drawn.
        loss_weights: task name → λ_t.
        group_by_length: put rows of similar length into the same batch, whatever their tasks: less padding.
        encoder_learning_rate: peak learning rate of the encoder; None for that of the heads.
        callbacks: further callbacks.
        balancing: what weighs the tasks against each other; None for the loss above.

    Raises:
        UnsupportedError: under FSDP or DeepSpeed.
    """

    def __init__(
        self,
        model: MultiTaskModel,
        about: SavedModel,
        args: TrainingArguments,
        train_rows: Mapping[str, TaskRows],
        tune_rows: Mapping[str, TaskRows],
        collator: MultiTaskCollator,
        mixing: MixingSection | None = None,
        loss_weights: Mapping[str, float] | None = None,
        group_by_length: bool = True,
        encoder_learning_rate: float | None = None,
        callbacks: list[TrainerCallback] | None = None,
        balancing: BalancingSection | None = None,
    ) -> None:
        mixing = mixing or MixingSection()
        mixed = MixedRows(train_rows)
        super().__init__(model, about, args, mixed, collator, loss_weights, encoder_learning_rate, callbacks, balancing)
        self._task_rows = torch.zeros(len(about.tasks), dtype=torch.long)
        self.tune_rows = tune_rows
        self.group_by_length = group_by_length
        self.rows_per_epoch = dict(
            zip(train_rows, rows_per_epoch(mixed.sizes, mixing.strategy, mixing.temperature, mixing.cap), strict=True)
        )

    def _get_train_sampler(self, train_dataset: Any = None) -> TaskMixingSampler:
        mixed = train_dataset if train_dataset is not None else self.train_dataset
        lengths = mixed.lengths() if self.group_by_length else None
        per_step = self.args.train_batch_size * self.args.gradient_accumulation_steps * self.args.world_size
        return TaskMixingSampler(mixed.sizes, list(self.rows_per_epoch.values()), self.args.seed, lengths, per_step)

    def num_examples(self, dataloader: Any) -> int:
        """Return the rows of an epoch as drawn, which mixing may make differ from the rows there are."""
        return sum(self.rows_per_epoch.values())

    def get_batch_samples(self, epoch_iterator: Any, num_batches: int, device: torch.device) -> Any:
        """Return the batches of a step and the number of their rows, over all processes.

        The Trainer would count the labels that are not −100, which a regression may well have.
        """
        batches, _ = super().get_batch_samples(epoch_iterator, num_batches, device)
        rows = torch.zeros(len(self.about_tasks), dtype=torch.long, device=device)
        for batch in batches:
            rows += torch.bincount(batch["task_ids"].to(device), minlength=len(rows))
        self.step_batches = batches
        self._task_rows = self.accelerator.reduce(rows, "sum")
        return batches, self._task_rows.sum()

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """Return the part of the step's loss that this batch contributes.

        Raises:
            NonFiniteLossError: naming the tasks whose rows gave NaN or infinity, before anything is changed by it.
        """
        output, weighted = self._weighted_losses(model, inputs)
        rows = len(weighted) if num_items_in_batch is None else num_items_in_batch
        # What the method adds counts once per step, so each batch brings its share of it.
        added = auxiliary_loss(self.accelerator.unwrap_model(model)).to(weighted) * len(weighted)
        # Gradients are averaged over processes afterwards, but `rows` counts the rows of all of them.
        loss = (weighted.sum() + added) / rows * self.accelerator.num_processes
        return (loss, output) if return_outputs else loss

    def _weighted_losses(
        self, model: nn.Module, inputs: dict[str, Any], note: bool = True
    ) -> tuple[MultiTaskOutput, Tensor]:
        """Return what the model says, and λ_t ℓ of each row, (N,)."""
        output = model(**inputs)
        task_ids, losses = inputs["task_ids"], output.losses.detach()
        self.stop_if_not_finite(losses, task_ids)
        if note:
            self.note_losses(losses, task_ids, torch.ones_like(losses))
        return output, output.losses * self._lambdas.to(task_ids.device)[task_ids]

    def added_loss(self, model: nn.Module, inputs: dict[str, Any], counts: Any) -> Tensor:
        """Return a batch's share of what the method adds to the loss of a step."""
        added = auxiliary_loss(self.accelerator.unwrap_model(model)).to(self.args.device)
        share: Tensor = added * len(inputs["task_ids"]) / counts
        return share

    def task_losses(self, model: nn.Module, inputs: dict[str, Any], counts: Any, note: bool = True) -> TaskLosses:
        """Return Σ λ_t ℓ over each task's rows of a batch, divided by the rows that it has in the whole step."""
        output, weighted = self._weighted_losses(model, inputs, note)
        values = {
            task: weighted[places].sum() / self._task_rows[task].to(weighted.device)
            for task, places in output.rows.items()
        }
        # As in compute_loss: the log's loss is averaged over processes.
        return TaskLosses(values, weighted.detach().sum() / counts * self.accelerator.num_processes)

    def present_tasks(self, counts: Any) -> Tensor:
        """Return which tasks have rows in the step."""
        return self._task_rows > 0

    def split_by_task(self, inputs: dict[str, Any]) -> list[dict[str, Any]]:
        """Return a batch for each task that this one has, with its rows alone."""
        return split_by_task(inputs)

    def score_tune(self) -> SplitScores:
        """Return the scores of the tune rows."""
        model: Any = self.accelerator.unwrap_model(self.model)
        return score_tasks(model, self.tune_rows, self.data_collator, self.args.per_device_eval_batch_size)  # type: ignore[arg-type]

    def write_model(self, model: nn.Module, directory: Path) -> None:
        """Write adapter and heads."""
        save_model(model, self.about, directory)  # type: ignore[arg-type]

    def read_about(self, directory: Path) -> SavedModel:
        """Return what the saved model in a directory is."""
        return read_about(directory)

    def read_weights(self, model: nn.Module, directory: Path) -> None:
        """Load adapter and heads."""
        load_weights(model, directory)  # type: ignore[arg-type]
