"""Label files: PNGs of ids or colours, and NumPy arrays. What a file holds is read as it is or refused, never bent."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tasklora.errors import DataError, first_line, listing
from tasklora.vision.spec import IGNORED, DenseTaskSpec

LABEL_SUFFIXES = (".png", ".npy")

Ids = NDArray[np.int32]
Floats = NDArray[np.float32]


def label_size(path: Path) -> tuple[int, int]:
    """Return (width, height) of a label file from its header.

    Raises:
        DataError: if the header cannot be read.
    """
    if path.suffix == ".npy":
        shape = _load_npy(path, lazy=True).shape
        if len(shape) < 2:
            raise DataError(f"label {path} is an array of shape {shape}; (height, width, …) is expected.")
        return shape[1], shape[0]
    from PIL import Image

    try:
        with Image.open(path) as image:
            return image.size
    except (OSError, SyntaxError, ValueError) as error:
        raise DataError(f"label {path} cannot be read: {first_line(error)}.") from None


def read_ids(path: Path, *, palette: bool = False) -> Ids:
    """Return a label file of integers as int32 (H, W): a greyscale PNG of 1, 8 or 16 bits, or an integer array.

    Args:
        path: the file.
        palette: whether a palette PNG is a map of ids, its colours being for show only (as PASCAL VOC's are).

    Raises:
        DataError: on colours, transparency, a palette that nobody said is one of ids, or greys of 2 or 4 bits, which
            PNG readers stretch to 8.
    """
    if path.suffix == ".npy":
        array = _load_npy(path)
        if array.ndim != 2 or array.dtype.kind not in "bui":
            raise DataError(
                f"label {path} is an array of {array.dtype} of shape {array.shape}; integers (height, width) are "
                "expected."
            )
        return array.astype(np.int32)
    mode, pixels = _load_png(path)
    if mode in ("1", "L", "I;16", "I"):
        return pixels.astype(np.int32)
    if mode == "P" and palette:
        return pixels.astype(np.int32)
    advice = (
        "Say `palette: true` in the task's source if its indices are the ids, or write a greyscale PNG."
        if mode == "P"
        else "Write a greyscale PNG whose values are the ids (8 or 16 bits)."
    )
    kind = "a palette" if mode == "P" else f"colours (mode {mode})"
    raise DataError(f"label {path} holds {kind} where ids are expected. {advice}")


def read_vectors(path: Path) -> Floats:
    """Return a label file of vectors as float32 (H, W, 3): n = 2 v / 255 − 1 of an RGB PNG, or an array as it is.

    Raises:
        DataError: on anything else.
    """
    if path.suffix == ".npy":
        array = _load_npy(path)
        if array.ndim != 3 or array.shape[2] != 3 or array.dtype.kind != "f":
            raise DataError(
                f"label {path} is an array of {array.dtype} of shape {array.shape}; floats (height, width, 3) are "
                "expected."
            )
        return array.astype(np.float32)
    mode, pixels = _load_png(path)
    if mode != "RGB":
        raise DataError(f"label {path} is of mode {mode}; an RGB PNG, three parts of a vector, is expected.")
    return (pixels.astype(np.float32) * (2 / 255) - 1).astype(np.float32)


def read_numbers(path: Path) -> Floats:
    """Return a label file of measurements as float32 (H, W): a greyscale PNG, or an array of numbers.

    Raises:
        DataError: on anything else.
    """
    if path.suffix == ".npy":
        array = _load_npy(path)
        if array.ndim != 2 or array.dtype.kind not in "uif":
            raise DataError(
                f"label {path} is an array of {array.dtype} of shape {array.shape}; numbers (height, width) are "
                "expected."
            )
        return array.astype(np.float32)
    return read_ids(path).astype(np.float32)


def class_map(ids: Ids, table: dict[int, int], path: Path, task: str, spec: DenseTaskSpec) -> NDArray[np.uint8]:
    """Return ids of a file as class ids of a task, uint8 (H, W).

    Args:
        ids: (H, W).
        table: id in the file → class id, or 255 where ignored.
        path: the file, for messages.
        task: the task, for messages.
        spec: its classes, for messages.

    Raises:
        DataError: naming the ids of the file that stand for no class.
    """
    highest = max(int(ids.max(initial=0)), max(table))
    lookup = np.full(highest + 1, -1, dtype=np.int32)
    lookup[list(table)] = list(table.values())
    classes = lookup[ids] if int(ids.min(initial=0)) >= 0 else np.where(ids < 0, -1, lookup[np.maximum(ids, 0)])
    if (classes < 0).any():
        unknown = [str(value) for value in np.unique(ids[classes < 0])]
        raise DataError(
            f"task '{task}': unknown classes in {path}: {listing(unknown)}. The task has "
            f"{len(spec.labels or [])} classes ({listing(spec.labels or [], 4)}), in the file "
            f"{_ranges([i for i, c in table.items() if c != IGNORED])}, and ignores "
            f"{_ranges([i for i, c in table.items() if c == IGNORED]) or 'none'}. Mend the file, or the task."
        )
    return classes.astype(np.uint8)


def unit_normals(vectors: Floats, flip: Sequence[str] = ()) -> Floats:
    """Return vectors (H, W, 3) as unit normals (3, H, W); 255 where a vector has no direction (length below 0.1).

    Args:
        vectors: as they stand in the file.
        flip: axes (x, y, z) whose sign the file has the other way round.
    """
    signs = np.array([-1 if axis in flip else 1 for axis in "xyz"], dtype=np.float32)
    planes = np.ascontiguousarray(np.moveaxis(vectors * signs, 2, 0))  # (3, H, W)
    length = np.sqrt((planes**2).sum(axis=0))
    # 8 bits have no exact zero: 127 and 128 are a vector of length 0.007, whose direction says nothing
    valid = np.isfinite(length) & (length > 0.1)
    planes /= np.where(valid, length, 1)
    planes[:, ~valid] = IGNORED
    return planes


def metres(numbers: Floats, scale: float, invalid: Sequence[float], path: Path) -> Floats:
    """Return measured depths (H, W) in metres: numbers · scale; 0 where a number is invalid, 0 or not finite.

    Raises:
        DataError: on depths below zero.
    """
    valid = np.isfinite(numbers) & (numbers != 0)
    for value in invalid:
        valid &= numbers != value
    depth = np.where(valid, numbers, 0) * np.float32(scale)
    if (depth < 0).any():
        raise DataError(
            f"label {path} holds depths below zero (lowest {depth.min():g} m). Name that value among the source's "
            "`invalid`, or mend the file."
        )
    return depth.astype(np.float32)


def _ranges(values: Sequence[int]) -> str:
    """Return e.g. ``0 … 20, 255``."""
    runs: list[list[int]] = []
    for value in sorted(values):
        if runs and value == runs[-1][1] + 1:
            runs[-1][1] = value
        else:
            runs.append([value, value])
    return listing(f"{low} … {high}" if high > low else str(low) for low, high in runs)


def _load_npy(path: Path, *, lazy: bool = False) -> NDArray[Any]:
    try:
        array: NDArray[Any] = np.load(path, mmap_mode="r" if lazy else None, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise DataError(f"label {path} cannot be read as a NumPy array: {first_line(error)}.") from None
    if not isinstance(array, np.ndarray):
        raise DataError(f"label {path} holds several arrays; one is expected.")
    return array


def _load_png(path: Path) -> tuple[str, NDArray[Any]]:
    """Return the mode and the pixels of a PNG."""
    from PIL import Image

    try:
        with path.open("rb") as file:
            header = file.read(26)
            if header[:8] != b"\x89PNG\r\n\x1a\n" or len(header) < 26:
                raise DataError(f"label {path} is not a PNG file; other formats lose or bend labels.")
            bits, colour = header[24], header[25]
            if colour == 0 and bits in (2, 4):
                raise DataError(
                    f"label {path} is a greyscale PNG of {bits} bits, whose values PNG readers stretch to 8 bits. "
                    "Write it with 8."
                )
            file.seek(0)
            with Image.open(file) as image:
                return image.mode, np.asarray(image)
    except (OSError, SyntaxError, ValueError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"label {path} cannot be read: {first_line(error)}.") from None
