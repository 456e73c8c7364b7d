"""Rendered scenes: solids in a room, lit, textured, hiding each other, with exact labels for seven dense tasks.

=========  ==============================================================================================
task       label
=========  ==============================================================================================
layout     wall, floor or solid (:data:`LAYOUT_CLASSES`): far easier to learn than the kinds of solids
semseg     the kind of solid (:data:`SEMSEG_CLASSES`); walls and floor are background
parts      the part of the solid (:data:`PART_CLASSES`)
saliency   1 on the subjects: the solids painted in vivid colours (saturation of 0.75 or more); the others
           are dull (0.25 or less). A wall may be vivid, but is never a subject: it takes both, the colour
           and what is a solid, to tell. Every scene has one subject at least
normals    of the surface, also of walls and floor: x to the right, y up, z towards the viewer
edges      1 on both sides of every line between two surfaces: outlines of solids, edges of boxes, rims of
           cylinders, corners of the room, and where a ring passes behind itself; two pixels thick. Parts
           that join smoothly (a capsule's ends, a ring's inside) have no edge, nor has paint or a shadow
depth      metres along the camera's axis, not along the ray
=========  ==============================================================================================

No label has an ignored pixel. Colours, patterns and sizes are drawn alike for all kinds, so that only shape tells the
kind. The pictures are of our own making; nothing is read from files.
"""

from __future__ import annotations

import numpy as np

from tasklora.errors import ConfigError
from tasklora.vision.sample import DenseSample
from tasklora.vision.scenes.layout import DEPTH_RANGE, draw_scene, scene_contents
from tasklora.vision.scenes.render import LAYOUT_CLASSES, label, look, shade
from tasklora.vision.scenes.solids import PART_CLASSES, SEMSEG_CLASSES

__all__ = ["DEPTH_RANGE", "LAYOUT_CLASSES", "PART_CLASSES", "SEMSEG_CLASSES", "render_scene", "scene_contents"]


def render_scene(seed: int, size: tuple[int, int]) -> DenseSample:
    """Return the picture of a scene and its labels for the seven tasks.

    Args:
        seed: 0 or more; the scene depends on nothing else. The grain of the picture depends on the size as well.
        size: (H, W) pixels. Another size shows the same scene; what lies beyond a square is seen on the longer side.

    Raises:
        ConfigError: on a negative seed or a side shorter than 8.
    """
    if min(size) < 8:
        raise ConfigError(f"a scene's picture must be at least 8 x 8 pixels, got {size[0]} x {size[1]}.")
    scene = draw_scene(seed)
    view = look(scene, size)
    labels, pixels = label(scene, view)
    image = shade(scene, view, labels, pixels, np.random.default_rng([seed, *size]))
    arrays = labels._asdict()
    del arrays["surfaces"]
    return DenseSample(name=f"scene-{seed}", image=image, labels=arrays)
