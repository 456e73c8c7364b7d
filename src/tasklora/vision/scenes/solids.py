"""The solids: where a ray meets one, the normal there, and which part of the solid it is.

Every solid stands in its own frame: centre at the origin, axis along y, lengths in metres. A ray is origin + t ·
direction; each component of either may be a number or an array, since the rays of a camera share their origin and those
of a shadow their direction. All is closed form, but for the ring, whose quartic is bracketed and then bisected.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
Vector = Sequence[Any]  # three components, each a number or an array
Hit = tuple[Array, Array]  # distance t, infinite for a miss; face met

SEMSEG_CLASSES = ["background", "sphere", "box", "cylinder", "cone", "capsule", "pyramid", "ring"]
"""Kinds of solids; the index is the class id."""
PART_CLASSES = [
    "background",
    "flat end",  # the faces across the axis of box, cylinder; the base of cone and pyramid
    "flat side",  # the faces along the axis of box and pyramid
    "round side",  # of cylinder and cone, and the tube of a capsule
    "round end",  # the half balls of a capsule
    "ball",  # all of a sphere
    "inner ring",  # nearer to the ring's axis than the circle in the middle of its tube
    "outer ring",
]
"""Parts of solids; the index is the class id."""
SPHERE, BOX, CYLINDER, CONE, CAPSULE, PYRAMID, RING = range(1, 8)
FLAT_END, FLAT_SIDE, ROUND_SIDE, ROUND_END, BALL, INNER_RING, OUTER_RING = range(1, 8)

RING_STEPS = 28
"""Steps in which the sign of a ring's quartic is followed; a ray that cuts off less than one step misses."""


class Shape(NamedTuple):
    """Kind and lengths.

    =========  ==========================================
    kind       a, b, c
    =========  ==========================================
    sphere     radius
    box        half of its width, height, depth
    cylinder   radius, half height
    cone       radius of the base (at −b), half height
    capsule    radius, half the length of its tube
    pyramid    half the side of its base, half height
    ring       radius of the circle, radius of the tube
    =========  ==========================================
    """

    kind: int
    a: float
    b: float = 0.0
    c: float = 0.0

    @property
    def half(self) -> tuple[float, float, float]:
        """Half the sides of the smallest box, parallel to the axes, that holds it."""
        if self.kind == SPHERE:
            return (self.a, self.a, self.a)
        if self.kind == BOX:
            return (self.a, self.b, self.c)
        if self.kind == CAPSULE:
            return (self.a, self.a + self.b, self.a)
        if self.kind == RING:
            return (self.a + self.b, self.b, self.a + self.b)
        return (self.a, self.b, self.a)

    @property
    def radius(self) -> float:
        """Radius of a ball around the centre that holds it."""
        if self.kind in (SPHERE, RING, CAPSULE):
            return self.a + self.b
        return math.hypot(self.a, self.b) if self.kind in (CYLINDER, CONE) else math.hypot(*self.half)

    def reach(self, direction: npt.NDArray[np.float64]) -> float:
        """Return the largest p · direction over its points p, direction (3,) of length 1: how far it reaches there."""
        x, y, z = (float(v) for v in direction)
        across = math.hypot(x, z)
        if self.kind == SPHERE:
            return self.a
        if self.kind == BOX:
            return self.a * abs(x) + self.b * abs(y) + self.c * abs(z)
        if self.kind == CYLINDER:
            return self.a * across + self.b * abs(y)
        if self.kind == CONE:
            return max(self.b * y, self.a * across - self.b * y)
        if self.kind == CAPSULE:
            return self.a + self.b * abs(y)
        if self.kind == PYRAMID:
            return max(self.b * y, self.a * (abs(x) + abs(z)) - self.b * y)
        return self.a * across + self.b

    def planes(self) -> tuple[Array, Array]:
        """Return the outward normals (faces, 3) and distances from the centre (faces,) of a box or a pyramid."""
        if self.kind == BOX:
            eye = np.eye(3)
            return np.stack([eye[0], -eye[0], eye[2], -eye[2], eye[1], -eye[1]]), np.array(
                [self.a, self.a, self.c, self.c, self.b, self.b]
            )
        slant = float(np.hypot(2 * self.b, self.a))
        n, up = 2 * self.b / slant, self.a / slant
        normals = np.array([[n, up, 0], [-n, up, 0], [0, up, n], [0, up, -n], [0, -1, 0]])
        return normals, np.array([up * self.b] * 4 + [self.b])


def random_rotation(rng: np.random.Generator) -> npt.NDArray[np.float64]:
    """Return a rotation (3, 3), all equally likely: that of a random unit quaternion."""
    w, x, y, z = rng.standard_normal(4).tolist()
    k = 2 / (w * w + x * x + y * y + z * z)
    return np.array(
        [
            [1 - k * (y * y + z * z), k * (x * y - w * z), k * (x * z + w * y)],
            [k * (x * y + w * z), 1 - k * (x * x + z * z), k * (y * z - w * x)],
            [k * (x * z - w * y), k * (y * z + w * x), 1 - k * (x * x + y * y)],
        ]
    )


def hit(shape: Shape, origin: Vector, direction: Vector) -> Hit:
    """Return where rays from outside first meet the solid, and the face they meet.

    Args:
        shape: the solid.
        origin: x, y, z of the rays' origins in the solid's frame.
        direction: x, y, z of their directions, of any length.

    Returns:
        The distance t > 0 in lengths of the direction, infinite for a miss, and the face's index.
    """
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        t, face = _HITS[shape.kind](shape, origin, direction)
    return np.where(t > 1e-4, t, np.float32(np.inf)), face  # a NaN is a miss too


def surface(shape: Shape, points: Array, faces: Array) -> tuple[Array, Array]:
    """Return the outward unit normals (3, n) and the parts (n,) at `points` (3, n) on `faces` (n,)."""
    x, y, z = points
    if shape.kind in (BOX, PYRAMID):
        normals = shape.planes()[0].astype(np.float32)[faces].T
        ends = faces >= 4
        return normals, np.where(ends, FLAT_END, FLAT_SIDE).astype(np.uint8)
    if shape.kind == SPHERE:
        return _unit(points), np.full(faces.shape, BALL, np.uint8)
    if shape.kind == CAPSULE:
        on_axis = np.clip(y, -shape.b, shape.b)
        return _unit(np.stack([x, y - on_axis, z])), np.where(np.abs(y) > shape.b, ROUND_END, ROUND_SIDE).astype(
            np.uint8
        )
    across = np.maximum(np.hypot(x, z), 1e-9)
    if shape.kind == RING:
        k = 1 - shape.a / across
        return _unit(np.stack([x * k, y, z * k])), np.where(k < 0, INNER_RING, OUTER_RING).astype(np.uint8)
    slope = 0.0 if shape.kind == CYLINDER else shape.a / (2 * shape.b)
    side = _unit(np.stack([x / across, np.full_like(y, slope), z / across]))
    ends = np.zeros_like(side)
    ends[1] = np.where(faces == 1, -1, 1)
    return np.where(faces > 0, ends, side), np.where(faces > 0, FLAT_END, ROUND_SIDE).astype(np.uint8)


def _unit(vectors: Array) -> Array:
    return np.asarray(vectors / np.maximum(np.sqrt((vectors**2).sum(0)), 1e-12))


def _near_root(a: Any, b: Any, c: Any) -> Array:
    """The smaller root of a t² + 2 b t + c; NaN where there is none."""
    return np.asarray((-b - np.sqrt(b * b - a * c)) / a)


def _sphere(shape: Shape, o: Vector, d: Vector) -> Hit:
    t = _near_root(
        d[0] * d[0] + d[1] * d[1] + d[2] * d[2],
        o[0] * d[0] + o[1] * d[1] + o[2] * d[2],
        o[0] * o[0] + o[1] * o[1] + o[2] * o[2] - shape.a**2,
    )
    return t, np.zeros(t.shape, np.int8)


def _convex(shape: Shape, o: Vector, d: Vector) -> Hit:
    """A box or a pyramid: the last plane entered, if that is before the first one left."""
    enter: Any = np.float32(-np.inf)
    leave: Any = np.float32(np.inf)
    face: Any = np.int8(0)
    for index, (normal, offset) in enumerate(zip(*shape.planes(), strict=True)):
        used = [axis for axis in range(3) if normal[axis]]
        along = sum(float(normal[axis]) * d[axis] for axis in used)
        t = (float(offset) - sum(float(normal[axis]) * o[axis] for axis in used)) / along
        into = along < 0
        later = into & (t > enter)
        enter = np.where(later, t, enter)
        face = np.where(later, np.int8(index), face)
        leave = np.where(~into & (t < leave), t, leave)
    return np.where(enter < leave, enter, np.float32(np.nan)), face


def _cylinder(shape: Shape, o: Vector, d: Vector) -> Hit:
    a = np.maximum(d[0] * d[0] + d[2] * d[2], np.float32(1e-12))  # a ray along the axis, and one across it
    dy = np.where(d[1] == 0, np.float32(1e-12), d[1])
    b = o[0] * d[0] + o[2] * d[2]
    root = np.sqrt(b * b - a * (o[0] * o[0] + o[2] * o[2] - shape.a**2))
    side_in, side_out = (-b - root) / a, (-b + root) / a
    up = -np.sign(dy)  # +1 for a ray that comes from above
    end_in, end_out = (up * shape.b - o[1]) / dy, (-up * shape.b - o[1]) / dy
    by_end = end_in > side_in
    t = np.where(by_end, end_in, side_in)
    t = np.where(t < np.minimum(side_out, end_out), t, np.float32(np.nan))
    return t, np.where(by_end, np.where(up > 0, np.int8(2), np.int8(1)), np.int8(0))


def _cone(shape: Shape, o: Vector, d: Vector) -> Hit:
    k2 = (shape.a / (2 * shape.b)) ** 2
    h = shape.b - o[1]  # how far the tip is above the origin
    a = d[0] * d[0] + d[2] * d[2] - k2 * d[1] * d[1]
    b = o[0] * d[0] + o[2] * d[2] + k2 * h * d[1]
    root = np.sqrt(b * b - a * (o[0] * o[0] + o[2] * o[2] - k2 * h * h))
    best: Any = np.float32(np.inf)
    for t in ((-b - root) / a, (-b + root) / a):
        on_cone = (np.abs(o[1] + t * d[1]) <= shape.b) & (t > 0)
        best = np.where(on_cone & (t < best), t, best)
    base = (-shape.b - o[1]) / d[1]
    x, z = o[0] + base * d[0], o[2] + base * d[2]
    by_base = (x * x + z * z <= shape.a**2) & (base > 0) & (base < best)
    return np.where(by_base, base, best), np.where(by_base, np.int8(1), np.int8(0))


def _capsule(shape: Shape, o: Vector, d: Vector) -> Hit:
    r2 = shape.a**2
    across, along = d[0] * d[0] + d[2] * d[2], o[0] * d[0] + o[2] * d[2]
    out = o[0] * o[0] + o[2] * o[2] - r2
    side = _near_root(across, along, out)
    best = np.where(np.abs(o[1] + side * d[1]) <= shape.b, side, np.float32(np.inf))
    for end in (shape.b, -shape.b):
        y = o[1] - end
        t = _near_root(across + d[1] * d[1], along + y * d[1], out + y * y)
        best = np.where(t < best, t, best)  # where the tube is met, it is met before the ends
    return best, np.zeros(best.shape, np.int8)


def _ring(shape: Shape, o: Vector, d: Vector) -> Hit:
    """The first root of (|p|² + R² − r²)² − 4 R² (x² + z²), along the chord of the ball that holds the ring."""
    major, minor = shape.a, shape.b
    dd = d[0] * d[0] + d[1] * d[1] + d[2] * d[2]
    od = o[0] * d[0] + o[1] * d[1] + o[2] * d[2]
    oo = o[0] * o[0] + o[1] * o[1] + o[2] * o[2]
    half = np.sqrt(od * od - dd * (oo - (major + minor) ** 2)) / dd
    shape_of = np.broadcast(half, od).shape
    result = np.full(shape_of, np.nan, np.float32)
    inside = np.nonzero(np.broadcast_to((half > 0) & (half > od / dd), shape_of))

    def pick(value: Any) -> Array:
        return np.asarray(np.broadcast_to(np.asarray(value, np.float32), shape_of)[inside], np.float64)

    # p = m + s d from the chord's middle m on, which keeps the numbers small
    middle, half, dd = pick(-od / dd), pick(half), pick(dd)
    mx, my, mz = (pick(o[axis]) + middle * pick(d[axis]) for axis in range(3))
    dx, dy, dz = (pick(d[axis]) for axis in range(3))
    mm, md = mx * mx + my * my + mz * mz + major**2 - minor**2, mx * dx + my * dy + mz * dz
    a0, a1, a2 = mx * mx + mz * mz, 2 * (mx * dx + mz * dz), dx * dx + dz * dz

    def quartic(s: Array) -> Array:
        whole = mm + s * (2 * md + s * dd)
        return np.asarray(whole * whole - 4 * major**2 * (a0 + s * (a1 + s * a2)))

    low, high = np.full_like(half, np.nan), np.full_like(half, np.nan)
    before = np.maximum(-half, -middle)  # not behind the origin, which may be within the ball
    step = (half - before) / RING_STEPS
    for _ in range(RING_STEPS):
        after = before + step
        first = (quartic(after) < 0) & np.isnan(low)
        low, high = np.where(first, before, low), np.where(first, after, high)
        before = after
    for _ in range(18):
        s = 0.5 * (low + high)
        within = quartic(s) < 0
        low, high = np.where(within, low, s), np.where(within, s, high)
    result[inside] = middle + high
    return result, np.zeros(shape_of, np.int8)


_HITS: dict[int, Callable[[Shape, Vector, Vector], Hit]] = {
    SPHERE: _sphere,
    BOX: _convex,
    CYLINDER: _cylinder,
    CONE: _cone,
    CAPSULE: _capsule,
    PYRAMID: _convex,
    RING: _ring,
}
