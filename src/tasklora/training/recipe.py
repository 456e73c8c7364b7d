"""A recipe for rows that have one task each; see :mod:`tasklora.training.recipes` for how recipes are read."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any, Literal

import pydantic

from tasklora.errors import ConfigError, did_you_mean
from tasklora.tasks import (
    TEXT_FORMS,
    VIEWS,
    Evaluation,
    Split,
    Streaming,
    Strict,
    Suite,
    TaskSpec,
    Template,
    TextToText,
    View,
    load_suite,
    parse,
    shipped_templates,
)
from tasklora.tasks.sources import Files
from tasklora.tasks.spec import SPLITS
from tasklora.training.mixing_section import MixingSection
from tasklora.training.sections import (
    MethodSection,
    OptimisationSection,
    OutputSection,
    Positive,
    WrittenOut,
    check_task_options,
)


class ModelSection(Strict):
    """The frozen base and how it sees tasks.

    Attributes:
        name: public name on the hub, or a folder.
        view: "heads", a head for each task on an encoder; or "text_to_text", tasks as prompt and response of a causal
            language model, without heads.
        pooling: how token vectors become one vector: "mean", "cls" or "last".
        max_length: longest sequence in tokens; with text_to_text, of prompt and response together.
        pair_encoding: pairs of texts as one sequence ("joint") or as two whose vectors the head compares ("separate").
        evaluation: text_to_text: how tasks with options are answered, see :data:`tasklora.tasks.templates.Evaluation`.
        max_new_tokens: text_to_text: tokens that are generated at most.
        trust_remote_code: run code that comes with the model.
    """

    name: str
    view: Literal["heads", "text_to_text"] = "heads"
    revision: str | None = None
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    pooling: Literal["mean", "cls", "last"] = "mean"
    max_length: Positive = 128
    pair_encoding: Literal["joint", "separate"] = "joint"
    head_dropout: float = pydantic.Field(0.1, ge=0, lt=1)
    evaluation: Evaluation = "likelihood"
    max_new_tokens: Positive = 32
    trust_remote_code: bool = False

    @pydantic.model_validator(mode="after")
    def _check_view(self) -> ModelSection:
        others = {
            "heads": ("evaluation", "max_new_tokens"),
            "text_to_text": ("pooling", "pair_encoding", "head_dropout"),
        }
        for key in others[self.view]:
            if getattr(self, key) != type(self).model_fields[key].default:
                raise ValueError(f"{key} means nothing with `view: {self.view}`: leave it out, or take another view")
        return self


class TaskOptions(Strict):
    """How one task is seen and weighed; what is not given comes from the suite or the model section.

    Attributes:
        class_weights: "none" or "balanced".
        pair_encoding: "joint" or "separate".
        loss_weight: λ_t of the loss Σ_t λ_t Σ_rows ℓ / rows.
        template: with model.view text_to_text, how the task is written; by default the suite's, else the kind's.
    """

    class_weights: Literal["none", "balanced"] | None = None
    pair_encoding: Literal["joint", "separate"] | None = None
    loss_weight: float = pydantic.Field(1.0, gt=0)
    template: Template | None = None


class OwnTask(TaskSpec):
    """A task of one's own, written into the recipe: what a suite says of a task, and where its rows are.

    Attributes:
        files: a path, or a path for each split: .csv, .tsv, .jsonl, .json or .parquet, a folder with a file for each
            split, or one that `datasets` saved. Where validation is missing, a fixed fifth of train (at most 2,000
            rows) is held out for it.
        streaming: read the training rows while training goes on, and never hold all of them; null reads them before.
    """

    files: Files | None = None
    streaming: Streaming | None = None

    @pydantic.field_validator("files", mode="before")
    @classmethod
    def _check_files(cls, files: Any) -> Any:
        if files is None or isinstance(files, str):
            return files
        if not isinstance(files, dict) or not files or not all(isinstance(path, str) for path in files.values()):
            raise ValueError("give a path, or a path for each split: {train: PATH, validation: PATH}")
        for split in files:
            if split not in SPLITS:
                raise ValueError(f"unknown split '{split}'.{did_you_mean(split, SPLITS)} One of: {', '.join(SPLITS)}")
        return files

    def spec(self) -> TaskSpec:
        """Return the task without where its rows are, which is no part of a saved model."""
        return TaskSpec(**self.model_dump(exclude={"files", "streaming"}))


class OwnSuite(Suite):
    """The tasks that a recipe defines."""

    name: str = "own tasks"
    version: int = 1

    @property
    def reference(self) -> str:
        """``own tasks``: the recipe alone says what they are, so they have no version."""
        return self.name


class TasksSection(Strict):
    """The tasks and their rows: those of a suite, or tasks of one's own.

    Attributes:
        suite: ``name``, ``name@version`` or the path of a suite's YAML file; or `define`.
        define: task → what it is and where its rows are, in place of a suite.
        include: which tasks, in the order of their ids; all by default.
        data_root: folder with ``TASK/SPLIT.jsonl``, in place of `files` and the hub.
        limits: split → rows per task at most; train and tune are drawn by the seed, those of validation and
            test are the same for every seed.
        options: task → its options.
        report_on: the split whose scores are reported.
    """

    suite: str | None = None
    define: dict[str, OwnTask] = {}
    include: list[str] | None = None
    data_root: str | None = None
    limits: dict[Split, Positive] = {}
    options: dict[str, TaskOptions] = {}
    report_on: Literal["validation", "test"] = "validation"

    @pydantic.model_validator(mode="after")
    def _check(self) -> TasksSection:
        if self.suite is None and not self.define:
            raise ValueError("name a `suite`, or write tasks of your own under `define`")
        if self.suite is not None and self.define:
            raise ValueError(
                "give `suite` or `define`, not both: a suite's task can stand under `define` too, with `hub` or `files`"
            )
        return self

    def files(self) -> dict[str, Files]:
        """Return task → its files, of the tasks that have files of their own."""
        return {name: task.files for name, task in self.define.items() if task.files is not None}

    def streaming(self, tasks: Collection[str]) -> dict[str, Streaming]:
        """Return task → how its training rows are streamed, of those among `tasks` whose rows are."""
        return {
            name: task.streaming for name, task in self.define.items() if name in tasks and task.streaming is not None
        }


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
        balancing: how the tasks' losses or gradients are weighed against each other; null for the family's plain sum.
        group_by_length: put rows of similar length into the same batch, whatever their tasks. null: yes, unless
            `balancing`, which needs tasks in proportion in every batch, `packing`, which needs short rows beside long
            ones, or streamed tasks, whose rows are not known beforehand.
        packing: with model.view text_to_text, put several rows of a batch, of any tasks, into one sequence: the same
            losses and gradients from fewer tokens.
        keep_checkpoints: how many to keep; the best and the newest one are always kept.
        precision: "float32", or "bfloat16" for autocast.
        selection: "average": one model for all tasks, that of the best average on tune; "per_task": beside it, the
            model of each task's own best score on tune.
        report_to: where transformers sends the log too, e.g. [tensorboard]; the package must be installed.
        gradient_cosines: how often to measure them; null for never. Training ends bit for bit the same.
    """

    selection: Literal["average", "per_task"] = "average"
    mixing: MixingSection = MixingSection()
    group_by_length: bool | None = None
    packing: bool = False
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
        """Return the suite of the recipe, or the tasks that it defines."""
        if self.tasks.suite is not None:
            return load_suite(self.tasks.suite)
        return OwnSuite(tasks={name: task.spec() for name, task in self.tasks.define.items()})

    def groups_by_length(self) -> bool:
        """Return whether rows of similar length share batches."""
        section = self.training
        if section.group_by_length is not None:
            return section.group_by_length
        return section.balancing is None and not section.packing and not self.tasks.streaming(self.task_specs())

    def task_specs(self) -> dict[str, TaskSpec]:
        """Return the chosen tasks, in the order of their ids, with the recipe's options applied.

        Raises:
            ConfigError: on an unknown or repeated task, or one that the model's view cannot see; on `packing` where
                rows cannot be packed.
        """
        if self.training.packing:
            self.view().check_packing()
        specs = self.suite().select(self.tasks.include)
        check_task_options(self.tasks.options, specs)
        self.training.mixing.check_tasks(specs)
        for name, options in self.tasks.options.items():
            if options.class_weights is not None:
                changed = {**specs[name].model_dump(), "class_weights": options.class_weights}
                specs[name] = parse(TaskSpec, changed, f"tasks.options.{name}")
        if self.model.view == "text_to_text":
            specs = self._without_heads(specs)
        templates = self._given_templates()
        for name, spec in specs.items():
            self.view().check_task(name, spec, templates.get(name), self.model.evaluation)
        return specs

    def view(self) -> View:
        """Return how the model sees tasks."""
        return VIEWS[self.model.view]

    def _without_heads(self, specs: dict[str, TaskSpec]) -> dict[str, TaskSpec]:
        """Return tasks as a model without heads has them: class weights are a head's. A suite's are left out.

        Raises:
            ConfigError: if the recipe itself gives a task something that is a head's.
        """
        for name, spec in specs.items():
            options = self.options_of(name)
            own = name in self.tasks.define and spec.class_weights != "none"
            if options.class_weights == "balanced" or options.pair_encoding is not None or own:
                raise ConfigError(
                    f"task '{name}': class_weights and pair_encoding are a head's, and model.view: text_to_text has no "
                    "heads. Leave them out."
                )
        return {name: spec.model_copy(update={"class_weights": "none"}) for name, spec in specs.items()}

    def _given_templates(self) -> dict[str, Template]:
        """Return the templates of the recipe's own options and, of a text-to-text model, of the suite by its name."""
        shipped = shipped_templates(self.suite().name) if self.model.view == "text_to_text" else {}
        own = {name: options.template for name, options in self.tasks.options.items() if options.template is not None}
        return {**shipped, **own}

    def text_to_text(self) -> TextToText | None:
        """Return how tasks are written and answered; None where they have heads."""
        if self.model.view != "text_to_text":
            return None
        given = self._given_templates()
        templates = {
            name: given[name] if name in given else TEXT_FORMS[spec.kind].default(spec)
            for name, spec in self.task_specs().items()
        }
        return TextToText(
            templates=templates, evaluation=self.model.evaluation, max_new_tokens=self.model.max_new_tokens
        )

    def options_of(self, task: str) -> TaskOptions:
        """Return the options of a task."""
        return self.tasks.options.get(task, TaskOptions())

    def pair_encodings(self) -> dict[str, Literal["joint", "separate"]]:
        """Return how each task's pairs are encoded."""
        return {name: self.options_of(name).pair_encoding or self.model.pair_encoding for name in self.task_specs()}

    def loss_weights(self) -> dict[str, float]:
        """Return λ_t of each task."""
        return {name: self.options_of(name).loss_weight for name in self.task_specs()}
