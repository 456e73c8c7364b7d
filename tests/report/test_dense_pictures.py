"""Pictures of dense runs: they show what the runs kept, pixel by pixel, with the scores of each image."""

import base64
import io
import json
import re
import shutil
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from tasklora.errors import CheckpointError
from tasklora.evaluation import SHOWN_FILE, Estimate, MethodResults, read_predictions, read_shown_images
from tasklora.report import comparison_tables, numbers
from tasklora.report.loading import load_source
from tasklora.report.page import render
from tasklora.report.shown import NARROW, WIDE, _factors, link_of, pictures_of
from tasklora.report.sizes import delta_m_and_size
from tasklora.vision.metrics import metric_values
from tasklora.vision.pictures import depth_range_of, error_picture, label_picture, palette
from tasklora.vision.saved_model import read_dense_about

TASKS = ["semseg", "saliency", "normals", "edges", "depth"]


@pytest.fixture(scope="module")
def source(dense_runs):
    """Return six methods, one run each."""
    return load_source(list(dense_runs.values()))


@pytest.fixture(scope="module")
def shown(source):
    return pictures_of(source)


@pytest.fixture(scope="module")
def specs(dense_runs):
    return read_dense_about(dense_runs["mtlora"] / "best").tasks


@pytest.fixture
def run(dense_runs, tmp_path):
    """Return a run that may be changed."""
    return shutil.copytree(
        dense_runs["mtlora"], tmp_path / "run", ignore=shutil.ignore_patterns("checkpoints", "final")
    )


def pixels_of(link):
    assert link.startswith("data:image/png;base64,")
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(link.partition(",")[2]))).convert("RGB"))


def changed(run, change):
    """Change the arrays of the kept images."""
    with np.load(run / SHOWN_FILE) as file:
        arrays = dict(file)
    change(arrays)
    np.savez_compressed(run / SHOWN_FILE, **arrays)


@pytest.mark.parametrize("colours", [2, 200, 5000])
def test_a_link_holds_exactly_the_pixels(colours):
    rng = np.random.default_rng(0)
    palette_ = rng.integers(0, 256, (colours, 3), dtype=np.uint8)
    pixels = palette_[rng.integers(0, colours, (70, 90))]
    assert np.array_equal(pixels_of(link_of(Image.fromarray(pixels))), pixels)


def test_every_picture_is_that_of_the_kept_maps(dense_runs, shown, specs):
    titles = {"MTLoRA": "mtlora", "one LoRA for all tasks": "lora", "BitFit": "bitfit"}
    seen = set()
    for place, block in enumerate(shown.blocks):
        label = read_shown_images(dense_runs["mtlora"] / SHOWN_FILE, specs)[place]
        limits = {task: depth_range_of(label.labels[task]) if task == "depth" else None for task in TASKS}
        assert block.name == label.name
        assert np.array_equal(pixels_of(block.image.link), label.image)
        for task, tile in zip(TASKS, block.labels, strict=True):
            expected = label_picture(specs[task], label.labels[task], limits[task])
            assert np.array_equal(pixels_of(tile.link), np.asarray(expected)), task
            assert (task in tile.alt, block.name in tile.alt) == (True, True)
        for rows in [*block.opened, *block.folded]:
            if rows.title not in titles:
                continue
            seen.add(rows.title)
            said = read_shown_images(dense_runs[titles[rows.title]] / SHOWN_FILE, specs)[place].predictions
            for task, prediction, error in zip(TASKS, rows.predictions, rows.errors, strict=True):
                expected = label_picture(specs[task], said[task], limits[task], predicted=True)
                assert np.array_equal(pixels_of(prediction.link), np.asarray(expected)), task
                expected = error_picture(specs[task], said[task], label.labels[task])
                assert np.array_equal(pixels_of(error.link), np.asarray(expected)), task
                assert rows.title in prediction.alt
                assert rows.title in error.alt
    assert seen == set(titles)
    assert len(shown.blocks) == 4


def test_main_and_baseline_best_and_worst_are_open_and_all_others_folded(source, shown):
    assert (source.results.main, source.results.baseline) == ("mtlora", "lora")
    for block in shown.blocks:
        assert [rows.title for rows in block.opened] == [
            "MTLoRA", "one LoRA for all tasks", "full fine-tuning", "decoders only"
        ]  # fmt: skip
        assert sorted(rows.title for rows in block.folded) == ["BitFit", "one LoRA per task"]
    assert "Of the methods besides MTLoRA and one LoRA for all tasks" in shown.reading


def test_the_recipe_s_own_method_need_not_be_compared(source):
    without = replace(source, results=source.results.model_copy(update={"main": "mtlora_plus"}))
    assert "Of the methods besides one LoRA for all tasks, those with the best" in pictures_of(without).reading


def test_under_a_prediction_stands_the_metric_of_its_image(dense_runs, shown, specs):
    rows = read_predictions(dense_runs["mtlora"] / "predictions.jsonl")
    for place, block in enumerate(shown.blocks):
        captions = dict(zip(TASKS, (tile.caption for tile in block.opened[0].predictions), strict=True))
        values = {
            task: float(metric_values(specs[task], rows[task].statistics[place])[specs[task].primary]) for task in TASKS
        }
        assert captions["semseg"] == f"miou {values['semseg']:.3f}"
        assert captions["normals"] == f"mean_angle ↓ {values['normals']:.1f}°"
        assert captions["depth"] == f"rmse ↓ {values['depth']:.3f} m"
    assert "undefined" not in "".join(captions.values())


def test_ignored_pixels_undefined_scores_and_missing_depth(run, specs):
    """Nothing of depth, edges and normals is labelled in the first image."""

    def unlabelled(arrays):
        for place, ignored in ((2, 255), (3, 255), (4, 0)):
            arrays[f"label_{place}"][0] = ignored

    changed(run, unlabelled)
    lines = [json.loads(line) for line in (run / "predictions.jsonl").read_text().splitlines()]
    for line in lines:
        if line["task"] in TASKS[2:] and line["image"] == "validation-000000":
            line["statistics"] = [0] * len(line["statistics"])
    (run / "predictions.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    shown = pictures_of(load_source([run]))
    (rows,) = shown.blocks[0].opened
    assert [tile.caption for tile in rows.predictions][2:] == [
        "mean_angle ↓ undefined", "ods_f undefined", "rmse ↓ undefined"
    ]  # fmt: skip
    hatch = {(96, 96, 96), (150, 150, 150)}
    for tile in [*shown.blocks[0].labels[2:], *rows.errors[2:]]:
        assert {tuple(pixel) for pixel in pixels_of(tile.link).reshape(-1, 3).tolist()} == hatch
    assert not {tuple(pixel) for pixel in pixels_of(rows.predictions[4].link).reshape(-1, 3).tolist()} & hatch
    said = {legend.task: [swatch.name for swatch in legend.colours.swatches] for legend in shown.legends}
    assert said["edges"] == said["depth"] == ["ignored"]
    assert said["normals"][-1] == "ignored"
    assert "ignored" not in said["semseg"] + said["saliency"]
    assert "undefined" in render(load_source([run]))


def test_a_legend_has_the_classes_that_appear_with_their_colours(run, specs):
    def classes(arrays):
        arrays["label_0"][:] = 2
        arrays["prediction_0"][:] = 0
        arrays["prediction_0"][1, 3, 4] = 5

    changed(run, classes)
    legend = pictures_of(load_source([run])).legends[0]
    names = specs["semseg"].labels
    assert [swatch.name for swatch in legend.colours.swatches] == [names[0], names[2], names[5]]
    assert [swatch.colour for swatch in legend.colours.swatches] == [tuple(palette()[i].tolist()) for i in (0, 2, 5)]
    assert [swatch.name for swatch in legend.errors.swatches] == ["right", "wrong"]


def test_scales_have_ends_and_units(shown):
    bars = {legend.task: (legend.colours.bar, legend.errors.bar) for legend in shown.legends}
    ends = {task: [(bar.low, bar.high, bar.unit) for bar in pair if bar] for task, pair in bars.items()}
    assert ends["semseg"] == []
    assert ends["saliency"] == ends["edges"] == [("0", "1", "probability"), ("0", "1", "|error|")]
    assert ends["normals"] == [("0", "≥ 90", "degrees")]
    assert ends["depth"] == [("nearest", "furthest", ""), ("0", "≥ 0.5", "relative error")]
    for block in shown.blocks:
        bar = block.labels[4].bar
        assert 0 < float(bar.low) < float(bar.high)
        assert bar.unit == "m"


def test_pictures_are_enlarged_by_whole_factors_that_fit():
    assert [_factors(size, 5)[0] for size in (32, 64, 96, 128, 129, 224, 256, 448)] == [8, 4, 2, 2, 1, 1, 1, 1]
    assert [_factors(size, 7)[0] for size in (64, 96, 128, 224)] == [2, 2, 2, 1]
    assert [_factors(size, 7)[1] for size in (32, 64, 128, 448)] == [4, 2, 1, 1]
    assert max(size * _factors(size, 2)[0] for size in range(1, WIDE)) <= WIDE
    assert max(size * _factors(size, 2)[1] for size in range(1, NARROW)) <= NARROW


def test_runs_without_pictures_say_so(dense_runs, run, trained):
    (run / SHOWN_FILE).unlink()
    page = render(load_source([run]))
    assert "this run holds no shown_images.npz" in page
    assert '<table class="maps"' not in page
    assert "Images to look at" in page
    shown = pictures_of(load_source([run, dense_runs["lora"]]))
    assert "No pictures of MTLoRA" in shown.reading
    assert [rows.title for rows in shown.blocks[0].opened] == ["one LoRA for all tasks"]
    assert pictures_of(load_source([trained.path])) is None
    assert 'id="pictures"' not in render(load_source([trained.path]))


def test_pictures_of_other_images_and_damaged_ones_are_refused(dense_runs, run):
    def renamed(arrays):
        arrays["names"] = np.array(["validation-000000", "x", "y", "z"])

    changed(run, renamed)
    for runs in ([run], [run, dense_runs["lora"]]):
        with pytest.raises(CheckpointError, match="not those that all runs were scored on"):
            pictures_of(load_source(runs))
    (run / SHOWN_FILE).write_bytes((run / SHOWN_FILE).read_bytes()[:-500])
    with pytest.raises(CheckpointError, match=r"cannot read .*shown_images\.npz"):
        pictures_of(load_source([run]))


def test_names_of_images_cannot_become_markup(run):
    def renamed(arrays):
        arrays["names"] = np.array(['"><script>alert(1)</script>', *arrays["names"][1:]])

    changed(run, renamed)
    text = (run / "predictions.jsonl").read_text()
    name = json.dumps('"><script>alert(1)</script>')
    (run / "predictions.jsonl").write_text(text.replace('"validation-000000"', name))
    page = render(load_source([run]))
    assert "<script>alert" not in page
    assert "&lt;script&gt;alert(1)" in page


def test_the_page_loads_nothing(source):
    page = render(source)
    assert re.findall(r'(?:src|href)="(?!#|data:)[^"]*"', page) == []
    assert page.count('<img class="map"') == 4 * (1 + 5 + 6 * 2 * 5)
    assert page.count("alt=") == page.count("<img")


# --- Δm against parameters, and the time of a step


def test_delta_m_stands_over_its_parameters(source):
    picture = delta_m_and_size(source)
    assert picture.data["one LoRA for all tasks (baseline)"]["delta_m"] == 0.0
    for method in source.results.methods:
        if method.delta_m:
            assert picture.data[method.title] == {
                "trainable": method.parameters.trainable, "delta_m": method.delta_m.model_dump()
            }  # fmt: skip
    assert len(picture.data) == 6


def test_titles_stand_at_their_points_or_else_in_the_legend(dense_runs):
    source = load_source([dense_runs["mtlora"], dense_runs["lora"]])
    assert "one LoRA for all tasks (baseline)" in delta_m_and_size(source).svg
    crowd = load_source(list(dense_runs.values()))
    for place, method in enumerate(crowd.results.methods):
        method.parameters.trainable = 10**6 + place
        if method.delta_m:
            method.delta_m = Estimate(mean=0.01, std=None, low=-5, high=5, seeds=[0.01])
    crowd.results.methods[-1].parameters.trainable = 10**8  # so that the others stand on one spot
    svg = delta_m_and_size(crowd).svg
    assert "(baseline)" not in svg
    assert all(method.title in svg for method in crowd.results.methods)


def test_without_delta_m_there_is_no_such_figure(source):
    results = source.results.model_copy(deep=True)
    for method in results.methods:
        method.delta_m = None
    assert delta_m_and_size(type(source)(source.title, results, source.runs)) is None


def test_the_time_of_a_step_is_shown_where_it_was_taken(dense_runs):
    source = load_source([dense_runs["mtlora"], dense_runs["lora"]])
    for method, seconds in zip(source.results.methods, ([0.25, 1.5, 0.26], []), strict=True):
        method.step_seconds = seconds
    page, (methods, _) = render(source), comparison_tables(source.results)
    assert "step, ms" in page
    assert '<td data-value="260.0">260</td>' in page
    assert "a rough guide" in " ".join(page.split())
    assert list(methods.columns[-1].cells) == ["260", "–"]
    assert "a rough guide" in methods.caption
    source.results.methods[0].step_seconds = []
    assert "step, ms" not in render(source)
    assert [column.header for column in comparison_tables(source.results)[0].columns][-1] == "trainable"


def test_numbers_of_steps_and_spreads():
    method = MethodResults(name="a", title="a", settings={}, trials=[], step_seconds=[0.0123456, 0.0123456])
    assert numbers.milliseconds(numbers.step_milliseconds(method)) == "12.3"
    assert numbers.milliseconds(12345.6) == "12,346"
    delta = Estimate(mean=-1.25, std=0.349, low=-2, high=1, seeds=[-1, -1.5])
    assert numbers.percent(delta) == "−1.2 ± 0.3"
    assert numbers.percent(delta.model_copy(update={"std": None})) == "−1.2"
