"""The first shape: every row has one task; batches mix tasks."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback, TrainingArguments

from tasklora.evaluation import SplitScores, check_measurable, predict_tasks, scores_of, write_predictions
from tasklora.tasks import (
    BaseModel,
    SavedModel,
    Split,
    TaskData,
    TaskModel,
    TaskSpec,
    load_tasks,
    load_weights,
    save_model,
    template_columns,
)
from tasklora.tasks.methods import ENCODER_LEARNING_RATE
from tasklora.training.directory import RunDirectory, rows_per_step
from tasklora.training.gradient_cosines import GradientCosinesCallback
from tasklora.training.mixing import MixedRows, MixingPlan
from tasklora.training.preparing import Prepared, prepare, skeleton
from tasklora.training.processes import process_count
from tasklora.training.recipe import Recipe
from tasklora.training.text_trainer import TextToTextTrainer
from tasklora.training.trainer import MultiTaskTrainer
from tasklora.training.workload import RowDigests, Workload


def load_recipe_data(recipe: Recipe, specs: dict[str, TaskSpec], splits: Sequence[Split] | None = None) -> TaskData:
    """Load rows of a recipe: those that it trains, tunes and reports on, or of `splits`."""
    text = recipe.text_to_text()
    return load_tasks(
        specs,
        list(splits or ["train", "tune", recipe.tasks.report_on]),
        recipe.tasks.data_root,
        recipe.tasks.limits,
        recipe.training.seed,
        recipe.tasks.files(),
        None if text is None else template_columns(specs, text.templates),
        recipe.tasks.streaming(specs),
    )


TRAINERS: dict[str, type[MultiTaskTrainer]] = {"heads": MultiTaskTrainer, "text_to_text": TextToTextTrainer}
"""View of a model → what trains it."""


class RowsWorkload(Workload):
    """A recipe whose rows have one task each."""

    recipe: Recipe
    specs: dict[str, TaskSpec]
    prepared: Prepared
    data: TaskData

    def load_data(self, splits: Sequence[Split]) -> None:
        """Load the rows of some splits."""
        self.data = load_recipe_data(self.recipe, self.specs, splits)

    def fingerprints(self) -> RowDigests:
        """Return a digest of each task's rows, of every split that is loaded."""
        digests: RowDigests = {}
        for name, of_task in self.data.splits.items():
            for split, rows in of_task.items():
                digests.setdefault(split, {})[name] = rows.fingerprint()
        return digests

    def rows_per_task(self) -> dict[str, int]:
        """Return the number of training rows of each task, of those where it is known."""
        return {name: rows.size for name, rows in self.data.split("train").items() if rows.size is not None}

    def prepare(self) -> None:
        """Build the model to train, its heads fitted to the training labels.

        Raises:
            DataError: if a row cannot be written as a prompt and a response.
            UnsupportedError: if rows are to be packed, and the model cannot keep them apart.
        """
        section = self.recipe.training
        # What the trainer will draw by; here it is refused before a run is made.
        mixed = MixedRows(self.data.split("train"))
        if self.recipe.groups_by_length():
            mixed.check_lengths()
        MixingPlan(
            dict(zip(self.specs, mixed.sizes, strict=True)),
            section.mixing,
            rows_per_step(self.recipe),
            section.epochs,
            section.max_steps,
            process_count(),
            section.gradient_accumulation_steps,
            mixed.streams,
        )
        self.prepared = prepare(self.recipe)
        if self.recipe.training.gradient_cosines is not None:
            check_measurable(self.prepared.model, list(self.specs))
        if section.packing:
            model: Any = self.prepared.model
            model.check_packs()
        collator = self.prepared.about.collator(self.prepared.base.tokenizer)
        for of_task in self.data.splits.values():
            for rows in of_task.values():
                self.recipe.view().check_rows(collator, rows)
        for name, rows in self.data.split("train").items():
            if name not in self.prepared.model.heads:
                continue
            head: Any = self.prepared.model.heads[name]
            head.fit_labels(torch.from_numpy(rows.labels).float(), rows.class_weights())

    def skeleton(self) -> TaskModel:
        """Return the model to train without weights, but those of a run that the recipe extends."""
        return skeleton(self.recipe)

    def trainer(self, arguments: TrainingArguments, callbacks: list[TrainerCallback]) -> MultiTaskTrainer:
        """Return the trainer of the prepared model on the loaded rows."""
        section = self.recipe.training
        return TRAINERS[self.recipe.model.view](
            self.prepared.model,
            self.prepared.about,
            arguments,
            self.data.split("train"),
            self.data.split("tune"),
            self.prepared.about.collator(self.prepared.base.tokenizer),
            section.mixing,
            self.recipe.loss_weights(),
            self.recipe.groups_by_length(),
            self.recipe.method.options.get(ENCODER_LEARNING_RATE),
            callbacks=callbacks,
            balancing=section.balancing,
            packing=section.packing,
        )

    def score(self, split: Split, predictions: Path | None = None, tasks: Collection[str] | None = None) -> SplitScores:
        """Return the scores of a split, and write what was said of each row into a file if one is named."""
        rows = {name: of_task for name, of_task in self.data.split(split).items() if tasks is None or name in tasks}
        collator = self.prepared.about.collator(self.prepared.base.tokenizer)
        said = predict_tasks(
            self.prepared.model, rows, collator, self.recipe.training.eval_batch_size, progress=self.progress
        )
        if predictions is not None:
            write_predictions(predictions, rows, said)
        return scores_of(rows, said)

    def measuring(self, run: RunDirectory) -> list[TrainerCallback]:
        """Return what measures the tasks' gradients, if the recipe asks for it."""
        section = self.recipe.training.gradient_cosines
        if section is None:
            return []
        collator = self.prepared.about.collator(self.prepared.base.tokenizer)
        rows = self.data.split("train")
        return [GradientCosinesCallback(run.gradient_cosines, rows, collator, section.every, section.rows)]

    def diagnosed_tasks(self) -> list[int]:
        """Return the ids of the tasks that were trained: a run that extends another has more of them."""
        return [self.prepared.model.task_names.index(name) for name in self.specs]

    def save(self, directory: Path) -> None:
        """Write adapter and heads."""
        save_model(self.prepared.model, self.prepared.about, directory)

    def load(self, directory: Path) -> None:
        """Load adapter and heads into the prepared model."""
        load_weights(self.prepared.model, directory)

    def take(self, model: TaskModel, about: SavedModel, base: BaseModel) -> None:
        """Take a loaded model for the prepared one; a run that extends another has more tasks than its recipe."""
        self.prepared = Prepared(model, about, base)
        self.specs = {name: about.tasks[name] for name in self.specs}
