"""Pictures of maps: a class keeps its colour, ignored pixels look like nothing else, nothing is interpolated."""

import numpy as np
import pytest
from PIL import Image

from tasklora.errors import ConfigError, DataError
from tasklora.vision.pictures import (
    BACKGROUND,
    ERROR_SCALES,
    HATCH,
    RIGHT,
    WRONG,
    Panel,
    depth_range_of,
    enlarged,
    error_legend,
    error_map,
    error_picture,
    label_picture,
    legend,
    palette,
    scale_bar,
    sheet,
)
from tasklora.vision.spec import DenseTaskSpec

SPECS = {
    "segmentation": DenseTaskSpec(kind="segmentation", labels=[f"class {i}" for i in range(8)]),
    "saliency": DenseTaskSpec(kind="saliency"),
    "edges": DenseTaskSpec(kind="edges"),
    "normals": DenseTaskSpec(kind="normals"),
    "depth": DenseTaskSpec(kind="depth"),
}
every_kind = pytest.mark.parametrize("kind", SPECS)


def label_of(kind, ignored=()):
    """A map of 6 x 9 pixels; those listed are ignored."""
    rng = np.random.default_rng(0)
    label = {
        "segmentation": lambda: rng.integers(0, 8, (6, 9)).astype(np.uint8),
        "saliency": lambda: rng.integers(0, 2, (6, 9)).astype(np.float32),
        "edges": lambda: rng.integers(0, 2, (6, 9)).astype(np.float32),
        "normals": lambda: np.stack([np.zeros((6, 9)), np.full((6, 9), 0.6), np.full((6, 9), 0.8)]).astype(np.float32),
        "depth": lambda: rng.uniform(1, 4, (6, 9)).astype(np.float32),
    }[kind]()
    for row, column in ignored:
        label[..., row, column] = 0 if kind == "depth" else 255
    return label


def range_of(kind):
    return (1.0, 4.0) if kind == "depth" else None


def drawn(kind, array):
    return np.asarray(label_picture(SPECS[kind], array, range_of(kind)))


def colours_of(picture):
    return {tuple(colour) for colour in np.asarray(picture).reshape(-1, 3).tolist()}


def test_the_palette_has_256_colours_none_of_them_grey():
    colours = palette().astype(int)
    assert colours.shape == (256, 3)
    assert len(np.unique(colours, axis=0)) == 256
    assert tuple(colours[0]) == BACKGROUND
    assert (np.ptp(colours[1:], axis=1) > 20).all()
    apart = np.linalg.norm(colours[:41, None] - colours[None, :41], axis=-1) + 1e9 * np.eye(41)
    assert apart[:8, :8].min() > 80
    assert apart.min() > 30
    assert colours[1:].max(1).min() > 80, "no class is as dark as the background"


def test_a_class_has_the_same_colour_in_every_picture():
    spec = DenseTaskSpec(kind="segmentation", labels=[str(i) for i in range(40)])
    ids = np.arange(40, dtype=np.uint8).reshape(5, 8)
    np.testing.assert_array_equal(np.asarray(label_picture(spec, ids)).reshape(-1, 3), palette()[:40])
    np.testing.assert_array_equal(np.asarray(label_picture(spec, ids[::-1].astype(np.int64)))[-1], palette()[:8])
    assert {tuple(colour) for colour in palette()[:40].tolist()} <= colours_of(legend(spec))


def test_normals_are_colours_of_their_directions():
    directions = np.array([[1, 0, 0], [-1, 0, 0], [0, 1, 0], [0, -1, 0], [0, 0, 1]], np.float32).T[:, None]
    pixels = drawn("normals", directions)[0].tolist()
    assert pixels == [[255, 128, 128], [0, 128, 128], [128, 255, 128], [128, 0, 128], [128, 128, 255]]
    assert {tuple(pixel) for pixel in pixels} <= colours_of(legend(SPECS["normals"]))


@pytest.mark.parametrize("kind", ["saliency", "edges"])
def test_probabilities_are_grey_levels(kind):
    pixels = drawn(kind, np.array([[0.0, 0.5, 1.0]]))
    assert pixels.tolist() == [[[0] * 3, [128] * 3, [255] * 3]]


def test_depth_follows_its_range_and_stops_at_its_ends():
    import matplotlib

    colours = matplotlib.colormaps["viridis"]
    first, middle, last = (list(colours(share, bytes=True)[:3]) for share in (0.0, 0.5, 1.0))
    pixels = np.asarray(label_picture(SPECS["depth"], np.array([[2.0, 0.5, 6.0, 99.0, 4.0]]), (2.0, 6.0)))[0].tolist()
    assert pixels == [first, first, last, last, middle]


@every_kind
def test_only_ignored_pixels_are_hatched(kind):
    """In label and error pictures; a prediction is never hatched there, and other pixels look as without the hole."""
    hole = [(0, 0), (3, 4), (3, 5), (3, 6), (3, 7)]
    mask = np.zeros((6, 9), bool)
    mask[tuple(np.array(hole).T)] = True
    whole, holed = drawn(kind, label_of(kind)), drawn(kind, label_of(kind, hole))
    np.testing.assert_array_equal(holed[~mask], whole[~mask])
    assert colours_of(holed[mask]) <= set(HATCH)
    if kind in ("segmentation", "normals", "depth"):
        assert not colours_of(whole) & set(HATCH)
    error = np.asarray(error_picture(SPECS[kind], label_of(kind), label_of(kind, hole)))
    assert colours_of(error[mask]) <= set(HATCH)
    assert not colours_of(error[~mask]) & set(HATCH)


@every_kind
def test_all_ignored_is_a_hatch_alone(kind):
    blank = np.full((3, 20, 20) if kind == "normals" else (20, 20), 0.0 if kind == "depth" else 255.0)
    blank = blank.astype(np.uint8) if kind == "segmentation" else blank
    assert colours_of(drawn(kind, blank)) == set(HATCH)
    assert colours_of(error_picture(SPECS[kind], label_of_like(blank, kind), blank)) == set(HATCH)
    assert np.isnan(error_map(SPECS[kind], label_of_like(blank, kind), blank)).all()


def label_of_like(blank, kind):
    return np.ones_like(blank)


def test_errors_by_hand():
    wrong = error_map(SPECS["segmentation"], np.array([[1, 2, 3]]), np.array([[1, 3, 255]]))
    np.testing.assert_array_equal(wrong, [[0, 1, np.nan]])
    gap = error_map(SPECS["saliency"], np.array([[0.25, 0.25, 0.9]]), np.array([[0.0, 1.0, 255.0]]))
    np.testing.assert_allclose(gap, [[0.25, 0.75, np.nan]])
    ratio = error_map(SPECS["depth"], np.array([[3.0, 1.0, 7.0]]), np.array([[2.0, 2.0, 0.0]]))
    np.testing.assert_allclose(ratio, [[0.5, 0.5, np.nan]])
    half = np.sqrt(0.5)
    up = np.array([[0, 0, 0, 0], [1, 1, 1, 1], [0, 0, 0, 0.0]])[:, None]
    to = np.array([[0, 0, 0, 1e-6], [1, half, -1, 1], [0, half, 0, 0]])[:, None]
    angle = error_map(SPECS["normals"], to, up)
    np.testing.assert_allclose(angle, [[0, 45, 180, np.degrees(1e-6)]], rtol=1e-6)


def test_error_pictures_of_classes_are_right_or_wrong():
    pixels = np.asarray(error_picture(SPECS["segmentation"], np.array([[1, 2]]), np.array([[1, 3]])))
    assert [tuple(pixel) for pixel in pixels[0].tolist()] == [RIGHT, WRONG]
    assert {RIGHT, WRONG} <= colours_of(error_legend(SPECS["segmentation"]))


@pytest.mark.parametrize("kind", ERROR_SCALES)
def test_error_legends_show_the_colours_used(kind):
    label = label_of(kind)
    perfect = colours_of(error_picture(SPECS[kind], label, label))
    assert len(perfect) == 1
    assert perfect <= colours_of(error_legend(SPECS[kind]))


@every_kind
def test_legends_are_pictures(kind):
    for picture in (legend(SPECS[kind], range_of(kind)), error_legend(SPECS[kind])):
        assert picture.mode == "RGB"
        assert len(colours_of(picture)) > 3


def test_depth_needs_a_range_and_nothing_else_has_one():
    for call in (lambda: label_picture(SPECS["depth"], label_of("depth")), lambda: legend(SPECS["depth"])):
        with pytest.raises(ConfigError, match="depth_range"):
            call()
    with pytest.raises(ConfigError, match="for depth, not for saliency"):
        label_picture(SPECS["saliency"], label_of("saliency"), (0, 1))


def test_the_range_leaves_ignored_depth_out():
    assert depth_range_of(np.array([[0.0, 2.5]]), np.array([[7.0, 3.0]])) == (2.5, 7.0)
    for arrays in ([], [np.zeros((2, 2))]):
        with pytest.raises(DataError, match="no pixel"):
            depth_range_of(*arrays)


def test_a_single_depth_is_a_picture_too():
    assert drawn("depth", np.full((2, 2), 3.0)).shape == (2, 2, 3)
    assert np.asarray(label_picture(SPECS["depth"], np.full((2, 2), 3.0), (3.0, 3.0))).std(axis=(0, 1)).max() == 0


@pytest.mark.parametrize(
    ("kind", "array", "message"),
    [
        ("segmentation", np.zeros((2, 2, 2), np.uint8), "shape"),
        ("segmentation", np.zeros((2, 2)), "whole numbers"),
        ("segmentation", np.full((2, 2), 9), r"\[9\] are none of the task's 0 to 7"),
        ("segmentation", np.full((2, 2), -1), "none of the task's"),
        ("normals", np.zeros((2, 2)), r"\(3, H, W\)"),
        ("depth", np.full((2, 2), np.nan), "NaN"),
        ("saliency", np.zeros((0, 2)), "shape"),
    ],
)
def test_maps_that_are_not_of_the_kind_are_refused(kind, array, message):
    with pytest.raises(DataError, match=message):
        label_picture(SPECS[kind], array, range_of(kind))


def test_prediction_and_label_of_different_size_are_refused():
    with pytest.raises(DataError, match="differ in shape"):
        error_picture(SPECS["depth"], np.ones((2, 2)), np.ones((2, 3)))


def test_enlarging_repeats_pixels():
    picture = label_picture(SPECS["segmentation"], label_of("segmentation"))
    big = np.asarray(enlarged(picture, 4))
    np.testing.assert_array_equal(big, np.asarray(picture).repeat(4, 0).repeat(4, 1))
    with pytest.raises(ConfigError, match="factor of 1 or more"):
        enlarged(picture, 0)


def test_a_sheet_holds_its_pictures_unchanged(tmp_path):
    rng = np.random.default_rng(0)
    sizes = [[(30, 40), (30, 60)], [(50, 20)], [(10, 10), (12, 14), (9, 300)]]
    pictures = [[rng.integers(0, 255, (*size, 3)).astype(np.uint8) for size in row] for row in sizes]
    long = "a caption much longer than its picture is wide, withaverylongwordthatfitsinnoline"
    rows = [[Panel(Image.fromarray(array), long) for array in row] for row in pictures]
    result = sheet([*rows, []], "a title")
    result.save(tmp_path / "sheet.png")
    pixels = np.asarray(Image.open(tmp_path / "sheet.png"))
    for array in (array for row in pictures for array in row):
        corner = (pixels[:, :, None] == array[0, 0]).all(-1)[..., 0]
        found = [
            (y, x)
            for y, x in np.argwhere(corner)
            if np.array_equal(pixels[y : y + array.shape[0], x : x + array.shape[1]], array)
        ]
        assert len(found) == 1


def test_a_sheet_without_pictures_is_refused():
    for rows in ([], [[]]):
        with pytest.raises(DataError, match="one picture at least"):
            sheet(rows)


def test_a_scale_bar_begins_and_ends_with_its_colours():
    bar = np.asarray(scale_bar((2.0, 5.0), "metres", "viridis", width=120))
    assert bar.shape == (34, 120, 3)
    assert bar[8, 8].tolist() == [68, 1, 84]
    assert bar[8, 111].tolist() == [253, 231, 36]
