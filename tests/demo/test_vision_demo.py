"""The demo on images: three methods on rendered scenes with the small Swin of the package, and pictures."""

import io

import pytest
from rich.console import Console

from tasklora.demo.comparing import DEMO
from tasklora.demo.vision import COMMAND, METHODS, run_vision_demo
from tasklora.errors import OutputError
from tasklora.evaluation import ComparisonResults
from tasklora.training import load_recipe

SMALL = [
    "model.image_size=64",
    "tasks.limits={train: 4, tune: 2, validation: 4}",
    "training.max_steps=1",
    "training.batch_size=4",
]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Return the demo's directory and what it said, with a few images only."""
    console, path = Console(file=io.StringIO(), width=400), tmp_path_factory.mktemp("demo") / "out"
    run_vision_demo(console, path, overrides=SMALL)
    return path, " ".join(console.file.getvalue().split())


def test_it_compares_and_reports(made):
    path, said = made
    results = ComparisonResults.read(path / "results.json")
    assert [method.name for method in results.methods] == METHODS
    assert (results.main, results.baseline, results.command) == ("mtlora", "decoders_only", COMMAND)
    assert len(results.metrics) == 4
    for method in results.methods:
        assert method.title in said
        assert f"{method.parameters.trainable:,}" in said
    assert str(path / "report.html") in said
    assert f"tasklora predict {path / results.method('mtlora').runs[0]} YOUR.jpg" in said


def test_the_report_shows_every_method_on_every_image(made):
    page = (made[0] / "report.html").read_text()
    results = ComparisonResults.read(made[0] / "results.json")
    # 4 images × (1 input + 4 tasks × (1 label + 3 methods × (1 prediction + 1 error))), and the bars of the legends
    assert page.count("data:image/png;base64,") >= 4 * (1 + 4 * (1 + 3 * 2))
    assert "http://" not in page.replace("http://www.w3.org", "")
    for method in results.methods:
        assert method.title in page


@pytest.mark.slow
def test_a_finished_demo_is_replaced_and_nothing_else(made):
    path, _ = made
    before = ComparisonResults.read(path / "results.json").created
    other = path.parent / "else"
    other.mkdir()
    (other / "notes.txt").write_text("mine")
    with pytest.raises(OutputError, match="holds no comparison, so it is not replaced"):
        run_vision_demo(Console(quiet=True), other, overrides=SMALL)
    assert (other / "notes.txt").read_text() == "mine"
    run_vision_demo(Console(quiet=True), path, overrides=SMALL)
    assert ComparisonResults.read(path / "results.json").created >= before


def test_the_recipe_is_the_one_of_the_docs_but_for_its_size():
    demo, full = load_recipe(DEMO / "vision.yaml"), load_recipe(DEMO.parents[2] / "recipes/vision/scenes-small.yaml")
    assert demo.model == full.model
    assert demo.method == full.method
    assert demo.tasks.suite == full.tasks.suite
