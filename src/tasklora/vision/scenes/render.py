"""From a scene to a picture and its exact labels: rays, shading, shadows, all in the camera's frame.

The camera's frame has x to the right, y up and z towards the viewer, so a ray's direction is (u, v, −1) and the
distance along it is the depth. The picture of a seed at any size shows the same scene: its shorter side always spans
the same angle, and a pixel's ray goes through its middle.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from tasklora.vision.scenes.layout import Scene, Solid
from tasklora.vision.scenes.paint import Paint, colours
from tasklora.vision.scenes.solids import RING, hit, surface

Array = npt.NDArray[Any]

FLOOR = 2
"""Faces of the room: −x, +x, floor, ceiling, −z, +z."""
LAYOUT_CLASSES = ["wall", "floor", "solid"]
"""What a room is made of, and what stands in it; the index is the class id. The ceiling, seldom seen, is a wall."""
FACES = 8  # of one solid, at most


class View(NamedTuple):
    """What the rays meet, all (H, W).

    Attributes:
        u, v: (W,) and (H,), the rays' directions.
        depth: metres.
        owner: 0 for the room, else one more than the index of the solid.
        face: of the room or of the solid.
    """

    u: Array
    v: Array
    depth: Array
    owner: Array
    face: Array


class Labels(NamedTuple):
    """Labels per pixel; `surfaces` (H, W) tells faces of solids and of the room from each other."""

    layout: Array
    semseg: Array
    parts: Array
    saliency: Array
    normals: Array
    edges: Array
    depth: Array
    surfaces: Array


class _Posed(NamedTuple):
    """A solid as the camera sees it: point in the camera's frame = turn · own + centre."""

    turn: Array
    centre: Array
    origin: list[np.float32]  # the camera in the solid's frame


def _posed(scene: Scene, solid: Solid) -> _Posed:
    turn = scene.camera @ solid.rotation
    centre = scene.camera @ (solid.centre - scene.eye)
    return _Posed(turn.astype(np.float32), centre.astype(np.float32), [np.float32(v) for v in -turn.T @ centre])


def look(scene: Scene, size: tuple[int, int]) -> View:
    """Find what every pixel shows."""
    height, width = size
    scale = np.float32(scene.half_view / min(size))
    u = (2 * np.arange(width, dtype=np.float32) + 1 - width) * scale
    v = (height - 1 - 2 * np.arange(height, dtype=np.float32)) * scale
    depth, face = _room(scene, u, v)
    owner = np.zeros(size, np.uint8)
    for index, solid in enumerate(scene.solids):
        posed = _posed(scene, solid)
        rows, columns = _extent(solid, posed, u, v)
        t, faces = hit(solid.shape, posed.origin, _rays(posed.turn.T, u[columns], v[rows]))
        nearer = t < depth[rows, columns]
        np.copyto(depth[rows, columns], t, where=nearer, casting="same_kind")
        np.copyto(face[rows, columns], faces, where=nearer, casting="same_kind")
        owner[rows, columns][nearer] = index + 1
    return View(u, v, depth, owner, face)


def _rays(turn: Array, u: Array, v: Array) -> list[Array]:
    """Directions (u, v, −1) in a frame that `turn` leads to."""
    return [row[0] * u + (row[1] * v - row[2])[:, None] for row in turn]


def _extent(solid: Solid, posed: _Posed, u: Array, v: Array) -> tuple[slice, slice]:
    """Rows and columns that hold the solid's picture: the corners of its box, projected."""
    signs = np.array([[a, b, c] for a in (-1, 1) for b in (-1, 1) for c in (-1, 1)]).T
    x, y, z = posed.turn @ (np.array(solid.shape.half)[:, None] * signs) + posed.centre[:, None]
    if z.max() > -0.05:
        return slice(None), slice(None)
    across, up = x / -z, y / -z
    columns = np.searchsorted(u, [across.min(), across.max()])
    rows = np.searchsorted(-v, [-up.max(), -up.min()])
    return slice(int(rows[0]), int(rows[1])), slice(int(columns[0]), int(columns[1]))


def _room(scene: Scene, u: Array, v: Array) -> tuple[Array, Array]:
    """Depth and face of the wall that a ray from inside the room ends at."""
    turn = (scene.room @ scene.camera.T).astype(np.float32)
    origin = scene.room @ scene.eye
    depth: Any = np.float32(np.inf)
    face: Any = np.int8(0)
    with np.errstate(divide="ignore"):
        for axis, d in enumerate(_rays(turn, u, v)):
            up = d > 0
            ahead, behind = float(scene.room_high[axis] - origin[axis]), float(scene.room_low[axis] - origin[axis])
            t = np.where(up, np.float32(ahead), np.float32(-behind)) / np.abs(d)  # along a wall: never
            nearer = t < depth
            depth, face = np.where(nearer, t, depth), np.where(nearer, up.astype(np.int8) + np.int8(2 * axis), face)
    return depth, face


class _Pixels(NamedTuple):
    """Per pixel, flat: positions and normals (3, n) in the camera's frame, colours (3, n), shine (n,)."""

    points: Array
    normals: Array
    albedo: Array
    shine: Array


def label(scene: Scene, view: View) -> tuple[Labels, _Pixels]:
    """Return the labels, and what shading needs."""
    size = view.depth.shape
    n = view.depth.size
    depth = view.depth.ravel()
    points = np.empty((3, n), np.float32)
    np.multiply(view.u[None, :], view.depth, out=points[0].reshape(size))
    np.multiply(view.v[:, None], view.depth, out=points[1].reshape(size))
    points[2] = -depth
    normals, albedo = np.empty((3, n), np.float32), np.empty((3, n), np.float32)
    shine, parts = np.zeros(n, np.float32), np.zeros(n, np.uint8)
    kinds = np.array([0] + [solid.shape.kind for solid in scene.solids], np.uint8)
    salient = np.array([0] + [solid.salient for solid in scene.solids], np.float32)
    pixel = np.float32(2 * scene.half_view / min(size))

    def fill(where: Array, turn: Array, own: Array, normal: Array, paint: Paint) -> None:
        """Write normals and colours of the pixels `where` (their normals in a frame that `turn` leads from)."""
        seen = turn @ normal
        at = points[:, where]
        facing = -(at * seen).sum(0) / np.sqrt((at * at).sum(0))
        normals[:, where] = seen
        albedo[:, where] = colours(paint, own, at[2] * -pixel / np.maximum(facing, 0.1))
        shine[where] = paint.shine

    owner, face = view.owner.ravel(), view.face.ravel()
    room = (scene.room @ scene.camera.T).astype(np.float32)
    eye = (scene.room @ scene.eye).astype(np.float32)[:, None]
    for wall in range(6):
        where = np.flatnonzero((owner == 0) & (face == wall))
        if where.size:
            inward = np.zeros((3, 1), np.float32)
            inward[wall // 2] = 1 - 2 * (wall % 2)
            own = room @ points[:, where] + eye
            fill(where, room.T, own, inward, scene.walls[wall])
    rings = np.full(1 + len(scene.solids), np.inf, np.float32)
    for index, solid in enumerate(scene.solids):
        where = np.flatnonzero(owner == index + 1)
        if solid.shape.kind == RING:
            rings[index + 1] = solid.shape.b
        if where.size:
            posed = _posed(scene, solid)
            own = posed.turn.T @ (points[:, where] - posed.centre[:, None])
            normal, parts[where] = surface(solid.shape, own, face[where])
            fill(where, posed.turn, own, normal, solid.paint)
    surfaces = view.owner.astype(np.int16) * FACES + view.face
    edges = _edges(surfaces, points.reshape(3, *size), rings[view.owner])
    labels = Labels(
        layout=np.where(view.owner > 0, np.uint8(2), view.face == FLOOR).astype(np.uint8),
        semseg=kinds[view.owner],
        parts=parts.reshape(size),
        saliency=salient[view.owner],
        normals=normals.reshape(3, *size),
        edges=edges,
        depth=view.depth,
        surfaces=surfaces,
    )
    return labels, _Pixels(points, normals, albedo, shine)


def _edges(surfaces: Array, points: Array, tube: Array) -> Array:
    """1 where a pixel and one of its four neighbours show different surfaces, or a ring behind itself."""
    edges = np.zeros(surfaces.shape, bool)
    for axis in (0, 1):
        one = (slice(None),) * axis + (slice(None, -1),)
        other = (slice(None),) * axis + (slice(1, None),)
        differ = surfaces[one] != surfaces[other]
        if np.isfinite(tube).any():
            step = points[2][one] - points[2][other]  # the ring's only leap is in depth
            differ |= np.abs(step) > tube[one]
        edges[one] |= differ
        edges[other] |= differ
    return edges.astype(np.float32)


def shade(scene: Scene, view: View, labels: Labels, pixels: _Pixels, noise: np.random.Generator) -> Array:
    """Return the picture, uint8 (H, W, 3): an even light from above, a sun with shadows and highlights, some grain."""
    size = view.depth.shape
    light = (scene.camera @ scene.light).astype(np.float32)
    up = scene.camera[:, 1].astype(np.float32)
    toward = light @ pixels.normals
    sunny = np.maximum(toward, 0) * np.float32(scene.sun)
    _shadows(scene, view, pixels, light, sunny)
    middle = light + np.array([0, 0, 1], np.float32)  # halfway between the sun and the viewer
    glint = np.maximum((middle / np.linalg.norm(middle)).astype(np.float32) @ pixels.normals, 0)
    for _ in range(5):
        glint *= glint  # to the power of 32
    glint *= pixels.shine * (sunny > 0)
    soft = np.float32(scene.ambient) * (0.75 + 0.25 * (up @ pixels.normals)) + 0.12 * np.abs(pixels.normals[2])
    soft *= _closeness(scene, view, pixels)
    tint = scene.tint.astype(np.float32)[:, None]
    linear = pixels.albedo * (soft + sunny * tint) + glint * tint
    linear *= np.float32(scene.exposure)
    picture = linear.reshape(3, *size)
    picture = _smooth(picture, labels.edges > 0)
    picture = np.sqrt(np.clip(picture, 0, 1))  # close to the usual gamma, and four times as fast
    if scene.grain > 0:
        picture += noise.standard_normal(size, np.float32) * np.float32(scene.grain)
    picture *= 255
    picture += 0.5
    return np.ascontiguousarray(np.clip(picture, 0, 255).astype(np.uint8).transpose(1, 2, 0))


def _shadows(scene: Scene, view: View, pixels: _Pixels, light: Array, sunny: Array) -> None:
    """Darken, in place, what a solid hides from the sun: only points close to its shadow's axis are tested."""
    lit = sunny > 0
    px, py, pz = pixels.points
    owner = view.owner.ravel()
    for index, solid in enumerate(scene.solids):
        posed = _posed(scene, solid)
        cx, cy, cz = posed.centre
        x, y, z = cx - px, cy - py, cz - pz
        along = x * light[0] + y * light[1] + z * light[2]
        off_axis = x * x + y * y + z * z - along * along
        radius = np.float32(solid.shape.radius)
        near = lit & (off_axis < radius * radius) & (along > -radius)
        if solid.shape.kind != RING:  # the others shade themselves by turning away only
            near &= owner != index + 1
        where = np.flatnonzero(near)
        if where.size:
            start = pixels.points[:, where] + 0.004 * pixels.normals[:, where] - posed.centre[:, None]
            t, _ = hit(solid.shape, list(posed.turn.T @ start), [np.float32(v) for v in posed.turn.T @ light])
            dark = where[np.isfinite(t)]
            sunny[dark] = 0
            lit[dark] = False


def _closeness(scene: Scene, view: View, pixels: _Pixels) -> Array:
    """How much of the even light is left near each solid, taken as a ball: darker where things touch."""
    left = np.ones(pixels.points.shape[1], np.float32)
    px, py, pz = pixels.points
    nx, ny, nz = pixels.normals
    owner = view.owner.ravel()
    for index, solid in enumerate(scene.solids):
        cx, cy, cz = (np.float32(v) for v in scene.camera @ (solid.centre - scene.eye))
        x, y, z = cx - px, cy - py, cz - pz
        square = x * x + y * y + z * z
        ball = np.float32(min(solid.shape.half)) ** 2
        toward = np.maximum(x * nx + y * ny + z * nz, 0)
        hidden = toward * ball / (square * np.sqrt(square) + 1e-6)
        hidden[owner == index + 1] = 0
        left *= 1 - 0.8 * np.minimum(hidden, 1)
    return left


def _smooth(picture: Array, where: Array) -> Array:
    """Mix pixels at edges with their neighbours, so that outlines are not jagged."""
    padded = np.pad(picture, ((0, 0), (1, 1), (1, 1)), mode="edge")
    rows, columns = np.nonzero(where)
    around = padded[:, rows, columns + 1] + padded[:, rows + 2, columns + 1]
    around += padded[:, rows + 1, columns] + padded[:, rows + 1, columns + 2]
    result = picture.copy()
    result[:, rows, columns] = 0.5 * picture[:, rows, columns] + 0.125 * around
    return result
