"""The NYUD_MT folder: NYU Depth v2 images with 40 classes, surface normals, depth and edges.

Layout::

    images/NAME.jpg
    gt_sets/{train,val}.txt
    segmentation/NAME.png      0 ignored, 1 … 40 the classes
    normals/NAME.npy           floats (H, W, 3); a zero vector is ignored
    depth/NAME.npy             metres (H, W); 0 is ignored
    edge/NAME.npy              0 or 1 (H, W)

Sources: Silberman et al., Indoor Segmentation and Support Inference from RGBD Images (ECCV 2012); Gupta et al.,
Perceptual Organization and Recognition of Indoor Scenes (CVPR 2013), the 40 classes.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from tasklora.errors import ConfigError, DataError, listing
from tasklora.tasks import Split, Strict, parse
from tasklora.vision.layouts.base import FileLayout, ImageOptions, LabelReader, read_names
from tasklora.vision.layouts.files import class_map, metres, read_ids, read_numbers, read_vectors, unit_normals
from tasklora.vision.spec import IGNORED, DenseKind, DenseSuite, DenseTaskSpec

Label = Literal["segmentation", "normals", "depth", "edge"]
_LABELS: dict[Label, tuple[DenseKind, str]] = {
    "segmentation": ("segmentation", ".png"),
    "normals": ("normals", ".npy"),
    "depth": ("depth", ".npy"),
    "edge": ("edges", ".npy"),
}
_SPLITS: dict[Split, str] = {"train": "train", "validation": "val"}


class NyudSource(Strict):
    """Which of the folder's labels a task has."""

    label: Label


class NyudMT(FileLayout):
    """The layout ``nyud_mt``; see the module."""

    def __init__(self, suite: DenseSuite, specs: Mapping[str, DenseTaskSpec], root: Path | None) -> None:
        super().__init__(suite, specs, root)
        self.image_options = parse(ImageOptions, suite.options, f"suite {suite.reference}, options")
        folder = root or Path()
        self.images_folder = folder / "images"
        self.splits_folder = folder / "gt_sets"
        self.readers = {}
        for task, spec in specs.items():
            label = parse(NyudSource, spec.source, f"suite {suite.reference}, task '{task}', source").label
            self.readers[task] = NyudReader(task, spec, folder, label)

    def image_path(self, name: str) -> Path:
        """Return the image's file, which need not be there."""
        return self.images_folder / f"{name}.jpg"

    def split_names(self, split: Split) -> list[str] | None:
        """Return the names of a split's images in order; there are train and validation."""
        if split not in _SPLITS:
            return None
        return read_names(self.splits_folder / f"{_SPLITS[split]}.txt", f"split '{split}'")


class NyudReader(LabelReader):
    """Labels of one of the folder's kinds."""

    def __init__(self, task: str, spec: DenseTaskSpec, root: Path, label: Label) -> None:
        super().__init__(task, spec, [[root / label]])
        kind, self.suffix = _LABELS[label]
        if spec.kind != kind:
            raise ConfigError(f"task '{task}' is of kind {spec.kind}, but its source holds {kind}. Mend the suite.")

    def files(self, name: str) -> list[Path]:
        """Return the file of the label."""
        return [self.folders[0][0] / f"{name}{self.suffix}"]

    def read(self, name: str, size: tuple[int, int]) -> NDArray[Any]:
        """Return the label of an image of this (height, width)."""
        path = self.files(name)[0]
        if self.spec.kind == "segmentation":
            table = {0: IGNORED, **{number + 1: number for number in range(self.spec.num_outputs)}}
            return class_map(read_ids(path, palette=True), table, path, self.task, self.spec)
        if self.spec.kind == "normals":
            return unit_normals(read_vectors(path))
        if self.spec.kind == "depth":
            return metres(read_numbers(path), 1.0, [], path)
        return _zeros_and_ones(read_numbers(path), path, self.task)


def _zeros_and_ones(values: NDArray[np.float32], path: Path, task: str) -> NDArray[np.float32]:
    strange = np.unique(values[(values != 0) & (values != 1)])
    if strange.size:
        raise DataError(
            f"task '{task}': {path} holds {listing([f'{v:g}' for v in strange], 5)}; an edge map holds 0 and 1."
        )
    return values
