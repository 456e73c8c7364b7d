"""The layout ``scenes``: images that are rendered as they are asked for; no data folder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import pydantic

from tasklora.errors import ConfigError
from tasklora.tasks import Split, Strict, parse
from tasklora.vision.layouts.base import Layout
from tasklora.vision.sample import DenseSample
from tasklora.vision.spec import DenseKind, DenseSuite, DenseTaskSpec

Label = Literal["layout", "semseg", "parts", "saliency", "normals", "edges", "depth"]
_KINDS: dict[Label, DenseKind] = {
    "layout": "segmentation",
    "semseg": "segmentation",
    "parts": "segmentation",
    "saliency": "saliency",
    "normals": "normals",
    "edges": "edges",
    "depth": "depth",
}
# seeds of different splits never meet
_FIRST_SEED: dict[Split, int] = {"train": 0, "tune": 1_000_000_000, "validation": 2_000_000_000, "test": 3_000_000_000}


class SceneOptions(Strict):
    """What a suite says of its scenes.

    Attributes:
        size: (H, W) pixels.
        images: split → number of scenes; a split that is not named does not exist.
    """

    size: tuple[int, int]
    images: dict[Split, int]

    @pydantic.model_validator(mode="after")
    def _check(self) -> SceneOptions:
        for split, count in self.images.items():
            if not 1 <= count <= 1_000_000_000:
                raise ValueError(f"images.{split} must be 1 to 1,000,000,000, got {count}")
        return self


class SceneSource(Strict):
    """Which of a scene's labels a task has."""

    label: Label


class _Memory:
    """Rendered scenes, kept for whoever asks again: every run of a comparison sees the same ones.

    The first ones are kept. Who goes through all of them time and again would find nothing of what came last.

    Args:
        limit: bytes to keep at most.
    """

    def __init__(self, limit: int) -> None:
        self.room = limit
        self.scenes: dict[tuple[Any, ...], DenseSample] = {}

    def scene(self, seed: int, size: tuple[int, int], wanted: tuple[Label, ...]) -> DenseSample:
        """Return a scene with some of its labels; its arrays cannot be written to."""
        from tasklora.vision.scenes import render_scene

        key = (seed, size, wanted)
        if key in self.scenes:
            return self.scenes[key]
        whole = render_scene(seed, size)
        scene = DenseSample(whole.name, whole.image, {label: whole.labels[label] for label in wanted})
        arrays = [scene.image, *scene.labels.values()]
        for array in arrays:
            array.flags.writeable = False
        needed = sum(array.nbytes for array in arrays)
        if needed <= self.room:
            self.room -= needed
            self.scenes[key] = scene
        return scene


_memory = _Memory(2 * 2**30)


class Scenes(Layout):
    """Scenes of :mod:`tasklora.vision.scenes`: image i of a split is always the same one."""

    def __init__(self, suite: DenseSuite, specs: Mapping[str, DenseTaskSpec], root: Path | None) -> None:
        super().__init__(suite, specs, root)
        if root is not None:
            raise ConfigError(f"suite {suite.reference} renders its images; leave tasks.data_root out (got {root}).")
        self.options = parse(SceneOptions, suite.options, f"suite {suite.reference}, options")
        self.label_of: dict[str, Label] = {}
        for task, spec in specs.items():
            label = parse(SceneSource, spec.source, f"suite {suite.reference}, task '{task}', source").label
            _check_task(task, spec, label)
            self.label_of[task] = label

    def split_names(self, split: Split) -> list[str] | None:
        """Return the names of a split's images, ``SPLIT-NUMBER``."""
        if split not in self.options.images:
            return None
        return [f"{split}-{number:06d}" for number in range(self.options.images[split])]

    def check(self, names: Sequence[str], split: Split) -> None:
        """Do nothing: there are no files."""

    def bad_images(self, names: Sequence[str]) -> dict[str, str]:
        """Return none."""
        return {}

    def read(self, name: str) -> DenseSample:
        """Render a scene and return the labels of the wanted tasks."""
        split, _, number = name.rpartition("-")
        wanted = tuple(sorted(set(self.label_of.values())))
        scene = _memory.scene(_FIRST_SEED[split] + int(number), self.options.size, wanted)  # type: ignore[index]
        return DenseSample(name, scene.image, {task: scene.labels[label] for task, label in self.label_of.items()})

    def identity(self, name: str) -> str:
        """Return the name and the size: the generator does the rest."""
        return f"{name} {self.options.size[0]} {self.options.size[1]}"


def _check_task(task: str, spec: DenseTaskSpec, label: Label) -> None:
    from tasklora.vision.scenes import LAYOUT_CLASSES, PART_CLASSES, SEMSEG_CLASSES

    classes: dict[Label, list[str]] = {"layout": LAYOUT_CLASSES, "semseg": SEMSEG_CLASSES, "parts": PART_CLASSES}
    if spec.kind != _KINDS[label]:
        raise ConfigError(
            f"task '{task}' is of kind {spec.kind}, but its source holds {_KINDS[label]}. Mend the suite."
        )
    if label in classes and spec.labels != classes[label]:
        raise ConfigError(f"task '{task}': labels of scenes' {label} are {classes[label]}, got {spec.labels}.")
