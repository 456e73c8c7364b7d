"""Labels that follow from other labels: boundaries and foreground from classes, normals and edges from depth."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tasklora.vision.spec import IGNORED

Mask = NDArray[np.bool_]
Floats = NDArray[np.float32]


STEEPEST = 4.0
"""Largest relative change of inverse depth per angle (radian) within a surface: the tangent of its slant."""


@dataclass(frozen=True)
class Intrinsics:
    """A pinhole camera in pixels: x = fx · X / Z + cx and y = fy · Y / Z + cy (X to the right, Y down, Z ahead)."""

    fx: float
    fy: float
    cx: float
    cy: float


def boundaries(ids: NDArray[Any], ignored: Mask | None = None) -> Floats:
    """Return the edges between classes, float32 (H, W): lines one pixel wide of 1 among 0, and 255 where ignored.

    A pixel lies at a boundary if one of its four neighbours has another class; the band of such pixels (two wide) is
    thinned. Loaders of PASCAL-Context thin the pixels where the Laplacian of the ids is not zero, which is the same
    except where the differences of ids on opposite sides happen to cancel.

    Args:
        ids: (H, W) class ids of any kind.
        ignored: (H, W) pixels whose class is unknown: ignored here too, and no class on its own.
    """
    known = np.ones(ids.shape, dtype=bool) if ignored is None else ~ignored
    band = np.zeros(ids.shape, dtype=bool)
    for first, second in (((slice(None, -1),), (slice(1, None),)), ((..., slice(None, -1)), (..., slice(1, None)))):
        differ = (ids[first] != ids[second]) & known[first] & known[second]
        band[first] |= differ
        band[second] |= differ
    edges = thinned(band).astype(np.float32)
    edges[~known] = IGNORED
    return edges


def foreground(ids: NDArray[Any], background: list[int], ignored: Mask) -> Floats:
    """Return 1 where a class is not of the background, 0 where it is, 255 where ignored; float32 (H, W)."""
    salient = (~np.isin(ids, background)).astype(np.float32)
    salient[ignored] = IGNORED
    return salient


def thinned(mask: Mask) -> Mask:
    """Return a mask (H, W) with its lines thinned to a width of one pixel, their connections kept.

    The parallel algorithm of Guo and Hall, Parallel thinning with two-subiteration algorithms (CACM 1989): a pixel
    goes if exactly one line passes it, it is no end of a line, and it lies on the side that the subiteration peels.
    """
    kept = np.pad(mask, 1)
    while True:
        before = int(kept.sum())
        for second in (False, True):
            # the eight neighbours, counter-clockwise from the east
            e, ne, n = kept[1:-1, 2:], kept[:-2, 2:], kept[:-2, 1:-1]
            nw, w, sw = kept[:-2, :-2], kept[1:-1, :-2], kept[2:, :-2]
            s, se = kept[2:, 1:-1], kept[2:, 2:]
            lines = (
                (~e & (ne | n)).astype(np.int8) + (~n & (nw | w)) + (~w & (sw | s)) + (~s & (se | e))
            )  # connected lines that leave the pixel
            ends = np.minimum(
                (e | ne).astype(np.int8) + (n | nw) + (w | sw) + (s | se),
                (ne | n).astype(np.int8) + (nw | w) + (sw | s) + (se | e),
            )
            peel = ((sw | s | ~nw) & w) if second else ((ne | n | ~se) & e)
            kept[1:-1, 1:-1] &= ~((lines == 1) & (ends >= 2) & (ends <= 3) & ~peel)
        if int(kept.sum()) == before:
            return kept[1:-1, 1:-1].copy()


def normals_from_depth(depth: Floats, camera: Intrinsics, step: int) -> Floats:
    """Return surface normals (3, H, W) from depth (H, W) in metres; 255 where they are not known.

    The points of a plane, n · P = c, seen along the rays (u, v, 1) = ((x − cx) / fx, (y − cy) / fy, 1), have
    n · (u, v, 1) = c / Z: inverse depth is affine in the image, however slanted the plane. So a plane is fitted to
    inverse depth by least squares over 5 × 5 pixels that lie `step` apart. Pixels without depth do not take part, nor
    do those whose inverse depth differs so much from the middle's that the surface between them would be slanted by
    more than 76° (:data:`STEEPEST`): they lie on another one.

    Axes: x to the right, y up, z towards the viewer; a wall that faces the camera has (0, 0, 1).

    Args:
        depth: metres, 0 unknown.
        camera: intrinsics of images of this size.
        step: distance of neighbours in pixels: larger is smoother.
    """
    height, width = depth.shape
    valid = depth > 0
    inverse = np.where(valid, 1 / np.where(valid, depth, 1), 0).astype(np.float32)
    reach = 2 * step
    padded = np.pad(inverse, reach)
    # How many neighbours take part and the sum of their inverse depth above the middle's, by column and by row of the
    # 5 × 5; and Σ i j. Pixels without depth are 0 in `padded`: nearness leaves them out.
    by_column, by_row = np.zeros((2, 2, 5, height, width), np.float32)
    mixed = np.zeros((height, width), np.float32)
    for i in range(5):
        for j in range(5):
            w = padded[i * step : i * step + height, j * step : j * step + width] - inverse
            tolerance = np.float32(STEEPEST * max(abs(i - 2), abs(j - 2)) * step / min(camera.fx, camera.fy))
            near = (np.abs(w) <= tolerance * inverse).astype(np.float32)
            seen = near * w
            for sums, at in ((by_column, j), (by_row, i)):
                sums[0, at] += near
                sums[1, at] += seen
            if i != 2 and j != 2:
                mixed += near * np.float32((i - 2) * (j - 2))
    u, v = (np.arange(-2, 3, dtype=np.float32) * np.float32(step / focal) for focal in (camera.fx, camera.fy))
    moments = {
        "1": by_row[0].sum(axis=0),
        "w": by_row[1].sum(axis=0),
        "u": np.tensordot(u, by_column[0], 1),
        "v": np.tensordot(v, by_row[0], 1),
        "uu": np.tensordot(u**2, by_column[0], 1),
        "vv": np.tensordot(v**2, by_row[0], 1),
        "uv": mixed * np.float32(step / camera.fx * step / camera.fy),
        "uw": np.tensordot(u, by_column[1], 1),
        "vw": np.tensordot(v, by_row[1], 1),
    }
    return _plane_normals(moments, inverse, camera)


def _plane_normals(moments: dict[str, Floats], inverse: Floats, camera: Intrinsics) -> Floats:
    """Return normals from the moments about each pixel of w = a u + b v + c, inverse depth above the pixel's own."""
    count = np.maximum(moments["1"], 1)
    mean_u, mean_v, mean_w = (moments[key] / count for key in ("u", "v", "w"))
    uu, uv = moments["uu"] / count - mean_u**2, moments["uv"] / count - mean_u * mean_v
    vv = moments["vv"] / count - mean_v**2
    uw, vw = moments["uw"] / count - mean_u * mean_w, moments["vw"] / count - mean_v * mean_w
    determinant = uu * vv - uv**2
    # neighbours on one line, or nearly so, say nothing of the slant across it
    known = (inverse > 0) & (moments["1"] >= 6) & (determinant > 0.05 * np.maximum(uu, vv) ** 2)
    safe = np.where(known, determinant, 1)
    a, b = (vv * uw - uv * vw) / safe, (uu * vw - uv * uw) / safe
    height, width = inverse.shape
    u = ((np.arange(width) - camera.cx) / camera.fx).astype(np.float32)
    v = ((np.arange(height) - camera.cy) / camera.fy).astype(np.float32)[:, None]
    ahead = inverse + (mean_w - a * mean_u - b * mean_v) - a * u - b * v
    # (a, b, ahead) points away from the viewer along (right, down, ahead); turned round and into our axes:
    normals: Floats = np.stack([-a, b, ahead])
    normals /= np.where(known, np.sqrt((normals**2).sum(axis=0)), 1)
    normals[:, ~known] = IGNORED
    return normals


def depth_edges(depth: Floats, jump: float, gap: int) -> Floats:
    """Return the contours of what stands before something else, float32 (H, W): 1, 0, and 255 where not known.

    A pixel at depth Z is on a contour if, across it to the left and right or up and down, inverse depth falls off
    a line by more than `jump` / 2: 1 − Z (1/Z₋ + 1/Z₊) / 2 > jump / 2. At a step from Z to Z' behind it that says
    1 − Z / Z' > jump; on a plane, however slanted, the left side is 0. Contours are thinned to one pixel.

    Depth cameras see nothing in the shadow beside a contour. So holes up to `gap` pixels wide (in their row, else in
    their column) count as lying as far away as the farther of their two ends, and are ignored themselves.

    Args:
        depth: metres, 0 unknown.
        jump: smallest relative step in depth.
        gap: widest hole that is bridged, pixels.
    """
    valid = depth > 0
    bridged = _bridged(depth, gap)
    bridged = np.where(bridged > 0, bridged, _bridged(depth.T, gap).T)
    known = bridged > 0
    inverse = np.where(known, 1 / np.where(known, bridged, 1), np.nan)
    padded = np.pad(inverse, 1, mode="edge")
    contour = np.zeros(depth.shape, dtype=bool)
    blind = np.zeros(depth.shape, dtype=bool)
    for before, after in ((padded[1:-1, :-2], padded[1:-1, 2:]), (padded[:-2, 1:-1], padded[2:, 1:-1])):
        with np.errstate(invalid="ignore"):
            fall = 1 - (before + after) / (2 * inverse)
        blind |= np.isnan(fall)
        contour |= fall > jump / 2
    contour = thinned(contour & valid)
    edges = contour.astype(np.float32)
    edges[~valid | (blind & ~contour)] = IGNORED
    return edges


def _bridged(depth: Floats, gap: int) -> Floats:
    """Return depth with holes of at most `gap` pixels in a row at the depth of their farther end."""
    columns = np.broadcast_to(np.arange(depth.shape[1]), depth.shape)
    left = np.maximum.accumulate(np.where(depth > 0, columns, -1), axis=1)
    right = np.minimum.accumulate(np.where(depth > 0, columns, depth.shape[1])[:, ::-1], axis=1)[:, ::-1]
    narrow = (depth <= 0) & (left >= 0) & (right < depth.shape[1]) & (right - left - 1 <= gap)
    rows = np.broadcast_to(np.arange(depth.shape[0])[:, None], depth.shape)
    filled = depth.copy()
    at = rows[narrow]
    filled[narrow] = np.maximum(depth[at, left[narrow]], depth[at, right[narrow]])
    return filled
