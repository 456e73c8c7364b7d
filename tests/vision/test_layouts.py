"""The published folders: the values that come out of their label files, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.io import savemat

from helpers_dense_folders import snapshot, write_image, write_lines, write_npy, write_png
from tasklora.errors import DataError
from tasklora.vision.data import DenseData, load_dense, load_dense_suite
from tasklora.vision.layouts.pascal_mt import HUMAN_PARTS, NORMALS_CLASSES

NAMES = ["2008_000001", "2008_000002", "2008_000003"]
WALL, SKY = 440, 360  # of PASCAL-Context's classes; NYU knows walls only


def person(*parts: tuple[str, Any]) -> dict[str, Any]:
    return {"class": "person", "class_ind": 15, "mask": np.ones((4, 6), np.uint8), "parts": structs(*parts)}


def structs(*parts: tuple[str, Any]) -> np.ndarray:
    if not parts:
        return np.zeros((0, 0))
    array = np.zeros((1, len(parts)), dtype=[("part_name", object), ("mask", object)])
    for i, part in enumerate(parts):
        array[0, i] = part
    return array


def write_parts(path: Path, *things: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    objects = np.zeros((1, len(things)), dtype=[(key, object) for key in ("class", "class_ind", "mask", "parts")])
    for i, thing in enumerate(things):
        objects[0, i] = tuple(thing.values())
    anno = np.zeros((1, 1), dtype=[("imname", object), ("objects", object)])
    anno[0, 0] = (path.stem, objects)
    savemat(path, {"anno": anno}, do_compression=True)


def box(rows: slice, columns: slice) -> np.ndarray:
    mask = np.zeros((4, 6), dtype=np.uint8)
    mask[rows, columns] = 1
    return mask


@pytest.fixture
def pascal(tmp_path: Path) -> Path:
    root = tmp_path / "PASCAL_MT"
    for name in NAMES:
        write_image(root / "JPEGImages" / f"{name}.jpg")
        write_png(root / "sal_distill" / f"{name}.png", np.tile([0, 127, 128, 255, 1, 200], (4, 1)))
        vectors = np.full((4, 6, 3), 127)
        vectors[:, :3] = (128, 128, 255)
        vectors[:, 3] = (255, 0, 128)
        write_png(root / "normals_distill" / f"{name}.png", vectors)
        classes = np.full((4, 6), WALL)
        classes[0] = SKY
        (root / "pascal-context" / "trainval").mkdir(parents=True, exist_ok=True)
        savemat(root / f"pascal-context/trainval/{name}.mat", {"LabelMap": classes.astype(np.uint16)})
    write_lines(root / "ImageSets/Context/train.txt", *NAMES[:2])
    write_lines(root / "ImageSets/Context/val.txt", NAMES[2])
    semseg = np.zeros((4, 6))
    semseg[1:3, 2:4] = 15
    semseg[3] = 255
    write_png(root / f"semseg/VOC12/{NAMES[2]}.png", semseg, palette=True)
    write_png(root / f"semseg/pascal-context/{NAMES[2]}.png", np.full((4, 6), 20))
    for name in NAMES[:2]:
        write_png(root / f"semseg/pascal-context/{name}.png", np.full((4, 6), 3))
    write_parts(
        root / f"human_parts/{NAMES[2]}.mat",
        {**person(("hair", box(slice(0, 1), slice(0, 6)))), "class": "dog", "class_ind": 12},
        person(("torso", box(slice(1, 4), slice(0, 3))), ("rhand", box(slice(2, 3), slice(0, 1)))),
        person(),
        person(("lfoot", box(slice(3, 4), slice(5, 6)))),
    )
    write_parts(root / f"human_parts/{NAMES[0]}.mat", person())
    write_parts(root / f"human_parts/{NAMES[1]}.mat", {**person(), "class": "cat", "class_ind": 8})
    return root


def load(root: Path, *tasks: str, suite: str = "pascal_context", splits: Any = ("validation",)) -> DenseData:
    loaded = load_dense_suite(suite)
    return load_dense(loaded, loaded.select(list(tasks) or None), splits, root)


class TestPascal:
    def test_values_of_all_five_labels(self, pascal: Path) -> None:
        before = snapshot(pascal)
        rows = load(pascal).split("validation")
        assert rows.names == [NAMES[2]]
        sample = rows[0]
        labels = sample.labels
        assert sample.image.shape == (4, 6, 3)
        assert sample.image.dtype == np.uint8
        # VOC's own annotation goes before that from PASCAL-Context
        assert labels["semseg"].tolist() == [[0] * 6, [0, 0, 15, 15, 0, 0], [0, 0, 15, 15, 0, 0], [255] * 6]
        assert labels["semseg"].dtype == np.uint8
        assert labels["parts"].tolist() == [[0] * 6, [2, 2, 2, 0, 0, 0], [4, 2, 2, 0, 0, 0], [2, 2, 2, 0, 0, 6]]
        assert labels["saliency"].tolist() == [[0, 0, 1, 1, 0, 1]] * 4
        normals = labels["normals"]
        assert normals.shape == (3, 4, 6)
        assert (normals[:, 0] == 255).all(), "sky is no class of NYU"
        assert (normals[:, 1:, 4:] == 255).all(), "127 has no direction"
        np.testing.assert_allclose(normals[:, 1, 0], [1 / 255, 1 / 255, 1], atol=1e-4)
        np.testing.assert_allclose(normals[:, 2, 3], np.array([1, -1, 1 / 255]) / np.sqrt(2), atol=1e-4)
        # sky above wall: a band two wide, thinned to one line (whose end may lose its last pixel)
        assert labels["edges"].sum(axis=0).tolist() == [1, 1, 1, 1, 1, 0]
        assert labels["edges"][2:].sum() == 0
        assert snapshot(pascal) == before, "nothing is written into the data folder"

    def test_images_without_parts_of_persons_are_ignored_throughout(self, pascal: Path) -> None:
        data = load(pascal, "parts", splits=("train", "tune"))
        labels = [row.labels["parts"] for split in ("train", "tune") for row in data.split(split)]  # type: ignore[arg-type]
        assert len(labels) == 2
        assert all((label == 255).all() and label.shape == (4, 6) for label in labels)

    def test_semseg_falls_back_to_pascal_context(self, pascal: Path) -> None:
        rows = load(pascal, "semseg", splits=("train",)).split("train")
        assert (rows[0].labels["semseg"] == 3).all()

    def test_only_the_labels_of_asked_tasks_are_needed(self, pascal: Path) -> None:
        for folder in ("human_parts", "sal_distill", "normals_distill", "pascal-context"):
            (pascal / folder).rename(pascal / f"not_{folder}")
        assert list(load(pascal, "semseg").split("validation")[0].labels) == ["semseg"]
        with pytest.raises(DataError) as error:
            load(pascal, "semseg", "saliency")
        assert str(error.value) == (
            f"task 'saliency': no folder {pascal}/sal_distill. Layout pascal_mt expects it in the data folder "
            f"{pascal}. Did you mean 'not_sal_distill'? Folders there: ImageSets, JPEGImages, not_human_parts, "
            "not_normals_distill, not_pascal-context, not_sal_distill, semseg. Only tasks that are asked for need "
            "labels: leave 'saliency' out of tasks.include if there are none."
        )

    def test_missing_label_files_are_counted_and_named(self, pascal: Path) -> None:
        (pascal / f"human_parts/{NAMES[2]}.mat").unlink()
        with pytest.raises(DataError) as error:
            load(pascal, "parts")
        assert str(error.value) == (
            f"task 'parts', split 'validation': 1 label file(s) for 1 images are missing in {pascal}/human_parts: "
            f"{NAMES[2]}.mat. Add them, take the names out of the split, or leave 'parts' out of tasks.include."
        )

    def test_missing_split_file(self, pascal: Path) -> None:
        path = pascal / "ImageSets/Context/val.txt"
        path.unlink()
        with pytest.raises(DataError) as error:
            load(pascal, "semseg")
        assert str(error.value) == (
            f"split 'validation': no file {path}. It lists the split's images, a name without suffix on each line."
        )

    def test_there_is_no_test_split(self, pascal: Path) -> None:
        with pytest.raises(DataError, match=r"suite pascal_context@1 has no split 'test'; use another"):
            load(pascal, "semseg", splits=("test",))

    def test_classes_beyond_the_task(self, pascal: Path) -> None:
        path = pascal / f"semseg/VOC12/{NAMES[2]}.png"
        write_png(path, np.arange(24).reshape(4, 6))
        with pytest.raises(DataError) as error:
            load(pascal, "semseg").split("validation")[0]
        assert str(error.value) == (
            f"task 'semseg': unknown classes in {path}: 21, 22, 23. The task has 21 classes (background, aeroplane, "
            "bicycle, bird, … (17 more)), in the file 0 … 20, and ignores 255. Mend the file, or the task."
        )

    @pytest.mark.parametrize(
        ("write", "match"),
        [
            (lambda p: p.write_bytes(b"no"), "cannot be read as a MATLAB file"),
            (lambda p: savemat(p, {"other": 1}), r"has no variable 'anno'; it has: other"),
            (lambda p: savemat(p, {"anno": 1}), r"is not a PASCAL-Part annotation \(anno.objects"),
            (lambda p: write_parts(p, person(("elbow", box(slice(0), slice(0))))), "part 'elbow' that PASCAL-Part"),
            (lambda p: write_parts(p, person(("head", np.ones((3, 6))))), r"is 6 × 3 \(width × height\), its image is"),
            (lambda p: p.write_bytes(b"MATLAB 7.3 MAT-file".ljust(124) + b"\x00\x02IM"), "MATLAB 7.3 file"),
        ],
    )
    def test_part_files_that_cannot_be_read(self, pascal: Path, write: Any, match: str) -> None:
        path = pascal / f"human_parts/{NAMES[2]}.mat"
        write(path)
        with pytest.raises(DataError, match=match) as error:
            load(pascal, "parts").split("validation")[0]
        assert str(path) in str(error.value)

    def test_label_maps_of_another_size_are_found_in_the_header(self, pascal: Path) -> None:
        path = pascal / f"pascal-context/trainval/{NAMES[2]}.mat"
        savemat(path, {"LabelMap": np.ones((6, 4), np.uint16)})
        with pytest.raises(DataError) as error:
            load(pascal, "edges")
        assert str(error.value).startswith(
            f"task 'edges', split 'validation': label {path} is 4 × 6 (width × height), its image "
            f"{pascal}/JPEGImages/{NAMES[2]}.jpg is 6 × 4; 1 of 1 images have labels of another size."
        )

    def test_published_facts(self) -> None:
        assert len(NORMALS_CLASSES) == len(set(NORMALS_CLASSES)) == 170
        assert {WALL, 158, 427, 72, 284} <= set(NORMALS_CLASSES)  # wall, floor, tvmonitor, chair, person
        assert not {SKY, 187, 324, 431} & set(NORMALS_CLASSES)  # sky, grass, road, unknown
        assert len(HUMAN_PARTS) == 24
        assert set(HUMAN_PARTS.values()) == {1, 2, 3, 4, 5, 6}
        assert [HUMAN_PARTS[name] for name in ("lebrow", "neck", "ruarm", "lhand", "luleg", "rfoot")] == [
            1,
            2,
            3,
            4,
            5,
            6,
        ]


class TestNyud:
    @pytest.fixture
    def nyud(self, tmp_path: Path) -> Path:
        root = tmp_path / "NYUD_MT"
        for name in ("0001", "0002", "0003"):
            write_image(root / f"images/{name}.jpg")
            write_png(root / f"segmentation/{name}.png", np.tile([0, 1, 2, 39, 40, 0], (4, 1)))
            normals = np.zeros((4, 6, 3))
            normals[:, 1:] = (0, 0, 2)
            write_npy(root / f"normals/{name}.npy", normals)
            write_npy(root / f"depth/{name}.npy", np.tile([0, 0.5, 1, 2, np.nan, 9.5], (4, 1)))
            write_npy(root / f"edge/{name}.npy", np.tile([0, 1, 0, 0, 1, 0], (4, 1)))
        write_lines(root / "gt_sets/train.txt", "0001", "0002")
        write_lines(root / "gt_sets/val.txt", "0003")
        return root

    def test_values_of_all_four_labels(self, nyud: Path) -> None:
        labels = load(nyud, suite="nyud").split("validation")[0].labels
        assert labels["semseg"].tolist() == [[255, 0, 1, 38, 39, 255]] * 4
        assert (labels["normals"][:, :, 0] == 255).all()
        assert (labels["normals"][:, :, 1:] == np.array([0, 0, 1])[:, None, None]).all()
        assert labels["depth"].tolist() == [[0, 0.5, 1, 2, 0, 9.5]] * 4
        assert labels["edges"].tolist() == [[0, 1, 0, 0, 1, 0]] * 4
        assert {name: label.dtype.name for name, label in labels.items()} == {
            "semseg": "uint8",
            "normals": "float32",
            "depth": "float32",
            "edges": "float32",
        }

    @pytest.mark.parametrize(
        ("task", "write", "match"),
        [
            ("edges", lambda r: write_npy(r / "edge/0003.npy", np.full((4, 6), 0.5)), "holds 0.5; an edge map holds"),
            (
                "semseg",
                lambda r: write_png(r / "segmentation/0003.png", np.full((4, 6), 41)),
                "unknown classes in .*: 41",
            ),
            ("depth", lambda r: write_npy(r / "depth/0003.npy", np.full((4, 6), -1)), "depths below zero"),
            ("normals", lambda r: write_npy(r / "normals/0003.npy", np.ones((3, 4, 6))), "is 4 × 3"),
            ("depth", lambda r: np.save(r / "depth/0003.npy", np.array([[{}] * 6] * 4)), "cannot be read as a NumPy"),
        ],
    )
    def test_labels_that_do_not_fit(self, nyud: Path, task: str, write: Any, match: str) -> None:
        write(nyud)
        with pytest.raises(DataError, match=match):
            load(nyud, task, suite="nyud").split("validation")[0]
