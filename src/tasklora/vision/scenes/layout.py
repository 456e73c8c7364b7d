"""What stands in a scene: drawn from a seed, before anything is rendered and independent of the picture's size."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from tasklora.errors import ConfigError
from tasklora.vision.scenes.paint import Paint, random_paint
from tasklora.vision.scenes.solids import (
    BOX,
    CAPSULE,
    CONE,
    CYLINDER,
    PYRAMID,
    RING,
    SEMSEG_CLASSES,
    SPHERE,
    Shape,
    random_rotation,
)

Floats = npt.NDArray[np.float64]

DEPTH_RANGE = (0.5, 15.0)
"""Metres between which every depth of every scene lies."""
MAX_SOLIDS = 7


class Solid(NamedTuple):
    """A solid in its place: world = rotation · own + centre (x right, y up, z backwards; the floor is y = 0)."""

    shape: Shape
    rotation: Floats  # (3, 3)
    centre: Floats  # (3,)
    paint: Paint
    salient: bool


class Scene(NamedTuple):
    """Everything that is to be seen.

    Attributes:
        solids: at least two.
        eye: (3,) where the camera is.
        camera: (3, 3) its right, up and backward direction as rows.
        half_view: tangent of half the angle of view across the shorter side.
        room: (3, 3) the room's directions as rows; room_low, room_high: (3,) its walls along them.
        walls: paints of −x, +x, floor, ceiling, −z, +z.
        light: (3,) direction to the sun; sun, ambient: strengths; tint: (3,) colour of the sun.
        exposure: of the picture; grain: its noise, as a share of white.
    """

    solids: list[Solid]
    eye: Floats
    camera: Floats
    half_view: float
    room: Floats
    room_low: Floats
    room_high: Floats
    walls: list[Paint]
    light: Floats
    sun: float
    ambient: float
    tint: Floats
    exposure: float
    grain: float


def scene_contents(seed: int) -> npt.NDArray[np.int64]:
    """Return how many solids of each kind stand in the scene: (kinds,), in the order of ``SEMSEG_CLASSES[1:]``.

    Where it is above 0 it is the multi-hot label for classification. Nothing is rendered. Every solid is placed so that
    others hide at most a part of it in nearly all scenes.

    Raises:
        ConfigError: on a negative seed.
    """
    counts = np.zeros(len(SEMSEG_CLASSES) - 1, np.int64)
    for solid in draw_scene(seed).solids:
        counts[solid.shape.kind - 1] += 1
    return counts


def draw_scene(seed: int) -> Scene:
    """Return the scene of a seed.

    Raises:
        ConfigError: on a negative seed.
    """
    if seed < 0:
        raise ConfigError(f"a scene's seed must be 0 or more, got {seed}.")
    rng = np.random.default_rng([seed, 20240])
    half_view = float(np.tan(np.radians(rng.uniform(42, 58) / 2)))
    eye = np.array([0.0, rng.uniform(0.8, 2.6), 0.0])
    target = np.array([0.0, rng.uniform(0.1, 0.6), -rng.uniform(2.4, 3.2)])
    camera = _looking(eye, target, float(np.radians(rng.normal(0, 3))))
    solids = _place(rng, half_view)
    angle = float(rng.uniform(-0.8, 0.8)) if rng.random() < 0.7 else 0.0
    room = _about(1, angle).T
    low, high = _walls(rng, solids, eye, room)
    walls = [random_paint(rng, vivid=bool(rng.random() < 0.15), size=float(rng.uniform(0.4, 1.6))) for _ in range(6)]
    if rng.random() < 0.6:
        walls = [walls[0]] * 2 + walls[2:4] + [walls[0]] * 2  # all four walls alike
    across, up = rng.uniform(-1.3, 1.3), np.radians(rng.uniform(28, 70))
    light = np.array([np.sin(across) * np.cos(up), np.sin(up), np.cos(across) * np.cos(up)])
    sun = float(rng.uniform(0.45, 1.0))
    tint = np.array([1.0, rng.uniform(0.88, 1.0), rng.uniform(0.75, 1.0)])
    if rng.random() < 0.3:
        tint = tint[::-1].copy()
    ambient, exposure = float(rng.uniform(0.25, 0.5)), float(rng.uniform(0.85, 1.25))
    grain = float(rng.uniform(0.0, 0.02))
    return Scene(solids, eye, camera, half_view, room, low, high, walls, light, sun, ambient, tint, exposure, grain)


def _about(axis: int, angle: float) -> Floats:
    """Rotation about the x, y or z axis."""
    i, j = [(1, 2), (2, 0), (0, 1)][axis]
    matrix = np.eye(3)
    matrix[i, i] = matrix[j, j] = np.cos(angle)
    matrix[j, i] = np.sin(angle)
    matrix[i, j] = -matrix[j, i]
    return matrix


def _looking(eye: Floats, target: Floats, roll: float) -> Floats:
    back = (eye - target) / np.linalg.norm(eye - target)
    right = np.cross([0.0, 1.0, 0.0], back)
    right /= np.linalg.norm(right)
    return np.asarray(_about(2, roll) @ np.stack([right, np.cross(back, right), back]))


def _shape(rng: np.random.Generator, kind: int, size: float) -> Shape:
    """A solid of the kind whose largest half length is about `size`."""
    flat, low = float(rng.uniform(0.45, 1.0)), float(rng.uniform(0.35, 0.75))
    if kind == SPHERE:
        return Shape(kind, size)
    if kind == BOX:
        return Shape(kind, *(float(size * v) for v in rng.permutation([1.0, flat, float(rng.uniform(0.4, 1.0))])))
    if kind in (CYLINDER, CONE, PYRAMID):
        return Shape(kind, size * flat, size * float(rng.uniform(0.55, 1.1)))
    if kind == CAPSULE:
        return Shape(kind, size * low * 0.7, size * float(rng.uniform(0.5, 0.8)))
    return Shape(kind, size, size * float(rng.uniform(0.22, 0.4)))


def _pose(rng: np.random.Generator, shape: Shape) -> tuple[Floats, bool]:
    """A rotation, and whether the solid stands on its base."""
    spin = _about(1, float(rng.uniform(0, 2 * np.pi)))
    way = rng.random()
    if way < 0.1:  # thrown: any rotation
        return random_rotation(rng), False
    lying = way < (0.55 if shape.kind in (CAPSULE, RING) else 0.35)
    if not lying or shape.kind in (SPHERE, BOX):
        return spin, True
    tilt = np.pi / 2
    if shape.kind in (CONE, PYRAMID):  # on its side, the tip on the floor
        tilt += float(np.arctan(shape.a / (2 * shape.b)))
    turn = 0.0 if shape.kind == PYRAMID else float(rng.uniform(0, 2 * np.pi))
    return spin @ _about(2, tilt) @ _about(1, turn), False


def _place(rng: np.random.Generator, half_view: float) -> list[Solid]:
    """Stand solids on the floor, none in another one and none right behind another one; some on top of others."""
    count = int(rng.integers(2, MAX_SOLIDS + 1))
    placed: list[tuple[Shape, Floats, Floats]] = []
    balls: list[tuple[float, float, float]] = []  # x, distance and radius of what is placed
    bases: list[int] = []  # solids with a free flat top
    for _ in range(100):
        if len(placed) == count:
            break
        shape = _shape(rng, int(rng.integers(1, len(SEMSEG_CLASSES))), float(rng.uniform(0.24, 0.7)))
        radius = shape.radius
        on = next((i for i in bases if radius < 1.1 * min(placed[i][0].half[::2])), None)
        stacked = on is not None and rng.random() < 0.6
        distance = float(rng.uniform(1.2, 4.0)) + 1.1 * radius
        ball = (float(rng.uniform(-0.9, 0.9)) * half_view * distance, distance, radius)
        if not stacked and any(_in_the_way(ball, other) for other in balls):
            continue
        rotation, upright = _pose(rng, shape)
        bottom = shape.reach(rotation.T @ np.array([0.0, -1.0, 0.0]))
        centre = np.array([ball[0], bottom, -distance])
        if stacked and on is not None:
            centre = placed[on][2] + np.array([0.0, placed[on][0].half[1] + bottom, 0.0])
            bases.remove(on)
        if upright and shape.kind in (BOX, CYLINDER):
            bases.append(len(placed))
        placed.append((shape, rotation, centre))
        balls.append((float(centre[0]), float(-centre[2]), radius))
    salient = rng.permutation(len(placed)) < rng.integers(1, max(2, len(placed) // 2 + 1))
    return [
        Solid(shape, rotation, centre, random_paint(rng, vivid=bool(vivid), size=shape.radius), bool(vivid))
        for (shape, rotation, centre), vivid in zip(placed, salient, strict=True)
    ]


def _in_the_way(one: tuple[float, float, float], other: tuple[float, float, float]) -> bool:
    """Whether two balls (x, distance, radius) touch, or the nearer one would hide more than about half of the other."""
    near, far = (one, other) if one[1] < other[1] else (other, one)
    if math.hypot(near[0] - far[0], near[1] - far[1]) < near[2] + far[2]:
        return True
    return abs(near[0] / near[1] - far[0] / far[1]) < 0.7 * near[2] / near[1] + 0.05 * far[2] / far[1]


def _walls(rng: np.random.Generator, solids: list[Solid], eye: Floats, room: Floats) -> tuple[Floats, Floats]:
    """Walls that leave room for all solids and the camera."""
    places = np.stack([room @ solid.centre for solid in solids] + [room @ eye])
    sizes = np.array([solid.shape.radius for solid in solids] + [0.6])[:, None]
    low = (places - sizes).min(0) - rng.uniform(0.05, 2.0, 3)
    high = (places + sizes).max(0) + rng.uniform(0.05, 2.0, 3)
    low[1], high[1] = 0.0, max(float(high[1]), rng.uniform(2.4, 3.6))
    return low, high
