"""Maps as pictures: labels and predictions, where they differ, and sheets of them with captions.

A class has the same colour in every picture of every run. Where nothing is labelled there is a grey hatch, which no
class, depth or error looks like. Every picture has one pixel per pixel of the map, and :func:`enlarged` repeats pixels:
nothing between two labels is ever made up.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from tasklora.errors import ConfigError, DataError
from tasklora.vision.spec import IGNORED, NO_DEPTH, DenseTaskSpec

if TYPE_CHECKING:
    from PIL import Image

Bytes = NDArray[np.uint8]
Range = tuple[float, float]

BACKGROUND = (24, 26, 34)
"""Colour of class 0."""
HATCH = ((96, 96, 96), (150, 150, 150))
"""The two greys of ignored pixels."""
DEPTH_COLOURS = "viridis"
ERROR_COLOURS = "magma"
ERROR_SCALES: dict[str, tuple[float, float, str]] = {
    "saliency": (0.0, 1.0, "|error|"),
    "edges": (0.0, 1.0, "|error|"),
    "normals": (0.0, 90.0, "degrees"),
    "depth": (0.0, 0.5, "relative error"),
}
"""Range and unit of error pictures; what is beyond has the last colour. Segmentation has right and wrong only."""
RIGHT, WRONG = (0, 0, 4), (252, 253, 191)
"""The ends of the colours of errors, so that bright is wrong for every task."""


class Swatch(NamedTuple):
    """A colour of a legend and what it means; no colour is the hatch."""

    colour: tuple[int, ...] | None
    name: str


class Scale(NamedTuple):
    """A legend's scale of colours: the values of its first and its last one, what they are, matplotlib's name."""

    limits: Range
    unit: str
    colours: str


class Panel(NamedTuple):
    """A picture of a sheet and the line above it."""

    picture: Image.Image
    caption: str = ""


@functools.cache
def palette() -> Bytes:
    """Return the colours of class ids, uint8 (256, 3): all different, the first ones the most, 0 dark, none grey.

    Each colour is the one, among a grid of colours with some chroma, that is furthest in CIELAB from all before it.
    """
    levels = np.linspace(0, 255, 17).round()
    grid = np.stack(np.meshgrid(levels, levels, levels, indexing="ij"), -1).reshape(-1, 3)
    lab = _lab(grid)
    chroma = np.hypot(lab[:, 1], lab[:, 2])
    usable = (chroma > 22) & (lab[:, 0] > 42) & (lab[:, 0] < 92)  # all far from the background
    grid, lab = grid[usable], lab[usable]
    chosen = [np.array(BACKGROUND, float)]
    near = np.full(len(grid), np.inf)
    pick = int(np.argmin(np.linalg.norm(grid - [230, 60, 50], axis=1)))
    for _ in range(255):
        chosen.append(grid[pick])
        near = np.minimum(near, np.linalg.norm(lab - lab[pick], axis=1))
        pick = int(np.argmax(near))
    return np.array(chosen, np.uint8)


def label_picture(
    spec: DenseTaskSpec, array: NDArray[Any], depth_range: Range | None = None, *, predicted: bool = False
) -> Image.Image:
    """Return a label or a prediction as a picture of the same size.

    Args:
        spec: the task.
        array: as in :class:`~tasklora.vision.sample.DenseSample`; for predictions class ids, probabilities, unit
            vectors or metres. Classes have their colour, probabilities are grey levels, normals are (n + 1) / 2 as RGB.
        depth_range: metres of the first and the last colour, which depth needs (:func:`depth_range_of`): what is beyond
            has the last one.
        predicted: whether it is a prediction, in which nothing is ignored: a depth of 0 is one there.

    Raises:
        ConfigError: if depth has no range, or another kind has one.
        DataError: if the array's shape or values are not those of the kind.
    """
    check_map(spec, array)
    if (spec.kind == "depth") != (depth_range is not None):
        raise ConfigError(
            "a picture of depth needs depth_range=(nearest, furthest) in metres; `depth_range_of(label)` gives one."
            if spec.kind == "depth"
            else f"depth_range is for depth, not for {spec.kind}."
        )
    ignored = np.zeros(array.shape[-2:], bool) if predicted else ignored_pixels(spec, array)
    if spec.kind == "segmentation":
        pixels = palette()[array.astype(np.intp)]
    elif spec.kind == "normals":
        pixels = _bytes((array.transpose(1, 2, 0).astype(float) + 1) / 2)
    elif depth_range is not None:
        pixels = _coloured(array, depth_range, DEPTH_COLOURS)
    else:
        pixels = np.repeat(_bytes(array)[..., None], 3, -1)
    return _finished(pixels, ignored)


def error_map(spec: DenseTaskSpec, prediction: NDArray[Any], label: NDArray[Any]) -> NDArray[np.float64]:
    """Return (H, W) how far the prediction is off, NaN where the label is ignored.

    Segmentation: 1 where wrong, else 0. Saliency, edges: |p − y|. Normals: the angle in degrees. Depth: |p − y| / y.

    Raises:
        DataError: if the two differ in shape, or one is not of the kind.
    """
    check_map(spec, prediction)
    check_map(spec, label)
    if prediction.shape != label.shape:
        raise DataError(f"prediction and label differ in shape: {prediction.shape} and {label.shape}.")
    ignored = ignored_pixels(spec, label)
    p, y = prediction.astype(float), label.astype(float)
    if spec.kind == "segmentation":
        error = (prediction != label).astype(float)
    elif spec.kind == "normals":
        y[:, ignored] = 0
        cross = np.linalg.norm(np.cross(p, y, axis=0), axis=0)  # exact for small angles, where arccos is not
        error = np.degrees(np.arctan2(cross, (p * y).sum(0)))
    elif spec.kind == "depth":
        error = np.abs(p - y) / np.where(ignored, 1, y)
    else:
        error = np.abs(p - y)
    error[ignored] = np.nan
    return np.asarray(error)


def error_picture(spec: DenseTaskSpec, prediction: NDArray[Any], label: NDArray[Any]) -> Image.Image:
    """Return where and how far the prediction is off: bright or dark for classes, else on :data:`ERROR_SCALES`.

    Raises:
        DataError: as :func:`error_map`.
    """
    error = error_map(spec, prediction, label)
    ignored = np.isnan(error)
    if spec.kind == "segmentation":
        pixels = np.where((error > 0)[..., None], np.array(WRONG, np.uint8), np.array(RIGHT, np.uint8))
    else:
        low, high, _ = ERROR_SCALES[spec.kind]
        pixels = _coloured(np.where(ignored, 0, error), (low, high), ERROR_COLOURS)
    return _finished(pixels, ignored)


def depth_range_of(*arrays: NDArray[Any]) -> Range:
    """Return the smallest and largest depth in these maps, without ignored pixels.

    Raises:
        DataError: if no pixel has a depth.
    """
    valid = [array[array != NO_DEPTH] for array in arrays]
    values = np.concatenate([part[np.isfinite(part)] for part in valid]) if valid else np.zeros(0)
    if not values.size:
        raise DataError("no pixel of these depth maps has a depth, so they have no range.")
    return float(values.min()), float(values.max())


def meaning(spec: DenseTaskSpec, depth_range: Range | None = None) -> list[Swatch] | Scale:
    """Return what the colours of :func:`label_picture` mean: single colours, or a scale.

    Raises:
        ConfigError: if depth has no range, or another kind has one.
    """
    if (spec.kind == "depth") != (depth_range is not None):
        raise ConfigError("the legend of depth, and of no other kind, needs depth_range=(nearest, furthest) in metres.")
    if spec.labels:
        classes = zip(palette().tolist(), spec.labels, strict=False)
        return [*(Swatch(tuple(colour), name) for colour, name in classes), Swatch(None, "ignored")]
    if depth_range is not None:
        return Scale(depth_range, "metres", DEPTH_COLOURS)
    if spec.kind == "normals":
        ends = [((255, 128, 128), "right"), ((0, 128, 128), "left"), ((128, 255, 128), "up"), ((128, 0, 128), "down")]
        return [Swatch(*end) for end in [*ends, ((128, 128, 255), "to the viewer"), (None, "ignored")]]
    return Scale((0.0, 1.0), "probability", "gray")


def error_meaning(spec: DenseTaskSpec) -> list[Swatch] | Scale:
    """Return what the colours of :func:`error_picture` mean, as :func:`meaning`."""
    if spec.kind == "segmentation":
        return [Swatch(RIGHT, "right"), Swatch(WRONG, "wrong"), Swatch(None, "ignored")]
    low, high, unit = ERROR_SCALES[spec.kind]
    return Scale((low, high), unit, ERROR_COLOURS)


def legend(spec: DenseTaskSpec, depth_range: Range | None = None) -> Image.Image:
    """Return :func:`meaning` as a picture."""
    return _drawn(meaning(spec, depth_range))


def error_legend(spec: DenseTaskSpec) -> Image.Image:
    """Return :func:`error_meaning` as a picture."""
    return _drawn(error_meaning(spec))


def _drawn(found: list[Swatch] | Scale) -> Image.Image:
    return scale_bar(*found) if isinstance(found, Scale) else _swatches(found)


def ramp(colours: str, width: int = 256) -> Image.Image:
    """Return the colours of a scale, by matplotlib's name, from the first to the last, one pixel high."""
    from PIL import Image

    return Image.fromarray(_coloured(np.linspace(0, 1, width)[None], (0.0, 1.0), colours))


def scale_bar(limits: Range, unit: str, colours: str, width: int = 220) -> Image.Image:
    """Return a bar of colours with its ends and its middle in numbers.

    Args:
        limits: values of the first and the last colour.
        unit: what the values are.
        colours: a name of matplotlib's.
        width: pixels.
    """
    from PIL import Image, ImageDraw

    image = Image.new("RGB", (width, 34), "white")
    image.paste(ramp(colours, width - 16).resize((width - 16, 12), Image.Resampling.NEAREST), (8, 4))
    draw, font = ImageDraw.Draw(image), _font(11)
    low, high = limits
    draw.text((8, 18), f"{low:.3g}", "black", font)
    draw.text((width / 2, 18), f"{(low + high) / 2:.3g} {unit}", "black", font, anchor="ma")
    draw.text((width - 8, 18), f"{high:.3g}", "black", font, anchor="ra")
    return image


def enlarged(picture: Image.Image, factor: int) -> Image.Image:
    """Return the picture with every pixel repeated `factor` times each way.

    Raises:
        ConfigError: on a factor below 1.
    """
    from PIL import Image

    if factor < 1:
        raise ConfigError(f"a picture is enlarged by a whole factor of 1 or more, got {factor}.")
    return picture.resize((picture.width * factor, picture.height * factor), Image.Resampling.NEAREST)


def sheet(rows: Sequence[Sequence[Panel]], title: str = "", gap: int = 8) -> Image.Image:
    """Return pictures in rows, each with its caption above it, in columns as wide as their widest picture.

    A caption wider than its column is broken into lines. Rows may be of different lengths, pictures of any sizes.

    Raises:
        DataError: if there is no picture.
    """
    from PIL import Image, ImageDraw

    rows = [row for row in rows if row]
    if not rows:
        raise DataError("a sheet needs one picture at least, got none.")
    font, big = _font(12), _font(15)
    columns = max(len(row) for row in rows)
    widths = [max(row[c].picture.width for row in rows if c < len(row)) for c in range(columns)]
    texts = [[_broken(panel.caption, widths[c]) for c, panel in enumerate(row)] for row in rows]
    heads = [15 * max(len(lines) for lines in row) + (3 if any(row) else 0) for row in texts]
    tops = [gap + (26 if title else 0)]
    for row, head in zip(rows, heads, strict=True):
        tops.append(tops[-1] + head + max(panel.picture.height for panel in row) + gap)
    width = max(gap + sum(widths) + gap * columns, int(big.getlength(title)) + 2 * gap)
    result = Image.new("RGB", (width, tops[-1]), "white")
    draw = ImageDraw.Draw(result)
    draw.text((gap, gap - 2), title, "black", big)
    for row, lines, head, top in zip(rows, texts, heads, tops[:-1], strict=True):
        left = gap
        for column, panel in enumerate(row):
            for number, line in enumerate(lines[column]):
                draw.text((left, top + 15 * number), line, (40, 40, 40), font)
            result.paste(panel.picture.convert("RGB"), (left, top + head))
            left += widths[column] + gap
    return result


def check_map(spec: DenseTaskSpec, array: NDArray[Any]) -> None:
    """Raise DataError if an array is no label or prediction of the task: another shape, unknown classes, NaN."""
    shaped = array.ndim == 3 and array.shape[0] == 3 if spec.kind == "normals" else array.ndim == 2
    if not shaped or 0 in array.shape:
        expected = "(3, H, W)" if spec.kind == "normals" else "(H, W)"
        raise DataError(f"a map of {spec.kind} has shape {expected}, got {array.shape}.")
    if spec.labels:
        if array.dtype.kind not in "iu":
            raise DataError(f"a map of segmentation holds class ids, whole numbers; got {array.dtype}.")
        stray = np.unique(array[(array != IGNORED) & ((array < 0) | (array >= len(spec.labels)))])
        if stray.size:
            raise DataError(
                f"class ids {stray[:5].tolist()} are none of the task's 0 to {len(spec.labels) - 1}, nor {IGNORED} "
                "(ignored)."
            )
    elif not np.isfinite(array).all():
        raise DataError(f"a map of {spec.kind} holds NaN or infinite values.")


def ignored_pixels(spec: DenseTaskSpec, array: NDArray[Any]) -> NDArray[np.bool_]:
    """Return (H, W) which pixels of a label are ignored."""
    ignored = array == (NO_DEPTH if spec.kind == "depth" else IGNORED)
    return np.asarray(ignored.any(0) if spec.kind == "normals" else ignored)


def _bytes(shares: NDArray[Any]) -> Bytes:
    return np.asarray(np.clip(shares, 0, 1) * 255 + 0.5).astype(np.uint8)


def _coloured(values: NDArray[Any], limits: Range, colours: str) -> Bytes:
    import matplotlib

    low, high = limits
    shares = np.clip((values.astype(float) - low) / max(high - low, 1e-12), 0, 1)
    return np.asarray(matplotlib.colormaps[colours](shares, bytes=True)[..., :3], np.uint8)


def _finished(pixels: Bytes, ignored: NDArray[np.bool_]) -> Image.Image:
    from PIL import Image

    if ignored.any():
        pixels = np.where(ignored[..., None], _hatch(*ignored.shape), pixels)
    return Image.fromarray(np.ascontiguousarray(pixels, np.uint8))


def _hatch(height: int, width: int) -> Bytes:
    dark = (np.arange(width) + np.arange(height)[:, None]) % 6 < 3
    return np.where(dark[..., None], np.array(HATCH[0], np.uint8), np.array(HATCH[1], np.uint8))


def _swatches(entries: Sequence[Swatch], per_column: int = 12) -> Image.Image:
    """A square of colour and a name each; None is the hatch."""
    from PIL import Image, ImageDraw

    font = _font(12)
    columns = [entries[start : start + per_column] for start in range(0, len(entries), per_column)]
    widths = [30 + int(max(font.getlength(name) for _, name in column)) for column in columns]
    result = Image.new("RGB", (8 + sum(widths) + 8, 8 + 18 * min(len(entries), per_column)), "white")
    draw = ImageDraw.Draw(result)
    left = 8
    for column, width in zip(columns, widths, strict=True):
        for row, (colour, name) in enumerate(column):
            swatch = Image.fromarray(_hatch(13, 13)) if colour is None else Image.new("RGB", (13, 13), colour)
            result.paste(swatch, (left, 6 + 18 * row))
            draw.text((left + 19, 5 + 18 * row), name, "black", font)
        left += width
    return result


def _broken(text: str, width: int) -> list[str]:
    """The text in lines that fit the width, broken between words, and within those that are too long."""
    font, lines = _font(12), []
    line = ""
    for word in text.split():
        trial = f"{line} {word}".strip()
        if font.getlength(trial) <= width or not line:
            line = trial
        else:
            lines.append(line)
            line = word
        while font.getlength(line) > width and len(line) > 1:
            cut = next(n for n in range(len(line) - 1, 0, -1) if n == 1 or font.getlength(line[:n]) <= width)
            lines.append(line[:cut])
            line = line[cut:]
    return [*lines, line] if line else lines


@functools.cache
def _font(size: int) -> Any:
    from PIL import ImageFont

    return ImageFont.load_default(size)


def _lab(colours: NDArray[Any]) -> NDArray[np.float64]:
    """CIELAB (D65) of sRGB values from 0 to 255, (n, 3)."""
    share = colours.astype(float) / 255
    linear = np.where(share > 0.04045, ((share + 0.055) / 1.055) ** 2.4, share / 12.92)
    matrix = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])
    xyz = linear @ matrix.T / np.array([0.9505, 1.0, 1.089])
    f = np.where(xyz > 0.008856, np.cbrt(xyz), 7.787 * xyz + 16 / 116)
    return np.stack([116 * f[:, 1] - 16, 500 * (f[:, 0] - f[:, 1]), 200 * (f[:, 1] - f[:, 2])], -1)
