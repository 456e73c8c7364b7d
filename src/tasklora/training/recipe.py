"""A recipe for rows that have one task each; see :mod:`tasklora.training.recipes` for how recipes are read."""

from __future__ import annotations

from typing import Literal

import pydantic

from tasklora.tasks import Split, Strict, Suite, TaskSpec, load_suite, parse
from tasklora.training.sections import (
    MethodSection,
    OptimisationSection,
    OutputSection,
    Positive,
    WrittenOut,
    check_task_options,
)


class ModelSection(Strict):
    """The frozen base encoder and how tasks read it.

    Attributes:
        name: public name on the hub, or a folder.
        pooling: how token vectors become one vector: "mean", "cls" or "last".
        max_length: longest sequence in tokens.
        pair_encoding: pairs of texts as one sequence ("joint") or as two whose vectors the head compares ("separate").
        trust_remote_code: run code that comes with the model.
    """

    name: str
    revision: str | None = None
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    pooling: Literal["mean", "cls", "last"] = "mean"
    max_length: Positive = 128
    pair_encoding: Literal["joint", "separate"] = "joint"
    head_dropout: float = pydantic.Field(0.1, ge=0, lt=1)
    trust_remote_code: bool = False


class TaskOptions(Strict):
    """How one task is seen and weighed; what is not given comes from the suite or the model section.

    Attributes:
        class_weights: "none" or "balanced".
        pair_encoding: "joint" or "separate".
        loss_weight: λ_t of the loss Σ_t λ_t Σ_rows ℓ / rows.
    """

    class_weights: Literal["none", "balanced"] | None = None
    pair_encoding: Literal["joint", "separate"] | None = None
    loss_weight: float = pydantic.Field(1.0, gt=0)


class TasksSection(Strict):
    """The tasks and their rows.

    Attributes:
        suite: ``name``, ``name@version`` or the path of a suite's YAML file.
        include: which tasks, in the order of their ids; all by default.
        data_root: folder with ``TASK/SPLIT.jsonl``; None loads from the hub.
        limits: split → rows per task at most; train and tune are drawn by the seed, those of validation and
            test are the same for every seed.
        options: task → its options.
        report_on: the split whose scores are reported.
    """

    suite: str
    include: list[str] | None = None
    data_root: str | None = None
    limits: dict[Split, Positive] = {}
    options: dict[str, TaskOptions] = {}
    report_on: Literal["validation", "test"] = "validation"


class MixingSection(Strict):
    """How often each task is drawn: see :class:`tasklora.training.mixing.TaskMixingSampler`.

    Attributes:
        strategy: "proportional", "equal", "temperature" or "capped".
        temperature: of "temperature": p_t ∝ n_t^(1/temperature).
        cap: of "capped": p_t ∝ min(n_t, cap).
    """

    strategy: Literal["proportional", "equal", "temperature", "capped"] = "proportional"
    temperature: float = pydantic.Field(2.0, gt=0)
    cap: Positive | None = None

    @pydantic.model_validator(mode="after")
    def _check(self) -> MixingSection:
        if self.strategy == "capped" and self.cap is None:
            raise ValueError("mixing strategy 'capped' needs `cap`, the number of rows a task counts at most")
        return self


class GradientCosinesSection(Strict):
    """Cosines between the tasks' gradients of what they share: see :mod:`tasklora.evaluation.gradients`.

    Attributes:
        every: optimiser steps from one measurement to the next; the first is before training.
        rows: training rows of each task that a measurement draws; a forward and backward of all of them is its cost.
    """

    every: Positive
    rows: int = pydantic.Field(32, ge=2)


class TrainingSection(OptimisationSection):
    """Optimisation. Settings are judged on ``tune`` rows, which are held out of train.

    Attributes:
        max_steps: optimiser steps; overrides `epochs`.
        warmup_ratio: share of the steps with rising learning rate.
        evaluate_every: "epoch" or a number of steps; also how often a checkpoint is written.
        early_stopping_patience: evaluations without a better average on tune before training stops.
        group_by_length: put rows of similar length into the same batch, whatever their tasks.
        keep_checkpoints: how many to keep; the best and the newest one are always kept.
        precision: "float32", or "bfloat16" for autocast.
        gradient_cosines: how often to measure them; null for never. Training ends bit for bit the same.
    """

    mixing: MixingSection = MixingSection()
    group_by_length: bool = True
    gradient_cosines: GradientCosinesSection | None = None


class Recipe(WrittenOut):
    """Everything about a run; the sections' classes say what each key means.

    Attributes:
        shape: what a row has: "text" here, one task; see :class:`~tasklora.training.dense_recipe.DenseRecipe`.
        extends: a run directory: its trained model gets the recipe's tasks, and only what is their own is trained.
    """

    description: str = ""
    shape: Literal["text"] = "text"
    extends: str | None = None
    model: ModelSection
    tasks: TasksSection
    method: MethodSection
    training: TrainingSection = TrainingSection()
    output: OutputSection = OutputSection()

    def suite(self) -> Suite:
        """Return the suite of the recipe."""
        return load_suite(self.tasks.suite)

    def task_specs(self) -> dict[str, TaskSpec]:
        """Return the chosen tasks, in the order of their ids, with the recipe's options applied.

        Raises:
            ConfigError: on an unknown or repeated task.
        """
        specs = self.suite().select(self.tasks.include)
        check_task_options(self.tasks.options, specs)
        for name, options in self.tasks.options.items():
            if options.class_weights is not None:
                changed = {**specs[name].model_dump(), "class_weights": options.class_weights}
                specs[name] = parse(TaskSpec, changed, f"tasks.options.{name}")
        return specs

    def options_of(self, task: str) -> TaskOptions:
        """Return the options of a task."""
        return self.tasks.options.get(task, TaskOptions())

    def pair_encodings(self) -> dict[str, Literal["joint", "separate"]]:
        """Return how each task's pairs are encoded."""
        return {name: self.options_of(name).pair_encoding or self.model.pair_encoding for name in self.task_specs()}

    def loss_weights(self) -> dict[str, float]:
        """Return λ_t of each task."""
        return {name: self.options_of(name).loss_weight for name in self.task_specs()}
