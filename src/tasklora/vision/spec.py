"""What a dense task is: a map that is predicted for every pixel of an image; and suites of such tasks."""

from __future__ import annotations

from typing import Any, Literal

import pydantic

from tasklora.errors import did_you_mean
from tasklora.tasks import Strict
from tasklora.tasks.spec import selected

DenseKind = Literal["segmentation", "saliency", "edges", "normals", "depth"]
Layout = Literal["pascal_mt", "nyud_mt", "folders", "scenes"]

IGNORED = 255
"""Label of pixels that count neither in a loss nor in a score: a class, saliency, an edge, each part of a normal."""
NO_DEPTH = 0.0
"""The same of depth, where no pixel can have it."""

# kind → its metrics, the first of which stands for the task unless it says otherwise
DENSE_METRICS: dict[DenseKind, tuple[str, ...]] = {
    "segmentation": ("miou", "pixel_accuracy"),
    "saliency": ("max_iou", "max_f"),
    "edges": ("ods_f",),
    "normals": ("mean_angle", "within_11.25", "within_22.5", "within_30"),
    "depth": ("rmse", "log_rmse"),
}
LOWER_IS_BETTER = frozenset({"mean_angle", "rmse", "log_rmse"})


class DenseTaskSpec(Strict):
    """One dense task.

    ============  ============================================  =======================================
    kind          label of an image                             what is predicted per pixel
    ============  ============================================  =======================================
    segmentation  (H, W) class ids, 255 ignored                 a logit per class
    saliency      (H, W) 0 or 1, 255 ignored                    one logit
    edges         (H, W) 0 or 1, 255 ignored                    one logit
    normals       (3, H, W) unit vectors, 255 ignored           a vector, normalised for loss and score
    depth         (H, W) metres, 0 ignored                      metres
    ============  ============================================  =======================================

    Attributes:
        labels: class names in the order of their ids (segmentation).
        positive_weight: share w of the loss that edge or salient pixels get, 1 − w for the others; None balances them
            by the share of the other kind in the step (see :mod:`tasklora.vision.losses`).
        loss_weight: λ_t unless a recipe says otherwise.
        metrics: names from :data:`DENSE_METRICS`.
        primary: the metric that stands for the task in averages; the first one if left out.
        source: where a layout finds the label; what it may say, the layout's page says.
        description: one line for people.
    """

    kind: DenseKind
    labels: list[str] | None = None
    positive_weight: float | None = pydantic.Field(None, gt=0, lt=1)
    loss_weight: float = pydantic.Field(1.0, gt=0)
    metrics: list[str] = []
    primary: str = ""
    source: dict[str, Any] = {}
    description: str = ""

    @pydantic.model_validator(mode="after")
    def _check(self) -> DenseTaskSpec:
        if (self.kind == "segmentation") != bool(self.labels):
            raise ValueError("a segmentation task needs `labels`, its class names, and no other kind has some")
        if self.labels and (len(self.labels) < 2 or len(self.labels) > IGNORED):
            raise ValueError(f"labels must name 2 to {IGNORED} classes, got {len(self.labels)}")
        if self.labels and len(set(self.labels)) != len(self.labels):
            raise ValueError(f"labels must differ from each other, got {self.labels}")
        if self.positive_weight is not None and self.kind not in ("saliency", "edges"):
            raise ValueError("positive_weight is for saliency and edges")
        valid = DENSE_METRICS[self.kind]
        for name in self.metrics:
            if name not in valid:
                raise ValueError(f"unknown metric '{name}' of {self.kind}.{did_you_mean(name, valid)}")
        self.__dict__["metrics"] = self.metrics or list(valid)
        self.__dict__["primary"] = self.primary or self.metrics[0]
        if self.primary not in self.metrics:
            raise ValueError(f"primary metric '{self.primary}' is not among metrics {self.metrics}")
        return self

    @property
    def num_outputs(self) -> int:
        """Channels of the decoder's output."""
        return len(self.labels) if self.labels else 3 if self.kind == "normals" else 1

    @property
    def higher_is_better(self) -> bool:
        """Direction of the primary metric."""
        return self.primary not in LOWER_IS_BETTER


class DenseSuite(Strict):
    """A named, versioned collection of dense tasks over the same images: data only, no model.

    Attributes:
        layout: how the data folder is laid out.
        options: what the layout wants to know besides.
        tasks: name → task, in the order of the file.
    """

    name: str
    version: int
    shape: Literal["dense"]
    description: str = ""
    source: str = ""
    layout: Layout
    options: dict[str, Any] = {}
    tasks: dict[str, DenseTaskSpec]

    @property
    def reference(self) -> str:
        """``name@version``."""
        return f"{self.name}@{self.version}"

    def select(self, include: list[str] | None) -> dict[str, DenseTaskSpec]:
        """Return the tasks named in `include`, in that order; all for None.

        Raises:
            ConfigError: on an unknown or repeated task, or if there is none.
        """
        return selected(self.tasks, include, self.reference)
