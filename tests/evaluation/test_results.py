"""results.json: complete, typed, versioned, and the averages and counts in it are right."""

import json
import math
import platform
import subprocess
from datetime import datetime
from importlib.metadata import version

import pytest
import torch

import tasklora
from helpers_runs import EVERY_METHOD, HIDDEN, TASKS, VOCABULARY, use_method
from tasklora.errors import CheckpointError, ConfigError
from tasklora.evaluation import RunResults, SplitScores, TaskScore, count_parameters, source_commit
from tasklora.training import count_recipe_parameters

# (in, out) of the linear layers of the tiny BERT that are adapted: q, k, v, o, up, down in each of two layers
LAYERS = 2 * [*4 * [(HIDDEN, HIDDEN)], (HIDDEN, 48), (48, HIDDEN)]
BOTH = sum(i + o for i, o in LAYERS)
R, T, N = 4, 3, 3
HEADS = (HIDDEN * 2 + 2) + (HIDDEN * 3 + 3) + (HIDDEN + 1)
# words, positions and sentence types; every layer with its bias; five LayerNorms. The pooler is not trained.
ENCODER = (VOCABULARY + 48 + 2) * HIDDEN + sum(i * o + o for i, o in LAYERS) + 5 * 2 * HIDDEN
BY_HAND = {
    "mtl_lora": {
        "shared": sum(R * i + N * R * o for i, o in LAYERS),
        "per_task": len(LAYERS) * T * (R * R + N),
    },
    "ta_lora": {"shared": 2 * R * BOTH + len(LAYERS) * R * 16, "per_task": len(LAYERS) * T * 16},
    "multi_lora": {"shared": N * R * BOTH + N * sum(o for _, o in LAYERS), "per_task": 0},
    "moe_lora": {"shared": R * BOTH + len(LAYERS) * 4 * 64, "per_task": len(LAYERS) * T * 64},
    "hydra_lora": {"shared": sum(R * i + N * R * o + N * i for i, o in LAYERS), "per_task": 0},
    "per_task_lora": {"shared": 0, "per_task": T * R * BOTH},
    "lora": {"shared": R * BOTH, "per_task": 0},
    "full_fine_tuning": {"other": ENCODER},
    "heads_only": {},
}


def score(value, primary="accuracy", **changes):
    metrics = {primary: value}
    return TaskScore(**{"rows": 4, "metrics": metrics, "primary": primary, "score": value, "loss": 0.5, **changes})


def test_what_was_written_is_read_back(trained, tmp_path):
    assert RunResults.read(trained.path / "results.json") == trained.results
    trained.results.write(tmp_path / "copy.json")
    assert RunResults.read(tmp_path / "copy.json") == trained.results
    assert {path.name for path in tmp_path.iterdir()} == {"copy.json"}


def test_results_say_all_that_is_needed_to_repeat_the_run(trained):
    results = json.loads((trained.path / "results.json").read_text())
    assert (results["format"], results["version"]) == ("tasklora/results", 1)
    assert results["command"] == "tasklora train tiny.yaml"
    assert (results["seed"], results["method"], results["suite"], results["tasks"]) == (0, "mtl_lora", "tiny@3", TASKS)
    assert results["base"] == str(trained.project.base)
    assert results["commit"] == source_commit()
    assert datetime.fromisoformat(results["created"]).tzinfo is not None
    assert results["versions"]["python"] == platform.python_version()
    assert results["versions"]["tasklora"] == tasklora.__version__
    for name in ("torch", "peft", "transformers", "accelerate", "datasets", "scikit-learn", "scipy", "numpy"):
        assert results["versions"][name] == version(name)
    assert results["machine"]["architecture"] == platform.machine()
    assert results["memory"]["resident_bytes"] > 50_000_000
    assert results["evaluation_seconds"] > 0


def test_results_say_how_training_went(trained):
    training = trained.results.training
    assert (training.steps, training.epochs, training.stopped) == (40, 5.0, "finished")
    assert training.rows_per_task == {"mood": 36, "answer": 54, "heat": 24}
    assert training.seconds > 0


def test_scores_carry_counts_and_every_metric(trained):
    scores = trained.results.scores["validation"]
    assert {name: task.rows for name, task in scores.tasks.items()} == dict.fromkeys(TASKS, 24)
    assert {name: list(task.metrics) for name, task in scores.tasks.items()} == {
        "mood": ["accuracy", "mcc"],
        "answer": ["accuracy", "f1_macro"],
        "heat": ["pearson", "rmse"],
    }
    for task in scores.tasks.values():
        assert task.score == task.metrics[task.primary]
    assert scores.average == pytest.approx(sum(task.score for task in scores.tasks.values()) / 3)


def test_averages_leave_out_what_is_undefined_by_name():
    scores = SplitScores.of({"one": score(0.5), "two": score(float("nan"), score=None), "three": score(1.0)})
    assert (scores.average, scores.undefined) == (0.75, ["two"])
    assert scores.tasks["two"].metrics == {"accuracy": None}
    none = SplitScores.of({"two": score(float("nan"), score=None)})
    assert (none.average, none.undefined) == (None, ["two"])


def test_nan_is_null_in_the_file(trained, tmp_path):
    scores = SplitScores.of({"heat": score(float("nan"), "pearson", score=None)})
    changed = trained.results.model_copy(update={"scores": {"validation": scores}})
    changed.write(tmp_path / "results.json")

    def refuse(constant):
        raise AssertionError(f"{constant} is no JSON")

    data = json.loads((tmp_path / "results.json").read_text(), parse_constant=refuse)
    assert data["scores"]["validation"]["tasks"]["heat"]["metrics"] == {"pearson": None}
    assert RunResults.read(tmp_path / "results.json") == changed


@pytest.mark.parametrize("method", EVERY_METHOD)
def test_parameters_by_group_are_those_counted_by_hand(project, method):
    model = project.prepare(use_method(method)).model
    base = sum(p.numel() for p in project.base_model().model.parameters())
    counts = count_parameters(model)
    assert counts.groups == {"shared": 0, "per_task": 0, "heads": HEADS, "other": 0, **BY_HAND[method]}
    assert counts.trainable == sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert counts.total == base + counts.trainable - counts.groups["other"]  # what is trained of the base itself
    assert count_recipe_parameters(project.load(use_method(method))) == counts  # without weights


def test_modules_trained_in_full_are_counted_apart(project):
    recipe = project.load("method.modules_to_save=[LayerNorm]")
    counts = count_recipe_parameters(recipe)
    assert counts.groups["other"] == 5 * 2 * HIDDEN  # the embeddings' LayerNorm and two in each layer


@pytest.mark.parametrize(
    ("content", "error", "says"),
    [
        (None, CheckpointError, "Has the run finished?"),
        ("", CheckpointError, "cannot read"),
        ('{"version": 1, ', CheckpointError, "cannot read"),
        ("[]", ConfigError, "expected a mapping"),
        ('{"version": 2}', CheckpointError, "has version 2, this tasklora reads up to 1. Upgrade tasklora."),
        ('{"version": "new"}', ConfigError, "'version'"),
        ('{"sead": 1}', ConfigError, "unknown key 'sead'. Did you mean 'seed'?"),
    ],
)
def test_results_that_cannot_be_read(tmp_path, content, error, says):
    if content is not None:
        (tmp_path / "results.json").write_text(content)
    with pytest.raises(error) as caught:
        RunResults.read(tmp_path / "results.json")
    assert says in str(caught.value)
    assert "results.json" in str(caught.value)


def test_the_commit_is_that_of_the_source_tree(tmp_path):
    assert source_commit(tmp_path) is None

    def git(*arguments):
        identity = ["-c", "user.name=t", "-c", "user.email=t@example.org"]
        command = ["git", "-C", str(tmp_path), *identity, *arguments]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()

    git("init", "-q")
    assert source_commit(tmp_path) is None  # no commit yet
    (tmp_path / "file").write_text("one")
    git("add", "file")
    git("commit", "-q", "-m", "first", "--no-verify")
    commit = git("rev-parse", "HEAD")
    (tmp_path / "untracked").write_text("x")
    assert source_commit(tmp_path) == commit
    (tmp_path / "file").write_text("two")
    assert source_commit(tmp_path) == f"{commit}+changes"


def test_a_missing_metric_is_none_not_nan():
    assert score(float("nan"), score=None).metrics == {"accuracy": None}
    assert not any(math.isnan(value) for value in score(0.25).metrics.values())
    assert isinstance(torch.tensor(score(0.25).score).item(), float)
