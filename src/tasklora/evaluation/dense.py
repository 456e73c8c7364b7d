"""Scoring images that have all tasks: statistics per image and task, and what sums of them say."""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import DataLoader, Dataset

from tasklora.errors import BrokenAdapterError
from tasklora.evaluation.bootstrap import Counts
from tasklora.evaluation.results import SplitScores, TaskScore
from tasklora.vision.augment import augmented, collate
from tasklora.vision.data import DenseRows
from tasklora.vision.losses import image_losses
from tasklora.vision.metrics import metric_values, statistics
from tasklora.vision.model import DenseModel
from tasklora.vision.sample import DenseSample
from tasklora.vision.spec import DenseTaskSpec

Array = NDArray[np.float64]

RANDOM_ANGLE = 90.0
"""Mean angle in degrees between any direction and random ones."""


@dataclass(frozen=True)
class ScoredImages:
    """The images that one task was scored on, in their order.

    Attributes:
        names: of the images.
        digests: of the label maps, so that runs on different labels are not taken for runs on the same ones.
        statistics: (images, K), see :func:`tasklora.vision.metrics.statistics`.
        losses: (images,); NaN where an image has no valid pixel.
    """

    names: list[str]
    digests: list[str]
    statistics: Array
    losses: Array

    def __len__(self) -> int:
        return len(self.names)

    def same_rows(self, other: Any) -> bool:
        """Return whether another run was scored on the same images and labels."""
        return isinstance(other, ScoredImages) and self.names == other.names and self.digests == other.digests

    def drawn_as(self, task: str) -> str:
        """Return a name of what is resampled: the same one for all tasks of the same images."""
        return "\n".join(self.names)

    def resampled(self, spec: DenseTaskSpec, counts: Counts) -> Array:
        """Return the score (higher is better) on each resample of the images: (resamples,).

        Args:
            spec: the task.
            counts: (resamples, images), how often each image was drawn.
        """
        sign = 1.0 if spec.higher_is_better else -1.0
        return sign * metric_values(spec, counts @ self.statistics)[spec.primary]

    def for_average(self, spec: DenseTaskSpec, scores: Array) -> Array:
        """Return what scores count in an average over tasks; see :func:`unit_score`."""
        return unit_score(spec, scores)


def unit_score(spec: DenseTaskSpec, scores: Array) -> Array:
    """Return scores (negated where lower is better) on a scale that averages over tasks can be taken on.

    Fractions stay as they are. An angle a becomes 1 − a/90°, which is 0 for random directions; an error in metres or
    log metres becomes 1 / (1 + error). Without this an average would say how many degrees the normals are off, and
    nothing of the other tasks. It chooses checkpoints and settings; Δm is of the scores themselves.
    """
    if spec.primary == "mean_angle":
        return 1.0 + scores / RANDOM_ANGLE
    return scores if spec.higher_is_better else 1.0 / (1.0 - scores)


class PlainImages(Dataset[DenseSample]):
    """Images resized and nothing else.

    Args:
        rows: the images.
        specs: the tasks whose labels are wanted.
        size: (height, width) that the network sees.
    """

    def __init__(self, rows: DenseRows, specs: Mapping[str, DenseTaskSpec], size: tuple[int, int]) -> None:
        self.rows = rows
        self.specs = dict(specs)
        self.size = size

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> DenseSample:
        # Without an augmentation nothing is drawn.
        return augmented(self.rows[index], self.size, None, np.random.default_rng(0), self.specs)


class ImageCollator:
    """Makes batches: ``pixel_values``, ``labels``, ``names``. A class, so that worker processes can be sent it.

    Args:
        specs: the tasks.
    """

    def __init__(self, specs: Mapping[str, DenseTaskSpec]) -> None:
        self.specs = dict(specs)

    def __call__(self, samples: list[DenseSample]) -> dict[str, Any]:
        """Return samples of one size as a batch."""
        return {**collate(samples, self.specs), "names": [sample.name for sample in samples]}


def image_batches(
    rows: DenseRows, specs: Mapping[str, DenseTaskSpec], size: tuple[int, int], batch_size: int, workers: int = 0
) -> Iterator[dict[str, Any]]:
    """Yield batches ``names``, ``pixel_values`` and ``labels`` of all images, in order.

    Args:
        rows: the images.
        specs: the tasks.
        size: (height, width) that the network sees.
        batch_size: images per batch.
        workers: processes that read images.
    """
    yield from DataLoader(
        PlainImages(rows, specs, size),
        batch_size=batch_size,
        collate_fn=ImageCollator(specs),
        num_workers=workers,
        generator=torch.Generator(),  # a loader draws a number for its workers: not from the training's generator
    )


def score_images(
    model: DenseModel,
    rows: DenseRows,
    size: tuple[int, int],
    batch_size: int = 16,
    workers: int = 0,
    progress: Callable[[str], None] | None = None,
) -> dict[str, ScoredImages]:
    """Score every image on every task, at the resolution that the network sees.

    Args:
        model: the model; it is put into evaluation mode and back.
        rows: the images.
        size: (height, width).
        batch_size: images per batch.
        workers: processes that read images.
        progress: called with what was done so far.

    Raises:
        BrokenAdapterError: naming the task whose outputs are NaN or infinite.
    """
    device = next(model.parameters()).device
    specs: Mapping[str, DenseTaskSpec] = model.specs
    names: list[str] = []
    digests: dict[str, list[str]] = {name: [] for name in specs}
    found: dict[str, list[Array]] = {name: [] for name in specs}
    losses: dict[str, list[Array]] = {name: [] for name in specs}
    was_training = model.training
    model.eval()
    try:
        with torch.inference_mode():
            for batch in image_batches(rows, specs, size, batch_size, workers):
                names += batch["names"]
                outputs = model(batch["pixel_values"].to(device))
                for name, spec in specs.items():
                    labels = batch["labels"][name]
                    digests[name] += [f"{zlib.crc32(one.numpy().tobytes()):08x}" for one in labels]
                    labels = labels.to(device)
                    try:
                        found[name].append(statistics(spec, outputs[name], labels).cpu().numpy())
                    except BrokenAdapterError as error:
                        raise BrokenAdapterError(f"task '{name}': {error}") from error
                    losses[name].append(image_losses(spec, outputs[name], labels).double().cpu().numpy())
                if progress is not None:
                    progress(f"{len(names)} of {len(rows)} images")
    finally:
        model.train(was_training)
    return {
        name: ScoredImages(names, digests[name], np.concatenate(found[name]), np.concatenate(losses[name]))
        for name in specs
    }


def scores_of_images(specs: Mapping[str, DenseTaskSpec], images: Mapping[str, ScoredImages]) -> SplitScores:
    """Return the scores of what :func:`score_images` found; the loss of a task without any valid pixel is 0."""
    scores, counted = {}, []
    for name, scored in images.items():
        spec = specs[name]
        metrics = {metric: float(value) for metric, value in metric_values(spec, scored.statistics.sum(axis=0)).items()}
        value = metrics[spec.primary]
        score = None if math.isnan(value) else value if spec.higher_is_better else -value
        losses = scored.losses[~np.isnan(scored.losses)]
        scores[name] = TaskScore(
            rows=len(scored),
            metrics=metrics,  # type: ignore[arg-type]
            primary=spec.primary,
            score=score,
            loss=float(losses.mean()) if len(losses) else 0.0,
        )
        if score is not None:
            counted.append(float(unit_score(spec, np.array(score))))
    undefined = [name for name, score in scores.items() if score.score is None]
    return SplitScores(tasks=scores, average=sum(counted) / len(counted) if counted else None, undefined=undefined)
