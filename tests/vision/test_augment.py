"""Augmentation: labels move with the picture, and what they say stays true of the scene, by rendered geometry."""

import numpy as np
import pydantic
import pytest
import torch

from tasklora.errors import ConfigError, DataError
from tasklora.tasks import parse
from tasklora.vision.augment import FILL, IMAGENET_MEAN, IMAGENET_STD, Augmentation, Warp, augmented, collate, warped
from tasklora.vision.sample import DenseSample
from tasklora.vision.scenes import PART_CLASSES, SEMSEG_CLASSES, render_scene
from tasklora.vision.scenes.layout import draw_scene
from tasklora.vision.scenes.render import label, look
from tasklora.vision.spec import DenseTaskSpec

SPECS = {
    "semseg": DenseTaskSpec(kind="segmentation", labels=SEMSEG_CLASSES),
    "parts": DenseTaskSpec(kind="segmentation", labels=PART_CLASSES),
    "saliency": DenseTaskSpec(kind="saliency"),
    "normals": DenseTaskSpec(kind="normals"),
    "edges": DenseTaskSpec(kind="edges"),
    "depth": DenseTaskSpec(kind="depth"),
}
SEED = 4
every_task = pytest.mark.parametrize("task", SPECS)


@pytest.fixture(scope="module")
def scene():
    return render_scene(SEED, (96, 96))


def same(one, other):
    np.testing.assert_array_equal(one.image, other.image)
    for task in SPECS:
        np.testing.assert_array_equal(one.labels[task], other.labels[task])
        assert one.labels[task].dtype == other.labels[task].dtype


def geometry(size, **changes):
    """Labels of the scene seen by a changed camera."""
    seen = draw_scene(SEED)
    seen = seen._replace(**{key: change(seen) for key, change in changes.items()})
    return label(seen, look(seen, size))[0]._asdict()


def agree(labels, expected, depth_factor=1.0):
    """Labels equal the expected ones; but for outlines, where the nearest pixel of the one is not that of the other."""
    valid = labels["semseg"] != 255
    assert valid.mean() > 0.3
    for task in ("semseg", "parts", "saliency"):
        assert (labels[task] == expected[task])[valid].mean() > 0.975
    inner = valid & (labels["edges"] == 0) & (expected["edges"] == 0)
    inner &= labels["parts"] == expected["parts"]
    cosine = (labels["normals"] * expected["normals"]).sum(0)[inner]
    assert (cosine > np.cos(np.radians(8))).mean() > 0.98
    assert np.median(cosine) > np.cos(np.radians(0.5))
    ratio = labels["depth"][inner] * depth_factor / expected["depth"][inner]
    assert np.median(abs(ratio - 1)) < 0.005
    assert np.percentile(abs(ratio - 1), 99) < 0.05


@pytest.mark.parametrize("angle", [-17.0, 20.0, 90.0, 133.0])
def test_rotation_is_a_camera_rolled_the_other_way(scene, angle):
    turn = np.radians(angle)
    roll = np.array([[np.cos(turn), -np.sin(turn), 0], [np.sin(turn), np.cos(turn), 0], [0, 0, 1]])
    expected = geometry((96, 96), camera=lambda seen: roll @ seen.camera)
    agree(warped(scene, (96, 96), Warp(rotation=angle), SPECS).labels, expected)


@pytest.mark.parametrize("zoom", [0.75, 1.25, 2.0])
def test_zoom_is_a_longer_lens_and_brings_nearer(scene, zoom):
    expected = geometry((96, 96), half_view=lambda seen: seen.half_view / zoom)
    agree(warped(scene, (96, 96), Warp(zoom=zoom), SPECS).labels, expected, depth_factor=zoom)


def test_flip_rotation_and_zoom_at_once_equal_geometry(scene):
    """A mirrored scene (its x negated) seen by a rolled camera with a longer lens."""
    turn = np.radians(15)
    roll = np.array([[np.cos(turn), -np.sin(turn), 0], [np.sin(turn), np.cos(turn), 0], [0, 0, 1]])
    mirror = np.diag([-1.0, 1, 1])
    expected = geometry(
        (96, 96), camera=lambda seen: roll @ mirror @ seen.camera, half_view=lambda seen: seen.half_view / 1.2
    )
    agree(warped(scene, (96, 96), Warp(True, 15, 1.2), SPECS).labels, expected, depth_factor=1.2)


def test_resize_to_the_square_keeps_depth_and_normals():
    """The photograph is squeezed: the same rays, fewer columns."""
    wide = render_scene(SEED, (90, 180))
    result = warped(wide, (90, 90), Warp(), SPECS).labels
    for task in ("semseg", "parts", "saliency", "normals", "depth"):
        np.testing.assert_array_equal(result[task], wide.labels[task][..., 1::2])


def test_no_augmentation_at_the_same_size_is_the_identity(scene):
    same(augmented(scene, (96, 96), None, np.random.default_rng(0), SPECS), scene)


def test_a_flip_negates_x_and_twice_is_the_identity(scene):
    flipped = warped(scene, (96, 96), Warp(flip=True), SPECS)
    np.testing.assert_array_equal(flipped.image, scene.image[:, ::-1])
    for task in ("semseg", "parts", "saliency", "edges", "depth"):
        np.testing.assert_array_equal(flipped.labels[task], scene.labels[task][:, ::-1])
    expected = scene.labels["normals"][..., ::-1] * np.array([-1, 1, 1], np.float32)[:, None, None]
    np.testing.assert_array_equal(flipped.labels["normals"], expected)
    same(warped(flipped, (96, 96), Warp(flip=True), SPECS), scene)


@pytest.mark.parametrize(("angle", "turns"), [(90, 1), (180, 2), (-90, 3)])
def test_quarter_turns_are_exact(scene, angle, turns):
    turned = warped(scene, (96, 96), Warp(rotation=angle), SPECS)
    np.testing.assert_array_equal(turned.image, np.rot90(scene.image, turns))
    for task in ("semseg", "parts", "saliency", "edges", "depth"):
        np.testing.assert_array_equal(turned.labels[task], np.rot90(scene.labels[task], turns))
    x, y, z = np.rot90(scene.labels["normals"], turns, axes=(1, 2))
    expected = {1: [-y, x, z], 2: [-x, -y, z], 3: [y, -x, z]}[turns]
    np.testing.assert_allclose(turned.labels["normals"], np.stack(expected), atol=1e-6)


def test_zoom_two_doubles_sizes_and_halves_depth(scene):
    zoomed = warped(scene, (96, 96), Warp(zoom=2), SPECS).labels
    middle = {task: scene.labels[task][..., 24:72, 24:72] for task in SPECS}
    for task in ("semseg", "parts", "saliency", "edges", "normals"):
        np.testing.assert_array_equal(zoomed[task], middle[task].repeat(2, -1).repeat(2, -2))
    np.testing.assert_array_equal(zoomed["depth"], middle["depth"].repeat(2, -1).repeat(2, -2) / 2)


@pytest.mark.parametrize("size", [(31, 47), (200, 150), (96, 33), (5, 7)])
def test_no_new_values_come_up(scene, size):
    rng = np.random.default_rng(0)
    for _ in range(4):
        result = augmented(scene, size, Augmentation(rotation=45, scale=(0.4, 1.6)), rng, SPECS)
        assert result.image.shape == (*size, 3)
        for task in ("semseg", "parts", "saliency", "edges"):
            assert result.labels[task].shape == size
            assert set(np.unique(result.labels[task])) <= {*np.unique(scene.labels[task]), 255}
        outside = result.labels["semseg"] == 255
        for task in ("parts", "saliency", "edges"):
            np.testing.assert_array_equal(result.labels[task] == 255, outside)
        np.testing.assert_array_equal(result.labels["depth"] == 0, outside)
        np.testing.assert_array_equal(result.labels["normals"] == 255, np.stack([outside] * 3))
        np.testing.assert_array_equal(result.image[outside], np.broadcast_to(FILL, (outside.sum(), 3)))
        length = np.linalg.norm(result.labels["normals"], axis=0)[~outside]
        np.testing.assert_allclose(length, 1, atol=1e-5)


def test_the_picture_and_its_labels_move_alike():
    """A picture that is its own label: white where the label is 1."""
    label_map = np.zeros((80, 120), np.uint8)
    label_map[20:60, 30:50] = label_map[50:60, 30:100] = 1
    sample = DenseSample("l", np.repeat(label_map[..., None] * np.uint8(255), 3, -1), {"s": label_map})
    spec = {"s": DenseTaskSpec(kind="segmentation", labels=["no", "yes"])}
    rng = np.random.default_rng(1)
    for size in [(80, 120), (64, 64), (39, 39), (150, 100)]:
        for _ in range(4):
            result = augmented(sample, size, Augmentation(), rng, spec)
            valid = result.labels["s"] != 255
            white = result.image[..., 0] > 127
            assert (white == (result.labels["s"] == 1))[valid].mean() > 0.985


def test_the_image_equals_torchs_bilinear_resampling(scene):
    """An independent implementation, away from the border, which torch fills otherwise."""
    angle, zoom = 0.3, 1.1
    result = warped(scene, (70, 110), Warp(rotation=float(np.degrees(angle)), zoom=zoom), {}).image
    theta = torch.tensor([[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0]]) / zoom
    grid = torch.nn.functional.affine_grid(theta[None].float(), [1, 3, 70, 110], align_corners=False)
    pixels = torch.from_numpy(scene.image).permute(2, 0, 1)[None].float()
    expected = torch.nn.functional.grid_sample(pixels, grid, align_corners=False, padding_mode="border")[0]
    inner = (grid[0].abs() < 0.97).all(-1)
    assert inner.float().mean() > 0.7
    apart = (torch.from_numpy(result).permute(2, 0, 1).float() - expected).abs()[:, inner]
    assert apart.max() < 2


@pytest.mark.parametrize("size", [(64, 64), (37, 100), (100, 9), (128, 128)])
@pytest.mark.parametrize("warp", [Warp(), Warp(True, 13.0, 0.9)])
def test_thin_edges_survive_shrinking(size, warp):
    """Lines of one pixel stay one connected line each, and every edge pixel inside is still an edge."""
    from scipy.ndimage import label as components

    edges = np.zeros((448, 448), np.float32)
    edges[100, 50:400] = 1
    edges[150:400, 333] = 1
    rows = np.arange(160, 400)
    edges[rows, rows - 120] = 1
    sample = DenseSample("e", np.zeros((448, 448, 3), np.uint8), {"edges": edges})
    result = warped(sample, size, warp, {"edges": SPECS["edges"]}).labels["edges"]
    assert set(np.unique(result)) <= {0, 1, 255}
    alone = 0
    for one in (edges[100:101], edges[150:400, 333:334]):
        assert one.sum() >= 250
    for part in range(3):
        line = np.zeros_like(edges)
        where = [np.s_[100, 50:400], np.s_[150:400, 333], (rows, rows - 120)][part]
        line[where] = 1
        own = warped(DenseSample("e", sample.image, {"edges": line}), size, warp, {"edges": SPECS["edges"]})
        drawn = own.labels["edges"] == 1
        assert components(drawn, np.ones((3, 3)))[1] == 1
        assert (result[drawn] == 1).all()
        alone += drawn.sum()
    assert alone >= (result == 1).sum()
    assert (result == 1).mean() < 0.25, "and nothing else becomes an edge"


def test_a_lone_edge_pixel_survives_and_ignored_ones_stay():
    edges = np.zeros((40, 40), np.float32)
    edges[13, 22] = 1
    edges[20:, :20] = 255
    edges[30, 30] = 1
    sample = DenseSample("e", np.zeros((40, 40, 3), np.uint8), {"edges": edges})
    result = warped(sample, (8, 8), Warp(), {"edges": SPECS["edges"]}).labels["edges"]
    expected = np.zeros((8, 8), np.float32)
    expected[2, 4] = expected[6, 6] = 1
    expected[4:, :4] = 255
    np.testing.assert_array_equal(result, expected)


@pytest.mark.parametrize("size", [(50, 50), (25, 25), (20, 50)])
def test_fine_checks_average_when_shrunk(size):
    image = np.indices((100, 100)).sum(0) % 2 * np.uint8(255)
    image = np.repeat(image[..., None].astype(np.uint8), 3, -1)
    result = warped(DenseSample("c", image, {}), size, Warp(), {}).image
    assert abs(result.astype(int) - 127).max() <= 1


def test_ignored_labels_stay_ignored(scene):
    blank = {task: np.full_like(array, 0 if task == "depth" else 255) for task, array in scene.labels.items()}
    for warp in (Warp(), Warp(True, 33, 1.3), Warp(False, -90, 0.5)):
        result = warped(DenseSample("b", scene.image, blank), (50, 70), warp, SPECS).labels
        for task in SPECS:
            assert (result[task] == (0 if task == "depth" else 255)).all()


def test_ignored_normals_are_not_turned(scene):
    labels = scene.labels["normals"].copy()
    labels[:, 40:60, 30:70] = 255
    sample = DenseSample("n", scene.image, {"normals": labels})
    result = warped(sample, (96, 96), Warp(flip=True, rotation=90), {"normals": SPECS["normals"]}).labels["normals"]
    ignored = (result == 255).all(0)
    assert ignored.sum() == 20 * 40
    np.testing.assert_allclose(np.linalg.norm(result, axis=0)[~ignored], 1, atol=1e-5)


def test_only_the_asked_tasks_are_kept_and_the_original_stays(scene):
    before = {task: array.copy() for task, array in scene.labels.items()}
    result = augmented(scene, (32, 32), Augmentation(colour=0.5), np.random.default_rng(0), {"depth": SPECS["depth"]})
    assert list(result.labels) == ["depth"]
    for task, array in before.items():
        np.testing.assert_array_equal(scene.labels[task], array)


def test_randomness_is_the_generators_alone(scene):
    one, other = (augmented(scene, (60, 60), Augmentation(), np.random.default_rng(3), SPECS) for _ in range(2))
    same(one, other)
    assert (augmented(scene, (60, 60), Augmentation(), np.random.default_rng(4), SPECS).image != one.image).any()


def test_one_setting_does_not_change_what_the_others_draw():
    draws = [
        Augmentation(**settings).draw(np.random.default_rng(7))
        for settings in ({}, {"flip": 1.0}, {"flip": 0.0}, {"colour": 0.4}, {"scale": (1, 1)})
    ]
    assert {draw.rotation for draw in draws} == {draws[0].rotation}
    assert [draw.flip for draw in draws[1:3]] == [True, False]
    assert draws[3].zoom == draws[0].zoom
    assert draws[3].colour != (1, 1, 1)
    assert draws[0].colour == (1, 1, 1)
    assert draws[4].zoom == 1


def test_draws_stay_in_their_ranges():
    rng = np.random.default_rng(0)
    draws = [Augmentation(colour=0.3).draw(rng) for _ in range(500)]
    assert 0.4 < np.mean([draw.flip for draw in draws]) < 0.6
    for values, low, high in (
        ([draw.rotation for draw in draws], -20, 20),
        ([draw.zoom for draw in draws], 0.75, 1.25),
        ([factor for draw in draws for factor in draw.colour], 0.7, 1.3),
    ):
        assert low <= min(values) < low + 0.05 * (high - low)
        assert high - 0.05 * (high - low) < max(values) <= high


def test_colour_changes_the_image_only(scene):
    plain = warped(scene, (96, 96), Warp(), SPECS)
    coloured = warped(scene, (96, 96), Warp(colour=(1.2, 0.8, 0.5)), SPECS)
    assert abs(plain.image.astype(int) - coloured.image).mean() > 3
    for task in SPECS:
        np.testing.assert_array_equal(plain.labels[task], coloured.labels[task])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"flip": 1.5}, "flip"),
        ({"rotation": -1}, "rotation"),
        ({"scale": [1.2, 0.8]}, "smallest, largest"),
        ({"scale": [0, 1]}, "smallest, largest"),
        ({"colour": 1}, "colour"),
        ({"rotations": 3}, "'rotations'. Did you mean 'rotation'"),
    ],
)
def test_wrong_settings_are_refused(settings, message):
    with pytest.raises(ConfigError, match=message):
        parse(Augmentation, settings, "augmentation")
    with pytest.raises(pydantic.ValidationError):
        Augmentation(**settings)


def test_a_label_of_another_size_is_named(scene):
    labels = dict(scene.labels, parts=scene.labels["parts"][:90])
    with pytest.raises(DataError, match=r"'scene-4' is 96 x 96, its label of task 'parts' .* \(90, 96\)"):
        warped(DenseSample(scene.name, scene.image, labels), (32, 32), Warp(), SPECS)
    del labels["parts"]
    with pytest.raises(DataError, match="has no label of task 'parts'"):
        warped(DenseSample(scene.name, scene.image, labels), (32, 32), Warp(), SPECS)


def test_a_batch_has_the_promised_types_and_values(scene):
    batch = collate([scene, warped(scene, (96, 96), Warp(flip=True), SPECS)], SPECS)
    pixels = batch["pixel_values"]
    assert (pixels.shape, pixels.dtype, pixels.is_contiguous()) == ((2, 3, 96, 96), torch.float32, True)
    for channel in range(3):
        expected = (scene.image[..., channel] / 255 - IMAGENET_MEAN[channel]) / IMAGENET_STD[channel]
        np.testing.assert_allclose(pixels[0, channel], expected, atol=1e-5)
    for task, values in batch["labels"].items():
        assert values.dtype == (torch.int64 if task in ("semseg", "parts") else torch.float32)
        assert values.shape == ((2, 3, 96, 96) if task == "normals" else (2, 96, 96))
        np.testing.assert_array_equal(values[0], scene.labels[task])
    assert list(batch["labels"]) == list(SPECS)


def test_the_fill_is_zero_after_normalisation():
    blank = DenseSample("f", np.broadcast_to(np.array(FILL, np.uint8), (9, 9, 3)).copy(), {})
    assert collate([blank], {})["pixel_values"].abs().max() < 0.01


def test_batches_that_cannot_be_are_refused(scene):
    small = warped(scene, (32, 40), Warp(), SPECS)
    with pytest.raises(DataError, match="of one size: 'scene-4' is 96 x 96, 'scene-4' is 32 x 40"):
        collate([scene, small], SPECS)
    with pytest.raises(DataError, match="one sample at least"):
        collate([], SPECS)
    with pytest.raises(DataError, match="no label of task 'depth'"):
        collate([DenseSample("x", scene.image, {})], {"depth": SPECS["depth"]})
    with pytest.raises(DataError, match=r"label of task 'depth' has shape \(32, 40\)"):
        collate([DenseSample("x", scene.image, small.labels)], {"depth": SPECS["depth"]})
