"""Rows with different numbers of values as one array: NaN where a row has fewer. Texts are rows of an object array."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

Array: TypeAlias = NDArray[np.float64]


def padded(rows: Sequence[Any]) -> Array:
    """Return one array of rows that hold a number each (rows,), or a list of them each (rows, W).

    Args:
        rows: numbers, or lists of numbers (None is NaN), W is the longest list's length; or texts.
    """
    if rows and isinstance(rows[0], str):
        return np.array(rows, dtype=object)
    if not rows or np.ndim(rows[0]) == 0:
        return np.array(rows, dtype=np.float64)
    array = np.full((len(rows), max(map(len, rows))), np.nan)
    for place, row in enumerate(rows):
        array[place, : len(row)] = row
    return array


def fitted(values: Array, wanted: Array) -> Array:
    """Return `values` as wide as `wanted`: cut, or padded with NaN."""
    if values.ndim == 1 or values.shape[1] == wanted.shape[1]:
        return values
    array = np.full(wanted.shape, np.nan)
    width = min(values.shape[1], wanted.shape[1])
    array[:, :width] = values[:, :width]
    return array


def unpadded(row: Any, length: int) -> Any:
    """Return a row of such an array as JSON: a number, or its first `length` ones as a list; null where it is NaN."""
    if isinstance(row, str):
        return row
    if np.ndim(row) == 0:
        return None if np.isnan(row) else float(row)
    return [None if np.isnan(value) else float(value) for value in row[:length]]


def count(row: Any) -> int:
    """Return how many values a row has: without the NaN that pads it."""
    return 1 if np.ndim(row) == 0 else int(np.isfinite(row).sum())


def is_missing(row: Any) -> bool:
    """Return whether a row's one value is not there: an answer in text that names no option."""
    return np.ndim(row) == 0 and not isinstance(row, str) and bool(np.isnan(row))


def same(one: Array, other: Array) -> bool:
    """Return whether two such arrays hold the same: NaN is equal to NaN."""
    return np.array_equal(one, other, equal_nan=one.dtype != object and other.dtype != object)
