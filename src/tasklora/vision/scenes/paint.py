"""What surfaces look like: two colours and a pattern between them, in the solid's own space."""

from __future__ import annotations

import colorsys
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from tasklora.vision.scenes.solids import random_rotation

Array = npt.NDArray[Any]

PATTERNS = ["plain"] * 6 + ["stripes"] * 4 + ["checks"] * 3 + ["noise"] * 3 + ["dots"] * 2 + ["gradient"] * 2
"""Each as often as it is drawn in twenty."""
SHINES = [0.0, 0.15, 0.5]


class Paint(NamedTuple):
    """Two colours (linear RGB, 0 to 1) and how they mix.

    Attributes:
        first, second: the colours.
        pattern: one of :data:`PATTERNS`.
        period: metres of one repetition; of a gradient, from one colour to the other.
        axes: (3, 3), the pattern's own directions as rows.
        phase: (3,), where it begins.
        shine: strength of the highlight.
    """

    first: tuple[float, float, float]
    second: tuple[float, float, float]
    pattern: str
    period: float
    axes: npt.NDArray[np.float32]
    phase: npt.NDArray[np.float32]
    shine: float


def colours(paint: Paint, points: Array, footprint: Array) -> Array:
    """Return the colours (3, n) at points (3, n).

    A pattern finer than a pixel can show fades to the mean of its colours, so that distant floors do not flicker.

    Args:
        paint: what is painted.
        points: in the solid's frame, metres.
        footprint: (n,) metres of the surface that one pixel covers.
    """
    first = np.array(paint.first, np.float32)[:, None]
    if paint.pattern == "plain":
        return np.broadcast_to(first, points.shape)
    mix = _mix(paint, points, footprint)
    return np.asarray(first + (np.array(paint.second, np.float32)[:, None] - first) * mix)


def _mix(paint: Paint, points: Array, footprint: Array) -> Array:
    turn = np.float32(2 * np.pi / paint.period)
    if paint.pattern == "gradient":
        along = paint.axes[0] @ points
        return np.asarray(0.5 + 0.5 * np.sin(along * (turn / 2) + paint.phase[0]))
    pixels = paint.period / footprint  # per period
    sharp, fade = np.maximum(pixels * 0.3, 1), np.clip(pixels * 0.4 - 0.8, 0, 1)
    if paint.pattern == "stripes":
        wave = np.clip(np.sin((paint.axes[0] @ points) * turn + paint.phase[0]) * sharp, -1, 1)
        return np.asarray(0.5 + 0.5 * wave * fade)
    q = (paint.axes * turn) @ points + paint.phase[:, None]
    if paint.pattern == "noise":  # waves that bend each other
        a = np.sin(q[0] + 1.7 * np.sin(0.6 * q[1] + 0.4 * q[2]))
        b = np.sin(1.9 * q[1] - 0.8 * q[2] + 1.3 * a)
        c = np.sin(3.7 * q[2] + 2.9 * q[0] + 1.1 * b)
        return np.asarray(0.5 + (0.25 * a + 0.15 * b + 0.1 * c) * fade)
    if paint.pattern == "dots":
        waves = np.cos(q).sum(0)
        return np.asarray(0.5 + 0.5 * np.clip((waves - 1.0) * sharp, -1, 1) * fade)
    edges = np.clip(np.sin(q) * sharp, -1, 1)
    return np.asarray(0.5 + 0.5 * edges[0] * edges[1] * edges[2] * fade)


def random_paint(rng: np.random.Generator, vivid: bool, size: float) -> Paint:
    """Return a random paint.

    Args:
        rng: randomness.
        vivid: saturated colours (saturation 0.75 to 1, value 0.65 to 1) rather than dull ones (saturation up to 0.25).
        size: of what is painted, metres; the pattern's period is 0.25 to 0.8 of it.
    """
    hue = rng.random()
    first = _colour(rng, vivid, hue)
    second = _colour(rng, vivid, hue + rng.uniform(0.08, 0.5), away_from=first)
    if not vivid and rng.random() < 0.1:
        first, second = (0.015,) * 3, (0.85,) * 3  # black and white
    axes = np.eye(3, dtype=np.float32)
    if rng.random() < 0.5:
        axes = random_rotation(rng).astype(np.float32)
    axes = np.roll(axes, int(rng.integers(3)), axis=0)  # which one stripes and gradients follow
    pattern = PATTERNS[int(rng.integers(len(PATTERNS)))]
    period = size * rng.uniform(0.25, 0.8) * (3 if pattern == "gradient" else 1)
    phase = rng.uniform(0, 2 * np.pi, 3).astype(np.float32)
    return Paint(first, second, pattern, float(period), axes, phase, SHINES[int(rng.integers(len(SHINES)))])


def _colour(
    rng: np.random.Generator, vivid: bool, hue: float, away_from: tuple[float, float, float] | None = None
) -> tuple[float, float, float]:
    if vivid:
        saturation, value = rng.uniform(0.75, 1), rng.uniform(0.65, 1)
    else:
        saturation, value = rng.uniform(0, 0.25), rng.uniform(0.25, 0.95)
        if away_from is not None and abs(value - max(away_from) ** (1 / 2.2)) < 0.2:
            value = value - 0.3 if value > 0.6 else value + 0.3  # two dull colours differ in brightness at least
    red, green, blue = (channel**2.2 for channel in colorsys.hsv_to_rgb(hue % 1, saturation, value))
    return red, green, blue
