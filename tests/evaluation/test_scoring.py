"""Scoring: the same whatever the batches, in the order of the rows, with the tasks' own metrics."""

import numpy as np
import pytest
import torch

from helpers_runs import TASKS
from tasklora.evaluation import predict_rows, score_tasks
from tasklora.tasks import Answers, compute_metrics, load_model


@pytest.fixture(scope="module")
def loaded(trained):
    return load_model(trained.path / "best")


@torch.no_grad()
def one_by_one(model, collator, task, rows):
    """Return value, class probabilities and loss of each row, scored alone by the model itself."""
    values, probabilities, losses = [], [], []
    for row in rows:
        output = model(**collator([{**row, "task": task}]))
        (logits,) = output.logits.values()
        values.append(float(model.heads[task].predict(logits)[0]))
        probabilities.append(logits[0].softmax(-1).numpy())
        losses.append(float(output.losses[0]))
    return np.array(values), np.stack(probabilities), np.array(losses)


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("batch_size", [1, 7, 64])
def test_predictions_do_not_depend_on_the_batches(loaded, trained, task, batch_size):
    model, about, base = loaded
    collator, rows = about.collator(base.tokenizer), list(trained.project.rows().split("validation")[task])
    values, probabilities, losses = one_by_one(model, collator, task, rows)
    prediction = predict_rows(model, task, rows, collator, batch_size)
    np.testing.assert_allclose(prediction.values, values, atol=1e-5)
    np.testing.assert_allclose(prediction.losses, losses, atol=1e-5)
    if task == "heat":
        assert prediction.probabilities is None
    else:
        np.testing.assert_allclose(prediction.probabilities, probabilities, atol=1e-5)
        assert prediction.values.tolist() == prediction.probabilities.argmax(axis=1).tolist()


def test_scores_are_the_metrics_of_these_predictions(loaded, trained):
    model, about, base = loaded
    collator, rows, named = about.collator(base.tokenizer), trained.project.rows().split("validation"), []
    scores = score_tasks(model, rows, collator, batch_size=5, progress=named.append)
    assert named == TASKS
    for task, task_rows in rows.items():
        values, _, losses = one_by_one(model, collator, task, list(task_rows))
        expected = compute_metrics(task_rows.spec.metrics, Answers(task_rows.labels, values))
        assert scores.tasks[task].metrics == pytest.approx(expected, abs=1e-5)
        assert scores.tasks[task].loss == pytest.approx(losses.mean(), abs=1e-5)
        assert scores.tasks[task].rows == len(task_rows)


def test_the_scores_of_a_run_are_those_of_its_best_model(loaded, trained):
    model, about, base = loaded
    rows = trained.project.rows().split("validation")
    assert score_tasks(model, rows, about.collator(base.tokenizer)) == trained.results.scores["validation"]


def test_a_lower_error_is_a_higher_score(loaded, trained):
    model, about, base = loaded
    rows = trained.project.rows().split("validation")["heat"]
    rows.spec = rows.spec.model_copy(update={"primary": "rmse"})
    scores = score_tasks(model, {"heat": rows}, about.collator(base.tokenizer))
    assert scores.tasks["heat"].score == -scores.tasks["heat"].metrics["rmse"] < 0
    assert scores.average == scores.tasks["heat"].score


def test_rows_without_labels_are_predicted(loaded):
    model, about, base = loaded
    rows = [{"texts": ["it was good"]}, {"texts": ["the awful awful walk and the film was so dull"]}]
    prediction = predict_rows(model, "mood", rows, about.collator(base.tokenizer))
    assert prediction.losses is None
    assert prediction.values.tolist() == [1, 0]


@pytest.mark.parametrize("training", [True, False])
def test_scoring_leaves_the_model_as_it_was(loaded, training):
    model, about, base = loaded
    model.train(training)
    before = {name: p.clone() for name, p in model.named_parameters()}
    predict_rows(model, "mood", [{"texts": ["good"]}], about.collator(base.tokenizer))
    assert model.training is training
    assert all(torch.equal(before[name], p) for name, p in model.named_parameters())
    model.eval()
