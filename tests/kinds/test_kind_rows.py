"""Rows of every kind: what is read, what is refused with its row, and what a fingerprint covers."""

import json
import re
from pathlib import Path

import pytest
import yaml
from datasets import Dataset

from helpers_kinds import CASES, every_kind, spec_of, table
from helpers_runs import write_rows
from tasklora.errors import DataError
from tasklora.tasks import HEADS, KINDS, METRICS, TaskRows, TaskSpec, load_suite, load_tasks, shipped_suites
from tasklora.tasks.collate import LAYOUTS
from tasklora.tasks.data import arranged


def rows_of(spec, lines, split="train"):
    return TaskRows("mine", spec, arranged("mine", spec, Dataset.from_list(lines), split), split)


def test_a_kind_has_everything_under_its_name():
    assert list(KINDS) == [*CASES, "generation"]  # which has no head: see tests/text
    assert set(CASES) == set(HEADS) == set(LAYOUTS)
    assert set(KINDS) == {kind for metric in METRICS.values() for kind in metric.kinds}
    assert all(kind.name == name for name, kind in KINDS.items())


@every_kind
def test_rows_load_with_texts_and_numbers(kind):
    rows = rows_of(spec_of(kind), table(CASES[kind], 9))
    assert len(rows) == len(rows.labels) == len(rows.lengths()) == 9
    for row, length in zip(rows, rows.lengths(), strict=True):
        assert all(isinstance(text, str) for text in row["texts"])
        label = row["label"] if isinstance(row["label"], list) else [row["label"]]
        assert all(isinstance(number, float) for number in label)
        assert max(map(len, row["texts"])) <= length


@every_kind
def test_wrong_rows_are_named(kind):
    case = CASES[kind]
    for changes, says in case.wrong:
        lines = table(case, 3)
        lines[1] = {**lines[1], **changes}
        with pytest.raises(DataError) as caught:
            rows_of(spec_of(kind), lines, "validation")
        assert "task 'mine', split 'validation', row 1: " in str(caught.value)
        assert says in str(caught.value), (changes, str(caught.value))


@every_kind
def test_a_missing_column_is_named_with_the_nearest(kind):
    for column in [*CASES[kind].task["inputs"], "label"]:
        lines = [
            {(f"{c}s" if c == column else c): value for c, value in line.items()} for line in table(CASES[kind], 2)
        ]
        with pytest.raises(DataError, match=f"no column '{column}'. Did you mean '{column}s'"):
            rows_of(spec_of(kind), lines)


@every_kind
def test_no_rows_are_refused(kind):
    empty = Dataset.from_list(table(CASES[kind], 1)).select([])
    with pytest.raises(DataError, match="task 'mine', split 'train': no rows"):
        TaskRows("mine", spec_of(kind), arranged("mine", spec_of(kind), empty, "train"), "train")


@every_kind
def test_a_fingerprint_covers_texts_labels_and_their_order(kind):
    case = CASES[kind]
    rows = list(rows_of(spec_of(kind), table(case, 6)))

    def digest(changed):
        made = rows_of(spec_of(kind), table(case, 6))
        made.texts = lambda: iter([row["texts"] for row in changed])
        return made.fingerprint()

    first = digest(rows)
    assert first == rows_of(spec_of(kind), table(case, 6)).fingerprint()
    assert first != rows_of(spec_of(kind), table(case, 6, seed=1)).fingerprint()
    assert first != digest(rows[::-1])
    last = rows[-1]["texts"]
    assert first != digest([*rows[:-1], {"texts": [*last[:-1], last[-1] + "x"]}])


def test_texts_that_move_between_rows_change_the_fingerprint():
    spec = spec_of("multiple_choice")
    one = rows_of(spec, [{"question": "q", "choices": c, "label": 0} for c in (["a", "b", "c"], ["d", "e"])])
    other = rows_of(spec, [{"question": "q", "choices": c, "label": 0} for c in (["a", "b"], ["d", "e", "c"])])
    assert one.fingerprint() != other.fingerprint()


@pytest.mark.parametrize("given", [["nice", "yes"], [0, 2], "nice|yes", " yes | nice ", "0|2"])
def test_multi_labels_by_name_id_or_joined(given):
    spec = spec_of("multi_label", label_separator="|")
    assert rows_of(spec, [{"text": "a", "label": given}]).labels.tolist() == [[1, 0, 1]]


def test_no_label_at_all_is_a_row_without_classes():
    spec = spec_of("multi_label", label_separator="|")
    assert rows_of(spec, [{"text": "a", "label": ""}]).labels.tolist() == [[0, 0, 0]]
    assert rows_of(spec_of("multi_label"), [{"text": "a", "label": []}]).labels.tolist() == [[0, 0, 0]]


def test_joined_labels_need_a_separator():
    with pytest.raises(DataError, match=r"row 0: label 'nice\|yes' is a text, not a list.* label_separator"):
        rows_of(spec_of("multi_label"), [{"text": "a", "label": "nice|yes"}])


@pytest.mark.parametrize(
    ("label", "place"), [(1, 1), ("a dog", 0), ("B", 1), ("C", None), ("1", None), ("cat", None), (True, None)]
)
def test_a_choice_by_place_text_or_letter(label, place):
    line = {"question": "q", "choices": ["a dog", "a bird", "a bird"], "label": label}
    if label == "C":
        line["choices"] = ["a dog", "C", "a bird"]  # the text of one, the letter of another
    if place is None:
        with pytest.raises(DataError, match="or not one alone"):
            rows_of(spec_of("multiple_choice"), [line])
    else:
        assert rows_of(spec_of("multiple_choice"), [line]).labels.tolist() == [place]


def test_choices_in_columns_of_their_own():
    spec = spec_of("multiple_choice", choices=["a", "b", "c"])
    lines = [
        {"question": "q", "a": "x", "b": "y", "c": "z", "label": 2},
        {"question": "q", "a": "x", "b": "y", "label": 1},
    ]
    assert [row["texts"] for row in rows_of(spec, lines)] == [["q", "x", "y", "z"], ["q", "x", "y"]]
    with pytest.raises(DataError, match="row 0: column 'a' holds None"):
        rows_of(spec, [{"question": "q", "a": None, "b": "y", "c": "z", "label": 0}])
    with pytest.raises(DataError, match="row 0: columns a, b, c hold fewer than two choices"):
        rows_of(spec, [{"question": "q", "a": "x", "b": None, "c": None, "label": 0}])


def test_lines_of_one_query_become_one_row():
    lines = [
        {"query": "q1", "document": "a", "label": 0, "id": 7},
        {"query": "q2", "document": "b", "label": 1, "id": 8},
        {"query": "q1", "document": "c", "label": 2.5, "id": 7},
    ]
    rows = rows_of(spec_of("ranking"), lines)
    assert list(rows) == [{"texts": ["q1", "a", "c"], "label": [0.0, 2.5]}, {"texts": ["q2", "b"], "label": [1.0]}]
    assert list(rows_of(spec_of("ranking", group="id"), lines)) == list(rows)
    lines[2]["id"] = 8
    with pytest.raises(DataError, match="row 2: the rows of 'id' 8 have different queries: 'q2' and 'q1'"):
        rows_of(spec_of("ranking", group="id"), lines)


def test_the_same_query_twice_is_two_rows_where_a_column_groups_them():
    lines = [{"query": "q", "document": text, "label": 1, "id": place} for place, text in enumerate("ab")]
    assert len(rows_of(spec_of("ranking"), lines)) == 1
    assert len(rows_of(spec_of("ranking", group="id"), lines)) == 2


def test_only_training_cuts_candidates_and_keeps_the_relevant_ones(tmp_path):
    labels = [0, 0, 1, 0, 2, 0]
    for split, count in (("train", 20), ("validation", 3)):
        lines = [
            {"query": f"{split} {q}", "document": f"{place}", "label": label}
            for q in range(count)
            for place, label in enumerate(labels)
        ]
        write_rows(tmp_path / "mine" / f"{split}.jsonl", lines)
    spec = spec_of("ranking", max_candidates=3)
    loaded = load_tasks({"mine": spec}, ["train", "tune", "validation"], tmp_path).splits["mine"]
    assert {tuple(row["texts"][1:]) for row in loaded["train"]} == {("0", "2", "4")}
    assert {tuple(row["label"]) for row in loaded["train"]} == {(0.0, 1.0, 2.0)}
    assert (len(loaded["train"]), len(loaded["tune"]), len(loaded["validation"])) == (18, 2, 3)  # queries, not lines
    for split in ("tune", "validation"):
        assert {len(row["texts"]) for row in loaded[split]} == {7}
    queries = {split: {row["texts"][0] for row in loaded[split]} for split in loaded}
    assert queries["train"].isdisjoint(queries["tune"])


PARTS = {"train": {"of": "test", "part": [0, 0.8]}, "test": {"of": "test", "part": [0.8, 1]}}


def test_parts_of_a_split_share_no_input(tmp_path):
    lines = [{"text": f"row {index}", "label": index % 2} for index in range(100)]
    lines[85]["text"] = lines[3]["text"]  # belongs to the part where it stood first
    write_rows(tmp_path / "mine" / "test.jsonl", lines)
    spec = spec_of("classification", splits=PARTS)
    loaded = load_tasks({"mine": spec}, ["train", "tune", "test"], tmp_path).splits["mine"]
    texts = {split: {row["texts"][0] for row in loaded[split]} for split in loaded}
    assert texts["test"] == {f"row {index}" for index in range(80, 100) if index != 85}
    assert texts["train"] | texts["tune"] == {f"row {index}" for index in range(80)}
    assert texts["train"].isdisjoint(texts["tune"])
    assert len(loaded["train"]) + len(loaded["tune"]) == 81
    alone = load_tasks({"mine": spec}, ["test"], tmp_path, seed=7).splits["mine"]["test"]
    assert {row["texts"][0] for row in alone} == texts["test"]


@pytest.mark.parametrize(
    ("splits", "says"),
    [
        ({"train": {"of": "test", "part": [0, 0.8]}}, "split 'train' is a part of 'test', which would keep these rows"),
        ({**PARTS, "test": {"of": "test", "part": [0.7, 1]}}, "splits 'train' and 'test' overlap"),
        ({**PARTS, "train": {"of": "test", "part": [0.8, 0.2]}}, "begins and ends between 0 and 1"),
        ({**PARTS, "test": {"of": "validation", "part": [0, 1]}}, "'validation', which would keep these rows"),
    ],
)
def test_parts_that_overlap_are_refused(splits, says):
    with pytest.raises(ValueError, match="validation error") as caught:
        spec_of("classification", splits=splits)
    assert says in str(caught.value)


@pytest.mark.parametrize(
    ("kind", "changes", "says"),
    [
        ("classification", {"choices": "choices"}, "`choices` is for multiple_choice, the task is classification"),
        ("classification", {"range": [0, 1]}, "`range` is for regression"),
        ("regression", {"labels": ["a", "b"]}, "`labels` is for classification, multi_label, token_classification"),
        ("multi_label", {"labels": ["a"]}, "a multi_label task needs `labels`: at least two class names"),
        (
            "multi_label",
            {"labels": ["a|b", "c"], "label_separator": "|"},
            "label_separator '|' stands in the labels a|b",
        ),
        ("multi_label", {"label_separator": ""}, "label_separator must not be empty"),
        ("multiple_choice", {"choices": None}, "a multiple_choice task needs `choices`"),
        ("multiple_choice", {"choices": ["only"]}, "a multiple_choice task needs `choices`"),
        ("multiple_choice", {"inputs": ["a", "b"]}, "a multiple_choice task has 1 input column, got a, b"),
        ("multiple_choice", {"class_weights": "balanced"}, "class_weights apply to classification, multi_label"),
        ("token_classification", {"inputs": ["a", "b"]}, "a token_classification task has 1 input column"),
        ("ranking", {"inputs": ["query"]}, "a ranking task has two input columns"),
        ("ranking", {"max_candidates": 1}, "max_candidates"),
        ("ranking", {"metrics": ["accuracy"]}, "metric 'accuracy' is for classification, multiple_choice"),
        ("ranking", {"format": "instruction"}, "unknown format 'instruction'. Did you mean 'instruction_options'"),
    ],
)
def test_tasks_that_make_no_sense_are_refused(kind, changes, says):
    with pytest.raises(ValueError, match="validation error") as caught:
        spec_of(kind, **changes)
    assert says in str(caught.value)


@every_kind
def test_a_spec_survives_json(kind):
    spec = spec_of(kind)
    assert TaskSpec(**json.loads(spec.model_dump_json())) == spec


@pytest.mark.parametrize("kind", [name for name, kind in KINDS.items() if kind.takes_class_weights])
def test_a_class_without_rows_has_no_balanced_weight(kind):
    spec = spec_of(kind, class_weights="balanced")
    weights = rows_of(spec, table(CASES[kind], 40)).class_weights()
    assert weights.shape == (spec.num_outputs,)
    assert (weights > 0).all()
    line = table(CASES[kind], 1)[0]
    empty = [] if kind == "multi_label" else 0 if kind == "classification" else [0] * len(line["tokens"])
    with pytest.raises(DataError, match="class_weights 'balanced' needs rows of every class in train, none of: "):
        rows_of(spec, [{**line, "label": empty}]).class_weights()


def test_balanced_weights_by_hand():
    lines = [{"text": "a", "label": label} for label in ([0, 1], [0], [0], [2, 1])]
    weights = rows_of(spec_of("multi_label", class_weights="balanced"), lines).class_weights()
    assert weights.tolist() == pytest.approx([1 / 3, 2 / 2, 3 / 1])
    lines = [{"tokens": ["a"] * len(tags), "label": tags} for tags in ([0, 0, 1], [0, 2], [3])]
    weights = rows_of(spec_of("token_classification", class_weights="balanced"), lines).class_weights()
    assert weights.tolist() == pytest.approx([6 / (4 * 3), 6 / 4, 6 / 4, 6 / 4])


def test_the_page_on_kinds_shows_tasks_and_rows_that_load():
    page = (Path(__file__).resolve().parents[2] / "docs" / "kinds-of-tasks.md").read_text(encoding="utf-8")
    shown = re.findall(r"```yaml\n(.*?)```\n\n```json\n(.*?)```", page, re.DOTALL)
    assert len(shown) == 5
    for task, rows in shown:
        ((name, content),) = yaml.safe_load(task).items()
        lines = [json.loads(line) for line in rows.replace(',\n "', ', "').splitlines()]
        assert len(rows_of(TaskSpec(**content), lines)) == 1, name


def test_the_page_on_kinds_names_every_kind_and_suite():
    page = (Path(__file__).resolve().parents[2] / "docs" / "kinds-of-tasks.md").read_text(encoding="utf-8")
    assert all(f"| `{kind}` |" in page for kind in KINDS)
    assert all(f"| `{load_suite(name).reference}` |" in page for name in shipped_suites())
