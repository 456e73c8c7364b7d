"""The second shape: every image has all tasks."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import TrainerCallback, TrainingArguments, set_seed

from tasklora.evaluation import (
    SHOWN_FILE,
    SplitScores,
    predict_shown,
    score_images,
    scores_of_images,
    write_image_statistics,
    write_shown_images,
)
from tasklora.tasks import Split
from tasklora.tasks.methods import ENCODER_LEARNING_RATE
from tasklora.training.dense_data import VariedImages
from tasklora.training.dense_recipe import DenseRecipe
from tasklora.training.dense_trainer import DenseTrainer
from tasklora.training.workload import RowDigests, Workload
from tasklora.vision.base_model import DenseBase, load_dense_base, load_dense_skeleton
from tasklora.vision.data import DenseData, load_dense
from tasklora.vision.methods import dense_method
from tasklora.vision.model import DenseModel
from tasklora.vision.saved_model import SavedDenseModel, load_dense_weights, save_dense_model
from tasklora.vision.spec import DenseTaskSpec


@dataclass(frozen=True)
class DensePrepared:
    """A dense recipe made ready: model, base and what they are."""

    model: DenseModel
    about: SavedDenseModel
    base: DenseBase


def prepare_dense(recipe: DenseRecipe, base: DenseBase | None = None) -> DensePrepared:
    """Build the adapted model of a dense recipe, seeded.

    Args:
        recipe: the recipe.
        base: a base that is loaded already (it is taken over); None loads the recipe's.

    Raises:
        CheckpointError: if the base cannot be loaded.
        ConfigError: if the method or its options cannot be used on it.
    """
    specs, section = recipe.task_specs(), recipe.model
    method = dense_method(recipe.method.name)
    method.check(recipe.method.options)
    base = base or load_dense_base(section.name, section.revision, section.dtype, section.drop_path)
    about = SavedDenseModel(
        encoder=method.encoder,
        base=section.name,
        revision=section.revision,
        dtype=section.dtype,
        drop_path=section.drop_path,
        fingerprint=base.fingerprint,
        image_size=section.size,
        decoder=section.decoder,
        tasks=specs,
    )
    set_seed(recipe.training.seed)
    encoder = method.adapt(base.model, list(specs), recipe.method.options)
    return DensePrepared(about.model_around(encoder), about, base)


class DenseWorkload(Workload):
    """A recipe whose images have all tasks each."""

    recipe: DenseRecipe
    specs: dict[str, DenseTaskSpec]
    prepared: DensePrepared
    data: DenseData

    def load_data(self, splits: Sequence[Split]) -> None:
        """Load the images of some splits."""
        section = self.recipe.tasks
        self.data = load_dense(
            self.recipe.suite(),
            self.specs,
            list(splits),
            section.data_root,
            section.limits,
            self.recipe.training.seed,
            skip_bad_images=section.skip_bad_images,
        )

    def fingerprints(self) -> RowDigests:
        """Return a digest of each split's images, which are the same for all tasks."""
        return {split: {"images": images.fingerprint()} for split, images in self.data.splits.items()}

    def rows_per_task(self) -> dict[str, int]:
        """Return the number of training images, for each task."""
        return dict.fromkeys(self.specs, len(self.data.split("train")))

    def prepare(self) -> None:
        """Build the model to train."""
        self.prepared = prepare_dense(self.recipe)

    def skeleton(self) -> DenseModel:
        """Return the model to train without weights; a well-known base is not even looked for."""
        section = self.recipe.model
        base = load_dense_skeleton(section.name, section.revision, section.drop_path)
        with torch.device("meta"):
            return prepare_dense(self.recipe, base).model

    def trainer(self, arguments: TrainingArguments, callbacks: list[TrainerCallback]) -> DenseTrainer:
        """Return the trainer of the prepared model on the loaded images."""
        section, about = self.recipe.training, self.prepared.about
        train = VariedImages(self.data.split("train"), self.specs, about.image_size, section.augmentation, section.seed)
        return DenseTrainer(
            self.prepared.model,
            about,
            arguments,
            train,
            self.data.split("tune"),
            self.recipe.loss_weights(),
            self.recipe.method.options.get(ENCODER_LEARNING_RATE),
            callbacks,
            section.balancing,
        )

    def score(self, split: Split, predictions: Path | None = None, tasks: Collection[str] | None = None) -> SplitScores:
        """Return the scores of a split.

        If a file is named, each image's statistics are written into it, and a few images' maps beside it.
        """
        section, rows = self.recipe.training, self.data.split(split)
        model, size = self.prepared.model, self.prepared.about.image_size
        images = score_images(
            model,
            rows,
            size,
            section.eval_batch_size,
            section.workers,
            self.progress,
        )
        if predictions is not None:
            write_image_statistics(predictions, images)
            write_shown_images(predictions.with_name(SHOWN_FILE), predict_shown(model, rows, size))
        return scores_of_images(self.specs, {name: images[name] for name in images if tasks is None or name in tasks})

    def diagnosed_tasks(self) -> None:
        """Return None: all tasks."""

    def save(self, directory: Path) -> None:
        """Write what is trained of the encoder, and the decoders."""
        save_dense_model(self.prepared.model, self.prepared.about, directory)

    def load(self, directory: Path) -> None:
        """Load what :meth:`save` wrote into the prepared model."""
        load_dense_weights(self.prepared.model, directory)

    def take(self, model: DenseModel, about: SavedDenseModel, base: DenseBase) -> None:
        """Take a loaded model for the prepared one."""
        self.prepared = DensePrepared(model, about, base)
        self.specs = dict(about.tasks)
