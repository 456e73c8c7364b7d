"""What the trainers of both shapes share: transformers.Trainer with the family's loss, logs, scores and checkpoints."""

from __future__ import annotations

import math
import os
import shutil
import warnings
from abc import abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import EarlyStoppingCallback, Trainer, TrainerCallback, TrainerControl, TrainingArguments
from transformers.trainer import OPTIMIZER_NAME, SCHEDULER_NAME, TRAINER_STATE_NAME

from tasklora.errors import CheckpointError, NonFiniteLossError, UnsupportedError, listing
from tasklora.evaluation import SplitScores
from tasklora.tasks.whole_files import PARTIAL, move_folder_into_place, writing
from tasklora.training.balancer import BalancingCallback, TaskLosses
from tasklora.training.balancing import BalancingSection
from tasklora.training.checkpoints import LogState, checkpoint_folder, remove_older
from tasklora.training.sharding import ShardedOptimizerState
from tasklora.tuner.sharding import is_sharded, whole
from tasklora.updates import LowRankUpdate
from tasklora.updates.streams import TaskFactors

WHAT_TO_DO = (
    "Training stopped before a checkpoint with it was written; earlier checkpoints are kept. Try a lower learning "
    "rate, float32 precision, or look at those tasks' rows."
)


class TasksTrainer(Trainer):
    """A trainer of several tasks at once; a subclass says what a batch is, and how it is scored and saved.

    Args:
        model: the model; it has an ``encoder``. It may be sharded: :meth:`tasklora.training.sharding.Sharding.shard`.
        about: what it is; written beside its weights in every checkpoint. It has ``tasks``, name → task.
        args: transformers' training arguments.
        dataset: the training rows.
        collator: makes the batches.
        loss_weights: task name → λ_t.
        encoder_learning_rate: peak learning rate of the encoder; None for that of everything else.
        callbacks: further callbacks.
        balancing: what weighs the tasks against each other; None for the plain loss.

    Raises:
        UnsupportedError: under FSDP as accelerate does it, or DeepSpeed.
        ConfigError: if there is nothing to balance, or something is not installed.
    """

    control: TrainerControl

    def __init__(
        self,
        model: nn.Module,
        about: Any,
        args: TrainingArguments,
        dataset: Any,
        collator: Any,
        loss_weights: Mapping[str, float] | None = None,
        encoder_learning_rate: float | None = None,
        callbacks: list[TrainerCallback] | None = None,
        balancing: BalancingSection | None = None,
    ) -> None:
        # Rows of one batch belong together (pairs; a batch's labels), so torch's DataParallel must not scatter them.
        args._n_gpu = min(args.n_gpu, 1)
        args.remove_unused_columns = False
        super().__init__(
            model=model,
            args=args,
            data_collator=collator,
            train_dataset=dataset,
            eval_dataset=dataset,  # a placeholder: `evaluate` scores the tune rows task by task
            callbacks=callbacks,
        )
        if self.is_fsdp_enabled or self.is_deepspeed_enabled:
            raise UnsupportedError(
                f"{type(self).__name__} does not save what accelerate or DeepSpeed shard: train with plain processes "
                "(DDP), or FSDP2 through `tasklora train`."
            )
        # compute_loss divides by what the whole step has itself.
        self.model_accepts_loss_kwargs = True
        self.loss_is_scaled_for_ga = True
        self.about = about
        self.encoder_learning_rate = encoder_learning_rate
        weights = dict(loss_weights or {})
        self._lambdas = torch.tensor([weights.get(name, 1.0) for name in self.about_tasks])
        self._loss_sums = torch.zeros(len(self.about_tasks))
        self._loss_counts = torch.zeros(len(self.about_tasks))
        self.step_batches: list[dict[str, Any]] = []
        self.balancer = None if balancing is None else balancing.balancer(self)
        if self.balancer is not None:
            self.add_callback(BalancingCallback(self.balancer))
        self._log_state = LogState(self)
        self.add_callback(self._log_state)
        self._scratch = ""

    @abstractmethod
    def task_losses(self, model: nn.Module, inputs: dict[str, Any], counts: Any, note: bool = True) -> TaskLosses:
        """Return what a batch contributes to the losses of its step, each task's apart.

        Args:
            model: the model.
            inputs: the batch.
            counts: what the whole step has, as ``get_batch_samples`` says.
            note: keep the losses for the log.

        Raises:
            NonFiniteLossError: naming the tasks that gave NaN or infinity.
        """

    @abstractmethod
    def present_tasks(self, counts: Any) -> Tensor:
        """Return which tasks a step has, (T,) bool."""

    @abstractmethod
    def score_tune(self) -> SplitScores:
        """Return the scores of the tune rows, which choose the best checkpoint."""

    @abstractmethod
    def write_model(self, model: nn.Module, directory: Path) -> None:
        """Write what is trained of the model into a directory."""

    @abstractmethod
    def read_about(self, directory: Path) -> Any:
        """Return what the saved model in a directory is."""

    @abstractmethod
    def read_weights(self, model: nn.Module, directory: Path) -> None:
        """Load what :meth:`write_model` wrote."""

    @property
    def is_sharded(self) -> bool:
        """Whether FSDP2 shards the model."""
        return is_sharded(self.model)

    @property
    def about_tasks(self) -> list[str]:
        """Task names in the order of their ids."""
        return list(self.about.tasks)

    def _move_model_to_device(self, model: nn.Module, device: torch.device) -> None:
        if not is_sharded(model):  # that moved it
            super()._move_model_to_device(model, device)

    def _wrap_model(self, model: nn.Module, training: bool = True, dataloader: Any = None) -> nn.Module:
        if self.is_sharded and not getattr(model, "_is_accelerate_prepared", False):
            # Lower precision is all that accelerate adds; wrapped as evaluation is, a model does not get DDP.
            self.accelerator.prepare_model(model, device_placement=False, evaluation_mode=True)
            model._is_accelerate_prepared = True  # type: ignore[assignment]
        wrapped: nn.Module = super()._wrap_model(model, training, dataloader)
        return wrapped

    def _get_grad_norm(self, model: nn.Module, grad_norm: Any = None) -> Any:
        norm = super()._get_grad_norm(model, grad_norm=grad_norm)
        return norm.full_tensor() if self.is_sharded else norm

    def split_by_task(self, inputs: dict[str, Any]) -> list[dict[str, Any]]:
        """Return batches with the rows of one task each, where rows have one; else the batch itself."""
        return [inputs]

    def added_loss(self, model: nn.Module, inputs: dict[str, Any], counts: Any) -> Tensor:
        """Return a batch's share of what the method adds to the loss of a step."""
        return torch.zeros((), device=self.args.device)

    def training_step(
        self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: Tensor | int | None = None
    ) -> Tensor:
        """Run forward and backward of a batch, and return its part of the loss."""
        if self.balancer is None:
            loss: Tensor = super().training_step(model, inputs, num_items_in_batch)
            return loss
        model.train()
        return self.balancer.step(model, self._prepare_inputs(inputs), num_items_in_batch)

    def stop_if_not_finite(self, losses: Tensor, task_ids: Tensor) -> None:
        """Stop where a loss is NaN or infinite.

        Args:
            losses: (entries,).
            task_ids: (entries,), the task of each.

        Raises:
            NonFiniteLossError: naming the tasks, before anything is changed by it.
        """
        if bool(torch.isfinite(losses).all()):
            return
        bad = torch.unique(task_ids[~torch.isfinite(losses)]).tolist()
        names = [self.about_tasks[task_id] for task_id in bad]
        raise NonFiniteLossError(
            f"the loss became NaN or infinite at step {self.state.global_step + 1}, on rows of task(s) "
            f"{listing(names)}. {WHAT_TO_DO}"
        )

    def drawn_rows(self) -> dict[str, int]:
        """Return how many rows of each task the run has drawn so far; empty where every row has all tasks."""
        return {}

    def note_losses(self, losses: Tensor, task_ids: Tensor, counts: Tensor) -> None:
        """Keep losses for the next log, which shows Σ losses / Σ counts of each task.

        Args:
            losses: (entries,).
            task_ids: (entries,), the task of each.
            counts: (entries,), what each counts.
        """
        self._loss_sums = self._loss_sums.to(losses.device).index_add_(0, task_ids, losses.float())
        self._loss_counts = self._loss_counts.to(losses.device).index_add_(0, task_ids, counts.float())

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log as the Trainer does, with each task's mean training loss since the last log as ``loss/TASK``.

        Where tasks are balanced, also ``weight/TASK`` and ``cosine/TASK``, each task's mean cosine with the others.
        """
        if "loss" in logs:
            sums, counts = (
                self.accelerator.reduce(t.clone(), "sum").tolist() for t in (self._loss_sums, self._loss_counts)
            )
            for name, total, count in zip(self.about_tasks, sums, counts, strict=True):
                if count:
                    logs[f"loss/{name}"] = total / count
            self._loss_sums.zero_()
            self._loss_counts.zero_()
            if self.balancer is not None:
                logs.update(self.balancer.take_logs())
        if "train_loss" in logs:  # the Trainer's is of the steps since the last resumption
            logs["train_loss"] = self._total_loss_scalar / max(self.state.global_step, 1)
        super().log(logs, start_time)

    def evaluate(
        self, eval_dataset: Any = None, ignore_keys: list[str] | None = None, metric_key_prefix: str = "eval"
    ) -> dict[str, float]:
        """Score every task on its tune rows; ``eval_average`` is the average that chooses the best checkpoint.

        Raises:
            NonFiniteLossError: naming the tasks whose rows give NaN or infinity.
        """
        scores = self.score_tune()
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

    def undecayed(self, model: nn.Module) -> set[str]:
        """Return the parameters that take no weight decay besides the Trainer's own (norms and biases)."""
        return {
            f"{prefix}.{name}"
            for prefix, module in model.named_modules()
            if isinstance(module, (LowRankUpdate, TaskFactors))
            for name, _ in module.named_parameters()
            if not module.takes_decay(name)
        }

    def get_decay_parameter_names(self, model: nn.Module) -> list[str]:
        """Return the parameters that take weight decay: not the task matrices, gates and embeddings."""
        without = self.undecayed(model)
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
        learned = self.balancer.rule.parameters() if made and self.balancer is not None else []
        if learned and self.balancer is not None:
            rate = self.balancer.rule.learning_rate or self.args.learning_rate
            optimizer.add_param_group({"params": learned, "weight_decay": 0.0, "lr": rate})
        if made and self.is_sharded:
            optimizer.register_load_state_dict_pre_hook(ShardedOptimizerState())
        return optimizer

    def _run_epoch(self, **kwargs: Any) -> None:
        """Train an epoch; none where early stopping had ended the run before it was resumed."""
        stopping = [one for one in self.callback_handler.callbacks if isinstance(one, EarlyStoppingCallback)]
        if any(one.early_stopping_patience_counter >= one.early_stopping_patience for one in stopping):
            self.control.should_training_stop = True
            return
        super()._run_epoch(**kwargs)

    def _get_output_dir(self, trial: Any) -> str:
        return os.path.join(super()._get_output_dir(trial), self._scratch)

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        """Write a checkpoint beside its place, move it there, then remove older ones."""
        folder = Path(super()._get_output_dir(trial))
        scratch, place = folder / PARTIAL, checkpoint_folder(folder, self.state.global_step)
        if self.args.should_save:
            shutil.rmtree(scratch, ignore_errors=True)
        self._log_state.gather()
        self.accelerator.wait_for_everyone()
        self._scratch = PARTIAL
        try:
            with writing(f"the checkpoint of step {self.state.global_step}", folder):
                super()._save_checkpoint(model, trial)
        finally:
            self._scratch = ""
        self.accelerator.wait_for_everyone()  # every process has written its random numbers' state
        best = checkpoint_folder(folder, self.state.best_global_step or 0)
        if best == place:
            self.state.best_model_checkpoint = str(place)
        if self.args.should_save:
            written = scratch / place.name
            with writing(f"the checkpoint of step {self.state.global_step}", folder):
                self._log_state.save(written)
                self.state.save_to_json(str(written / TRAINER_STATE_NAME))
                move_folder_into_place(written, place)
            shutil.rmtree(scratch)
            remove_older(folder, {place, best}, self.args.save_total_limit or len(os.listdir(folder)))

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        """Save their state; that of a sharded model's optimiser is gathered, and saved as one process has it."""
        if not self.is_sharded:
            super()._save_optimizer_and_scheduler(output_dir)
            return
        state = whole(self.optimizer.state_dict())
        if self.args.should_save:
            torch.save(state, os.path.join(output_dir, OPTIMIZER_NAME))
            torch.save(self.lr_scheduler.state_dict(), os.path.join(output_dir, SCHEDULER_NAME))

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        """Save what is trained; the frozen base is not written."""
        if self.args.should_save or self.is_sharded:
            directory = Path(output_dir or self.args.output_dir)
            self.write_model(self.accelerator.unwrap_model(self.model), directory)
            if self.balancer is not None:
                self.balancer.save(directory)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        """Load the weights of a checkpoint.

        Raises:
            CheckpointError: if it was made for another base, other tasks, or the same ones in another order (task ids
                and the optimiser's state go by position).
        """
        saved = self.read_about(Path(resume_from_checkpoint))
        changed = [key for key, value in self.about if getattr(saved, key) != value]
        if list(saved.tasks) != list(self.about.tasks):
            changed.append("the order of the tasks")
        if changed:
            raise CheckpointError(
                f"{resume_from_checkpoint} does not belong to this run as it is now: {listing(changed)} changed since. "
                "Restore what was there, or start a new run."
            )
        target = model if model is not None else self.model
        self.read_weights(self.accelerator.unwrap_model(target), Path(resume_from_checkpoint))
        if self.balancer is not None:
            self.balancer.load(Path(resume_from_checkpoint))
        self._log_state.load(Path(resume_from_checkpoint))
