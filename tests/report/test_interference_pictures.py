"""Pictures of gradients, updates and division: they show the files' numbers, for few tasks and for many."""

import json
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from torch import nn

from helpers_reports import data_of
from helpers_updates import CASES, build
from tasklora.evaluation import GradientCosines, diagnose, read_diagnostics
from tasklora.evaluation.gradients import LayerCosines
from tasklora.evaluation.subspaces import pairs_of
from tasklora.report.division import division
from tasklora.report.heatmaps import by_layer, heat_map, mean, scale_legend
from tasklora.report.interference import interference
from tasklora.report.loading import load_source
from tasklora.report.page import render

CASE = {case.id: case for case in CASES}
NEW = {"gradient-cosines", "gradient-cosines-over-time", "update-overlaps", "updates-per-layer", "task-matrix-distance"}


def measurement(step, tasks, layers=("a.0.x", "a.0.y"), nothing=False):
    generator = np.random.default_rng([step, len(tasks)])

    def cosines(count):
        return [None if nothing else round(float(value), 4) for value in generator.uniform(-1, 1, count)]

    def entries():
        pairs = len(pairs_of(len(tasks)))
        return LayerCosines(cosines=cosines(pairs), halves=cosines(len(tasks)), norms=[1.0] * len(tasks))

    found = {layer: entries() for layer in layers}
    return GradientCosines(step=step, tasks=tasks, rows=[4] * len(tasks), overall=entries(), layers=found)


@pytest.fixture(scope="module")
def page(trained, tmp_path_factory):
    """Return the page of a run whose gradients were measured three times, and the measurements."""
    run = shutil.copytree(trained.path, tmp_path_factory.mktemp("measured") / "run")
    lines = [measurement(step, ["mood", "answer", "heat"]) for step in (0, 10, 20)]
    (run / "gradient_cosines.jsonl").write_text("".join(line.model_dump_json() + "\n" for line in lines))
    return render(load_source([run])), lines


def test_the_page_has_them_with_the_files_numbers(page, trained):
    said, lines = page
    for name in NEW:
        assert f'id="figure-{name}"' in said
    shown = data_of(said, "gradient-cosines")
    assert shown["tasks"] == ["mood", "answer", "heat"]
    after = lines[1:]  # without the measurement before training
    expected = np.mean([line.overall.cosines for line in after], axis=0)
    assert [shown["values"][0][1], shown["values"][2][0], shown["values"][1][2]] == pytest.approx(expected, abs=1e-3)
    halves = np.mean([line.overall.halves for line in after], axis=0)
    assert [shown["values"][place][place] for place in range(3)] == pytest.approx(halves, abs=1e-3)
    assert data_of(said, "gradient-cosines-over-time") == [line.model_dump() for line in lines]
    found = read_diagnostics(trained.path / "diagnostics.json")
    overlaps = data_of(said, "update-overlaps")
    for name in ("update_cosine", "column_overlap"):
        pairs = np.mean(list(found.per_pair[name].values()), axis=0)
        assert overlaps[name][0][2] == overlaps[name][2][0] == pytest.approx(pairs[1], abs=1e-3)
    assert "All tasks of this method read from the same subspace by construction" in said
    assert data_of(said, "updates-per-layer")["row_overlap"] == found.per_pair["row_overlap"]


def test_runs_of_the_first_version_are_shown_as_they_were(trained, tmp_path):
    run = shutil.copytree(trained.path, tmp_path / "run")
    before = json.loads((run / "diagnostics.json").read_text())["per_task"]
    old = {name: before[name] for name in ("up_projection_weights", "task_matrix_change")}
    (run / "diagnostics.json").write_text(json.dumps(old))
    said = render(load_source([run]))
    assert data_of(said, "task-matrix-change")["change"] == list(old["task_matrix_change"].values())
    assert not any(f'id="figure-{name}"' in said for name in NEW)


def test_a_comparison_says_what_each_method_keeps_to_its_tasks(compared):
    said = render(load_source([compared.path]))
    (shown,) = data_of(said, "own-shares").items()  # LoRA has one update for all, heads have none
    assert shown[0] == compared.results.method("mtl_lora").title
    assert 0 < shown[1]["overall"] < 1
    assert f"Of {shown[0]}, seed 0. " in said


def source_of(case, count, measured=0):
    """Return what the pictures need of a run with two layers and `count` tasks."""
    tasks = [f"task_{place}" for place in range(count)]
    layers = {
        name: nn.ModuleDict({"task_updates": nn.ModuleDict({"default": build(case, tasks=count)})}) for name in "ab"
    }
    with torch.no_grad():
        for place, parameter in enumerate(layers["b"].parameters()):
            parameter.mul_(0.5 + place)
    return SimpleNamespace(
        comparison=False,
        results=SimpleNamespace(metrics=dict.fromkeys(tasks, "accuracy")),
        shown=SimpleNamespace(
            diagnostics=diagnose(nn.ModuleDict(layers), tasks=tasks),
            gradient_cosines=[measurement(step, tasks, nothing=step == 0) for step in range(measured)],
        ),
    )


@pytest.mark.parametrize("count", [2, 8, 40])
def test_every_task_is_named_in_every_picture_of_tasks(count):
    source = source_of(CASE["mtl_lora-full-n2"], count, measured=2)
    pictures = {picture.name: picture for picture in [*interference(source), *division(source)]}
    assert pictures.keys() >= NEW
    for name in ("gradient-cosines", "update-overlaps", "up-projection-weights", "task-matrix-distance"):
        assert all(f">{task}<" in pictures[name].svg for task in source.results.metrics), name
        assert ("alike ones stand together" in pictures[name].reading) == (
            count > 12 and name != "up-projection-weights"
        )
    for picture in pictures.values():
        assert "nan" not in picture.svg
        json.dumps(picture.data, allow_nan=False)
        assert len(picture.reading) > 80


@pytest.mark.parametrize(
    ("case", "expected"),
    [
        ("ta_lora", {"task-gates", "task-share", "shared-cosine"}),
        ("moe_lora", {"expert-weights"}),
        ("per_task_lora", set()),
    ],
)
def test_every_method_shows_its_own(case, expected):
    assert {picture.name for picture in division(source_of(CASE[case], 3))} == expected


def test_what_a_new_method_says_gets_a_plain_map():
    source = source_of(CASE["per_task_lora"], 3)
    source.shown.diagnostics.per_task["strange_thing"] = {
        "a": [[1.0, -2.0], [0.0, 1.0], [3.0, None]],
        "b": [[0.0, 0.0]] * 3,
    }
    (picture,) = division(source)
    assert (picture.name, picture.title) == ("strange-thing", "What the method says per task: strange_thing")


def test_what_is_undefined_everywhere_is_drawn_as_dashes():
    source = source_of(CASE["ta_lora"], 3)
    (layer, *_) = source.shown.diagnostics.per_pair["update_cosine"]
    for name in ("update_cosine", "column_overlap", "row_overlap"):
        source.shown.diagnostics.per_pair[name] = {layer: [None, None, None]}
    source.shown.gradient_cosines = [measurement(0, list(source.results.metrics), nothing=True)]
    for picture in interference(source):
        assert "nan" not in picture.svg
    assert "–" in next(picture.svg for picture in interference(source) if picture.name == "update-overlaps")


def test_very_many_layers_are_averaged_by_block():
    layers = {f"model.layers.{block}.{part}": [block, None] for block in range(30) for part in ("q", "k", "v")}
    names, values = by_layer(layers)
    assert names == [f"model.layers.{block}" for block in range(30)]
    assert values[:, 0].tolist() == list(range(30))
    assert np.isnan(values[:, 1]).all()
    assert by_layer({"a": [1.0], "b": [2.0]})[1].tolist() == [[1.0], [2.0]]
    assert mean(np.array([[1.0, np.nan], [3.0, np.nan]])).tolist()[0] == 2.0


@pytest.mark.parametrize(
    ("top", "says"),
    [
        (0.8, ["0.00", "0.20", "0.40", "0.60", "0.80"]),
        (0.004, ["0.0000", "0.0010", "0.0020", "0.0030", "0.0040"]),
        (0.00012, ["0.00000", "0.00003", "0.00006", "0.00009", "0.00012"]),
    ],
)
def test_small_values_are_told_apart_in_the_legend_and_in_the_cells(top, says):
    figure = Figure()
    axes = figure.subplots()
    heat_map(axes, np.array([[top / 4, top]]), ["layer"], ["one", "two"], top, numbers=True)
    scale_legend(figure, top, diverging=False)
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == says
    assert [text.get_text() for text in axes.texts] == [says[1], says[4]]
