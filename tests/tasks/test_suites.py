"""Suites: what GLUE and the demo hold, and what a wrong suite or reference says.

GLUE has its eight tasks with GLUE's own columns, head sizes and primary metrics; a suite file that cannot be used is
refused with the nearest valid name.
"""

import copy

import pytest
import yaml

from helpers_runs import SUITE
from tasklora.errors import ConfigError, DataError
from tasklora.tasks import load_suite, shipped_suites

# task: columns, outputs of the head, metrics (the primary one first), class weights
GLUE = {
    "cola": (["sentence"], 2, ["mcc", "accuracy"], "balanced"),
    "sst2": (["sentence"], 2, ["accuracy"], "none"),
    "mrpc": (["sentence1", "sentence2"], 2, ["f1", "accuracy"], "none"),
    "stsb": (["sentence1", "sentence2"], 1, ["pearson", "spearman"], "none"),
    "rte": (["sentence1", "sentence2"], 2, ["accuracy"], "none"),
    "qnli": (["question", "sentence"], 2, ["accuracy"], "none"),
    "mnli": (["premise", "hypothesis"], 3, ["accuracy"], "none"),
    "qqp": (["question1", "question2"], 2, ["f1", "accuracy"], "none"),
}


def test_glue_has_its_eight_tasks():
    suite = load_suite("glue@1")
    assert list(suite.tasks) == list(GLUE)
    for name, (inputs, outputs, metrics, weights) in GLUE.items():
        spec = suite.tasks[name]
        assert (spec.inputs, spec.num_outputs, spec.metrics, spec.class_weights) == (inputs, outputs, metrics, weights)
        assert spec.primary == metrics[0]
        assert spec.label == "label"
        assert spec.is_pair == (len(inputs) == 2)
        assert spec.kind == ("regression" if name == "stsb" else "classification")
        assert (spec.hub.path, spec.hub.config) == ("nyu-mll/glue", name)
    assert suite.tasks["stsb"].range == (0, 5)
    assert suite.tasks["mnli"].labels == ["entailment", "neutral", "contradiction"]  # the hub's order
    assert suite.tasks["mnli"].hub.splits == {"validation": "validation_matched", "test": "test_matched"}


def test_demo_has_five_tasks_of_three_shapes():
    tasks = load_suite("demo").tasks
    assert {name: (spec.num_outputs, spec.is_pair) for name, spec in tasks.items()} == {
        "sentiment": (2, False),
        "question_type": (6, False),
        "topic": (6, False),
        "paraphrase": (2, True),
        "similarity": (1, True),
    }


@pytest.mark.parametrize("name", shipped_suites())
def test_every_shipped_suite_is_named_after_its_file_and_described(name):
    suite = load_suite(name)
    assert suite.name == name
    assert suite.reference == f"{name}@{suite.version}"
    assert suite.source
    assert all(spec.description for spec in suite.tasks.values())


def test_a_suite_of_the_users_own(project):
    suite = load_suite(str(project.suite))
    assert suite.reference == "tiny@3"
    assert list(suite.select(None)) == ["mood", "answer", "heat"]
    assert list(suite.select(["heat", "mood"])) == ["heat", "mood"]


@pytest.mark.parametrize(
    ("reference", "error", "says"),
    [
        ("gleu", ConfigError, "unknown suite 'gleu'. Did you mean 'glue'?"),
        ("glue@7", ConfigError, "suite glue is at version 1, but 'glue@7' was asked for"),
        ("nowhere/suite.yaml", DataError, "no file nowhere/suite.yaml"),
    ],
)
def test_wrong_references(reference, error, says):
    with pytest.raises(error) as caught:
        load_suite(reference)
    assert says in str(caught.value)


@pytest.mark.parametrize(
    ("include", "says"),
    [
        (["moody"], "has no task 'moody'. Did you mean 'mood'? It has: mood, answer, heat."),
        (["mood", "heat", "mood"], "task 'mood' is listed twice"),
    ],
)
def test_wrong_selections(project, include, says):
    with pytest.raises(ConfigError) as caught:
        load_suite(str(project.suite)).select(include)
    assert says in str(caught.value)


@pytest.mark.parametrize(
    ("task", "key", "value", "says"),
    [
        ("mood", "metric", ["accuracy"], "unknown key 'tasks.mood.metric'. Did you mean 'metrics'?"),
        ("mood", "metrics", ["acuracy"], "unknown metric 'acuracy'. Did you mean 'accuracy'?"),
        ("mood", "metrics", ["pearson"], "metric 'pearson' is for regression, the task is classification"),
        ("mood", "metrics", [], "tasks.mood.metrics"),
        ("mood", "primary", "f1", "primary metric 'f1' is not among metrics"),
        ("mood", "labels", None, "needs `labels`: at least two class names"),
        ("mood", "labels", ["only"], "needs `labels`: at least two class names"),
        ("mood", "labels", ["bad", "bad"], "labels must differ"),
        ("answer", "metrics", ["f1"], "metric 'f1' is for two classes, the task has 3"),
        ("heat", "range", None, "needs `range: [lowest, highest]`"),
        ("heat", "range", [4, 0], "needs `range: [lowest, highest]`"),
        (
            "heat",
            "class_weights",
            "balanced",
            "class_weights apply to classification, multi_label, token_classification only",
        ),
        ("heat", "inputs", ["a", "b", "c"], "tasks.heat.inputs"),
        ("heat", "inputs", "text", "tasks.heat.inputs"),
        ("heat", "kind", "rankings", "'tasks.heat.kind': unknown kind 'rankings'. Did you mean 'ranking'?"),
        ("heat", "hub", {"pth": "x"}, "unknown key 'tasks.heat.hub.pth'. Did you mean 'path'?"),
    ],
)
def test_wrong_suite_files(tmp_path, task, key, value, says):
    suite = copy.deepcopy(SUITE)
    suite["tasks"][task][key] = value
    if key == "metrics" and value:
        suite["tasks"][task]["primary"] = value[0]
    path = tmp_path / "own.yaml"
    path.write_text(yaml.safe_dump(suite))
    with pytest.raises(ConfigError) as caught:
        load_suite(str(path))
    assert says in str(caught.value)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("- a list", "expected a mapping of keys to values, got list"),
        ("name: {", "is not valid YAML"),
        ("name: x\nversion: 1", "'tasks' is missing"),
        ("name: x\nversion: 1\ntasks: {}\nverison: 2", "unknown key 'verison'. Did you mean 'version'?"),
        ("!!python/object/apply:os.system ['touch pwned']", "is not valid YAML"),
    ],
)
def test_files_that_are_no_suite(tmp_path, content, says):
    path = tmp_path / "own.yaml"
    path.write_text(content)
    with pytest.raises(ConfigError) as caught:
        load_suite(str(path))
    assert says in str(caught.value)
    assert not (tmp_path / "pwned").exists()
