"""Pictures of dense runs: input, labels, predictions and errors of the images that the runs kept.

Every picture has one pixel per pixel of the network; the page enlarges it by a whole factor, without smoothing.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
from PIL import Image

from tasklora.errors import CheckpointError, listing
from tasklora.evaluation import SHOWN_FILE, MethodResults, ScoredImages, ShownImage
from tasklora.report import numbers
from tasklora.report.figures import done
from tasklora.report.loading import RunFiles, Source
from tasklora.vision.metrics import metric_values
from tasklora.vision.pictures import (
    DEPTH_COLOURS,
    Range,
    Scale,
    Swatch,
    depth_range_of,
    error_meaning,
    error_picture,
    ignored_pixels,
    label_picture,
    meaning,
    ramp,
)
from tasklora.vision.spec import NO_DEPTH, DenseTaskSpec

WIDE, NARROW, PAGE = 256, 128, 1340
"""CSS pixels that a picture is enlarged to at most, on a wide and on a narrow screen, and that a row of them has."""
UNITS = {"mean_angle": ("°", 1), "rmse": (" m", 3)}
"""Metric → its unit and digits; others are fractions, or have no unit."""
BOUNDED = ("saliency", "edges")
"""Kinds whose errors cannot lie beyond their scale."""


@dataclass(frozen=True)
class Bar:
    """A scale of colours: its picture, and what its ends are."""

    link: str
    low: str
    high: str
    unit: str


@dataclass(frozen=True)
class Key:
    """What colours mean: single ones, a scale, or a scale and what is beside it; and a remark."""

    swatches: list[Swatch] = field(default_factory=list)
    bar: Bar | None = None
    remark: str = ""


@dataclass(frozen=True)
class Legend:
    """What the colours of a task's column mean, in its labels and predictions and in its errors."""

    task: str
    kind: str
    colours: Key
    errors: Key


@dataclass(frozen=True)
class Tile:
    """A picture, as a link that holds it, with what stands under it."""

    link: str
    alt: str
    caption: str = ""
    bar: Bar | None = None


@dataclass(frozen=True)
class MethodRows:
    """What one method said of an image: a prediction and an error per task."""

    title: str
    note: str
    predictions: list[Tile]
    errors: list[Tile]


@dataclass(frozen=True)
class Block:
    """One image: `opened` are the methods that are seen at once, `folded` those behind a click."""

    name: str
    image: Tile
    labels: list[Tile]
    opened: list[MethodRows]
    folded: list[MethodRows]


@dataclass(frozen=True)
class ShownPictures:
    """The section of pictures.

    Attributes:
        reading: sentences on how to read it, or why there is nothing.
        tasks: the columns.
        width: CSS pixels of a picture on a wide screen, and `narrow` on a narrow one.
        legends: one per task.
        blocks: one per image.
    """

    reading: str
    tasks: list[str] = field(default_factory=list)
    width: int = 0
    narrow: int = 0
    legends: list[Legend] = field(default_factory=list)
    blocks: list[Block] = field(default_factory=list)


@dataclass(frozen=True)
class _Shown:
    """A method with the images that its first run kept."""

    method: MethodResults
    run: RunFiles
    images: Mapping[str, ShownImage]
    specs: Mapping[str, DenseTaskSpec]

    @cached_property
    def values(self) -> dict[str, dict[str, float]]:
        """Task → image → its primary metric on this image alone."""
        found = {}
        for task, spec in self.specs.items():
            rows = self.run.rows[task]
            assert isinstance(rows, ScoredImages)
            found[task] = dict(zip(rows.names, metric_values(spec, rows.statistics)[spec.primary], strict=True))
        return found


def pictures_of(source: Source) -> ShownPictures | None:
    """Return the pictures of a dense source; None for one of text.

    Raises:
        CheckpointError: if a run's pictures are damaged, or not of the images that were scored.
    """
    if not source.is_dense:
        return None
    specs: Mapping[str, Any] = source.specs
    opened, folded = _in_order(source)
    shown = {}
    for method in [*opened, *folded]:
        run = source.runs[method.name][0]
        if run.shown_images is not None:
            shown[method.name] = _Shown(method, run, {one.name: one for one in run.shown_images}, specs)
    without = [method.title for method in [*opened, *folded] if method.name not in shown]
    if not shown:
        return ShownPictures(
            f"There are none: {'these runs hold' if source.comparison else 'this run holds'} no {SHOWN_FILE}, which "
            "runs of an earlier tasklora did not write. Train again to have them."
        )
    images = next(iter(shown.values())).images
    for other in shown.values():
        if other.images.keys() != images.keys() or not set(images) <= set(other.values[next(iter(specs))]):
            raise CheckpointError(
                f"{other.run.path / SHOWN_FILE} is of the images {listing(other.images)}, which are not those that all "
                "runs were scored on and kept. Run that run again, or remove the file to report without it."
            )
    size = next(iter(images.values())).image.shape[:2]
    factor, narrow = _factors(max(size), len(specs) + 1)
    return ShownPictures(
        _reading(source, len(images), size, factor, bool(folded), without),
        list(specs),
        factor * size[1],
        narrow * size[1],
        [_legend(task, spec, list(shown.values())) for task, spec in specs.items()],
        [
            _block(image, specs, *([shown[m.name] for m in part if m.name in shown] for part in (opened, folded)))
            for image in images.values()
        ],
    )


def _factors(size: int, columns: int) -> tuple[int, int]:
    """Return how many times a picture of `size` pixels is enlarged on a wide and on a narrow screen.

    On a wide one small pictures are enlarged twice at least, further only where a whole row of them still fits.
    """
    most = max(1, WIDE // size)
    return max(min(2, most), min(most, PAGE // columns // size)), max(1, NARROW // size)


def _in_order(source: Source) -> tuple[list[MethodResults], list[MethodResults]]:
    """Return the methods that are shown openly (main, baseline, best and worst of the others), and all further ones."""
    results = source.results
    methods = [method for method in done(results) if source.runs.get(method.name)]
    named = dict.fromkeys((results.main, results.baseline))
    first = [method for name in named for method in methods if method.name == name]
    others = [method for method in methods if method not in first]
    scored = [(method.average.mean, method) for method in others if method.average]
    ranked = [method for _, method in sorted(scored, key=lambda pair: pair[0])]
    ends = [*ranked[-1:], *ranked[:-1][:1]]
    return [*first, *ends], [method for method in others if method not in ends]


def _reading(source: Source, count: int, size: tuple[int, ...], factor: int, folded: bool, without: list[str]) -> str:
    results = source.results
    images = "One image" if count == 1 else f"{count} images"
    enlarged = f"enlarged {factor} times on a wide screen, " if factor > 1 else ""
    said = (
        f"{images} of {results.split}, evenly spaced over it: no result chose them, and every run shows the same. One "
        f"pixel of a picture is one of the network's {size[0]} × {size[1]}, {enlarged}without smoothing. Under a "
        f"prediction (seed {results.seeds[0]}) stands its metric on this image alone, ↓ where lower is better; beneath "
        "it, where and how far it is off. All predictions of a column have the colours of its labels."
    )
    if folded:
        said += (
            f" Of the methods besides {_titles(source)}, those with the best and the worst average are shown; click "
            "for the others."
        )
    if without:
        said += f" No pictures of {listing(without)}: no {SHOWN_FILE} in the run, which an earlier tasklora made."
    return said


def _titles(source: Source) -> str:
    """Return the titles of the recipe's own method, where it is compared, and of the baseline."""
    results = source.results
    named = dict.fromkeys((results.main, results.baseline))
    return " and ".join(method.title for name in named for method in results.methods if method.name == name)


def _block(
    image: ShownImage, specs: Mapping[str, DenseTaskSpec], opened: Sequence[_Shown], folded: Sequence[_Shown]
) -> Block:
    ranges = {
        task: _range(image.labels[task], [one.images[image.name].predictions[task] for one in [*opened, *folded]])
        for task, spec in specs.items()
        if spec.kind == "depth"
    }
    labels = []
    for task, spec in specs.items():
        limits = ranges.get(task)
        bar = Bar(_ramp(DEPTH_COLOURS), f"{limits[0]:.2f}", f"{limits[1]:.2f}", "m") if limits else None
        picture = label_picture(spec, image.labels[task], limits)
        labels.append(Tile(link_of(picture), f"label of {task} of image {image.name}", "label", bar))
    return Block(
        image.name,
        Tile(link_of(Image.fromarray(image.image)), f"image {image.name}"),
        labels,
        *([_rows(one, image, ranges) for one in part] for part in (opened, folded)),
    )


def _rows(shown: _Shown, image: ShownImage, ranges: Mapping[str, Range]) -> MethodRows:
    title, predictions, errors = shown.method.title, [], []
    for task, spec in shown.specs.items():
        said, label = shown.images[image.name].predictions[task], image.labels[task]
        what = f"{task} by {title} of image {image.name}"
        picture = label_picture(spec, said, ranges.get(task), predicted=True)
        predictions.append(Tile(link_of(picture), f"prediction of {what}", _said(spec, shown.values[task][image.name])))
        errors.append(Tile(link_of(error_picture(spec, said, label)), f"errors in the prediction of {what}"))
    trained = shown.method.parameters
    return MethodRows(title, f"{trained.trainable:,} trained" if trained else "", predictions, errors)


def _said(spec: DenseTaskSpec, value: float) -> str:
    """Return the primary metric as text."""
    name = spec.primary + ("" if spec.higher_is_better else " ↓")
    unit, digits = UNITS.get(spec.primary, ("", 3))
    return f"{name} {numbers.number(float(value), digits)}{unit}" if np.isfinite(value) else f"{name} undefined"


def _range(label: Any, predictions: Sequence[Any]) -> Range:
    """Return the label's range of depth; the predictions' where nothing is labelled."""
    if (label != NO_DEPTH).any():
        return depth_range_of(label)
    return depth_range_of(*predictions) if any((said != NO_DEPTH).any() for said in predictions) else (0.0, 1.0)


def _legend(task: str, spec: DenseTaskSpec, shown: Sequence[_Shown]) -> Legend:
    labels = [image.labels[task] for image in shown[0].images.values()]
    ignored = any(ignored_pixels(spec, label).any() for label in labels)
    hatch = [Swatch(None, "ignored")] if ignored else []
    found = meaning(spec, (0.0, 1.0) if spec.kind == "depth" else None)
    if isinstance(found, Scale):
        depth = spec.kind == "depth"
        colours = Key(
            hatch,
            _bar(found, ("nearest", "furthest", "") if depth else None),
            "The metres of its ends are those of each image's label and stand under it." if depth else "",
        )
    elif spec.labels:
        maps = [*labels, *(image.predictions[task] for one in shown for image in one.images.values())]
        present = np.unique(np.concatenate([np.unique(one) for one in maps])).tolist()
        colours = Key([*(found[place] for place in present if place < len(spec.labels)), *hatch])
    else:
        colours = Key([*found[:-1], *hatch])
    errors = error_meaning(spec)
    if not isinstance(errors, Scale):
        return Legend(task, spec.kind, colours, Key([*errors[:-1], *hatch]))
    low, high, unit = f"{errors.limits[0]:g}", f"{errors.limits[1]:g}", errors.unit
    ends = (low, high if spec.kind in BOUNDED else f"≥ {high}", unit)
    return Legend(task, spec.kind, colours, Key(hatch, _bar(errors, ends)))


def _bar(scale: Scale, ends: tuple[str, str, str] | None = None) -> Bar:
    low, high = scale.limits
    return Bar(_ramp(scale.colours), *(ends or (f"{low:g}", f"{high:g}", scale.unit)))


def _ramp(colours: str) -> str:
    return link_of(ramp(colours))


def link_of(picture: Image.Image) -> str:
    """Return an RGB picture as a link that holds it, a PNG with exactly its pixels, in few bytes."""
    pixels = np.asarray(picture.convert("RGB"))
    red, green, blue = pixels.astype(np.int64).transpose(2, 0, 1)
    colours, places = np.unique(red << 16 | green << 8 | blue, return_inverse=True)
    if len(colours) <= 256:  # one byte a pixel will do
        picture = Image.fromarray(places.reshape(pixels.shape[:2]).astype(np.uint8)).convert("L")
        picture.putpalette(np.stack([colours >> 16, colours >> 8 & 255, colours & 255], -1).astype(np.uint8).tobytes())
    file = io.BytesIO()
    picture.save(file, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()
