"""The multi-task trainer: mixed-task batches and the family's loss.

The loss of an optimiser step is

    L = Σ_t λ_t Σ_{rows of t} ℓ  /  (rows of the whole step, over accumulation and processes)

so batch 8 equals batch 2 accumulated 4 times. Of text-to-text models, ℓ is the sum over a row's response tokens, and
these tokens are counted in place of rows; see :mod:`tasklora.training.text_trainer`.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import broadcast_object_list, gather_object
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers import TrainerCallback, TrainingArguments

from tasklora.evaluation import SplitScores, score_tasks
from tasklora.tasks import (
    VIEWS,
    Collator,
    MultiTaskOutput,
    SavedModel,
    TaskModel,
    TaskRows,
    TextToTextOutput,
    load_weights,
    read_about,
    save_model,
    split_by_task,
)
from tasklora.training.balancer import TaskLosses
from tasklora.training.balancing import BalancingSection
from tasklora.training.base_trainer import TasksTrainer
from tasklora.training.mixing import MixedRows, MixingPlan, SharedBatches, TaskMixingSampler
from tasklora.training.mixing_section import MixingSection
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
        packing: run the rows of a batch packed into few sequences; see :mod:`tasklora.training.text_trainer`.

    Raises:
        UnsupportedError: under FSDP as accelerate does it, or DeepSpeed.
        ConfigError: on `packing` where the model's view cannot pack.
    """

    def __init__(
        self,
        model: TaskModel,
        about: SavedModel,
        args: TrainingArguments,
        train_rows: Mapping[str, TaskRows],
        tune_rows: Mapping[str, TaskRows],
        collator: Collator,
        mixing: MixingSection | None = None,
        loss_weights: Mapping[str, float] | None = None,
        group_by_length: bool = True,
        encoder_learning_rate: float | None = None,
        callbacks: list[TrainerCallback] | None = None,
        balancing: BalancingSection | None = None,
        packing: bool = False,
    ) -> None:
        if packing:
            VIEWS[about.view].check_packing()
        mixed = MixedRows(train_rows)
        super().__init__(model, about, args, mixed, collator, loss_weights, encoder_learning_rate, callbacks, balancing)
        self._task_counts = torch.zeros(len(about.tasks), dtype=torch.long)
        self.tune_rows = tune_rows
        self.group_by_length = group_by_length
        self.packing = packing
        self.plan = MixingPlan(
            dict(zip(train_rows, mixed.sizes, strict=True)),
            mixing,
            args.train_batch_size * args.gradient_accumulation_steps * args.world_size,
            args.num_train_epochs,
            args.max_steps if args.max_steps > 0 else None,
            args.world_size,
            args.gradient_accumulation_steps,
            mixed.streams,
        )
        self._drawn = self._drawn_at_last_log = torch.zeros(len(self.about_tasks), dtype=torch.long)
        self._drawn_steps = -1  # the optimiser steps that drew them

    def _get_train_sampler(self, train_dataset: Any = None) -> TaskMixingSampler:
        mixed = train_dataset if train_dataset is not None else self.train_dataset
        return TaskMixingSampler(self.plan, self.args.seed, mixed.lengths() if self.group_by_length else None)

    def get_train_dataloader(self) -> DataLoader[Any]:
        """Return the batches of this process; where there are several, they share those that one would have."""
        if self.args.world_size == 1:
            plain: DataLoader[Any] = super().get_train_dataloader()
            return plain
        size = self.args.train_batch_size * self.args.world_size
        return DataLoader(
            self.train_dataset,
            batch_sampler=SharedBatches(self._get_train_sampler(), size, self.args.process_index, self.args.world_size),
            collate_fn=self.data_collator,
            pin_memory=self.args.dataloader_pin_memory,
        )

    def num_examples(self, dataloader: Any) -> int:
        """Return the rows of an epoch as drawn, which mixing may make differ from the rows there are."""
        return self.plan.rows

    def get_batch_samples(self, epoch_iterator: Any, num_batches: int, device: torch.device) -> Any:
        """Return the batches of a step and what the loss is divided by, over all processes.

        The Trainer would count the labels that are not −100, which a regression may well have.
        """
        batches, _ = super().get_batch_samples(epoch_iterator, num_batches, device)
        both = torch.zeros(2, len(self._drawn), dtype=torch.long, device=device)  # rows, and what the loss counts
        for batch in batches:
            task_ids = batch["task_ids"].to(device)
            both[0].index_add_(0, task_ids, torch.ones_like(task_ids))
            both[1].index_add_(0, task_ids, self.loss_counts(batch).to(device))
        rows, counts = self.accelerator.reduce(both, "sum")
        self._take_over_drawn()
        self._drawn = self._drawn.to(device) + rows
        self._drawn_steps += 1
        self.step_batches, self._task_counts = batches, counts
        return batches, counts.sum()

    def loss_counts(self, inputs: Mapping[str, Any]) -> Tensor:
        """Return what each row of a batch counts in the denominator of the loss, (N,) long: one."""
        return torch.ones_like(inputs["task_ids"])

    def _take_over_drawn(self) -> None:
        """Count what the steps so far have drawn, where this trainer has not made them itself but resumes a run."""
        steps = self.state.global_step
        if self._drawn_steps != steps:
            self._drawn = self._drawn_before(steps)
            self._drawn_at_last_log = self._drawn_before(steps - steps % max(int(self.args.logging_steps), 1))
            self._drawn_steps = steps

    def _drawn_before(self, steps: int) -> Tensor:
        counts = torch.zeros(len(self.about_tasks), dtype=torch.long)
        if steps:  # a run that extends another has more tasks than rows
            places = [self.about_tasks.index(name) for name in self.plan.sizes]
            counts[places] = torch.from_numpy(self._get_train_sampler().drawn_before(steps))
        return counts

    def drawn_rows(self) -> dict[str, int]:
        """Return how many rows of each task the run has drawn so far; a row that came twice counts twice."""
        self._take_over_drawn()
        return dict(zip(self.about_tasks, self._drawn.tolist(), strict=True))

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log as the Trainer does, with the rows of each task drawn so far as ``drawn/TASK``.

        Tasks of which nothing was drawn since the last log are left out, but for the log at the end of training.
        """
        if "loss" in logs or "train_loss" in logs:
            drawn, before = self.drawn_rows(), self._drawn_at_last_log.tolist()
            for (name, count), logged in zip(drawn.items(), before, strict=True):
                if count > (0 if "train_loss" in logs else logged):
                    logs[f"drawn/{name}"] = count
            self._drawn_at_last_log = self._drawn
        super().log(logs, start_time)

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
        own = self.loss_counts(inputs).sum()
        counts = own if num_items_in_batch is None else num_items_in_batch
        # What the method adds counts once per step, so each batch brings its share of it.
        added = auxiliary_loss(self.accelerator.unwrap_model(model)).to(weighted) * own
        # Gradients are averaged over processes afterwards, but `counts` is of all of them.
        loss = (weighted.sum() + added) / counts * self.accelerator.num_processes
        return (loss, output) if return_outputs else loss

    def outputs(self, model: nn.Module, inputs: dict[str, Any]) -> MultiTaskOutput | TextToTextOutput:
        """Return what the model says of a batch."""
        output: MultiTaskOutput = model(**inputs)
        return output

    def _weighted_losses(
        self, model: nn.Module, inputs: dict[str, Any], note: bool = True
    ) -> tuple[MultiTaskOutput | TextToTextOutput, Tensor]:
        """Return what the model says, and λ_t ℓ of each row, (N,)."""
        output = self.outputs(model, inputs)
        assert output.losses is not None  # rows to train on have labels
        task_ids, losses = inputs["task_ids"], output.losses.detach()
        self.stop_if_not_finite(losses, task_ids)
        if note:
            self.note_losses(losses, task_ids, self.loss_counts(inputs))
        return output, output.losses * self._lambdas.to(task_ids.device)[task_ids]

    def training_step(
        self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: Tensor | int | None = None
    ) -> Tensor:
        """Run forward and backward of a batch, and return its part of the loss."""
        loss = super().training_step(model, inputs, num_items_in_batch)
        if self.is_sharded:  # gradients of all heads were reduced; the head of a task without rows must not decay
            heads: Any = model.heads
            for name, is_present in zip(self.about_tasks, self._task_counts > 0, strict=True):
                if not is_present and name in heads:
                    heads[name].zero_grad(set_to_none=True)
        return loss

    def added_loss(self, model: nn.Module, inputs: dict[str, Any], counts: Any) -> Tensor:
        """Return a batch's share of what the method adds to the loss of a step."""
        added = auxiliary_loss(self.accelerator.unwrap_model(model)).to(self.args.device)
        share: Tensor = added * self.loss_counts(inputs).sum() / counts
        return share

    def task_losses(self, model: nn.Module, inputs: dict[str, Any], counts: Any, note: bool = True) -> TaskLosses:
        """Return Σ λ_t ℓ over each task's rows of a batch, divided by what it counts in the whole step."""
        output, weighted = self._weighted_losses(model, inputs, note)
        values = {
            task: weighted[places].sum() / self._task_counts[task].to(weighted.device)
            for task, places in output.rows.items()
        }
        # As in compute_loss: the log's loss is averaged over processes.
        return TaskLosses(values, weighted.detach().sum() / counts * self.accelerator.num_processes)

    def present_tasks(self, counts: Any) -> Tensor:
        """Return which tasks have rows in the step."""
        return self._task_counts > 0

    def split_by_task(self, inputs: dict[str, Any]) -> list[dict[str, Any]]:
        """Return a batch for each task that this one has, with its rows alone."""
        return split_by_task(inputs)

    def score_tune(self) -> SplitScores:
        """Return the scores of the tune rows; several processes score some of the tasks each."""
        model: Any = self.accelerator.unwrap_model(self.model)
        # All processes run a sharded model together, on the same rows.
        places = slice(None) if self.is_sharded else slice(self.args.process_index, None, self.args.world_size)
        mine = dict(list(self.tune_rows.items())[places])
        found = score_tasks(model, mine, self.data_collator, self.args.per_device_eval_batch_size).tasks  # type: ignore[arg-type]
        if self.is_sharded:
            (found,) = broadcast_object_list([found])  # the last bit may differ, and what follows from it must not
        elif self.args.world_size > 1:
            found = {name: scores for part in gather_object([found]) for name, scores in part.items()}
        return SplitScores.of({name: found[name] for name in self.tune_rows})

    def write_model(self, model: nn.Module, directory: Path) -> None:
        """Write adapter and heads."""
        save_model(model, self.about, directory)  # type: ignore[arg-type]

    def read_about(self, directory: Path) -> SavedModel:
        """Return what the saved model in a directory is."""
        return read_about(directory)

    def read_weights(self, model: nn.Module, directory: Path) -> None:
        """Load adapter and heads."""
        load_weights(model, directory)  # type: ignore[arg-type]
