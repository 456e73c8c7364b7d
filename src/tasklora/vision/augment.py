"""From samples of any size to batches: one warp of the image and all its labels, then tensors.

Flip, rotation, zoom and the resize to the network's size are one affine map, and every array is resampled once, from
the original. In the order in which a person would do them by hand:

1. flip left and right;
2. rotate by θ, anticlockwise, and magnify by s, both about the middle and in the image's own proportions;
3. resize to the network's size. As in the published recipe it need not keep the proportions: a photograph is squeezed
   into the square, whole.

What happens to the labels:

============  =========================================================================================================
segmentation  the nearest pixel's class; ids are never mixed
saliency      the nearest pixel's
normals       the nearest pixel's, x negated by the flip, (x, y) rotated by θ; a resize leaves them, they are directions
              in space and not in the picture
depth         the nearest pixel's divided by s: what is magnified is nearer; a resize leaves it
edges         1 where a pixel's middle falls on an edge pixel, or an edge pixel's middle falls into the pixel: lines one
              pixel thin survive any shrinking
============  =========================================================================================================

What comes from outside the image is ignored in every label and is ImageNet's mean colour in the image, 0 when
normalised.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pydantic
import torch
from numpy.typing import NDArray

from tasklora.errors import DataError
from tasklora.tasks import Strict
from tasklora.vision.sample import DenseSample
from tasklora.vision.spec import IGNORED, NO_DEPTH, DenseTaskSpec

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
"""Of RGB values from 0 to 1: what the pretrained encoders expect."""
FILL = tuple(round(255 * mean) for mean in IMAGENET_MEAN)


class Augmentation(Strict):
    """How training images are varied; the defaults are MTLoRA's recipe.

    Attributes:
        flip: probability of a flip from left to right.
        rotation: largest angle in degrees, either way; drawn evenly.
        scale: smallest and largest magnification; drawn evenly.
        colour: largest relative change of brightness, contrast and saturation, each drawn evenly; 0 for none.
    """

    flip: float = pydantic.Field(0.5, ge=0, le=1)
    rotation: float = pydantic.Field(20.0, ge=0, le=180)
    scale: tuple[float, float] = (0.75, 1.25)
    colour: float = pydantic.Field(0.0, ge=0, lt=1)

    @pydantic.field_validator("scale")
    @classmethod
    def _check_scale(cls, value: tuple[float, float]) -> tuple[float, float]:
        if not 0 < value[0] <= value[1] or not math.isfinite(value[1]):
            raise ValueError("scale is [smallest, largest] magnification, both above 0")
        return value

    def draw(self, rng: np.random.Generator) -> Warp:
        """Return a random warp; always six draws, so that one setting does not change what the others draw."""
        flip, angle, zoom, *colour = rng.random(6)
        low, high = self.scale
        return Warp(
            flip=bool(flip < self.flip),
            rotation=float(self.rotation * (2 * angle - 1)),
            zoom=float(low + (high - low) * zoom),
            colour=tuple(float(1 + self.colour * (2 * value - 1)) for value in colour),
        )


class Warp(NamedTuple):
    """One drawn augmentation.

    Attributes:
        flip: from left to right, before the rest.
        rotation: degrees, anticlockwise.
        zoom: magnification.
        colour: factors of brightness, contrast and saturation.
    """

    flip: bool = False
    rotation: float = 0.0
    zoom: float = 1.0
    colour: tuple[float, ...] = (1.0, 1.0, 1.0)


def augmented(
    sample: DenseSample,
    size: tuple[int, int],
    augmentation: Augmentation | None,
    rng: np.random.Generator,
    specs: Mapping[str, DenseTaskSpec],
) -> DenseSample:
    """Return the sample at the network's size, varied at random.

    Args:
        sample: the original.
        size: (H, W) of the result.
        augmentation: how to vary it; None resizes only and draws nothing.
        rng: randomness.
        specs: the tasks wanted; other labels are left out.

    Raises:
        DataError: as :func:`warped`.
    """
    return warped(sample, size, Warp() if augmentation is None else augmentation.draw(rng), specs)


def warped(sample: DenseSample, size: tuple[int, int], warp: Warp, specs: Mapping[str, DenseTaskSpec]) -> DenseSample:
    """Return the sample at another size, flipped, rotated and magnified as `warp` says.

    Raises:
        DataError: if a task's label is missing, or has another size than the image.
    """
    height, width = sample.image.shape[:2]
    for task, spec in specs.items():
        if task not in sample.labels:
            raise DataError(f"image '{sample.name}' has no label of task '{task}'.")
        expected = (3, height, width) if spec.kind == "normals" else (height, width)
        if sample.labels[task].shape != expected:
            raise DataError(
                f"image '{sample.name}' is {height} x {width}, its label of task '{task}' ({spec.kind}) has shape "
                f"{sample.labels[task].shape}; expected {expected}."
            )
    matrix = _backward((height, width), size, warp)
    source = _Source(matrix, (height, width), size)
    labels = {task: _label(spec, sample.labels[task], source, warp) for task, spec in specs.items()}
    return DenseSample(sample.name, _image(sample.image, matrix, source, warp), labels)


def collate(samples: Sequence[DenseSample], specs: Mapping[str, DenseTaskSpec]) -> dict[str, Any]:
    """Return a batch of samples of one size.

    Returns:
        ``pixel_values``: float32 (N, 3, H, W), ImageNet's mean and deviation taken out; ``labels``: task → int64
        (N, H, W) of segmentation, float32 (N, 3, H, W) of normals, float32 (N, H, W) of the others.

    Raises:
        DataError: if there is no sample, the samples differ in size, or a label is missing.
    """
    if not samples:
        raise DataError("a batch needs one sample at least, got none.")
    first = samples[0]
    for sample in samples:
        if sample.image.shape != first.image.shape:
            raise DataError(
                f"the images of a batch must be of one size: '{first.name}' is {_size(first)}, '{sample.name}' is "
                f"{_size(sample)}. Resize them with `augmented`."
            )
        for task in specs:
            if task not in sample.labels:
                raise DataError(f"image '{sample.name}' has no label of task '{task}'.")
            if sample.labels[task].shape[-2:] != sample.image.shape[:2]:
                raise DataError(
                    f"image '{sample.name}' is {_size(sample)}, its label of task '{task}' has shape "
                    f"{sample.labels[task].shape}."
                )
    pixels = torch.from_numpy(np.stack([sample.image for sample in samples])).permute(0, 3, 1, 2).float()
    mean, deviation = (torch.tensor(values).view(3, 1, 1) for values in (IMAGENET_MEAN, IMAGENET_STD))
    pixels = pixels.div_(255).sub_(mean).div_(deviation).contiguous()
    labels = {}
    for task, spec in specs.items():
        dtype = np.int64 if spec.kind == "segmentation" else np.float32
        labels[task] = torch.from_numpy(np.stack([sample.labels[task].astype(dtype) for sample in samples]))
    return {"pixel_values": pixels, "labels": labels}


def _size(sample: DenseSample) -> str:
    return " x ".join(str(side) for side in sample.image.shape[:2])


def _backward(original: tuple[int, int], size: tuple[int, int], warp: Warp) -> NDArray[np.float64]:
    """Return (2, 3): a place (x, y, 1) in the result → its place in the original; pixel k spans k to k + 1."""
    height, width = original
    angle = math.radians(warp.rotation)
    cos, sin = math.cos(angle) / warp.zoom, math.sin(angle) / warp.zoom
    matrix = np.array([[cos, -sin, 0.0], [sin, cos, 0.0]])  # y runs down, so this turns back what turned anticlockwise
    middle = np.array([width / 2, height / 2])
    matrix[:, 2] = middle - matrix[:, :2] @ middle
    matrix[:, :2] *= [width / size[1], height / size[0]]
    if warp.flip:
        matrix[0] = [-matrix[0, 0], -matrix[0, 1], width - matrix[0, 2]]
    return matrix.round(9)  # so that quarter turns are exact: the cosine of 90° is not quite 0


class _Source:
    """Where the nearest pixel of each pixel of the result is."""

    def __init__(self, matrix: NDArray[np.float64], original: tuple[int, int], size: tuple[int, int]) -> None:
        self.matrix, self.original, self.size = matrix, original, size
        x, y = np.arange(size[1]) + 0.5, (np.arange(size[0]) + 0.5)[:, None]
        across = matrix[0, 0] * x + (matrix[0, 1] * y + matrix[0, 2])
        down = matrix[1, 0] * x + (matrix[1, 1] * y + matrix[1, 2])
        inside = (across >= 0) & (across < original[1]) & (down >= 0) & (down < original[0])
        index = down.astype(np.intp)
        index *= original[1]
        index += across.astype(np.intp)
        self.outside = None if inside.all() else ~inside
        if self.outside is not None:
            index[self.outside] = 0
        self.index = index

    def take(self, label: NDArray[Any], fill: float) -> NDArray[Any]:
        """Return the nearest pixels of a map (H, W), `fill` where there is none."""
        result: NDArray[Any] = np.ascontiguousarray(label).reshape(-1).take(self.index)
        if self.outside is not None:
            result[self.outside] = fill
        return result

    def land(self, rows: NDArray[Any], columns: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any]]:
        """Return the pixels of the result in which the middles of these pixels of the original lie."""
        turn = np.linalg.inv(self.matrix[:, :2])
        places = turn @ (np.stack([columns + 0.5, rows + 0.5]) - self.matrix[:, 2:])
        column, row = np.floor(places).astype(np.intp)
        inside = (row >= 0) & (row < self.size[0]) & (column >= 0) & (column < self.size[1])
        return row[inside], column[inside]


def _label(spec: DenseTaskSpec, label: NDArray[Any], source: _Source, warp: Warp) -> NDArray[Any]:
    if spec.kind == "depth":
        return np.asarray(source.take(label, NO_DEPTH) / np.float32(warp.zoom))
    if spec.kind == "normals":
        return _normals(label, source, warp)
    result: NDArray[Any] = source.take(label, IGNORED)
    if spec.kind == "edges":
        rows, columns = source.land(*np.nonzero(label == 1))
        kept = result[rows, columns] != IGNORED
        result[rows[kept], columns[kept]] = 1
    return result


def _normals(label: NDArray[Any], source: _Source, warp: Warp) -> NDArray[Any]:
    x, y, z = (source.take(part, IGNORED) for part in label)
    ignored = (x == IGNORED) | (y == IGNORED) | (z == IGNORED)
    if warp.flip:
        x = -x
    if warp.rotation:
        angle = math.radians(warp.rotation)
        cos, sin = np.float32(math.cos(angle)), np.float32(math.sin(angle))
        x, y = cos * x - sin * y, sin * x + cos * y
    result = np.stack([x, y, z])
    result[:, ignored] = IGNORED
    return result


def _image(image: NDArray[np.uint8], matrix: NDArray[np.float64], source: _Source, warp: Warp) -> NDArray[np.uint8]:
    """Resample bilinearly; what shrinks by 2 or more is averaged over whole blocks first, so that nothing flickers."""
    from PIL import Image, ImageEnhance

    picture = Image.fromarray(image)
    shrink = np.hypot(matrix[:, 0], matrix[:, 1])  # pixels of the original, along x and y, per pixel of the result
    blocks = [max(1, int(value + 1e-6)) for value in shrink]
    if max(blocks) > 1:
        picture = picture.reduce((blocks[0], blocks[1]))
        matrix = matrix / np.array(blocks)[:, None]
    for enhancer, factor in zip(
        (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color), warp.colour, strict=True
    ):
        if factor != 1:
            picture = enhancer(picture).enhance(factor)
    height, width = source.size
    picture = picture.transform(
        (width, height), Image.Transform.AFFINE, tuple(matrix.ravel()), Image.Resampling.BILINEAR
    )
    result = np.array(picture)
    if source.outside is not None:
        result[source.outside] = FILL
    return result
