"""Rendered scenes: their labels are those of the geometry, agree with each other, and say what the picture shows."""

import colorsys

import numpy as np
import pytest
from sklearn.neighbors import KNeighborsClassifier

from tasklora.errors import ConfigError
from tasklora.vision.scenes import (
    DEPTH_RANGE,
    LAYOUT_CLASSES,
    PART_CLASSES,
    SEMSEG_CLASSES,
    render_scene,
    scene_contents,
)
from tasklora.vision.scenes.layout import MAX_SOLIDS, Solid, draw_scene
from tasklora.vision.scenes.render import FLOOR, label, look
from tasklora.vision.scenes.solids import (
    BOX,
    CAPSULE,
    CONE,
    CYLINDER,
    PYRAMID,
    RING,
    SPHERE,
    Shape,
    hit,
    surface,
)

TASKS = ["layout", "semseg", "parts", "saliency", "normals", "edges", "depth"]
SHAPES = [
    Shape(SPHERE, 0.5),
    Shape(BOX, 0.3, 0.5, 0.2),
    Shape(CYLINDER, 0.3, 0.4),
    Shape(CONE, 0.4, 0.5),
    Shape(CAPSULE, 0.2, 0.4),
    Shape(PYRAMID, 0.4, 0.35),
    Shape(RING, 0.45, 0.15),
]
every_solid = pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: SEMSEG_CLASSES[shape.kind])


@pytest.fixture(scope="module")
def fifty():
    return [render_scene(seed, (96, 96)) for seed in range(50)]


def labelled(seed, size):
    scene = draw_scene(seed)
    view = look(scene, size)
    return scene, view, label(scene, view)[0]


def holds(shape, p):
    """Whether points (3, n) lie in the solid, from its definition."""
    x, y, z = p
    across = np.hypot(x, z)
    low_to_tip = (shape.b - y) / (2 * shape.b) if shape.b else 0
    return {
        SPHERE: lambda: (p**2).sum(0) < shape.a**2,
        BOX: lambda: (abs(x) < shape.a) & (abs(y) < shape.b) & (abs(z) < shape.c),
        CYLINDER: lambda: (across < shape.a) & (abs(y) < shape.b),
        CONE: lambda: (across < shape.a * low_to_tip) & (abs(y) < shape.b),
        CAPSULE: lambda: across**2 + np.maximum(abs(y) - shape.b, 0) ** 2 < shape.a**2,
        PYRAMID: lambda: (np.maximum(abs(x), abs(z)) < shape.a * low_to_tip) & (abs(y) < shape.b),
        RING: lambda: (across - shape.a) ** 2 + y**2 < shape.b**2,
    }[shape.kind]()


def random_rays(n):
    rng = np.random.default_rng(0)
    origin = rng.standard_normal((3, n))
    origin *= 3 / np.linalg.norm(origin, axis=0)
    direction = rng.uniform(-0.7, 0.7, (3, n)) - origin
    return origin.astype(np.float32), (direction / np.linalg.norm(direction, axis=0)).astype(np.float32)


@every_solid
def test_rays_meet_a_solid_where_its_definition_says(shape):
    """Against marching along the rays in steps of 2 mm; rays that graze for less than 20 steps may go either way."""
    origin, direction = random_rays(1500)
    t, _ = hit(shape, list(origin), list(direction))
    steps = np.arange(0, 4.5, 0.002)
    inside = np.stack([holds(shape, origin + s * direction) for s in steps], -1)
    first = np.where(inside.any(-1), steps[inside.argmax(-1)], np.inf)
    thick = inside.sum(-1) > 20
    assert thick.sum() > 200
    assert np.isinf(t[~inside.any(-1)]).mean() > 0.995
    if shape.kind != RING:
        np.testing.assert_allclose(t[thick], first[thick], atol=0.003)
        return
    # a ring's quartic is followed in steps: of rays that cut off little before they cross it, it may miss the first
    assert (abs(t[thick] - first[thick]) < 0.003).mean() > 0.995


@every_solid
def test_normals_are_the_gradient_of_a_solids_inside(shape):
    """Along the normal one leaves the solid; across it, in any direction, one leaves it too or stays at its surface."""
    origin, direction = random_rays(1500)
    t, face = hit(shape, list(origin), list(direction))
    met = np.isfinite(t)
    points = (origin + np.where(met, t, 0) * direction)[:, met]
    normals, parts = surface(shape, points, np.broadcast_to(face, t.shape)[met])
    np.testing.assert_allclose(np.linalg.norm(normals, axis=0), 1, atol=1e-5)
    assert ((normals * direction[:, met]).sum(0) < 1e-3).all(), "a normal points away from the ray"
    # where the surface is smooth around the point (not at an edge), just inside and outside along the normal differ
    deep, high = holds(shape, points - 0.004 * normals), holds(shape, points + 0.004 * normals)
    assert deep.mean() > 0.97
    assert not high.any()
    assert set(np.unique(parts)) <= set(range(1, len(PART_CLASSES)))


@every_solid
def test_shadow_rays_that_start_beside_a_solid_meet_it(shape):
    """Rays of one direction, as the sun's, from points close to the solid."""
    sun = [np.float32(v) for v in (0.48, 0.64, 0.6)]
    origin = np.random.default_rng(1).uniform(-0.8, 0.8, (3, 1500)).astype(np.float32)
    grown = Shape(shape.kind, *(v + 0.002 if v else v for v in shape[1:]))  # not at the surface itself
    origin = origin[:, ~holds(grown, origin)]
    t, _ = hit(shape, list(origin), sun)
    steps = np.arange(0.002, 3, 0.004)
    inside = np.stack([holds(shape, origin + s * np.array(sun)[:, None]) for s in steps], -1).sum(-1)
    assert np.isfinite(t[inside > 10]).mean() > 0.995
    assert np.isinf(t[inside == 0]).mean() > 0.99


def test_a_shape_reaches_as_far_as_its_points():
    rng = np.random.default_rng(2)
    points = rng.uniform(-1, 1, (3, 60_000))
    for shape in SHAPES:
        own = points[:, holds(shape, points)]
        for direction in rng.standard_normal((8, 3)):
            direction /= np.linalg.norm(direction)
            furthest = (direction @ own).max()
            assert furthest <= shape.reach(direction) + 1e-9 <= furthest + 0.1
        assert (np.linalg.norm(own, axis=0) <= shape.radius).all()
        assert (abs(own) <= np.array(shape.half)[:, None]).all()


def test_a_seed_gives_the_same_scene_always():
    one, other = render_scene(5, (48, 64)), render_scene(5, (48, 64))
    assert one.name == other.name == "scene-5"
    np.testing.assert_array_equal(one.image, other.image)
    assert list(one.labels) == TASKS
    for task in TASKS:
        np.testing.assert_array_equal(one.labels[task], other.labels[task])
    assert (render_scene(6, (48, 64)).image != one.image).mean() > 0.5


@pytest.mark.parametrize("size", [(33, 47), (47, 33), (8, 8), (21, 90)])
def test_odd_and_oblong_sizes(size):
    sample = render_scene(3, size)
    shapes = {task: (3, *size) if task == "normals" else size for task in TASKS}
    assert sample.image.shape == (*size, 3)
    assert sample.image.dtype == np.uint8
    assert {task: array.shape for task, array in sample.labels.items()} == shapes
    types = {task: array.dtype for task, array in sample.labels.items()}
    assert types == {task: np.uint8 if task in ("layout", "semseg", "parts") else np.float32 for task in TASKS}


@pytest.mark.parametrize("seed", range(4))
def test_three_times_the_size_shows_the_same_scene(seed):
    """The middle of each small pixel is the middle of a big one, so they see the same."""
    small, big = labelled(seed, (40, 56))[2], labelled(seed, (120, 168))[2]
    same = small.surfaces == big.surfaces[1::3, 1::3]
    assert same.mean() > 0.999
    np.testing.assert_allclose(small.depth[same], big.depth[1::3, 1::3][same], rtol=1e-3)
    np.testing.assert_allclose(small.normals[:, same], big.normals[:, 1::3, 1::3][:, same], atol=5e-3)


def test_a_wider_picture_shows_the_square_and_more():
    square, wide = labelled(9, (64, 64))[2], labelled(9, (64, 96))[2]
    np.testing.assert_array_equal(square.surfaces, wide.surfaces[:, 16:80])
    np.testing.assert_array_equal(square.depth, wide.depth[:, 16:80])


@pytest.mark.parametrize("seed", range(6))
def test_normals_are_those_of_the_depth(seed):
    """The cross product of steps along the surface, made from depth and camera alone, is the normal."""
    _, view, labels = labelled(seed, (240, 240))
    points = np.stack([view.u * labels.depth, view.v[:, None] * labels.depth, -labels.depth]).astype(float)
    right = points[:, 1:-1, 2:] - points[:, 1:-1, :-2]
    up = points[:, :-2, 1:-1] - points[:, 2:, 1:-1]
    made = np.cross(right, up, axis=0)
    made /= np.linalg.norm(made, axis=0)
    inner = labels.normals[:, 1:-1, 1:-1]
    angle = np.degrees(np.arccos(np.clip((made * inner).sum(0), -1, 1)))
    plain = labels.edges[1:-1, 1:-1] == 0
    room = plain & (labels.semseg[1:-1, 1:-1] == 0)
    assert angle[room].max() < 0.5, "walls and floor are flat"
    solid = plain & (labels.semseg[1:-1, 1:-1] > 0)
    assert np.median(angle[solid]) < 0.5
    assert np.percentile(angle[solid], 95) < 8


@pytest.mark.parametrize("seed", range(6))
def test_what_is_nearer_hides_what_is_further(seed):
    """Depth and owner of the whole scene are the nearest of scenes with one solid each."""
    scene, view, labels = labelled(seed, (72, 72))
    alone = [look(scene._replace(solids=[]), (72, 72)).depth]
    for solid in scene.solids:
        single = look(scene._replace(solids=[solid]), (72, 72))
        alone.append(np.where(single.owner == 1, single.depth, np.inf))
    np.testing.assert_array_equal(labels.depth, np.min(alone, 0))
    np.testing.assert_array_equal(view.owner, np.argmin(alone, 0))


@pytest.mark.parametrize("seed", range(12))
def test_labels_agree_with_each_other(seed):
    scene, view, labels = labelled(seed, (90, 110))
    np.testing.assert_allclose(np.linalg.norm(labels.normals, axis=0), 1, atol=1e-5)
    ray = np.stack([np.broadcast_to(view.u, view.depth.shape), np.broadcast_to(view.v[:, None], view.depth.shape)])
    facing = (labels.normals[:2] * ray).sum(0) - labels.normals[2]
    assert facing.max() < 0.02, "a visible surface faces the viewer"
    solid = labels.semseg > 0
    np.testing.assert_array_equal(labels.parts > 0, solid)
    assert labels.layout.max() < len(LAYOUT_CLASSES)
    np.testing.assert_array_equal(labels.layout == LAYOUT_CLASSES.index("solid"), solid)
    np.testing.assert_array_equal(labels.layout == LAYOUT_CLASSES.index("floor"), ~solid & (view.face == FLOOR))
    assert set(np.unique(labels.saliency)) <= {0, 1}
    assert not labels.saliency[~solid].any()
    for index, one in enumerate(scene.solids):
        own = view.owner == index + 1
        assert set(np.unique(labels.semseg[own])) <= {one.shape.kind}
        assert set(np.unique(labels.saliency[own])) <= {float(one.salient)}
    assert any(one.salient for one in scene.solids)


@pytest.mark.parametrize("seed", range(12))
def test_edges_lie_between_surfaces_and_only_there(seed):
    _, _, labels = labelled(seed, (90, 110))
    expected = np.zeros(labels.edges.shape, bool)
    leaps = np.zeros(labels.edges.shape, bool)
    for one, other in [(np.s_[:-1], np.s_[1:]), (np.s_[:, :-1], np.s_[:, 1:])]:
        differ = labels.surfaces[one] != labels.surfaces[other]
        leap = abs(labels.depth[one] - labels.depth[other]) > 0.03  # metres: a ring behind itself, at least
        for side in (one, other):
            expected[side] |= differ
            leaps[side] |= leap
        assert ((labels.edges[one] == 1) & (labels.edges[other] == 1))[labels.semseg[one] != labels.semseg[other]].all()
    edges = labels.edges == 1
    assert edges[expected].all()
    rings = labels.semseg == RING
    assert not (edges & ~expected & ~rings).any()
    assert not (edges & ~expected & ~leaps).any()


def test_a_ring_has_an_edge_where_it_passes_behind_itself():
    seed = next(seed for seed in range(400) if [s.shape.kind for s in draw_scene(seed).solids].count(RING) == 1)
    found = 0
    for other in range(seed, seed + 30):
        _, _, labels = labelled(other, (96, 96))
        inside = labels.surfaces[:, :-1] == labels.surfaces[:, 1:]
        ring = (labels.semseg[:, :-1] == RING) & inside
        leap = ring & (abs(np.diff(labels.depth, axis=1)) > 0.3)  # wider than any tube
        assert (labels.edges[:, :-1][leap] == 1).all()
        found += int(leap.sum())
    assert found > 0


@every_solid
def test_rays_along_walls_and_axes(shape):
    """A level camera in a straight room: some rays run exactly along walls and the solid's axes."""
    scene = draw_scene(0)
    paint = scene.walls[0]
    solid = Solid(shape, np.eye(3), np.array([0.0, 1.0, -3.0]), paint, True)
    scene = scene._replace(
        camera=np.eye(3), room=np.eye(3), eye=np.array([0.0, 1.0, 0.0]), solids=[solid], half_view=0.5,
        room_low=np.array([-3.0, 0.0, -5.0]), room_high=np.array([3.0, 3.0, 1.0]),
    )  # fmt: skip
    view = look(scene, (65, 65))
    labels, _ = label(scene, view)
    assert np.isfinite(labels.depth).all()
    assert labels.depth[32, 0] == pytest.approx(5.0)  # level, to the wall behind
    assert labels.depth[0, 32] == pytest.approx(2 / (0.5 * 64 / 65))  # up: the ceiling, 2 m above the eye, comes first
    nearest = {RING: 3 - shape.a - shape.b, CONE: 3 - shape.a / 2, PYRAMID: 3 - shape.a / 2, BOX: 3 - shape.c}
    assert labels.depth[32, 32] == pytest.approx(nearest.get(shape.kind, 3 - shape.a), abs=1e-3)
    above = hit(shape, [np.zeros(1, np.float32), np.full(1, 2, np.float32), np.zeros(1, np.float32)],
                [np.float32(0), np.float32(-1), np.float32(0)])[0]  # fmt: skip
    assert np.isinf(above[0]) if shape.kind == RING else above[0] == pytest.approx(2 - shape.half[1], abs=1e-3)


def test_the_floor_is_level():
    """Its normal, turned from the camera's frame to the world's, points up; the camera looks at it from above."""
    for seed in range(5):
        scene, view, labels = labelled(seed, (40, 40))
        floor = (view.owner == 0) & (view.face == FLOOR)
        world = scene.camera.T @ labels.normals[:, floor]
        np.testing.assert_allclose(world, np.array([[0], [1], [0]]) * np.ones(floor.sum()), atol=1e-5)
        assert floor.sum() > 40


def test_fifty_scenes_are_various(fifty):
    """Every class occurs in many scenes, none fills one, and the background leaves room."""
    for task, names in (("semseg", SEMSEG_CLASSES), ("parts", PART_CLASSES)):
        shares = np.stack([np.bincount(s.labels[task].ravel(), minlength=len(names)) for s in fifty]) / 96**2
        assert shares.shape[1] == len(names)
        assert ((shares > 0.002).sum(0) >= 8).all(), dict(zip(names, (shares > 0.002).sum(0), strict=True))
        assert shares.max() < 0.995
        assert 0.6 < shares[:, 0].mean() < 0.9
    assert 0.02 < np.mean([s.labels["saliency"].mean() for s in fifty]) < 0.3
    assert 0.03 < np.mean([s.labels["edges"].mean() for s in fifty]) < 0.2
    brightness = np.array([s.image.mean() for s in fifty])
    assert brightness.min() > 25
    assert brightness.max() < 235
    assert brightness.std() > 15
    assert min(s.image.std() for s in fifty) > 10


def test_the_subjects_are_the_vivid_solids(fifty):
    """Saliency can be read off the picture: subjects are more saturated than the other solids."""

    def saturation(sample, where):
        pixels = sample.image[where].astype(float)
        high, low = pixels.max(-1), pixels.min(-1)
        return np.median((high - low) / np.maximum(high, 1))

    right = []
    for sample in fifty:
        subject = sample.labels["saliency"] == 1
        other = (sample.labels["semseg"] > 0) & ~subject
        if min(subject.sum(), other.sum()) > 60:
            right.append(saturation(sample, subject) > saturation(sample, other) + 0.1)
    assert len(right) > 25
    assert np.mean(right) > 0.9


def test_colour_does_not_tell_the_kind():
    """The best guess from a solid's paint is hardly better than chance; from its size, in the frame, neither."""
    solids = [solid for seed in range(300) for solid in draw_scene(seed).solids]
    kinds = np.array([solid.shape.kind for solid in solids])
    paint = np.array(
        [
            [*colorsys.rgb_to_hsv(*s.paint.first), *colorsys.rgb_to_hsv(*s.paint.second), s.paint.shine, s.salient]
            for s in solids
        ]
    )
    half = len(solids) // 2
    guess = KNeighborsClassifier(15).fit(paint[:half], kinds[:half]).score(paint[half:], kinds[half:])
    commonest = np.bincount(kinds[half:]).max() / (len(solids) - half)
    assert guess < commonest + 0.04
    assert commonest < 0.25


def test_contents_are_what_is_seen():
    exact = 0
    for seed in range(80):
        counts = scene_contents(seed)
        scene, _, labels = labelled(seed, (64, 64))
        assert counts.shape == (len(SEMSEG_CLASSES) - 1,)
        assert 2 <= counts.sum() == len(scene.solids) <= MAX_SOLIDS
        seen = np.isin(np.arange(1, len(SEMSEG_CLASSES)), labels.semseg)
        assert not (seen & (counts == 0)).any()
        exact += bool((seen == (counts > 0)).all())
    assert exact >= 76


def test_depth_stays_in_its_range():
    for seed in range(150):
        depth = look(draw_scene(seed), (16, 28)).depth
        assert DEPTH_RANGE[0] < depth.min()
        assert depth.max() < DEPTH_RANGE[1]


def test_solids_do_not_enter_each_other():
    """A point of one is no point of another, for those on the floor and on top of each other alike."""
    points = np.random.default_rng(0).uniform(-0.99, 0.99, (3, 400))
    for seed in range(40):
        solids = draw_scene(seed).solids
        for one in solids:
            own = points * np.array(one.shape.half)[:, None]
            own = own[:, holds(one.shape, own)]
            world = one.rotation @ own + one.centre[:, None]
            assert world[1].min() > -1e-6, "nothing is below the floor"
            for other in solids:
                if other is not one:
                    assert not holds(other.shape, other.rotation.T @ (world - other.centre[:, None])).any()


@pytest.mark.parametrize(
    ("seed", "size", "message"), [(-1, (32, 32), "seed must be 0"), (0, (32, 4), "at least 8 x 8")]
)
def test_wrong_arguments(seed, size, message):
    with pytest.raises(ConfigError, match=message):
        render_scene(seed, size)
