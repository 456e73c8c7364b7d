"""The command line on dense recipes and runs: train, evaluate, params, predict, report, compare; and bad input."""

import json
import shutil

import numpy as np
import pytest
from PIL import Image

from helpers_dense import DENSE_TASKS, dense_project  # noqa: F401
from helpers_runs import _quiet_root, cli, project, trained  # noqa: F401
from tasklora.evaluation import ComparisonResults, RunResults
from tasklora.training import count_recipe_parameters, train_recipe


@pytest.fixture(scope="module")
def dense_run(dense_project, tmp_path_factory):  # noqa: F811
    """Return a finished dense run."""
    path = tmp_path_factory.mktemp("dense_cli") / "run"
    train_recipe(dense_project.load("training.max_steps=1"), path, command="tasklora train dense.yaml")
    return path


@pytest.fixture
def photo(tmp_path):
    """Return an image that is no square and no multiple of anything."""
    pixels = np.random.default_rng(0).integers(0, 255, (37, 51, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "photo.png")
    return tmp_path / "photo.png"


def assert_refused(said, *says):
    assert (said.code, said.err.count("\n")) == (2, 1), said.err
    assert said.err.startswith("error ")
    for part in says:
        assert part in said.err


def size_of(path):
    with Image.open(path) as picture:
        return picture.size


def test_train_evaluate_report_params(cli, dense_project, tmp_path):  # noqa: F811
    run = tmp_path / "run"
    said = cli("train", dense_project.recipe, "--output", run, "--set", "training.max_steps=1")
    assert said.code == 0, said.err
    assert all(task in said.out for task in DENSE_TASKS)
    assert "1 − angle/90°" in said.out
    results = RunResults.read(run / "results.json")
    said = cli("evaluate", run, "--json")
    assert json.loads(said.out) == json.loads(results.scores["validation"].model_dump_json()), said.err
    assert cli("evaluate", run, "--split", "tune").code == 0
    page = (run / "report.html").read_text()
    assert "Images to look at" in page
    assert "validation-00000" in page
    assert "Errors to read" not in page
    said = cli("params", dense_project.recipe, "--json")
    counts = count_recipe_parameters(dense_project.load())
    assert json.loads(said.out) == {
        "trainable": counts.trainable, "groups": counts.groups, "total": counts.total
    }  # fmt: skip


@pytest.mark.parametrize("method", ["mtlora", "decoders_only", "full_fine_tuning"])
def test_params_of_a_well_known_base_needs_no_file(cli, dense_project, method):  # noqa: F811
    name = "model.name=microsoft/swin-tiny-patch4-window7-224"
    said = cli("params", dense_project.recipe, "--json", "--set", name, "--set", f"method={{name: {method}}}")
    assert said.code == 0, said.err
    assert json.loads(said.out)["total"] > 27_000_000


@pytest.mark.parametrize("size", ["0", "[96, 96, 3]", "[0, 3]", "96.5", "true"])
def test_an_unusable_image_size_is_explained_once(cli, dense_project, tmp_path, size):  # noqa: F811
    said = cli("train", dense_project.recipe, "--output", tmp_path / "run", "--set", f"model.image_size={size}")
    assert_refused(said, "'model.image_size': image_size is one number of pixels, or [height, width], all positive")


def test_compare(cli, dense_project, tmp_path):  # noqa: F811
    settings = ["--set", "training.max_steps=1", "--set", "tasks.include=[semseg, normals]"]
    arguments = ["--methods", "mtlora,decoders_only", "--seeds", "0", "--output", tmp_path / "out"]
    said = cli("compare", dense_project.recipe, *arguments, *settings)
    assert said.code == 0, said.err
    results = ComparisonResults.read(tmp_path / "out" / "results.json")
    assert [method.title for method in results.methods] == ["MTLoRA", "decoders only"]
    assert "−mean_angle" in said.out
    page = (tmp_path / "out" / "report.html").read_text()
    assert "normals (−mean_angle)" in page
    assert "8 training images" in " ".join(page.split())


# --- predict


def test_predict_writes_a_map_of_each_task_at_the_images_size(cli, dense_run, photo, tmp_path):  # noqa: F811
    said = cli("predict", dense_run, photo, "--out", tmp_path / "maps", "--raw")
    assert said.code == 0, said.err
    pictures = {f"photo.{task}.png" for task in DENSE_TASKS}
    assert {path.name for path in (tmp_path / "maps").iterdir()} == {*pictures, "photo.depth.npy", "photo.normals.npy"}
    for name in pictures:
        with Image.open(tmp_path / "maps" / name) as picture:
            assert (picture.size, picture.mode) == ((51, 37), "RGB")
    normals = np.load(tmp_path / "maps" / "photo.normals.npy")
    assert normals.shape == (3, 37, 51)
    assert np.linalg.norm(normals, axis=0) == pytest.approx(np.ones((37, 51)), abs=1e-5)
    assert np.load(tmp_path / "maps" / "photo.depth.npy").shape == (37, 51)
    assert "(first colour)" in said.out


def test_predict_chosen_tasks_of_several_images(cli, dense_run, photo, tmp_path):  # noqa: F811
    with Image.open(photo) as picture:
        exif = picture.getexif()
        exif[0x0112] = 6  # held upright: shown turned by a quarter
        picture.save(tmp_path / "phone.jpg", exif=exif)
    said = cli("predict", dense_run, photo, tmp_path / "phone.jpg", "-t", "edges, semseg", "--out", tmp_path / "maps")
    assert said.code == 0, said.err
    names = {f"{stem}.{task}.png" for stem in ("photo", "phone") for task in ("edges", "semseg")}
    assert {path.name for path in (tmp_path / "maps").iterdir()} == names
    assert size_of(tmp_path / "maps" / "phone.edges.png") == (37, 51)


def test_predict_replaces_files_only_when_asked_to(cli, dense_run, photo, tmp_path):  # noqa: F811
    out = tmp_path / "maps"
    out.mkdir()
    (out / "photo.depth.png").write_text("mine")
    assert_refused(cli("predict", dense_run, photo, "--out", out), "maps holds photo.depth.png already")
    assert [path.name for path in out.iterdir()] == ["photo.depth.png"]
    assert (out / "photo.depth.png").read_text() == "mine"
    assert cli("predict", dense_run, photo, "--out", out, "--overwrite").code == 0
    assert size_of(out / "photo.depth.png") == (51, 37)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["photo.png"], "say where the maps go: --out DIR"),
        (["--out", "maps"], "give images to predict"),
        (["photo.png", "--out", "maps", "--json"], "--json: for runs on text"),
        (["photo.png", "--out", "maps", "--file", "rows.txt"], "--file: for runs on text"),
        (["a text", "--out", "maps"], "no image a text. This run predicts maps of images"),
        (["photo.png", "grey.png", "--out", "maps"], "grey.png is greyscale (mode L)"),
        (["photo.png", "torn.png", "--out", "maps"], "image torn.png cannot be read"),
        (["notes.txt", "--out", "maps"], "image notes.txt cannot be read"),
        (["photo.png", "more/photo.png", "--out", "maps"], "would both be written as photo.TASK.png"),
        (["photo.png", "photo.png", "--out", "maps"], "photo.png is given twice: name it once"),
        (["photo.png", "-t", "dept", "--out", "maps"], "unknown task 'dept'. Did you mean 'depth'?"),
        (["photo.png", "-t", "edges", "--raw", "--out", "maps"], "--raw is for depth and normals; chosen: edges"),
        (["photo.png", "--out", "notes.txt"], "notes.txt is a file, not a folder"),
    ],
)
def test_predict_refuses(cli, dense_run, photo, tmp_path, arguments, says):  # noqa: F811
    with Image.open(photo) as picture:
        picture.convert("L").save(tmp_path / "grey.png")
    content = photo.read_bytes()
    (tmp_path / "torn.png").write_bytes(content[: len(content) // 2])
    (tmp_path / "notes.txt").write_text("no image")
    (tmp_path / "more").mkdir()
    shutil.copy(photo, tmp_path / "more")
    said = cli("predict", dense_run, *arguments)
    assert_refused(said, says)
    assert "skip_bad_images" not in said.err
    assert not (tmp_path / "maps").exists()


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["-t", "mood", "good", "--out", "maps"], "--out: for runs on images"),
        (["-t", "mood", "good", "--raw"], "--raw: for runs on images"),
        (["-t", "mood", "photo.png"], "photo.png is an image, but this run reads texts"),
    ],
)
def test_predict_refuses_images_for_a_run_on_text(cli, trained, photo, arguments, says):  # noqa: F811
    assert_refused(cli("predict", trained.path, *arguments), says)


def test_what_a_dense_run_cannot_do(cli, dense_project, dense_run, trained, tmp_path):  # noqa: F811
    assert_refused(cli("export", dense_run, "--all", "--to", tmp_path / "out"), "is a run on images", "no plain LoRA")
    alone = shutil.copytree(dense_run / "best", tmp_path / "alone")
    assert_refused(cli("evaluate", alone, "--data-root", tmp_path), "Evaluate the run's directory")
    assert_refused(cli("train", dense_project.recipe, "--extend", dense_run), "--extend is for recipes on text")
    extend = ("train", trained.project.recipe, "--extend", dense_run, "--output", tmp_path / "run")
    assert_refused(cli(*extend), "is a run on images, which cannot be extended")
    assert_refused(cli("report", trained.path, dense_run, "--output", tmp_path / "r.html"), "cannot")


def test_a_damaged_dense_run(cli, dense_run, photo, tmp_path):  # noqa: F811
    run = shutil.copytree(dense_run, tmp_path / "run")
    content = (run / "best" / "decoders.safetensors").read_bytes()
    (run / "best" / "decoders.safetensors").write_bytes(content[: len(content) // 2])
    for command in (["evaluate", run], ["predict", run, photo, "--out", tmp_path / "maps"]):
        assert_refused(cli(*command), "decoders.safetensors")
    assert not (tmp_path / "maps").exists()
