"""A recipe for images that have all tasks each: ``shape: dense``."""

from __future__ import annotations

from typing import Any, Literal

import pydantic

from tasklora.tasks import Split, Strict
from tasklora.training.sections import (
    MethodSection,
    OptimisationSection,
    OutputSection,
    Positive,
    WrittenOut,
    check_task_options,
)
from tasklora.vision.augment import Augmentation
from tasklora.vision.data import load_dense_suite
from tasklora.vision.spec import DenseSuite, DenseTaskSpec


class DenseModelSection(Strict):
    """The hierarchical transformer and the decoders on its stages.

    Attributes:
        name: public name on the hub, or a folder; a Swin.
        image_size: what images are resized to: one number, or [height, width].
        drop_path: chance that a sample skips a block while training; None is the base's own.
        decoder: one per task: "mtlora" (published with MTLoRA) or the lighter "segformer".
    """

    name: str
    revision: str | None = None
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    image_size: Positive | tuple[Positive, Positive]
    drop_path: float | None = pydantic.Field(None, ge=0, lt=1)
    decoder: Literal["mtlora", "segformer"] = "mtlora"

    @pydantic.field_validator("image_size", mode="before")
    @classmethod
    def _check_image_size(cls, value: Any) -> Any:
        """Say once what is wrong; a union of types would be explained once for each."""
        sizes = value if isinstance(value, list | tuple) and len(value) == 2 else [value]
        if not all(isinstance(size, int) and not isinstance(size, bool) and size > 0 for size in sizes):
            raise ValueError("image_size is one number of pixels, or [height, width], all positive")
        return value

    @property
    def size(self) -> tuple[int, int]:
        """(height, width)."""
        return (self.image_size, self.image_size) if isinstance(self.image_size, int) else self.image_size


class DenseTaskOptions(Strict):
    """How one dense task is weighed.

    Attributes:
        loss_weight: λ_t of the loss Σ_t λ_t L_t; None is the suite's.
    """

    loss_weight: float | None = pydantic.Field(None, gt=0)


class DenseTasksSection(Strict):
    """The tasks and their images.

    Attributes:
        suite: ``name``, ``name@version`` or the path of a dense suite's YAML file.
        include: which tasks, in this order; all by default.
        data_root: the data folder, laid out as the suite says; None for a suite that makes its images itself.
        limits: split → images at most; train and tune are drawn by the seed, those of validation and test are the same
            for every seed.
        options: task → its options.
        report_on: the split whose scores are reported.
        skip_bad_images: leave out images that cannot be read (they are named); otherwise they are an error.
    """

    suite: str
    include: list[str] | None = None
    data_root: str | None = None
    limits: dict[Split, Positive] = {}
    options: dict[str, DenseTaskOptions] = {}
    report_on: Literal["validation", "test"] = "validation"
    skip_bad_images: bool = False


class DenseTrainingSection(OptimisationSection):
    """Optimisation on images. Settings are judged on ``tune`` images, which are held out of train.

    Attributes:
        max_steps: optimiser steps; overrides `epochs`.
        batch_size: images.
        warmup_ratio: share of the steps with rising learning rate.
        evaluate_every: "epoch" or a number of steps; also how often a checkpoint is written.
        early_stopping_patience: evaluations without a better average on tune before training stops.
        balancing: how the tasks' losses or gradients are weighed against each other; null for the plain sum.
        keep_checkpoints: how many to keep; the best and the newest one are always kept.
        precision: "float32", or "bfloat16" for autocast.
        selection: "average": one model, that of the best average on tune. A choice per task is for text: all tasks of
            an image come from one forward.
        report_to: where transformers sends the log too, e.g. [tensorboard]; the package must be installed.
        augmentation: how training images vary, see :class:`tasklora.vision.augment.Augmentation`; null resizes only.
        workers: processes that read and augment images; 0 does it in the training process. Numbers do not depend on it.
    """

    eval_batch_size: Positive = 16
    selection: Literal["average"] = "average"
    augmentation: Augmentation | None = Augmentation()
    workers: int = pydantic.Field(0, ge=0)


class DenseRecipe(WrittenOut):
    """Everything about a run on images that have all tasks each; the sections' classes say what each key means."""

    description: str = ""
    shape: Literal["dense"]
    model: DenseModelSection
    tasks: DenseTasksSection
    method: MethodSection
    training: DenseTrainingSection = DenseTrainingSection()
    output: OutputSection = OutputSection()

    def suite(self) -> DenseSuite:
        """Return the suite of the recipe."""
        return load_dense_suite(self.tasks.suite)

    def task_specs(self) -> dict[str, DenseTaskSpec]:
        """Return the chosen tasks in their order, with the recipe's options applied.

        Raises:
            ConfigError: on an unknown or repeated task.
        """
        specs = self.suite().select(self.tasks.include)
        check_task_options(self.tasks.options, specs)
        for name, options in self.tasks.options.items():
            if options.loss_weight is not None:
                specs[name] = specs[name].model_copy(update={"loss_weight": options.loss_weight})
        return specs

    def loss_weights(self) -> dict[str, float]:
        """Return λ_t of each task."""
        return {name: spec.loss_weight for name, spec in self.task_specs().items()}
