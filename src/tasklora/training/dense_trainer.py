"""The trainer of dense tasks: every image has all of them.

The loss of an optimiser step is

    L = Σ_t λ_t L_t

with L_t as :mod:`tasklora.vision.losses` has it, over the valid pixels of the whole step (accumulation and processes):
batch 8 equals batch 2 accumulated 4 times, but for batch norms in decoders, which see the images of a batch only.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import TrainerCallback, TrainingArguments

from tasklora.errors import BrokenAdapterError, NonFiniteLossError
from tasklora.evaluation import SplitScores, score_images, scores_of_images
from tasklora.evaluation.dense import ImageCollator
from tasklora.training.balancer import TaskLosses
from tasklora.training.balancing import BalancingSection
from tasklora.training.base_trainer import WHAT_TO_DO, TasksTrainer
from tasklora.training.dense_data import ImageSampler, VariedImages
from tasklora.vision.data import DenseRows
from tasklora.vision.losses import dense_loss, step_counts
from tasklora.vision.model import DenseModel
from tasklora.vision.saved_model import SavedDenseModel, load_dense_weights, read_dense_about, save_dense_model

NORMS = (nn.LayerNorm, nn.GroupNorm, nn.modules.batchnorm._BatchNorm)
POSITION_TABLE = "relative_position_bias"


class DenseTrainer(TasksTrainer):
    """Trains a :class:`tasklora.vision.model.DenseModel` on all tasks of each image.

    Args:
        model: the model.
        about: what it is; written beside its weights in every checkpoint.
        args: transformers' training arguments.
        train_images: the training images.
        tune_images: images that choose the best checkpoint.
        loss_weights: task name → λ_t; the suite's by default.
        encoder_learning_rate: peak learning rate of the encoder; None for that of the decoders.
        callbacks: further callbacks.
        balancing: what weighs the tasks against each other; None for the loss above.
    """

    train_dataset: VariedImages

    def __init__(
        self,
        model: DenseModel,
        about: SavedDenseModel,
        args: TrainingArguments,
        train_images: VariedImages,
        tune_images: DenseRows,
        loss_weights: dict[str, float] | None = None,
        encoder_learning_rate: float | None = None,
        callbacks: list[TrainerCallback] | None = None,
        balancing: BalancingSection | None = None,
    ) -> None:
        weights = loss_weights or {name: spec.loss_weight for name, spec in about.tasks.items()}
        collator = ImageCollator(about.tasks)
        super().__init__(
            model, about, args, train_images, collator, weights, encoder_learning_rate, callbacks, balancing
        )
        self.tune_images = tune_images

    def _get_train_sampler(self, train_dataset: Any = None) -> ImageSampler:
        return ImageSampler(len(self.train_dataset), self.args.seed)

    def get_batch_samples(self, epoch_iterator: Any, num_batches: int, device: torch.device) -> Any:
        """Return the batches of a step, and (tasks, 2): the valid and the positive pixels of the whole step."""
        batches: list[dict[str, Any]] = []
        for _ in range(num_batches):
            batch = next(epoch_iterator, None)
            if batch is None:
                break
            batches.append(batch)
        counts = torch.zeros(len(self.about.tasks), 2, dtype=torch.float64, device=device)
        for batch in batches:
            for place, (name, spec) in enumerate(self.about.tasks.items()):
                counts[place] += step_counts(spec, batch["labels"][name]).to(device)
        self.step_batches = batches
        return batches, self.accelerator.reduce(counts, "sum")

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | None = None,
    ) -> Any:
        """Return the part of the step's loss that this batch contributes.

        Raises:
            NonFiniteLossError: naming the tasks that gave NaN or infinity, before anything is changed by it.
        """
        counts = num_items_in_batch
        if counts is None:
            counts = torch.stack([step_counts(spec, inputs["labels"][name]) for name, spec in self.about.tasks.items()])
        outputs, parts = self._parts(model, inputs, counts)
        losses = torch.stack(parts)
        # Gradients are averaged over processes afterwards, but the counts are those of all of them.
        loss = (losses * self._lambdas.to(losses)).sum() * self.accelerator.num_processes
        return (loss, outputs) if return_outputs else loss

    def _parts(
        self, model: nn.Module, inputs: dict[str, Any], counts: Tensor, note: bool = True
    ) -> tuple[dict[str, Tensor], list[Tensor]]:
        """Return what the model says, and the batch's part of L_t of each task."""
        outputs, labels, specs = model(inputs["pixel_values"]), inputs["labels"], self.about.tasks
        parts = [
            dense_loss(spec, outputs[name], labels[name], of_task)
            for (name, spec), of_task in zip(specs.items(), counts, strict=True)
        ]
        losses = torch.stack(parts).detach()
        task_ids = torch.arange(len(specs), device=losses.device)
        self.stop_if_not_finite(losses, task_ids)
        if note:
            # A step's parts add up to its loss; a task counts in the steps in which it has a label.
            shares = (counts[:, 0] > 0).float() / (max(1, len(self.step_batches)) * self.accelerator.num_processes)
            self.note_losses(losses, task_ids, shares.to(losses.device))
        return outputs, parts

    def task_losses(self, model: nn.Module, inputs: dict[str, Any], counts: Any, note: bool = True) -> TaskLosses:
        """Return a batch's part of λ_t L_t of each task that has a label in the step."""
        _, parts = self._parts(model, inputs, counts, note)
        # Not by an entry of a stack of them, whose backward would run through every task's decoder.
        weighted = [part * weight.to(part) for part, weight in zip(parts, self._lambdas, strict=True)]
        values = {task: weighted[task] for task in self.present_tasks(counts).nonzero().flatten().tolist()}
        return TaskLosses(values, torch.stack(weighted).detach().sum() * self.accelerator.num_processes)

    def present_tasks(self, counts: Any) -> Tensor:
        """Return which tasks have a valid pixel in the step."""
        present: Tensor = counts[:, 0] > 0
        return present

    def undecayed(self, model: nn.Module) -> set[str]:
        """Return what takes no weight decay: all norms, biases and relative-position tables too."""
        without = super().undecayed(model)
        for prefix, module in model.named_modules():
            for name, _ in module.named_parameters(recurse=False):
                if isinstance(module, NORMS) or name.endswith("bias") or POSITION_TABLE in f"{prefix}.{name}":
                    without.add(f"{prefix}.{name}")
        return without

    def score_tune(self) -> SplitScores:
        """Return the scores of the tune images.

        Raises:
            NonFiniteLossError: naming a task whose outputs are NaN or infinite.
        """
        model: Any = self.accelerator.unwrap_model(self.model)
        try:
            scored = score_images(
                model,
                self.tune_images,
                self.about.image_size,
                self.args.per_device_eval_batch_size,
                self.args.dataloader_num_workers,
            )
        except BrokenAdapterError as error:
            raise NonFiniteLossError(
                f"the loss on tune became NaN or infinite after step {self.state.global_step}: {error} {WHAT_TO_DO}"
            ) from error
        return scores_of_images(self.about.tasks, scored)

    def write_model(self, model: nn.Module, directory: Path) -> None:
        """Write what is trained of the encoder, and the decoders."""
        save_dense_model(model, self.about, directory)  # type: ignore[arg-type]

    def read_about(self, directory: Path) -> SavedDenseModel:
        """Return what the saved model in a directory is."""
        return read_dense_about(directory)

    def read_weights(self, model: nn.Module, directory: Path) -> None:
        """Load what :meth:`write_model` wrote."""
        load_dense_weights(model, directory)  # type: ignore[arg-type]
