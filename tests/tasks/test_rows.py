"""Rows of tasks: what is checked, where they come from, what is held out, and how they are drawn.

Every error names task, split and (where there is one) row. The `tune` rows are never among the `train` rows, however
the splits are asked for.
"""

import json

import pytest
from datasets import Dataset

from helpers_runs import write_rows
from tasklora.errors import DataError
from tasklora.tasks import TaskRows, TaskSpec, load_suite, load_tasks

CLASSES = TaskSpec(
    kind="classification", inputs=["text"], labels=["no", "maybe", "yes"], metrics=["accuracy"], primary="accuracy"
)
NUMBER = TaskSpec(
    kind="regression", inputs=["first", "second"], label="score", range=(0, 5), metrics=["rmse"], primary="rmse"
)


def rows_of(columns, spec=CLASSES, split="train"):
    return TaskRows("mine", spec, Dataset.from_dict(columns), split)


@pytest.fixture
def root(tmp_path):
    """Return a data root with one task of 30 distinct rows in train and 5 in validation."""
    for split, count in (("train", 30), ("validation", 5)):
        rows = [{"text": f"{split} {index}", "label": index % 3, "extra": index} for index in range(count)]
        write_rows(tmp_path / "data" / "mine" / f"{split}.jsonl", rows)
    return tmp_path / "data"


def texts(rows):
    return [row["texts"][0] for row in rows]


def load(root, splits, **options):
    return load_tasks({"mine": CLASSES}, splits, root, **options).splits["mine"]


def test_rows_hold_texts_and_label():
    rows = rows_of({"text": ["a", "bcd"], "label": [2, 0], "other": [1, 2]})
    assert list(rows) == [{"texts": ["a"], "label": 2.0}, {"texts": ["bcd"], "label": 0.0}]
    assert rows.lengths().tolist() == [1, 3]
    pairs = rows_of({"second": ["b", "ccc"], "first": ["aa", "d"], "score": [0.5, 5]}, NUMBER)
    assert list(pairs) == [{"texts": ["aa", "b"], "label": 0.5}, {"texts": ["d", "ccc"], "label": 5.0}]
    assert pairs.lengths().tolist() == [2, 3]


def test_labels_may_be_given_by_name():
    assert rows_of({"text": ["a", "b", "c"], "label": ["yes", "no", "maybe"]}).labels.tolist() == [2, 0, 1]


def test_whole_numbers_are_ids_unless_the_classes_are_called_by_them():
    def labels(names, values):
        spec = TaskSpec.model_validate({**CLASSES.model_dump(), "labels": names})
        return rows_of({"text": ["a"] * len(values), "label": values}, spec).labels.tolist()

    assert labels(["no", "maybe", "yes"], [2.0, 0.0]) == [2, 0]
    assert labels(["1", "2", "3"], [1, 3]) == labels(["1", "2", "3"], ["1", "3"]) == [0, 2]
    assert labels(["-1", "0", "1"], [-1, 1]) == [0, 2]
    assert labels(["0", "1"], [True, False]) == labels(["no", "yes"], [True, False]) == [1, 0]
    for outside in (0, 4):
        with pytest.raises(DataError, match=f"label {outside} is outside"):
            labels(["1", "2", "3"], [outside])


@pytest.mark.parametrize(
    ("label", "shown"),
    [(3, "3"), (-1, "-1"), (None, "None"), ("ja", "'ja'"), (1.5, "1.5"), (float("nan"), "nan")],
)
def test_a_label_outside_the_head_is_named_with_its_row(label, shown):
    given = ["no", label] if isinstance(label, str) else [0, label]
    with pytest.raises(DataError) as caught:
        rows_of({"text": ["a", "b"], "label": given}, split="validation")
    assert f"task 'mine', split 'validation', row 1: label {shown} is outside" in str(caught.value)
    assert "0 … 2 (no, maybe, yes)" in str(caught.value)


@pytest.mark.parametrize("label", [-0.1, 5.01, float("nan"), float("inf"), None])
def test_a_value_outside_the_range_is_named_with_its_row(label):
    with pytest.raises(
        DataError, match=r"task 'mine', split 'train', row 1: label .* outside the head's range 0.0 … 5.0"
    ):
        rows_of({"first": ["a", "b"], "second": ["a", "b"], "score": [1.0, label]}, NUMBER)


@pytest.mark.parametrize("text", [None, 7, 1.5, ["words"]])
def test_an_input_that_is_no_text_is_named_with_its_row(text):
    with pytest.raises(DataError) as caught:
        rows_of({"text": [text], "label": [0]})
    assert f"task 'mine', split 'train', row 0: column 'text' holds {text!r}, not a text" in str(caught.value)


@pytest.mark.parametrize(
    ("columns", "says"),
    [
        ({"texts": ["a"], "label": [0]}, "no column 'text'. Did you mean 'texts'? The file has: texts, label."),
        ({"text": ["a"], "labels": [0]}, "no column 'label'. Did you mean 'labels'? The file has: text, labels."),
        ({"text": [], "label": []}, "no rows"),
    ],
)
def test_missing_columns_and_rows(columns, says):
    with pytest.raises(DataError) as caught:
        rows_of(columns)
    assert f"task 'mine', split 'train': {says}" in str(caught.value)


def test_class_weights_are_n_over_classes_times_count():
    balanced = CLASSES.model_copy(update={"class_weights": "balanced"})
    rows = rows_of({"text": list("abcdef"), "label": [0, 0, 0, 1, 2, 2]}, balanced)
    assert rows.class_weights().tolist() == pytest.approx([6 / (3 * 3), 6 / (3 * 1), 6 / (3 * 2)])
    assert rows_of({"text": ["a"], "label": [0]}).class_weights() is None
    with pytest.raises(
        DataError, match=r"task 'mine': class_weights 'balanced' needs rows of every class.*none of: maybe"
    ):
        rows_of({"text": ["a", "b"], "label": [0, 2]}, balanced).class_weights()


@pytest.mark.parametrize("suffix", ["jsonl", "json", "csv", "parquet"])
def test_the_same_rows_from_every_file_format(tmp_path, suffix):
    columns = {
        "first": ["plain", 'with "quotes", commas', "ünïcode – ✓"],
        "second": ["a", "b", "c"],
        "score": [0, 2.5, 5],
    }
    path = tmp_path / "mine" / f"validation.{suffix}"
    path.parent.mkdir()
    table = Dataset.from_dict(columns)
    if suffix == "json":
        path.write_text(json.dumps([dict(row) for row in table]))
    else:
        {"jsonl": table.to_json, "csv": table.to_csv, "parquet": table.to_parquet}[suffix](str(path))
    loaded = load_tasks({"mine": NUMBER}, ["validation"], tmp_path).splits["mine"]["validation"]
    assert [row["texts"] for row in loaded] == [list(p) for p in zip(columns["first"], columns["second"], strict=True)]
    assert loaded.labels.tolist() == columns["score"]


def test_tune_rows_are_held_out_of_train(root):
    both = load(root, ["train", "tune", "validation"])
    train, tune = texts(both["train"]), texts(both["tune"])
    assert len(tune) == 3  # a tenth
    assert set(train).isdisjoint(tune)
    assert sorted(train + tune) == sorted(f"train {index}" for index in range(30))
    assert texts(both["validation"]) == [f"validation {index}" for index in range(5)]


def test_the_hold_out_depends_on_the_seed_alone(root):
    first = texts(load(root, ["train", "tune"])["tune"])
    assert texts(load(root, ["train", "tune"])["tune"]) == first
    assert texts(load(root, ["train", "tune"], seed=1)["tune"]) != first
    # whoever asks for one split alone gets the same rows: `evaluate --split train` must not see tune rows
    assert texts(load(root, ["tune"])["tune"]) == first
    assert set(texts(load(root, ["train"])["train"])).isdisjoint(first)


def test_a_tune_file_leaves_train_whole(root):
    write_rows(root / "mine" / "tune.jsonl", [{"text": "tune 0", "label": 0}])
    loaded = load(root, ["train", "tune"])
    assert texts(loaded["tune"]) == ["tune 0"]
    assert texts(loaded["train"]) == [f"train {index}" for index in range(30)]


def test_limits_draw_by_the_seed(root):
    limits = {"train": 10, "validation": 99}
    loaded = load(root, ["train", "tune", "validation"], limits=limits)
    drawn = texts(loaded["train"])
    assert len(set(drawn)) == 10
    assert set(drawn).isdisjoint(texts(loaded["tune"]))
    assert len(loaded["validation"]) == 5
    assert texts(load(root, ["train", "tune"], limits=limits)["train"]) == drawn
    assert texts(load(root, ["train"], limits=limits)["train"]) == drawn
    assert texts(load(root, ["train", "tune"], limits=limits, seed=1)["train"]) != drawn


def test_limited_rows_that_are_scored_are_the_same_for_every_seed(root):
    """Runs of several seeds are compared row by row; what they train and tune on is part of what the seed decides."""
    write_rows(root / "mine" / "test.jsonl", [{"text": f"test {index}", "label": 0} for index in range(20)])
    splits = ["train", "tune", "validation", "test"]
    loaded = [load(root, splits, limits=dict.fromkeys(splits, 2), seed=seed) for seed in range(4)]
    drawn = {split: {tuple(texts(of_seed[split])) for of_seed in loaded} for split in splits}
    assert (len(drawn["validation"]), len(drawn["test"])) == (1, 1)
    assert len(drawn["train"]) == len(drawn["tune"]) == 4


def test_missing_folders_and_files(root):
    with pytest.raises(DataError) as caught:
        load_tasks({"mien": CLASSES}, ["train"], root)
    assert f"task 'mien': no folder {root / 'mien'}. Did you mean 'mine'?" in str(caught.value)
    with pytest.raises(
        DataError, match=r"task 'mine': no file for split 'test' in .*test\.jsonl, test\.json, test\.csv"
    ):
        load(root, ["test"])
    with pytest.raises(DataError, match="no folder"):
        load(root / "nowhere", ["train"])


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("validation.jsonl", '{"text": "a", "label": 0}\n{"text": '),
        ("validation.jsonl", ""),
        ("validation.jsonl", "\x00\x01\x02"),
        ("validation.csv", ""),
        ("validation.parquet", "text,label"),
    ],
)
def test_files_that_cannot_be_read(root, name, content):
    (root / "mine" / "validation.jsonl").unlink()
    (root / "mine" / name).write_text(content)
    with pytest.raises(DataError) as caught:
        load(root, ["validation"])
    assert f"task 'mine': cannot read {root / 'mine' / name}: " in str(caught.value)


def test_without_a_data_root_and_a_public_name(root):
    with pytest.raises(DataError, match="task 'mine' has no public source: give its files with --data-root DIR"):
        load_tasks({"mine": CLASSES}, ["train"])


def test_a_hub_that_cannot_be_reached_points_to_local_files():
    with pytest.raises(DataError) as caught:  # conftest.py sets HF_HUB_OFFLINE
        load_tasks(load_suite("glue").select(["rte"]), ["train"])
    assert "task 'rte': cannot load 'nyu-mll/glue' (rte, train) from the hub" in str(caught.value)
    assert "--data-root DIR" in str(caught.value)
