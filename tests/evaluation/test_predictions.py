"""predictions.jsonl: what a run said of every row, written and read back without loss."""

import math

import numpy as np
import pytest
from datasets import Dataset

from helpers_runs import TASKS
from tasklora.errors import CheckpointError
from tasklora.evaluation import (
    Prediction,
    SplitScores,
    predict_rows,
    read_predictions,
    write_predictions,
)
from tasklora.tasks import METRICS, Answers, TaskRows, load_model


def test_a_run_keeps_what_it_said_of_every_row(trained):
    said = read_predictions(trained.path / "predictions.jsonl")
    model, about, base = load_model(trained.path / "best")
    for task, rows in trained.project.rows().split("validation").items():
        expected = predict_rows(model, task, list(rows), about.collator(base.tokenizer))
        assert said[task].texts == [row["texts"] for row in rows]
        assert said[task].labels.tolist() == rows.labels.tolist()
        assert said[task].values.tolist() == expected.values.tolist()
        np.testing.assert_allclose(said[task].losses, expected.losses, atol=1e-6)
        if task == "heat":
            assert np.isnan(said[task].confidences).all()
        else:
            np.testing.assert_allclose(said[task].confidences, expected.probabilities.max(axis=1), atol=1e-6)
    assert list(said) == TASKS


def test_the_scores_follow_from_it(trained):
    scores: SplitScores = trained.results.scores["validation"]
    for task, rows in read_predictions(trained.path / "predictions.jsonl").items():
        expected = {
            name: METRICS[name].compute(Answers(rows.labels, rows.values)) for name in scores.tasks[task].metrics
        }
        assert scores.tasks[task].metrics == pytest.approx(expected)
        assert scores.tasks[task].loss == pytest.approx(rows.losses.mean(), abs=1e-6)


@pytest.mark.parametrize(
    "text", ['"quotes", \\ and {', "two\nlines\r\n", "next\u0085line and\u2028separator", "ünï – ✓ 🙂", ""]
)
def test_any_text_is_read_back(project, tmp_path, text):
    texts = [text, "plain", text]
    spec = project.load().task_specs()["mood"]
    rows = TaskRows("mood", spec, Dataset.from_dict({"text": texts, "label": [0, 1, 1]}), "validation")
    prediction = Prediction(np.array([1.0, 1.0, 0.0]), np.full((3, 2), 0.5), np.array([0.25, 0.5, 1e9]))
    write_predictions(tmp_path / "predictions.jsonl", {"mood": rows}, {"mood": prediction})
    said = read_predictions(tmp_path / "predictions.jsonl")["mood"]
    assert said.texts == [[text] for text in texts]
    assert (said.labels.tolist(), said.values.tolist()) == ([0, 1, 1], [1, 1, 0])
    assert (said.confidences.tolist(), said.losses.tolist()) == ([0.5, 0.5, 0.5], [0.25, 0.5, 1e9])


LINE = '{"task": "mood", "texts": ["a"], "label": 1.0, "prediction": 0.0, "confidence": null, "loss": 0.5}\n'


def test_no_confidence_is_nan(tmp_path):
    (tmp_path / "predictions.jsonl").write_text(LINE)
    assert math.isnan(read_predictions(tmp_path / "predictions.jsonl")["mood"].confidences[0])


@pytest.mark.parametrize(
    "content",
    [
        None,
        LINE + LINE[:40],
        LINE + LINE.replace('"label": 1.0, ', ""),
        LINE + LINE.replace("1.0", '"one"'),
        LINE + "[1]\n",
        b"\xff\xfe",
    ],
    ids=["missing", "cut", "no label", "a label that is no number", "no record", "no text"],
)
def test_a_file_that_cannot_be_read_is_named(tmp_path, content):
    path = tmp_path / "predictions.jsonl"
    if content is not None:
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(CheckpointError, match="Run that run again") as caught:
        read_predictions(path)
    assert f"cannot read {path}: " in str(caught.value)
