"""Summaries of a comparison, on made-up runs whose numbers are known: spreads, intervals, Δm, and what is refused."""

import math

import numpy as np
import pytest

from tasklora.errors import CheckpointError
from tasklora.evaluation import (
    CellResults,
    ComparisonResults,
    ParameterCounts,
    RunResults,
    ScoredRows,
    SplitScores,
    TaskScore,
    TrainingSummary,
    Trial,
    check_comparable,
    compare_cells,
    delta_m,
)
from tasklora.tasks import METRICS, Answers, TaskSpec


def spec_of(metric):
    if "regression" in METRICS[metric].kinds:
        return TaskSpec(kind="regression", inputs=["text"], range=(-99, 99), metrics=[metric], primary=metric)
    return TaskSpec(kind="classification", inputs=["text"], labels=["no", "yes"], metrics=[metric], primary=metric)


def cell(said, method="lora", seed=0, **changes):
    """Return a finished run.

    Args:
        said: (task, metric) → (labels, predictions).
        method: its method.
        seed: its seed.
        changes: of its results.
    """
    rows, scores = {}, {}
    for (task, metric), (labels, values) in said.items():
        labels, values = np.asarray(labels, float), np.asarray(values, float)
        texts = [[f"{task} {place}"] for place in range(len(labels))]
        rows[task] = ScoredRows(texts, labels, values, np.full(len(labels), np.nan), np.zeros(len(labels)))
        value = METRICS[metric].compute(Answers(labels, values))
        signed = value if METRICS[metric].higher_is_better else -value
        scores[task] = TaskScore(
            rows=len(labels),
            metrics={metric: value},
            primary=metric,
            score=None if math.isnan(value) else signed,
            loss=0.0,
        )
    results = {
        "created": "2030-01-01T00:00:00+00:00",
        "command": "tasklora compare",
        "commit": None,
        "seed": seed,
        "method": method,
        "base": "tiny",
        "suite": "made-up@1",
        "tasks": list(rows),
        "scores": {"validation": SplitScores.of(scores)},
        "parameters": ParameterCounts(trainable=1, total=1, groups={}),
        "training": TrainingSummary(
            steps=1,
            epochs=1,
            best_step=1,
            best_tune_average=0.5,
            seconds=1,
            rows_per_task=dict.fromkeys(rows, 1),
            stopped="finished",
        ),
        "evaluation_seconds": 0.0,
        "memory": {},
        "versions": {"python": "3", "torch": "2.0", "peft": "0.19"},
        "machine": {},
    }
    return CellResults(RunResults(**{**results, **changes}), rows)


def compare(cells, metrics, baseline="lora", failures=None):
    """Return the summary of ``method → its runs`` on ``task → metric``."""
    failures = failures or {}
    methods = [*cells, *failures]
    trial = Trial(settings={}, seed=0, run="run", tune_average=0.5, chosen=True)
    return compare_cells(
        {**{method: [] for method in failures}, **cells},
        titles={method: method for method in methods},
        trials={method: [trial] for method in methods},
        failures=failures,
        runs={method: ["run"] * len(of_method) for method, of_method in cells.items()},
        main=methods[-1],
        baseline=baseline,
        specs={task: spec_of(metric) for task, metric in metrics.items()},
        command="tasklora compare",
        search=[],
    )


def right(share, rows=1000, seed=0):
    """Return labels, and predictions of which a share is right, at random places."""
    generator = np.random.default_rng(seed)
    labels = generator.integers(0, 2, rows)
    wrong = generator.permutation(rows) >= share * rows
    return labels, np.where(wrong, 1 - labels, labels)


def runs_of(shares, **options):
    """Return runs of one task with these accuracies, one per seed."""
    return [cell({("a", "accuracy"): right(share)}, seed=seed, **options) for seed, share in enumerate(shares)]


# --- means, spreads, intervals


def test_means_and_spreads_are_over_seeds():
    said = {0: (0.6, 0.9), 1: (0.8, 0.7), 2: (0.7, 0.5)}
    cells = [
        cell({("a", "accuracy"): right(a), ("b", "accuracy"): right(b)}, seed=seed) for seed, (a, b) in said.items()
    ]
    lora = compare({"lora": cells}, {"a": "accuracy", "b": "accuracy"}).method("lora")
    assert lora.tasks["a"].seeds == pytest.approx([0.6, 0.8, 0.7])
    assert (lora.tasks["a"].mean, lora.tasks["a"].std) == pytest.approx((0.7, 0.1))
    assert (lora.tasks["b"].mean, lora.tasks["b"].std) == pytest.approx((0.7, 0.2))
    assert lora.average.seeds == pytest.approx([0.75, 0.75, 0.6])
    assert (lora.average.mean, lora.average.std) == pytest.approx((0.7, np.std([0.75, 0.75, 0.6], ddof=1)))


def test_one_seed_has_no_spread_but_an_interval():
    lora = compare({"lora": runs_of([0.7])}, {"a": "accuracy"}).method("lora")
    assert (lora.tasks["a"].std, lora.average.std) == (None, None)
    assert lora.tasks["a"].low < 0.7 < lora.tasks["a"].high


def test_an_interval_is_that_of_a_binomial_share():
    lora = compare({"lora": runs_of([0.8])}, {"a": "accuracy"}).method("lora")
    half = 1.96 * math.sqrt(0.8 * 0.2 / 1000)
    assert lora.tasks["a"].low == pytest.approx(0.8 - half, abs=0.1 * half)
    assert lora.tasks["a"].high == pytest.approx(0.8 + half, abs=0.1 * half)


def test_seeds_that_differ_widen_the_interval():
    alike, unlike = (
        compare({"lora": runs_of(shares)}, {"a": "accuracy"}).method("lora").average
        for shares in ([0.7, 0.7, 0.7], [0.5, 0.7, 0.9])
    )
    assert (unlike.high - unlike.low) > 3 * (alike.high - alike.low)


def test_two_methods_that_say_the_same_differ_by_nothing():
    results = compare({"lora": runs_of([0.6, 0.8]), "twin": runs_of([0.6, 0.8], method="twin")}, {"a": "accuracy"})
    twin = results.method("twin")
    for difference in (twin.differences["a"], twin.difference, twin.delta_m):
        assert (difference.mean, difference.std, difference.low, difference.high) == (0, 0, 0, 0)


def test_differences_are_paired_by_row():
    """Two methods that are wrong on nearly the same rows: their difference is known better than either score."""
    labels, values = right(0.7)
    better = values.copy()
    better[np.flatnonzero(values != labels)[:20]] = labels[np.flatnonzero(values != labels)[:20]]
    cells = {name: [cell({("a", "accuracy"): (labels, v)}, name)] for name, v in (("lora", values), ("good", better))}
    good = compare(cells, {"a": "accuracy"}).method("good")
    difference, score = good.differences["a"], good.tasks["a"]
    assert difference.mean == pytest.approx(0.02)
    assert 0 < difference.low < 0.02 < difference.high
    assert difference.high - difference.low < 0.5 * (score.high - score.low)


def test_differences_are_paired_by_seed():
    """Both methods are good with one seed and bad with the other; the difference is the same with both."""
    cells = {"lora": runs_of([0.5, 0.9]), "good": runs_of([0.52, 0.92], method="good")}
    good = compare(cells, {"a": "accuracy"}).method("good")
    assert good.differences["a"].seeds == pytest.approx([0.02, 0.02])
    assert good.differences["a"].high - good.differences["a"].low < 0.1 * (good.average.high - good.average.low)


def test_the_same_runs_give_the_same_summary():
    cells = {"lora": runs_of([0.6, 0.8]), "good": runs_of([0.7, 0.8], method="good")}
    one, other = (compare(cells, {"a": "accuracy"}).model_dump(exclude={"created"}) for _ in range(2))
    assert one == other


# --- Δm


def test_delta_m_by_hand():
    scores, baseline = np.array([0.6, -0.3, -2.0]), np.array([0.5, -0.4, -1.0])  # +20 %, +25 %, −100 %
    assert delta_m(scores, baseline) == pytest.approx((20 + 25 - 100) / 3)
    assert delta_m(np.stack([scores, baseline]), np.stack([baseline] * 2)).tolist() == pytest.approx([-55 / 3, 0])


def test_delta_m_of_a_comparison_is_that_of_the_mean_scores():
    """An error that falls from 2 to 1.5 is 25 % better: metrics for which lower is better are negated."""

    def runs(method, accuracies, errors):
        return [
            cell({("a", "accuracy"): right(a), ("e", "rmse"): (np.zeros(50), np.full(50, e))}, method, seed)
            for seed, (a, e) in enumerate(zip(accuracies, errors, strict=True))
        ]

    cells = {"lora": runs("lora", [0.5, 0.7], [2, 2]), "good": runs("good", [0.75, 0.75], [1, 2])}
    results = compare(cells, {"a": "accuracy", "e": "rmse"})
    assert results.method("lora").tasks["e"].seeds == [-2, -2]
    good = results.method("good")
    assert good.delta_m.mean == pytest.approx(100 * (0.15 / 0.6 + 0.5 / 2) / 2)
    of_seeds = [100 * (0.25 / 0.6 + 1 / 2) / 2, 100 * (0.05 / 0.6 + 0) / 2]  # against the mean of the baseline
    assert good.delta_m.seeds == pytest.approx(of_seeds)
    assert good.delta_m.std == pytest.approx(np.std(of_seeds, ddof=1))
    assert good.differences["e"].seeds == [1, 0]
    assert results.method("lora").delta_m is None
    assert results.guarded == []


@pytest.mark.parametrize(("baseline", "guarded"), [((0.04, 0.04), True), ((0.3, -0.3), True), ((0, 0.3), False)])
def test_a_baseline_near_zero_is_left_out_by_name(tmp_path, baseline, guarded):
    """A relative change against a score near zero says nothing; its mean over the seeds is what counts."""

    def runs(method, scores):
        said = [{("a", "accuracy"): right(0.5), ("z", "pearson"): correlated(score)} for score in scores]
        return [cell(rows, method, seed) for seed, rows in enumerate(said)]

    cells = {"lora": runs("lora", baseline), "good": runs("good", [0.9, 0.9])}
    results = compare(cells, {"a": "accuracy", "z": "pearson"})
    good, of_z = results.method("good"), 100 * (0.9 - 0.15) / 0.15
    assert results.guarded == (["z"] if guarded else [])
    assert good.delta_m.mean == pytest.approx(0 if guarded else of_z / 2)  # `a` does not change
    assert good.differences["z"].mean == pytest.approx(0.9 - sum(baseline) / 2)
    assert_written(results, tmp_path)


def correlated(correlation, rows=200):
    """Return labels and predictions with exactly this Pearson correlation."""
    labels, noise = np.random.default_rng(0).normal(size=(2, rows))
    labels -= labels.mean()
    noise -= noise.mean()
    noise -= labels * (noise @ labels) / (labels @ labels)
    noise *= np.linalg.norm(labels) / np.linalg.norm(noise)
    return labels, correlation * labels + math.sqrt(1 - correlation**2) * noise


def test_without_a_task_that_counts_there_is_no_delta_m(tmp_path):
    cells = {name: [cell({("z", "pearson"): correlated(score)}, name)] for name, score in (("lora", 0), ("good", 0.5))}
    results = compare(cells, {"z": "pearson"})
    assert results.guarded == ["z"]
    assert results.method("good").delta_m is None
    assert_written(results, tmp_path)


def assert_written(results, folder):
    results.write(folder / "results.json")
    assert ComparisonResults.read(folder / "results.json") == results


def test_a_score_that_is_undefined_leaves_averages_and_delta_m_out(tmp_path):
    """Constant predictions have no correlation."""
    constant = (correlated(0.5)[0], np.ones(200))
    cells = {
        name: [cell({("a", "accuracy"): right(0.7), ("z", "pearson"): said}, name)]
        for name, said in (("lora", correlated(0.5)), ("flat", constant))
    }
    results = compare(cells, {"a": "accuracy", "z": "pearson"})
    flat = results.method("flat")
    assert flat.tasks.keys() == flat.differences.keys() == {"a"}
    assert (flat.average, flat.difference, flat.delta_m) == (None, None, None)
    assert results.method("lora").average.mean == pytest.approx(0.6)
    assert_written(results, tmp_path)


def test_resamples_on_which_the_baseline_is_zero_do_not_spoil_the_interval(tmp_path):
    """One row of twenty is said to be of class 1: in a third of the resamples there is none, and MCC is 0."""
    labels = np.arange(20) % 2
    cells = {
        name: [cell({("a", "mcc"): (labels, said)}, name)]
        for name, said in (("lora", np.arange(20) == 1), ("good", labels))
    }
    results = compare(cells, {"a": "mcc"})
    good = results.method("good")
    assert math.isfinite(good.delta_m.low)
    assert math.isfinite(good.delta_m.high)
    assert good.delta_m.low <= good.delta_m.mean <= good.delta_m.high
    assert_written(results, tmp_path)


# --- what failed, and what cannot stand in one table


def test_a_method_that_failed_has_its_failure_and_no_scores(tmp_path):
    results = compare({"lora": runs_of([0.6])}, {"a": "accuracy"}, failures={"wild": ["the loss became NaN"]})
    wild = results.method("wild")
    assert wild.failures == ["the loss became NaN"]
    assert (wild.tasks, wild.average, wild.difference, wild.delta_m, wild.runs) == ({}, None, None, None, [])
    assert_written(results, tmp_path)


def test_without_its_baseline_there_is_no_comparison():
    with pytest.raises(CheckpointError, match="the baseline 'wild' failed: the loss became NaN"):
        compare(
            {"lora": runs_of([0.6])}, {"a": "accuracy"}, baseline="wild", failures={"wild": ["the loss became NaN"]}
        )


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"suite": "made-up@2"}, "different suite .* 'made-up@1', .* 'made-up@2'"),
        ({"base": "other"}, "different base .* 'tiny', .* 'other'"),
        ({"tasks": ["b"]}, "different tasks .* has a, .* has b"),
        (
            {"versions": {"python": "3", "torch": "2.1", "peft": "0.19"}},
            r"different versions .* has torch 2\.0, .* has torch 2\.1\. Run one of them again",
        ),
    ],
)
def test_runs_that_differ_in_more_than_the_method_are_refused(changes, says):
    one, other = runs_of([0.6]), runs_of([0.6], method="good", **changes)
    with pytest.raises(CheckpointError, match=says) as caught:
        compare({"lora": one, "good": other}, {"a": "accuracy"})
    assert "the run of 'lora' with seed 0 (2030-01-01T00:00:00+00:00)" in str(caught.value)
    assert "peft" not in str(caught.value)  # what is the same is not named


def test_runs_scored_on_other_rows_are_refused():
    def one(labels, rows=4):
        return cell({("a", "accuracy"): (labels, np.zeros(rows)), ("b", "accuracy"): ([0, 1], [0, 1])})

    other_texts = one([0, 1, 0, 1])
    other_texts.rows["a"].texts[2] = ["changed"]
    for other in (one([0, 1, 1, 1]), one([0, 1, 0], rows=3), other_texts):
        with pytest.raises(CheckpointError, match=r"were scored on different rows of a\."):
            check_comparable([one([0, 1, 0, 1]), other])
    check_comparable([one([0, 1, 0, 1]), one([0, 1, 0, 1])])
