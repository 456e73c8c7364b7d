"""A run on all kinds of tasks: it trains, saves, loads, predicts, is compared and reported."""

import json
import math
import re

import numpy as np
import pytest

from helpers_kinds import CASES, every_kind, spec_of
from helpers_runs import write_rows
from tasklora.evaluation import RunResults, read_predictions, score_tasks
from tasklora.report.examples import worst_errors
from tasklora.report.loading import load_source
from tasklora.report.page import render
from tasklora.tasks import KINDS, METRICS, load_model
from tasklora.training import compare_methods, train_recipe


@pytest.fixture(scope="module")
def run(kinds):
    path = kinds.root / "runs" / "trained"
    if not path.is_dir():
        train_recipe(kinds.load(), path, command="tasklora train kinds.yaml")
    return path


@pytest.fixture(scope="module")
def compared(kinds):
    path = kinds.root / "runs" / "compared"
    if not path.is_dir():
        recipe = kinds.load("training.max_steps=2", "tasks.limits={train: 8, tune: 8, validation: 16}")
        compare_methods(recipe, path, ["heads_only", "mtl_lora"], [0], command="tasklora compare kinds.yaml")
    return path


CHANCE = {
    "classification": 0.5,
    "regression": 0.0,
    "multi_label": 0.5,
    "multiple_choice": 0.4,
    "token_classification": 0.4,
    "ranking": 0.5,
}


@every_kind
def test_a_run_learns(run, kind):
    scores = RunResults.read(run / "results.json").scores["validation"].tasks[kind]
    assert scores.rows == 16
    assert set(scores.metrics) == set(CASES[kind].task["metrics"])
    assert all(value is not None and math.isfinite(value) for value in scores.metrics.values())
    assert scores.score > CHANCE[kind] + 0.15
    losses = [json.loads(line).get(f"loss/{kind}") for line in (run / "log.jsonl").read_text().splitlines()]
    losses = [loss for loss in losses if loss is not None]
    assert losses[-1] < losses[0]


def test_a_loaded_run_scores_the_same(run, kinds):
    model, about, base = load_model(run / "best")
    rows = kinds.rows().split("validation")
    again = score_tasks(model, rows, about.collator(base.tokenizer), batch_size=5)
    for kind, score in RunResults.read(run / "results.json").scores["validation"].tasks.items():
        assert again.tasks[kind].metrics == pytest.approx(score.metrics, abs=1e-5)
        assert again.tasks[kind].loss == pytest.approx(score.loss, abs=1e-5)


@every_kind
def test_scores_follow_from_the_kept_predictions(run, kinds, kind):
    said = read_predictions(run / "predictions.jsonl")[kind]
    rows = kinds.rows().split("validation")[kind]
    assert said.texts == [row["texts"] for row in rows]
    np.testing.assert_array_equal(said.labels, rows.labels)
    score = RunResults.read(run / "results.json").scores["validation"].tasks[kind]
    answers = said.answers(rows.spec)
    assert {name: METRICS[name].compute(answers) for name in score.metrics} == pytest.approx(score.metrics, abs=1e-6)
    assert said.same_rows(said)
    for name in score.metrics:
        spec = rows.spec.model_copy(update={"primary": name})
        everything = said.resampled(spec, np.ones((1, len(rows)), dtype=np.int64))
        sign = 1 if METRICS[name].higher_is_better else -1
        assert sign * everything[0] == pytest.approx(score.metrics[name], abs=1e-6)


@every_kind
def test_methods_are_compared(compared, kind):
    source = load_source([compared])
    for method in source.results.methods:
        estimate = method.tasks[kind]
        assert estimate.low <= estimate.mean <= estimate.high
        assert math.isfinite(method.average.mean)
    assert kind in source.results.metrics


def test_the_report_is_one_page(compared):
    page = render(load_source([compared]))
    assert re.findall(r'(?:src|href)="(?!#|data:)[^"]*"', page) == []
    assert all(kind in page for kind in CASES)


@every_kind
def test_errors_to_read(compared, kind):
    source = load_source([compared])
    rows = source.shown.rows[kind]
    errors = worst_errors(kind, source.specs[kind], rows, {"another": rows})
    assert errors.examples
    for example in errors.examples:
        assert example.label != example.prediction == example.others["another"]
        assert example.certainty
        assert all(example.texts.values())
    assert KINDS[kind].error_summary(np.zeros(3)).count("0") >= 1


def said_by(cli, run, *arguments):
    answer = cli("predict", run, "--json", *arguments)
    assert answer.code == 0, answer.err
    return [json.loads(line) for line in answer.out.splitlines()]


@every_kind
def test_predict_texts_and_files(cli, run, kinds, kind, tmp_path):
    case, spec = CASES[kind], spec_of(kind)
    (record,) = said_by(cli, run, "-t", kind, *case.given)
    columns = KINDS[kind].text_columns(spec)
    assert set(columns) <= set(record)
    lines = json.loads("[" + ",".join((kinds.data / kind / "validation.jsonl").read_text().splitlines()) + "]")
    unlabelled = [{key: value for key, value in line.items() if key != "label"} for line in lines]
    file = write_rows(tmp_path / "rows.jsonl", unlabelled)
    records = said_by(cli, run, "-t", kind, "--file", file)
    kept = read_predictions(run / "predictions.jsonl")[kind]
    assert len(records) == len(kept)
    for record, texts, value in zip(records, kept.texts, kept.values, strict=True):
        expected = KINDS[kind].answer(spec, texts, value)
        if kind in ("regression", "ranking"):
            assert record["prediction"] == pytest.approx(expected, abs=1e-3)
        else:
            assert record["prediction"] == expected
            assert 0 <= record["probability"] <= 1
    table = cli("predict", run, "-t", kind, *case.given)
    assert table.code == 0
    assert kind in table.out


@pytest.mark.parametrize(
    ("kind", "given", "says"),
    [
        ("multiple_choice", ["a question", "one choice"], "give the question, then each choice"),
        ("ranking", ["a query"], "give the query, then each document"),
        ("regression", ["one text"], "give two texts for each row"),
        ("token_classification", [" "], "a text without words cannot be tagged"),
    ],
)
def test_arguments_that_make_no_row(cli, run, kind, given, says):
    answer = cli("predict", run, "-t", kind, *given)
    assert answer.code != 0
    assert says in " ".join(answer.err.split())


def test_a_text_file_for_kinds_that_read_lines(cli, run, tmp_path):
    (tmp_path / "lines.txt").write_text("we saw a cake\n\nthe film\n")
    records = said_by(cli, run, "-t", "token_classification", "--file", tmp_path / "lines.txt")
    assert [record["tokens"] for record in records] == [["we", "saw", "a", "cake"], ["the", "film"]]
    assert all(len(record["prediction"]) == len(record["tokens"]) for record in records)
    answer = cli("predict", run, "-t", "multiple_choice", "--file", tmp_path / "lines.txt")
    assert answer.code != 0
    assert "a line of a .txt has no choices" in " ".join(answer.err.split())
