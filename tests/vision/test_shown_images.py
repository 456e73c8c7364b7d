"""The few images that a dense run keeps: which they are, that they are what was scored, and that damage is seen."""

import io
import zipfile

import numpy as np
import pytest
import torch
from numpy.lib import format as npy

from helpers_dense import DENSE_TASKS, dense_project  # noqa: F401
from tasklora.errors import CheckpointError
from tasklora.evaluation import (
    SHOWN_FILE,
    ShownImage,
    predict_shown,
    read_predictions,
    read_shown_images,
    shown_places,
    write_shown_images,
)
from tasklora.evaluation.dense import PlainImages
from tasklora.training import train_recipe
from tasklora.vision.data import load_dense
from tasklora.vision.metrics import predictions, statistics
from tasklora.vision.saved_model import load_dense_model
from tasklora.vision.spec import DenseTaskSpec

SPECS = {
    "semseg": DenseTaskSpec(kind="segmentation", labels=["a", "b", "c"]),
    "saliency": DenseTaskSpec(kind="saliency"),
    "edges": DenseTaskSpec(kind="edges"),
    "normals": DenseTaskSpec(kind="normals"),
    "depth": DenseTaskSpec(kind="depth"),
}


@pytest.fixture(scope="module")
def run(dense_project, tmp_path_factory):  # noqa: F811
    """Return a finished run of one step."""
    path = tmp_path_factory.mktemp("shown") / "run"
    train_recipe(dense_project.load("training.max_steps=1"), path)
    return path


@pytest.fixture
def validation(dense_project):  # noqa: F811
    """Return the images that the run is scored on."""
    recipe = dense_project.load()
    return load_dense(recipe.suite(), recipe.task_specs(), ["validation"]).split("validation")


class Constant(torch.nn.Module):
    """Says the same of every image: the given outputs, task → (channels, H, W)."""

    def __init__(self, specs, outputs):
        super().__init__()
        self.specs = specs
        self.outputs = outputs
        self.unused = torch.nn.Parameter(torch.zeros(1))

    def forward(self, pixel_values):
        return {task: outputs[None].expand(len(pixel_values), -1, -1, -1) for task, outputs in self.outputs.items()}


def shown_of(specs, labels, outputs):
    """What is kept of one image of 2 × 3 pixels with these labels and outputs."""
    from tasklora.vision.sample import DenseSample

    class Rows(list):
        pass

    rows = Rows([DenseSample("one", np.zeros((2, 3, 3), np.uint8), labels)])
    (shown,) = predict_shown(Constant(specs, outputs), rows, (2, 3))
    return shown


# --- which ones


@pytest.mark.parametrize("images", [1, 3, 4, 5, 7, 100, 5105])
@pytest.mark.parametrize("count", [1, 4, 6])
def test_the_places_are_spread_evenly_over_the_split(images, count):
    places = shown_places(images, count)
    assert len(places) == len(set(places)) == min(images, count)
    assert 0 <= places[0] <= places[-1] < images
    gaps = np.diff([-(images - places[-1]), *places])  # around the end, too
    assert gaps.max() - gaps.min() <= 2


def test_places_by_hand():
    assert shown_places(100) == [12, 37, 62, 87]
    assert shown_places(2) == [0, 1]


def test_another_method_and_seed_shows_the_same_images(dense_project, run, tmp_path):  # noqa: F811
    recipe = dense_project.load("method={name: decoders_only}", "training.seed=3", "training.max_steps=1")
    train_recipe(recipe, tmp_path / "other")
    mine, theirs = (read_shown_images(path / SHOWN_FILE, recipe.task_specs()) for path in (run, tmp_path / "other"))
    assert [one.name for one in mine] == [one.name for one in theirs] == [f"validation-{n:06d}" for n in range(4)]
    for one, other in zip(mine, theirs, strict=True):
        assert np.array_equal(one.image, other.image)
        assert all(np.array_equal(one.labels[task], other.labels[task]) for task in DENSE_TASKS)
        assert not np.array_equal(one.predictions["depth"], other.predictions["depth"])


# --- what they hold


def test_a_run_keeps_what_the_network_saw_and_said(dense_project, run, validation):  # noqa: F811
    model, about, _ = load_dense_model(run / "best")
    specs = about.tasks
    kept = read_shown_images(run / SHOWN_FILE, specs)
    assert [one.name for one in kept] == [validation[place].name for place in shown_places(len(validation))]
    for shown, sample in zip(kept, map(PlainImages(validation, specs, (64, 64)).__getitem__, range(4)), strict=True):
        assert np.array_equal(shown.image, sample.image)
        assert (list(shown.labels), list(shown.predictions)) == (DENSE_TASKS, DENSE_TASKS)
        assert shown.image.shape == (64, 64, 3)
        for task in ("semseg", "saliency", "edges"):
            assert np.array_equal(shown.labels[task], sample.labels[task])
        for task in ("normals", "depth"):
            np.testing.assert_allclose(shown.labels[task], sample.labels[task], rtol=1e-3, atol=1e-3)
    again = predict_shown(model.eval(), validation, (64, 64))
    for shown, other in zip(kept, again, strict=True):
        for task in DENSE_TASKS:
            np.testing.assert_allclose(
                shown.predictions[task].astype(float), other.predictions[task].astype(float), atol=2e-3, err_msg=task
            )


def test_the_kept_classes_give_the_statistics_of_the_scores(run):
    _, about, _ = load_dense_model(run / "best")
    spec = about.tasks["semseg"]
    scored = read_predictions(run / "predictions.jsonl")["semseg"]
    for shown in read_shown_images(run / SHOWN_FILE, about.tasks):
        logits = torch.nn.functional.one_hot(torch.from_numpy(shown.predictions["semseg"]).long(), spec.num_outputs)
        label = torch.from_numpy(shown.labels["semseg"]).long()[None]
        counts = statistics(spec, logits.permute(2, 0, 1)[None].float(), label)[0].numpy()
        assert np.array_equal(counts, scored.statistics[scored.names.index(shown.name)])


def test_predictions_are_those_of_the_metrics(validation, run):
    model, _, _ = load_dense_model(run / "best")
    model.train()
    state = torch.get_rng_state()
    (shown,) = predict_shown(model, validation, (64, 64), places=[2])
    assert model.training, "the model is put back into the mode that it was in"
    assert torch.equal(torch.get_rng_state(), state), "a run goes on as if nothing had been kept"
    from tasklora.evaluation.dense import ImageCollator

    sample = PlainImages(validation, model.specs, (64, 64))[2]
    with torch.inference_mode():
        outputs = model.eval()(ImageCollator(model.specs)([sample])["pixel_values"])
    for task, spec in model.specs.items():
        expected = predictions(spec, outputs[task])[0].numpy()
        assert shown.predictions[task].dtype == (np.uint8 if task == "semseg" else np.float16)
        np.testing.assert_allclose(shown.predictions[task].astype(float), expected, rtol=1e-3, atol=1e-3)


def test_ignored_pixels_stay_ignored_and_no_others_become_it(tmp_path):
    labels = {
        "semseg": np.array([[0, 1, 2], [255, 255, 0]], np.uint8),
        "saliency": np.array([[0, 1, 255], [1, 0, 255]], np.float32),
        "edges": np.full((2, 3), 255, np.float32),
        "normals": np.tile(np.array([0, 0.6, 0.8], np.float32)[:, None, None], (1, 2, 3)),
        "depth": np.array([[0, 1e-9, 1e-4], [3.0, 1e9, 0]], np.float32),
    }
    labels["normals"][:, 1] = 255
    outputs = {task: torch.ones(spec.num_outputs, 2, 3) for task, spec in SPECS.items()}
    outputs["depth"] *= 1e9
    outputs["normals"] *= 0
    shown = shown_of(SPECS, labels, outputs)
    write_shown_images(tmp_path / SHOWN_FILE, [shown])
    (read,) = read_shown_images(tmp_path / SHOWN_FILE, SPECS)
    for one in (shown, read):
        for task in ("semseg", "saliency", "edges"):
            assert np.array_equal(one.labels[task], labels[task])
        assert np.array_equal(one.labels["normals"] == 255, labels["normals"] == 255)
        assert np.array_equal(one.labels["depth"] == 0, labels["depth"] == 0)
        assert np.isfinite(one.labels["depth"]).all()
        assert np.isfinite(one.predictions["depth"]).all()
        assert one.labels["depth"][1, 0] == 3.0
        assert not one.predictions["normals"].any()


def test_what_was_written_is_what_is_read(tmp_path):
    rng = np.random.default_rng(0)
    shown = [
        ShownImage(
            name,
            rng.integers(0, 255, (2, 3, 3), dtype=np.uint8),
            {"t/1": rng.integers(0, 3, (2, 3), dtype=np.uint8), "..": rng.random((2, 3)).astype(np.float16)},
            {"t/1": rng.integers(0, 3, (2, 3), dtype=np.uint8), "..": rng.random((2, 3)).astype(np.float16)},
        )
        for name in ("a/b c", "ö\u2028")
    ]
    specs = {"t/1": SPECS["semseg"], "..": SPECS["saliency"]}
    write_shown_images(tmp_path / SHOWN_FILE, shown)
    assert [path.name for path in tmp_path.iterdir()] == [SHOWN_FILE]
    for one, other in zip(shown, read_shown_images(tmp_path / SHOWN_FILE, specs), strict=True):
        assert (one.name, list(one.labels)) == (other.name, list(other.labels))
        for mine, theirs in ((one.labels, other.labels), (one.predictions, other.predictions)):
            assert all(
                np.array_equal(mine[task], theirs[task]) and mine[task].dtype == theirs[task].dtype for task in specs
            )
    first = (tmp_path / SHOWN_FILE).read_bytes()
    write_shown_images(tmp_path / SHOWN_FILE, shown)
    assert (tmp_path / SHOWN_FILE).read_bytes() == first


# --- damage


def rewritten(path, **changes):
    """Write the file again with some arrays changed, or (None) left out."""
    with np.load(path) as file:
        arrays = {**file, **changes}
    with path.open("wb") as file:
        np.savez_compressed(file, **{name: array for name, array in arrays.items() if array is not None})


@pytest.fixture
def written(tmp_path):
    """Return a file of two images with all kinds of tasks."""
    shape = {task: (3, 2, 3) if task == "normals" else (2, 3) for task in SPECS}
    types = {task: np.uint8 if task == "semseg" else np.float16 for task in SPECS}
    maps = {task: np.ones(shape[task], types[task]) for task in SPECS}
    shown = [ShownImage(name, np.zeros((2, 3, 3), np.uint8), maps, maps) for name in "ab"]
    write_shown_images(tmp_path / SHOWN_FILE, shown)
    return tmp_path / SHOWN_FILE


def said_of(path, specs=SPECS):
    with pytest.raises(CheckpointError, match=r"shown_images\.npz") as caught:
        read_shown_images(path, specs)
    return str(caught.value)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"label_2": None}, "label_2"),
        ({"names": np.array(["a"])}, "for 1 names"),
        ({"images": np.zeros((2, 2, 3), np.uint8)}, "of shape (2, 2, 3)"),
        ({"images": np.zeros((2, 2, 3, 3))}, "float64 images"),
        ({"images": np.zeros((2, 4, 3, 3), np.uint8)}, "the labels of 'semseg' have shape (2, 2, 3)"),
        ({"prediction_3": np.zeros((2, 2, 3), np.float16)}, "(3, H, W)"),
        ({"prediction_0": np.full((2, 2, 3), 3, np.uint8)}, "[3] are none of the task's 0 to 2"),
        ({"prediction_0": np.full((2, 2, 3), 255, np.uint8)}, "255, which is no class"),
        ({"prediction_0": np.zeros((2, 2, 3))}, "whole numbers"),
        ({"prediction_4": np.full((2, 2, 3), np.nan)}, "NaN"),
        ({"label_4": np.zeros((1, 2, 3))}, "the labels of 'depth' have shape (1, 2, 3)"),
        ({"version": np.array(2)}, "has version 2, this tasklora reads version 1"),
        ({"version": np.array([1, 2])}, "cannot read"),
        ({"names": np.array([{}, {}], dtype=object)}, "allow_pickle=False"),
    ],
)
def test_what_does_not_fit_is_refused_by_name(written, changes, says):
    rewritten(written, **changes)
    assert says in said_of(written)


def test_a_file_of_other_tasks_or_none_is_refused(written, tmp_path):
    assert "'edges'" in said_of(written, {"edges": SPECS["edges"]})
    with written.open("wb") as file:
        np.save(file, np.zeros(3))
    said_of(written)
    written.write_text("no archive")
    said_of(written)
    written.unlink()
    said_of(written)


def test_every_cut_and_many_a_flipped_byte_is_seen(written):
    whole = written.read_bytes()
    for length in range(0, len(whole), 97):
        written.write_bytes(whole[:length])
        said_of(written)
    expected = read_bytes(written, whole)
    rng = np.random.default_rng(0)
    for place in rng.choice(len(whole), 150, replace=False):
        damaged = bytearray(whole)
        damaged[place] ^= 0xFF
        written.write_bytes(bytes(damaged))
        try:
            found = read_shown_images(written, SPECS)
        except CheckpointError:
            continue
        assert same(found, expected), f"byte {place} went unseen"  # it meant nothing, as a date does


def read_bytes(path, content):
    path.write_bytes(content)
    return read_shown_images(path, SPECS)


def same(one, other):
    return [a.name for a in one] == [b.name for b in other] and all(
        np.array_equal(a.labels[task], b.labels[task]) and np.array_equal(a.predictions[task], b.predictions[task])
        for a, b in zip(one, other, strict=True)
        for task in SPECS
    )


def test_a_header_that_claims_too_much_is_refused(written):
    with np.load(written) as file:
        arrays = dict(file)
    with zipfile.ZipFile(written, "w") as archive:
        for name, array in arrays.items():
            content = io.BytesIO()
            npy.write_array(content, array)
            raw = content.getvalue()
            archive.writestr(f"{name}.npy", raw.replace(b"(2, 2, 3, 3)", b"(2, 2, 3, 9)") if name == "images" else raw)
    said_of(written)
