"""Images that a run did worst on: the dense counterpart of the examples of errors."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from tasklora.evaluation import ScoredImages
from tasklora.vision.metrics import metric_values
from tasklora.vision.spec import DenseTaskSpec

PER_TASK = 5


@dataclass(frozen=True)
class WorstImage:
    """One image.

    Attributes:
        name: the image's.
        loss: its loss.
        metric: the primary metric on this image alone; None if undefined.
    """

    name: str
    loss: float
    metric: float | None


def worst_images(spec: DenseTaskSpec, scored: ScoredImages) -> list[WorstImage]:
    """Return the images with the largest losses, the largest first; those without any valid pixel do not count."""
    order = [int(place) for place in np.argsort(-scored.losses, kind="stable") if np.isfinite(scored.losses[place])]
    metrics = metric_values(spec, scored.statistics)[spec.primary]
    return [
        WorstImage(
            scored.names[place],
            float(scored.losses[place]),
            float(metrics[place]) if np.isfinite(metrics[place]) else None,
        )
        for place in order[:PER_TASK]
    ]
