"""What a report says is what the runs' files say; what cannot stand in one report is refused by name."""

import json
import re
import shutil

import numpy as np
import pytest

from helpers_reports import data_of
from tasklora.errors import CheckpointError, ConfigError, OutputError
from tasklora.evaluation import RunResults, read_predictions
from tasklora.report.examples import PER_TASK, worst_errors
from tasklora.report.loading import load_source
from tasklora.report.page import render, write_report
from tasklora.training import train_recipe


@pytest.fixture(scope="module")
def page(compared) -> str:
    return render(load_source([compared.path]))


def copied(run, target, change=lambda results: results):
    """Return a copy of a run with changed results."""
    shutil.copytree(run, target)
    results = json.loads((target / "results.json").read_text())
    change(results)
    (target / "results.json").write_text(json.dumps(results))
    return target


def test_the_figures_show_the_numbers_of_the_results(page, compared):
    shown = data_of(page, "scores")
    for method in compared.results.methods:
        for task, estimate in method.tasks.items():
            assert shown[method.title][task] == estimate.model_dump()
        assert data_of(page, "parameters")[method.title]["trainable"] == method.parameters.trainable
        assert data_of(page, "training-time")[method.title] == method.seconds
    lora = compared.results.method("lora").title
    assert set(data_of(page, "delta-m")) == {method.title for method in compared.results.methods} - {lora}


def test_curves_are_means_over_the_seeds(page, compared):
    method = compared.results.method("mtl_lora")
    curve = data_of(page, "loss-curves")[method.title]["mood"]
    texts = [(compared.path / run / "log.jsonl").read_text() for run in method.runs]
    logs = [[json.loads(line) for line in text.splitlines()] for text in texts]
    by_step = [{record["step"]: record["loss/mood"] for record in log if "loss/mood" in record} for log in logs]
    assert len(logs) == 2
    assert len(curve["steps"]) > 3
    for step, value in zip(curve["steps"], curve["values"], strict=True):
        assert value == pytest.approx(np.mean([values[step] for values in by_step]))


def test_the_page_says_what_was_run_and_what_was_tried(page, compared):
    assert "tasklora compare tiny.yaml" in page
    assert "tiny@3" in page
    assert "2 settings per method (lr=0.01,0.03), tried with seed 0, chosen by the average on tune" in page
    assert page.count("training.learning_rate = ") == 2 * len(compared.results.methods)


def test_a_method_that_is_not_searched_beside_searched_ones(compared, tmp_path):
    path = shutil.copytree(compared.path, tmp_path / "copy")
    results = json.loads((path / "results.json").read_text())
    (heads_only,) = (method for method in results["methods"] if method["name"] == "heads_only")
    heads_only["trials"] = [{**heads_only["trials"][0], "settings": {}, "chosen": True}]
    (path / "results.json").write_text(json.dumps(results))
    assert "the recipe's own" in render(load_source([path]))


def test_nothing_in_the_page_points_outside(page):
    assert re.findall(r'(?:src|href)="(?!#|data:)[^"]*"', page) == []
    assert "@import" not in page
    assert re.findall(r"url\((?!#)", page) == []


def test_texts_of_rows_cannot_become_markup(trained, tmp_path):
    run = copied(trained.path, tmp_path / "run")
    lines = [json.loads(line) for line in (run / "predictions.jsonl").read_text().splitlines()]
    for line in lines:
        line["texts"] = ["<script>alert(1)</script>" for _ in line["texts"]]
        line["prediction"] = 1.0 - min(line["label"], 1.0)
    (run / "predictions.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    said = render(load_source([run]))
    assert "<script>alert" not in said
    assert "&lt;script&gt;alert(1)" in said


def test_the_examples_are_the_worst_errors(trained):
    source = load_source([trained.path])
    rows = read_predictions(trained.path / "predictions.jsonl")
    mood = worst_errors("mood", source.specs["mood"], rows["mood"], {"another": rows["mood"]})
    wrong = rows["mood"].labels != rows["mood"].values
    assert mood.summary.startswith(f"{wrong.sum()} of {len(wrong)} rows are wrong")
    assert len(mood.examples) == min(PER_TASK, wrong.sum())
    for example in mood.examples:
        assert example.label != example.prediction == example.others["another"]
    heat = worst_errors("heat", source.specs["heat"], rows["heat"], {})
    off = np.sort(np.abs(rows["heat"].labels - rows["heat"].values))[::-1]
    assert [example.certainty for example in heat.examples] == [f"{value:.2f} off" for value in off[:PER_TASK]]


def test_a_single_runs_intervals_are_around_its_scores(trained):
    results = load_source([trained.path]).results
    (method,) = results.methods
    for task, score in trained.results.scores["validation"].tasks.items():
        estimate = method.tasks[task]
        assert estimate.mean == score.score
        assert estimate.low <= score.score <= estimate.high
        assert estimate.std is None


def test_two_runs_are_compared_as_a_comparison_would(compared, trained, tmp_path):
    runs = [compared.path / compared.results.method(name).runs[0] for name in ("lora", "mtl_lora")]
    source = load_source(runs)
    assert source.results.baseline == "lora"
    assert [method.name for method in source.results.methods] == ["lora", "mtl_lora"]
    for name in ("lora", "mtl_lora"):
        mine, theirs = source.results.method(name), compared.results.method(name)
        assert mine.average.mean == pytest.approx(theirs.average.seeds[0])


def test_runs_that_do_not_belong_together_are_refused_by_name(compared, tmp_path):
    lora, mtl = (compared.path / compared.results.method(name).runs[0] for name in ("lora", "mtl_lora"))
    other_suite = copied(mtl, tmp_path / "suite", lambda results: results.update(suite="tiny@4"))
    with pytest.raises(CheckpointError, match=r"different suite .* 'tiny@3', .* 'tiny@4'"):
        load_source([lora, other_suite])
    other_version = copied(mtl, tmp_path / "version", lambda results: results["versions"].update(torch="1.0"))
    with pytest.raises(CheckpointError, match=r"different versions .*torch .*torch 1\.0"):
        load_source([lora, other_version])
    with pytest.raises(ConfigError, match="both 'lora' with seed 0"):
        load_source([lora, copied(lora, tmp_path / "again")])
    with pytest.raises(ConfigError, match="their seeds differ"):
        load_source([lora, compared.path / compared.results.method("mtl_lora").runs[1]])
    with pytest.raises(ConfigError, match="no run is of the baseline 'lorra'\\. Did you mean 'lora'"):
        load_source([lora, mtl], "lorra")
    with pytest.raises(ConfigError, match="is a comparison: report it alone"):
        load_source([lora, compared.path])
    with pytest.raises(ConfigError, match="was made against 'lora'"):
        load_source([compared.path], "mtl_lora")


def test_what_is_no_run_or_not_finished_is_refused(compared, trained, tmp_path):
    with pytest.raises(CheckpointError, match="neither a run directory nor a comparison"):
        load_source([tmp_path])
    (tmp_path / "first-run").mkdir()
    with pytest.raises(CheckpointError, match=r"nothing is at .*frst-run. Did you mean 'first-run'\? Give the"):
        load_source([tmp_path / "frst-run"])
    unfinished = copied(trained.path, tmp_path / "unfinished")
    (unfinished / "results.json").unlink()
    with pytest.raises(CheckpointError, match="Has the run finished"):
        load_source([unfinished])
    shutil.copytree(compared.path, tmp_path / "begun")
    (tmp_path / "begun" / "results.json").unlink()
    with pytest.raises(CheckpointError, match="Has the comparison finished"):
        load_source([tmp_path / "begun"])


def test_a_file_that_is_there_is_not_replaced_unasked(trained, tmp_path, cli):
    target = tmp_path / "report.html"
    target.write_text("mine")
    with pytest.raises(OutputError, match="exists already"):
        write_report([trained.path], target, overwrite=False)
    said = cli("report", trained.path, "--output", target)
    assert said.code == 2
    assert "exists already" in said.err
    assert target.read_text() == "mine"
    assert cli("report", trained.path, "--output", target, "--overwrite").code == 0
    assert target.read_text().startswith("<!doctype html>")


def test_the_command_line_names_what_is_wrong(compared, trained, tmp_path, cli):
    run = compared.path / compared.results.method("lora").runs[0]
    other = compared.path / compared.results.method("mtl_lora").runs[0]
    assert "--output FILE.html" in cli("report", run, other).err
    said = cli("report", tmp_path)
    assert (said.code, "neither a run directory nor a comparison" in said.err) == (2, True)
    said = cli("export", compared.path, "--task", "mood", "--to", tmp_path / "out")
    assert said.code == 2
    assert "is a comparison, not one run. Name one of its runs: " in said.err
    assert not (tmp_path / "out").exists()


def test_the_report_of_a_run_with_untrained_scores_shows_them(project, tmp_path):
    recipe = project.load("training.epochs=1")
    results, _ = train_recipe(recipe, tmp_path / "run", score_untrained=True)
    said = render(load_source([tmp_path / "run"]))
    assert data_of(said, "scores")["untrained"]["average"] == results.untrained["validation"].average
    assert RunResults.read(tmp_path / "run" / "results.json").untrained
