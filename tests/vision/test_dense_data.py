"""Dense data by split: hold-out, limits, bad input, the suites that ship, and the example of the docs."""

from __future__ import annotations

import json
import os
import pickle
import re
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from helpers_dense_folders import folder_suite, snapshot, write_image, write_lines, write_npy, write_png
from tasklora.errors import ConfigError, DataError
from tasklora.tasks import Split
from tasklora.vision.data import DenseData, load_dense, load_dense_suite, shipped_dense_suites
from tasklora.vision.sample import image_size, read_image

REPOSITORY = Path(__file__).resolve().parents[2]
DATA = Path(os.environ.get("TASKLORA_DATA", REPOSITORY.parent / "shared" / "data"))
real_data = pytest.mark.skipif(not DATA.is_dir(), reason=f"no data folder {DATA}; name one with TASKLORA_DATA")
TASKS = {"t": {"kind": "segmentation", "labels": ["a", "b"]}}
NAMES = [f"{number:02d}" for number in range(20)]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for number, name in enumerate(NAMES):
        write_image(tmp_path / f"images/{name}.png")
        write_png(tmp_path / f"t/{name}.png", np.full((4, 6), number % 2))
    write_lines(tmp_path / "splits/train.txt", *NAMES[:15])
    write_lines(tmp_path / "splits/validation.txt", *NAMES[15:])
    return tmp_path


def load(folder: Path, *splits: Split, options: Any = None, **keywords: Any) -> DenseData:
    suite = folder_suite(TASKS, **(options or {}))
    return load_dense(suite, suite.tasks, splits, folder, **keywords)


class TestSplits:
    def test_tune_is_held_out_of_train_whichever_splits_are_asked_for(self, folder: Path) -> None:
        both = load(folder, "train", "tune")
        train, tune = both.split("train").names, both.split("tune").names
        assert len(tune) == 1
        assert sorted(train + tune) == NAMES[:15]
        assert load(folder, "train").split("train").names == train
        assert load(folder, "tune").split("tune").names == tune
        others = {tuple(load(folder, "tune", seed=seed).split("tune").names) for seed in range(8)}
        assert len(others) > 1

    def test_a_tune_file_goes_before_the_hold_out(self, folder: Path) -> None:
        write_lines(folder / "splits/tune.txt", NAMES[15])
        write_lines(folder / "splits/validation.txt", *NAMES[16:])
        data = load(folder, "train", "tune")
        assert data.split("tune").names == [NAMES[15]]
        assert data.split("train").names == NAMES[:15]

    def test_limits_draw_train_by_seed_and_validation_for_all_seeds_alike(self, folder: Path) -> None:
        limits: dict[Split, int] = {"train": 5, "validation": 3}
        drawn = [load(folder, "train", "validation", limits=limits, seed=seed) for seed in range(3)]
        assert [len(data.split("train")) for data in drawn] == [5, 5, 5]
        assert len({tuple(data.split("validation").names) for data in drawn}) == 1
        assert len({tuple(data.split("train").names) for data in drawn}) == 3
        with pytest.raises(ConfigError, match="limit of split 'train' must be at least 1, got 0"):
            load(folder, "train", limits={"train": 0})

    def test_rows_are_lazy_picklable_and_fingerprinted(self, folder: Path) -> None:
        rows = load(folder, "validation").split("validation")
        before = rows.fingerprint()
        again = pickle.loads(pickle.dumps(rows))
        assert again.fingerprint() == before
        assert (again[1].labels["t"] == rows[1].labels["t"]).all()
        assert len(list(rows)) == 5
        assert load(folder, "validation", limits={"validation": 4}).split("validation").fingerprint() != before
        (folder / f"t/{NAMES[15]}.png").unlink()
        write_npy(folder / f"t/{NAMES[15]}.npy", np.zeros((4, 6)), np.uint8)
        assert load(folder, "validation").split("validation").fingerprint() != before

    def test_rules_count_numbers_in_names_by_value(self, tmp_path: Path) -> None:
        for number in range(12):
            write_image(tmp_path / f"images/frame-{number}.jpg")
            write_png(tmp_path / f"t/frame-{number}.png", np.zeros((4, 6)))
        rules = {"validation": {"last": 2}, "tune": {"blocks": [[2, 3], [8, 9]]}, "train": {"rest": True}}
        data = load(tmp_path, "train", "tune", "validation", options={"splits": rules})
        names = {split: [int(name[6:]) for name in data.split(split).names] for split in data.splits}
        assert names == {"train": [0, 1, 3, 4, 5, 6, 7, 9], "tune": [2, 8], "validation": [10, 11]}

    @pytest.mark.parametrize(
        ("splits", "error", "match"),
        [
            ({"train": {"first": 2, "last": 2}}, ConfigError, "exactly one of first, last, blocks, file, rest"),
            ({"train": {}}, ConfigError, "exactly one of"),
            ({"train": {"lost": 3}}, ConfigError, r"unknown key '.*lost'\. Did you mean '(last|first)'"),
            ({"train": {"blocks": [[3, 3]]}}, ConfigError, r"0 <= start < stop"),
            ({"train": {"rest": True}, "tune": {"rest": True}}, ConfigError, "only one split can have the rest"),
            ({"train": {"file": "../names.txt"}}, ConfigError, "leads out of the data folder"),
            ({"train": {"last": 21}, "tune": {"first": 1}}, DataError, "counts to 21, but there are 20 images"),
            (
                {"train": {"last": 15}, "tune": {"first": 6}},
                DataError,
                r"1 image\(s\) stand in 'train' and in 'tune': 05",
            ),
            ({"train": {"rest": True}, "tune": {"first": 20}}, DataError, "but nothing is left"),
            ({"validation": {"last": 2}}, DataError, "has no split 'train'"),
        ],
    )
    def test_rules_that_do_not_fit(self, folder: Path, splits: Any, error: Any, match: str) -> None:
        with pytest.raises(error, match=match):
            load(folder, "train", "tune", options={"splits": splits})

    @pytest.mark.parametrize("name", ["../secret", "/etc/passwd", "a/../../b", "..\\x", "C:x"])
    def test_names_that_lead_out_are_refused(self, folder: Path, name: str) -> None:
        write_lines(folder / "splits/train.txt", "00", "", name)
        with pytest.raises(DataError) as error:
            load(folder, "train")
        path = folder / "splits/train.txt"
        assert str(error.value) == f"split 'train': {path}, line 3: '{name}' leads out of the data folder; refused."

    @pytest.mark.parametrize(
        ("lines", "match"),
        [
            (["00", "01", "00"], r"lists '00' twice, in lines 1 and 3"),
            ([""], r"lists no image"),
            (["00.png", "01"], r"1 of 1 names have no image in .*images: 00.png. Names stand without suffix."),
            (["00", "nope", "01"], r"names have no image in .*: nope. Add the images, or take the names out"),
        ],
    )
    def test_split_files_that_do_not_fit(self, folder: Path, lines: list[str], match: str) -> None:
        write_lines(folder / "splits/validation.txt", *lines)
        if "00.png" in lines:
            write_lines(folder / "splits/validation.txt", "00.png")
        with pytest.raises(DataError, match=match):
            load(folder, "validation")


class TestBadInput:
    def test_missing_things(self, folder: Path, tmp_path: Path) -> None:
        with pytest.raises(DataError, match=r"split 'test': no file .*splits/test.txt. It lists .*; or give rules"):
            load(folder, "test")
        with pytest.raises(DataError, match=r"no data folder .*nowhere"):
            load(folder / "nowhere", "train")
        with pytest.raises(ConfigError, match=r"give it with tasks.data_root or --data-root"):
            load(None, "train")  # type: ignore[arg-type]
        with pytest.raises(
            DataError,
            match=r"no folder of images .*/imges\. Layout folders expects .* Did you mean 'images'\?",
        ):
            load(folder, "train", options={"images": "imges"})
        with pytest.raises(DataError, match="split 'test' was not loaded; there are: train"):
            load(folder, "train").split("test")

    def test_missing_labels_are_counted(self, folder: Path) -> None:
        for name in NAMES[15:17]:
            (folder / f"t/{name}.png").unlink()
        with pytest.raises(DataError, match=r"2 label file\(s\) for 5 images are missing in .*/t: 15.png, 16.png"):
            load(folder, "validation")
        (folder / "t").rename(folder / "tt")
        with pytest.raises(DataError, match=r"task 't': no folder .*/t\. Layout folders expects it"):
            load(folder, "validation")

    def test_labels_of_another_size(self, folder: Path) -> None:
        write_png(folder / "t/16.png", np.zeros((6, 4)))
        with pytest.raises(DataError) as error:
            load(folder, "validation")
        assert str(error.value) == (
            f"task 't', split 'validation': label {folder}/t/16.png is 4 × 6 (width × height), its image "
            f"{folder}/images/16.png is 6 × 4; 1 of 5 images have labels of another size. Give labels the size of "
            "their images (nearest neighbour for classes)."
        )

    def test_unknown_classes(self, folder: Path) -> None:
        write_png(folder / "t/16.png", np.arange(24).reshape(4, 6))
        with pytest.raises(DataError) as error:
            load(folder, "validation").split("validation")[1]
        assert str(error.value).startswith(
            f"task 't': unknown classes in {folder}/t/16.png: 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, … (10 more). The "
            "task has 2 classes (a, b), in the file 0 … 1, and ignores 255."
        )

    @pytest.mark.parametrize(
        ("mode", "what"),
        [
            ("L", "greyscale (mode L); 8-bit RGB is expected. Save it as RGB, say `greyscale: repeat` in the suite's"),
            ("1", "black and white (mode 1); 8-bit RGB is expected. Save it as RGB, or leave out such images with"),
            ("P", "a palette image (mode P)"),
            ("LA", "greyscale with transparency (mode LA)"),
            ("RGBA", "RGB with transparency (mode RGBA)"),
            ("I;16", "16-bit greyscale (mode I;16)"),
            ("CMYK", "CMYK, for print (mode CMYK)"),
        ],
    )
    def test_images_that_are_no_rgb(self, folder: Path, mode: str, what: str) -> None:
        path = folder / "images/16.png"
        if mode == "CMYK":
            path.unlink()
            path = folder / "images/16.jpg"
        Image.new(mode, (6, 4)).save(path)
        with pytest.raises(DataError) as error:
            load(folder, "validation")
        assert str(error.value).startswith(f"split 'validation': image {path} is {what}")

    def test_greyscale_repeated_on_request(self, folder: Path) -> None:
        Image.fromarray(np.arange(24, dtype=np.uint8).reshape(4, 6)).save(folder / "images/15.png")
        sample = load(folder, "validation", options={"greyscale": "repeat"}).split("validation")[0]
        assert (sample.image == np.arange(24).reshape(4, 6, 1)).all()

    def test_turned_images_are_refused_or_taken_as_stored(self, folder: Path) -> None:
        path = folder / "images/15.png"
        exif = Image.Exif()
        exif[0x0112] = 6
        pixels = write_image(path, exif=exif)
        with pytest.raises(DataError, match="has EXIF orientation 6: it is to be turned for display, and nothing says"):
            load(folder, "validation")
        sample = load(folder, "validation", options={"orientation": "stored"}).split("validation")[0]
        assert (sample.image == pixels).all()

    def test_damage_behind_the_header_shows_when_read(self, folder: Path) -> None:
        path = folder / "images/15.png"
        write_image(path, (64, 64))
        write_png(folder / "t/15.png", np.zeros((64, 64)))
        path.write_bytes(path.read_bytes()[:3000])
        rows = load(folder, "validation").split("validation")
        assert image_size(path) == (64, 64)
        with pytest.raises(DataError, match=r"image .*15.png cannot be read: .*\. Replace or remove it, or leave out"):
            rows[0]
        assert rows[1].name == "16"

    def test_bad_images_are_skipped_only_on_request_with_one_warning(self, folder: Path) -> None:
        before = folder / "images/15.png"
        before.write_bytes(before.read_bytes()[:60])
        (folder / "images/17.png").write_bytes(b"")
        Image.new("L", (6, 4)).save(folder / "images/03.png")
        state = snapshot(folder)
        with pytest.raises(DataError, match=r"image .*17.png cannot be read: its content"):
            load(folder, "validation")
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            data = load(folder, "train", "validation", skip_bad_images=True)
        assert data.split("validation").names == ["16", "18", "19"]
        assert "03" not in data.split("train").names
        (message,) = [str(warning.message) for warning in caught]
        assert message.startswith("3 of 19 images cannot be used and are left out: 03 (image ")
        assert "greyscale (mode L)" in message
        assert ", 15 (" in message
        assert ", 17 (" in message
        assert snapshot(folder) == state
        for name in NAMES[15:]:
            (folder / f"images/{name}.png").write_bytes(b"")
        with (
            pytest.warns(UserWarning, match="5 of 5"),
            pytest.raises(DataError, match="none of its 5 images can be used"),
        ):
            load(folder, "validation", skip_bad_images=True)

    def test_good_images_are_skipped_without_a_word(self, folder: Path) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert len(load(folder, "validation", skip_bad_images=True).split("validation")) == 5

    def test_two_images_of_one_name(self, folder: Path) -> None:
        write_image(folder / "images/15.jpg")
        with pytest.raises(DataError, match="two images are named '15'"):
            load(folder, "validation")

    def test_reading_what_is_no_image(self, tmp_path: Path) -> None:
        with pytest.raises(DataError, match="cannot be read"):
            read_image(tmp_path / "none.png")
        (tmp_path / "text.jpg").write_text("hello")
        with pytest.raises(DataError, match="its content is not that of an image file"):
            read_image(tmp_path / "text.jpg")


class TestSuites:
    @pytest.mark.parametrize("name", shipped_dense_suites())
    def test_shipped_suites_load(self, name: str) -> None:
        suite = load_dense_suite(name)
        assert load_dense_suite(suite.reference) == suite
        assert suite.name == name
        assert suite.description
        assert all(spec.description for spec in suite.tasks.values())

    def test_loss_weights_and_classes_are_the_published_ones(self) -> None:
        pascal, nyud = load_dense_suite("pascal_context").tasks, load_dense_suite("nyud").tasks
        weights = {name: spec.loss_weight for name, spec in (nyud | pascal).items()}
        assert weights == {"semseg": 1, "parts": 2, "saliency": 5, "normals": 10, "edges": 50, "depth": 1}
        assert [pascal[name].num_outputs for name in ("semseg", "parts", "saliency", "normals")] == [21, 7, 1, 3]
        assert [spec.num_outputs for spec in nyud.values()] == [40, 3, 1, 1]

    def test_suites_that_cannot_be_had(self, tmp_path: Path) -> None:
        with pytest.raises(ConfigError, match=r"unknown suite 'nyuud'\. Did you mean 'nyud'\? Suites of dense tasks: "):
            load_dense_suite("nyuud")
        with pytest.raises(ConfigError, match="suite nyud is at version 1, but 'nyud@2' was asked for"):
            load_dense_suite("nyud@2")
        with pytest.raises(DataError, match=r"no file .*own.yaml"):
            load_dense_suite(str(tmp_path / "own.yaml"))
        text = shipped_dense_suites()["nyud"].read_text().replace("label: edge}", "labl: edge}")
        (tmp_path / "own.yaml").write_text(text)
        with pytest.raises(
            ConfigError, match=r"suite nyud@1, task 'edges', source: .*unknown key 'labl'. Did you mean 'label'"
        ):
            load_dense_suite(str(tmp_path / "own.yaml"))

    def test_scenes_need_no_folder_and_are_the_same_each_time(self, tmp_path: Path) -> None:
        suite = load_dense_suite("scenes")
        splits: list[Split] = ["train", "tune", "validation", "test"]
        limits: dict[Split, int] = dict.fromkeys(splits, 2)
        data = load_dense(suite, suite.tasks, splits, limits=limits)
        first, again = data.split("train")[0], data.split("train")[0]
        assert (first.image == again.image).all()
        assert set(first.labels) == set(suite.tasks)
        assert (first.image != data.split("validation")[0].image).any()
        with pytest.raises(ConfigError, match=r"renders its images; leave tasks.data_root out"):
            load_dense(suite, suite.tasks, ["train"], tmp_path)
        wrong = suite.model_copy(deep=True)
        wrong.tasks["semseg"].__dict__["labels"] = ["a", "b"]
        with pytest.raises(ConfigError, match="labels of scenes' semseg are"):
            load_dense(wrong, wrong.tasks, ["train"])


def test_the_docs_example_of_ones_own_data(tmp_path: Path) -> None:
    page = (REPOSITORY / "docs/dense-data.md").read_text(encoding="utf-8")
    (example,) = re.findall(r"```yaml\n(.*?)```", page, re.DOTALL)
    (tmp_path / "rooms.yaml").write_text(example)
    size = (24, 32)
    for name in ("hall", "attic", "cellar"):
        write_image(tmp_path / f"images/{name}.jpg", size)
        classes = np.zeros(size)
        classes[:, 4:16], classes[:12, 16:], classes[12:, 16:] = 1, 2, 3
        write_png(tmp_path / f"semseg/{name}.png", classes)
        write_png(tmp_path / f"object/{name}.png", (classes == 3) * 255)
        depth = np.full(size, 1500)
        depth[0] = 65535
        write_png(tmp_path / f"depth/{name}.png", depth, np.uint16)
    write_lines(tmp_path / "splits/train.txt", "hall", "attic")
    write_lines(tmp_path / "splits/validation.txt", "cellar")
    suite = load_dense_suite(str(tmp_path / "rooms.yaml"))
    labels = load_dense(suite, suite.tasks, ["train", "validation"], tmp_path).split("validation")[0].labels
    assert labels["semseg"][0].tolist() == [255] * 4 + [0] * 12 + [1] * 16
    assert (labels["semseg"][12:, 16:] == 1).all(), "walls are 2 and 3"
    assert labels["outline"][:, :4].min() == 255
    assert (labels["outline"][:, 15:17] == 1).any()
    assert labels["object"].sum() == 12 * 16
    np.testing.assert_allclose(labels["depth"][1:], 1.5)
    assert not labels["depth"][0].any()
    np.testing.assert_allclose(labels["normals"][:, 1:], np.broadcast_to([[[0]], [[0]], [[1]]], (3, 23, 32)), atol=1e-6)


@real_data
def test_clothing_parsing_as_it_ships() -> None:
    suite = load_dense_suite("clothing_parsing")
    root = DATA / "clothing_parsing"
    names = json.loads((root / "classes.json").read_text())
    assert suite.tasks["parsing"].labels == ["background", *names[1:]]
    data = load_dense(suite, suite.tasks, ["train", "tune", "validation"], root, {"train": 4, "tune": 2})
    rows = data.split("validation")
    assert (len(rows), rows.names[0], rows.names[-1]) == (204, "0801", "1004")
    labels = rows[0].labels
    parsing, parts = labels["parsing"], labels["parts"]
    assert (parts[parsing == names.index("hair")] == 1).all()
    assert ((parsing > 0) == (parts > 0)).all()
    assert ((parsing > 0) == (labels["foreground"] == 1)).all()
    assert 0.005 < labels["boundaries"].mean() < 0.1
    mapped = suite.tasks["parts"].source["map"]
    groups = {part: {names[number] for number in numbers} for part, numbers in mapped.items()}
    assert sorted(number for numbers in mapped.values() for number in numbers) == list(range(59))
    assert {"coat", "dress", "t-shirt"} < groups["upper"]
    assert {"jeans", "skirt", "tights"} < groups["lower"]
    assert {"boots", "wedges"} < groups["shoes"]
    assert {"bag", "hat", "watch"} < groups["accessories"]


@real_data
def test_rgbd_as_it_ships() -> None:
    suite = load_dense_suite("rgbd")
    data = load_dense(suite, suite.tasks, ["train", "tune", "validation"], DATA / "rgbd")
    numbers = {split: [int(name) for name in data.split(split).names] for split in data.splits}
    assert [len(frames) for frames in numbers.values()] == [234, 20, 60]
    assert all((np.diff(frames) == 3).all() for frames in numbers.values()), "stretches of the film"
    labels = data.split("validation")[20].labels
    measured = np.asarray(Image.open(DATA / "rgbd/depth" / f"{data.split('validation').names[20]}.png"))
    np.testing.assert_allclose(labels["depth"], np.where(measured == 65535, 0, measured) / 1000, rtol=1e-6)
    normals = labels["normals"]
    known = normals[0] != 255
    assert known[labels["depth"] > 0].mean() > 0.97
    np.testing.assert_allclose((normals[:, known] ** 2).sum(axis=0), 1, atol=1e-5)
    table = normals[:, 180:230, 120:200][:, known[180:230, 120:200]]
    assert table[1].mean() > 0.7, "the table at the bottom faces up"
    assert table.std(axis=1).max() < 0.1, "and is smooth"
    edges = labels["edges"]
    assert set(np.unique(edges)) == {0, 1, 255}
    assert 0.005 < (edges == 1).mean() < 0.1
