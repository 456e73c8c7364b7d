"""A recipe: one YAML file that says everything about a run."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import pydantic
import yaml

from tasklora.errors import ConfigError, did_you_mean
from tasklora.tasks import Split, Strict, Suite, TaskSpec, load_suite, parse, read_yaml

Positive = pydantic.PositiveInt


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


class MethodSection(pydantic.BaseModel):
    """The method's name and its options, which are those of its PEFT config."""

    model_config = pydantic.ConfigDict(extra="allow")
    name: str

    @property
    def options(self) -> dict[str, Any]:
        """The options, without the name."""
        return dict(self.model_extra or {})


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


class TrainingSection(Strict):
    """Optimisation. Settings are judged on ``tune`` rows, which are held out of train.

    Attributes:
        max_steps: optimiser steps; overrides `epochs`.
        warmup_ratio: share of the steps with rising learning rate.
        evaluate_every: "epoch" or a number of steps; also how often a checkpoint is written.
        early_stopping_patience: evaluations without a better average on tune before training stops.
        group_by_length: put rows of similar length into the same batch, whatever their tasks.
        keep_checkpoints: how many to keep; the best and the newest one are always kept.
        precision: "float32", or "bfloat16" for autocast.
    """

    epochs: float = pydantic.Field(3.0, gt=0)
    max_steps: Positive | None = None
    batch_size: Positive = 32
    gradient_accumulation_steps: Positive = 1
    learning_rate: float = pydantic.Field(1e-3, gt=0)
    weight_decay: float = pydantic.Field(0.0, ge=0)
    warmup_ratio: float = pydantic.Field(0.06, ge=0, lt=1)
    scheduler: Literal["linear", "cosine", "constant", "constant_with_warmup"] = "linear"
    max_grad_norm: float = pydantic.Field(1.0, ge=0)
    mixing: MixingSection = MixingSection()
    seed: int = pydantic.Field(0, ge=0, lt=2**32)
    evaluate_every: Literal["epoch"] | Positive = "epoch"
    early_stopping_patience: Positive | None = None
    precision: Literal["float32", "bfloat16"] = "float32"
    gradient_checkpointing: bool = False
    group_by_length: bool = True
    logging_steps: Positive = 10
    eval_batch_size: Positive = 64
    keep_checkpoints: Positive = 2
    report_to: list[str] = []


class OutputSection(Strict):
    """Where the run goes.

    Attributes:
        directory: the run directory; must be new or empty.
    """

    directory: str = "runs/tasklora"


class Recipe(Strict):
    """Everything about a run; the sections' classes say what each key means.

    Attributes:
        extends: a run directory: its trained model gets the recipe's tasks, and only what is their own is trained.
    """

    description: str = ""
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
        for name, options in self.tasks.options.items():
            if name not in specs:
                raise ConfigError(
                    f"tasks.options names '{name}', which is no task of this recipe.{did_you_mean(name, specs)}"
                )
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

    def to_yaml(self) -> str:
        """Return the recipe with every default written out."""
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def load_recipe(path: str | Path, overrides: list[str] | None = None) -> Recipe:
    """Load and check a recipe.

    Args:
        path: the YAML file.
        overrides: ``section.key=value`` pairs, the values in YAML.

    Raises:
        DataError: if there is no such file.
        ConfigError: on an unknown key (with the nearest valid one) or a value of the wrong kind.
    """
    path = Path(path)
    data = read_yaml(path)
    for override in overrides or []:
        _apply(data, override)
    recipe = parse(Recipe, data, str(path))
    recipe.task_specs()
    return recipe


def changed(recipe: Recipe, settings: Mapping[str, Any]) -> Recipe:
    """Return the recipe with other values at some keys.

    Args:
        recipe: the recipe; it stays as it is.
        settings: ``section.key`` → value.

    Raises:
        ConfigError: on an unknown key or a value of the wrong kind.
    """
    data = recipe.model_dump(mode="json")
    for key, value in settings.items():
        _put(data, key, value)
    return parse(Recipe, data, "the recipe with " + ", ".join(f"{key}={value}" for key, value in settings.items()))


def _apply(data: Any, override: str) -> None:
    key, equals, value = override.partition("=")
    if not equals or not key:
        raise ConfigError(f"'{override}' is no override; write section.key=value, e.g. training.epochs=2.")
    try:
        _put(data, key, yaml.safe_load(value))
    except yaml.YAMLError as error:
        raise ConfigError(f"'{override}': the value is not valid YAML ({error}).") from None


def _put(data: Any, key: str, value: Any) -> None:
    *path, last = key.split(".")
    for part in path:
        if not isinstance(data, dict):
            raise ConfigError(f"'{key}' leads into a value that is no section.")
        data = data.setdefault(part, {})
    if not isinstance(data, dict):
        raise ConfigError(f"'{key}' leads into a value that is no section.")
    data[last] = value
