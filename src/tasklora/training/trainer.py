"""The multi-task trainer: transformers.Trainer with mixed-task batches and the family's loss.

The loss of an optimiser step is

    L = Σ_t λ_t Σ_{rows of t} ℓ  /  (rows of the whole step, over accumulation and processes)

so batch 8 equals batch 2 accumulated 4 times.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Trainer, TrainerCallback, TrainerControl, TrainingArguments

from tasklora.errors import CheckpointError, NonFiniteLossError, UnsupportedError, listing
from tasklora.evaluation import score_tasks
from tasklora.tasks import MultiTaskCollator, MultiTaskModel, SavedModel, TaskRows, load_weights, read_about, save_model
from tasklora.training.mixing import MixedRows, TaskMixingSampler, rows_per_epoch
from tasklora.training.recipe import MixingSection
from tasklora.tuner import auxiliary_loss
from tasklora.updates import LowRankUpdate

WHAT_TO_DO = (
    "Training stopped before a checkpoint with it was written; earlier checkpoints are kept. Try a lower learning "
    "rate, float32 precision, or look at those tasks' rows."
)


class MultiTaskTrainer(Trainer):
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

    Raises:
        UnsupportedError: under FSDP or DeepSpeed.
    """

    control: TrainerControl

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
    ) -> None:
        mixing = mixing or MixingSection()
        # Rows of one batch refer to each other (pairs), so torch's DataParallel must not scatter them.
        args._n_gpu = min(args.n_gpu, 1)
        args.remove_unused_columns = False
        mixed = MixedRows(train_rows)
        super().__init__(
            model=model,
            args=args,
            data_collator=collator,
            train_dataset=mixed,
            eval_dataset=mixed,  # a placeholder: `evaluate` scores `tune_rows` task by task
            callbacks=callbacks,
        )
        if self.is_fsdp_enabled or self.is_deepspeed_enabled:
            raise UnsupportedError(
                "MultiTaskTrainer does not save sharded models yet: train with plain processes (DDP), not FSDP or "
                "DeepSpeed."
            )
        # compute_loss divides by the rows of the whole step itself.
        self.model_accepts_loss_kwargs = True
        self.loss_is_scaled_for_ga = True
        self.about = about
        self.tune_rows = tune_rows
        self.group_by_length = group_by_length
        self.encoder_learning_rate = encoder_learning_rate
        self.rows_per_epoch = dict(
            zip(train_rows, rows_per_epoch(mixed.sizes, mixing.strategy, mixing.temperature, mixing.cap), strict=True)
        )
        weights = dict(loss_weights or {})
        self._lambdas = torch.tensor([weights.get(name, 1.0) for name in model.task_names])
        self._loss_sums = torch.zeros(len(model.task_names))
        self._loss_rows = torch.zeros(len(model.task_names))

    def _get_train_sampler(self, train_dataset: Any = None) -> TaskMixingSampler:
        mixed = train_dataset if train_dataset is not None else self.train_dataset
        lengths = mixed.lengths() if self.group_by_length else None
        per_step = self.args.train_batch_size * self.args.gradient_accumulation_steps * self.args.world_size
        return TaskMixingSampler(mixed.sizes, list(self.rows_per_epoch.values()), self.args.seed, lengths, per_step)

    def num_examples(self, dataloader: Any) -> int:
        """Return the rows of an epoch as drawn, which mixing may make differ from the rows there are."""
        return sum(self.rows_per_epoch.values())

    def get_batch_samples(self, epoch_iterator: Any, num_batches: int, device: torch.device) -> Any:
        """Return the batches of a step and the number of their rows over all processes.

        The Trainer would count the labels that are not −100, which a regression may well have.
        """
        batches, _ = super().get_batch_samples(epoch_iterator, num_batches, device)
        rows = torch.tensor(sum(len(batch["task_ids"]) for batch in batches), device=device)
        return batches, self.accelerator.reduce(rows, "sum")

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
        output = model(**inputs)
        task_ids = inputs["task_ids"]
        self._check_finite(output.losses.detach(), task_ids)
        self._note_losses(output.losses.detach(), task_ids)
        rows = len(task_ids) if num_items_in_batch is None else num_items_in_batch
        weighted = output.losses * self._lambdas.to(task_ids.device)[task_ids]
        # What the method adds counts once per step, so each batch brings its share of it.
        added = auxiliary_loss(self.accelerator.unwrap_model(model)).to(weighted) * len(task_ids)
        # Gradients are averaged over processes afterwards, but `rows` counts the rows of all of them.
        loss = (weighted.sum() + added) / rows * self.accelerator.num_processes
        return (loss, output) if return_outputs else loss

    def _check_finite(self, losses: Tensor, task_ids: Tensor) -> None:
        if bool(torch.isfinite(losses).all()):
            return
        bad = torch.unique(task_ids[~torch.isfinite(losses)]).tolist()
        names = [self.about_tasks[task_id] for task_id in bad]
        raise NonFiniteLossError(
            f"the loss became NaN or infinite at step {self.state.global_step + 1}, on rows of task(s) "
            f"{listing(names)}. {WHAT_TO_DO}"
        )

    @property
    def about_tasks(self) -> list[str]:
        """Task names in the order of their ids."""
        return list(self.about.tasks)

    def _note_losses(self, losses: Tensor, task_ids: Tensor) -> None:
        self._loss_sums = self._loss_sums.to(losses.device).index_add_(0, task_ids, losses.float())
        self._loss_rows = self._loss_rows.to(losses.device).index_add_(0, task_ids, torch.ones_like(losses))

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log as the Trainer does, with each task's mean training loss since the last log as ``loss/TASK``."""
        if "loss" in logs:
            sums, rows = (
                self.accelerator.reduce(t.clone(), "sum").tolist() for t in (self._loss_sums, self._loss_rows)
            )
            for name, total, count in zip(self.about_tasks, sums, rows, strict=True):
                if count:
                    logs[f"loss/{name}"] = total / count
            self._loss_sums.zero_()
            self._loss_rows.zero_()
        super().log(logs, start_time)

    def evaluate(
        self, eval_dataset: Any = None, ignore_keys: list[str] | None = None, metric_key_prefix: str = "eval"
    ) -> dict[str, float]:
        """Score every task on its tune rows; ``eval_average`` is the mean of the tasks' primary metrics.

        Raises:
            NonFiniteLossError: naming the tasks whose rows give NaN or infinity.
        """
        model = self.accelerator.unwrap_model(self.model)
        scores = score_tasks(model, self.tune_rows, self.data_collator, self.args.per_device_eval_batch_size)  # type: ignore[arg-type]
        bad = [name for name, task in scores.tasks.items() if not math.isfinite(task.loss)]
        if bad:  # before the checkpoint of this step is written: it would not be a good one
            raise NonFiniteLossError(
                f"the loss on tune became NaN or infinite after step {self.state.global_step}, on rows of task(s) "
                f"{listing(bad)}. {WHAT_TO_DO}"
            )
        # An average that lacks a task must not beat one that has it: a collapsed regression has no correlation.
        average = float("-inf") if scores.undefined or scores.average is None else scores.average
        if scores.undefined:
            warnings.warn(
                f"step {self.state.global_step}: the primary metric of {listing(scores.undefined)} is undefined on its "
                "tune rows (constant predictions or labels); this step is not taken for the best.",
                stacklevel=2,
            )
        metrics = {f"{metric_key_prefix}_average": average}
        for name, task in scores.tasks.items():
            metrics[f"{metric_key_prefix}_{name}_loss"] = task.loss
            for metric, value in task.metrics.items():
                if value is not None:
                    metrics[f"{metric_key_prefix}_{name}_{metric}"] = value
        self.log(dict(metrics))
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def get_decay_parameter_names(self, model: nn.Module) -> list[str]:
        """Return the parameters that take weight decay: not the task matrices, gates and embeddings."""
        without = {
            f"{prefix}.{name}"
            for prefix, module in model.named_modules()
            if isinstance(module, LowRankUpdate)
            for name, _ in module.named_parameters()
            if not module.takes_decay(name)
        }
        return [name for name in super().get_decay_parameter_names(model) if name not in without]

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """Return the optimiser; the encoder's weights have a learning rate of their own if one was given."""
        made = self.optimizer is None
        optimizer: torch.optim.Optimizer = super().create_optimizer(model)
        if made and self.encoder_learning_rate is not None:
            inner: Any = self.accelerator.unwrap_model(self.model)
            encoder = {id(parameter) for parameter in inner.encoder.parameters()}
            groups = []
            for group in optimizer.param_groups:
                parts = [[p for p in group["params"] if (id(p) in encoder) is inside] for inside in (True, False)]
                rates = (self.encoder_learning_rate, group["lr"])
                groups += [
                    {**group, "params": part, "lr": rate} for part, rate in zip(parts, rates, strict=True) if part
                ]
            optimizer.param_groups[:] = groups
        return optimizer

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        """Save adapter and heads; the frozen base is not written."""
        if self.args.should_save:
            save_model(self.accelerator.unwrap_model(self.model), self.about, output_dir or self.args.output_dir)  # type: ignore[arg-type]

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        """Load adapter and heads of a checkpoint.

        Raises:
            CheckpointError: if it was made for another base, other tasks, or the same ones in another order (task ids
                and the optimiser's state go by position).
        """
        saved = read_about(Path(resume_from_checkpoint))
        changed = [key for key, value in self.about if getattr(saved, key) != value]
        if list(saved.tasks) != list(self.about.tasks):
            changed.append("the order of the tasks")
        if changed:
            raise CheckpointError(
                f"{resume_from_checkpoint} does not belong to this run as it is now: {listing(changed)} changed since. "
                "Restore what was there, or start a new run."
            )
        target = model if model is not None else self.model
        load_weights(self.accelerator.unwrap_model(target), Path(resume_from_checkpoint))
