"""What a run does that depends on the shape of its tasks; everything else is the same for both shapes.

:class:`~tasklora.training.rows_workload.RowsWorkload`    every row has one task
:class:`~tasklora.training.dense_workload.DenseWorkload`  every image has all tasks
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from torch import nn
from transformers import TrainerCallback, TrainingArguments

from tasklora.evaluation import ParameterCounts, SplitScores, count_parameters
from tasklora.tasks import Split
from tasklora.training.base_trainer import TasksTrainer
from tasklora.tuner import find_context

if TYPE_CHECKING:
    from tasklora.training.directory import RunDirectory

Progress = Callable[[str], None]
RowDigests: TypeAlias = dict[str, dict[str, str]]
"""Split → name → digest of the rows."""


class Workload(ABC):
    """The data, the model and the trainer of a recipe.

    Args:
        recipe: the recipe, of the workload's shape.

    Attributes:
        specs: task name → task.
        prepared: model, base and what they are, after :meth:`prepare`.
        progress: called with what is being scored.
    """

    def __init__(self, recipe: Any) -> None:
        self.recipe = recipe
        self.specs: dict[str, Any] = recipe.task_specs()
        self.prepared: Any = None
        self.progress: Progress | None = None

    @abstractmethod
    def load_data(self, splits: Sequence[Split]) -> None:
        """Load the rows of some splits.

        Raises:
            DataError: naming what is missing or damaged.
        """

    @abstractmethod
    def fingerprints(self) -> RowDigests:
        """Return digests of the rows that are loaded."""

    @abstractmethod
    def rows_per_task(self) -> dict[str, int]:
        """Return the number of training rows of each task, of those where it is known."""

    @abstractmethod
    def prepare(self) -> None:
        """Build the model to train, seeded; with the labels' statistics if data are loaded.

        Raises:
            CheckpointError: if the base cannot be loaded.
            ConfigError: if the method or its options cannot be used on it.
        """

    @abstractmethod
    def skeleton(self) -> nn.Module:
        """Return the model to train without its weights."""

    @abstractmethod
    def trainer(self, arguments: TrainingArguments, callbacks: list[TrainerCallback]) -> TasksTrainer:
        """Return the trainer of the prepared model on the loaded rows."""

    @abstractmethod
    def score(self, split: Split, predictions: Path | None = None, tasks: Collection[str] | None = None) -> SplitScores:
        """Return the scores of a split, and write what was said of each row into a file if one is named.

        Args:
            split: which split; its rows are loaded.
            predictions: the file.
            tasks: which tasks; all by default.
        """

    @abstractmethod
    def diagnosed_tasks(self) -> list[int] | None:
        """Return the ids of the tasks whose diagnostics are kept; None for all."""

    def measuring(self, run: RunDirectory) -> list[TrainerCallback]:
        """Return the callbacks that measure training, after whose clock they run; none where nothing is asked for."""
        return []

    @abstractmethod
    def save(self, directory: Path) -> None:
        """Write what is trained of the prepared model."""

    @abstractmethod
    def load(self, directory: Path) -> None:
        """Load what :meth:`save` wrote into the prepared model."""

    @abstractmethod
    def take(self, model: Any, about: Any, base: Any) -> None:
        """Take a loaded model for the prepared one."""

    def checkpoint_activations(self) -> None:
        """Recompute activations in backward instead of keeping them, each forward under its own task ids."""
        kwargs: dict[str, Any] = {"use_reentrant": False}
        context = find_context(self.prepared.model)
        if context is not None:
            kwargs["context_fn"] = context.checkpoint_contexts
        self.prepared.model.encoder.gradient_checkpointing_enable(gradient_checkpointing_kwargs=kwargs)

    def count_parameters(self) -> ParameterCounts:
        """Return the parameter counts of the recipe's model; no weights of the base are loaded."""
        return count_parameters(self.skeleton())
