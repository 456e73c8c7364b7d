"""Images for training: drawn in an order, and varied in a way, that seed and epoch decide alone."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import NamedTuple

import numpy as np
from torch.utils.data import Dataset, Sampler

from tasklora.vision.augment import Augmentation, augmented
from tasklora.vision.data import DenseRows
from tasklora.vision.sample import DenseSample
from tasklora.vision.spec import DenseTaskSpec


class Draw(NamedTuple):
    """One image of an epoch.

    Attributes:
        image: its place in the rows.
        epoch: the epoch.
        place: its place in the epoch.
    """

    image: int
    epoch: int
    place: int


class ImageSampler(Sampler[Draw]):
    """Draws every image once per epoch, in random order.

    It yields what the augmentation is a function of too. So a run that is resumed in the middle of an epoch goes on
    with the same images, varied in the same way, and worker processes change nothing.

    Args:
        images: how many there are.
        seed: of the order.
    """

    def __init__(self, images: int, seed: int) -> None:
        self.images = images
        self.seed = seed
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch whose order is drawn next; the Trainer calls this."""
        self.epoch = epoch

    def __len__(self) -> int:
        return self.images

    def __iter__(self) -> Iterator[Draw]:
        order = np.random.default_rng([self.seed, self.epoch]).permutation(self.images)
        return (Draw(image, self.epoch, place) for place, image in enumerate(order.tolist()))


class VariedImages(Dataset[DenseSample]):
    """Training images as they are drawn, each varied by random numbers of (seed, epoch, place).

    Args:
        rows: the images.
        specs: the tasks whose labels are wanted.
        size: (height, width) that the network sees.
        augmentation: how images vary; None resizes only.
        seed: of the variation.
    """

    def __init__(
        self,
        rows: DenseRows,
        specs: Mapping[str, DenseTaskSpec],
        size: tuple[int, int],
        augmentation: Augmentation | None,
        seed: int,
    ) -> None:
        self.rows = rows
        self.specs = dict(specs)
        self.size = size
        self.augmentation = augmentation
        self.seed = seed

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, draw: Draw) -> DenseSample:
        generator = np.random.default_rng([self.seed, draw.epoch, draw.place])
        return augmented(self.rows[draw.image], self.size, self.augmentation, generator, self.specs)
