"""Streamed training rows: which rows come, in which order, how many are read for them, and what is refused."""

import itertools
import json
import random

import numpy as np
import pytest
from datasets import Dataset
from torch.utils.data import DataLoader

from helpers_runs import SUITE, tiny_row, write_rows
from tasklora.errors import ConfigError, DataError
from tasklora.tasks import Streaming, TaskSpec, load_tasks
from tasklora.tasks.streaming import Passes, shuffled
from tasklora.training import MixedRows, MixingPlan, MixingSection, TaskMixingSampler
from tasklora.training.mixing import SharedBatches

MOOD = TaskSpec.model_validate(SUITE["tasks"]["mood"])
ROWS = 60


def numbered(count=ROWS):
    """Return rows of mood, all different."""
    generator = random.Random(0)
    return [
        {**row, "text": f"{row['text']} {index}"} for index in range(count) for row in [tiny_row("mood", generator)]
    ]


def load(files, *splits, rows=ROWS, buffer=20, spec=MOOD, **options):
    streaming = {"mine": Streaming(rows=rows, buffer=buffer)} if rows else None
    return load_tasks({"mine": spec}, list(splits), files={"mine": files}, streaming=streaming, **options).splits[
        "mine"
    ]


def texts(rows):
    return [row["texts"][0] for row in rows]


def drawn(rows, count, start=0):
    return texts(rows.drawn(place) for place in range(start, start + count))


@pytest.fixture(params=["jsonl", "csv", "tsv", "parquet", "folder", "saved", "public name"])
def place(request, tmp_path):
    """Return the same rows as every source has them: what load_tasks takes."""
    table, kind = Dataset.from_list(numbered()), request.param
    if kind == "folder":
        write_rows(tmp_path / "split" / "train.jsonl", numbered())
        return {"files": str(tmp_path / "split")}
    if kind == "saved":
        table.save_to_disk("saved")
        return {"files": "saved"}
    if kind == "public name":
        write_rows(tmp_path / "hub" / "train.jsonl", numbered())
        write_rows(tmp_path / "hub" / "validation.jsonl", numbered(12))
        return {"hub": str(tmp_path / "hub")}
    {"jsonl": table.to_json, "csv": table.to_csv, "parquet": table.to_parquet}.get(
        kind, lambda path: table.to_csv(path, sep="\t")
    )(f"rows.{kind}")
    return {"files": f"rows.{kind}"}


def test_a_pass_has_the_rows_that_are_read_otherwise(place):
    """With a buffer for the whole file, also tune and validation are the same rows."""
    hub = {"hub": {"path": place["hub"]}} if "hub" in place else {}
    spec = TaskSpec.model_validate({**SUITE["tasks"]["mood"], **hub})
    files = {"mine": place["files"]} if "files" in place else {}
    whole = load_tasks({"mine": spec}, ["train", "tune", "validation"], files=files, seed=3).splits["mine"]
    streaming = {"mine": Streaming(rows=ROWS, buffer=100)}
    streamed = load_tasks(
        {"mine": spec}, ["train", "tune", "validation"], files=files, seed=3, streaming=streaming
    ).splits["mine"]
    for split in ("tune", "validation"):
        assert list(streamed[split]) == list(whole[split])
    size = streamed["train"].size
    assert size == len(whole["train"])
    expected = {row["texts"][0]: row for row in whole["train"]}
    assert {row["texts"][0]: row for row in map(streamed["train"].drawn, range(size))} == expected
    passes = [drawn(streamed["train"], size, number * size) for number in range(3)]
    assert len({tuple(one) for one in passes}) == 3
    assert {tuple(sorted(one)) for one in passes} == {tuple(sorted(expected))}


def test_what_is_held_out_of_the_first_rows_never_comes(tmp_path):
    write_rows(tmp_path / "rows.jsonl", numbered())
    loaded = load("rows.jsonl", "train", "tune", "validation", buffer=20)
    assert [len(loaded[split]) for split in ("validation", "tune")] == [4, 1]  # a fifth of 20, a tenth of the other 16
    assert loaded["train"].size == 55
    held_out = set(texts(loaded["tune"])) | set(texts(loaded["validation"]))
    assert held_out < {row["text"] for row in numbered(20)}
    everything = {row["text"] for row in numbered()}
    assert sorted(drawn(loaded["train"], 55)) == sorted(everything - held_out)


def test_no_more_rows_are_read_than_the_buffer_and_those_that_came():
    read = []

    def source():
        for index in itertools.count():
            read.append(index)
            yield index, {"text": str(index)}

    passes = Passes(source, frozenset({1, 3}), 50, 0, "t")
    came = [passes[place][0] for place in range(1000)]
    assert len(read) <= 1000 + 50 + 1 + 2
    assert len(set(came)) == 1000
    assert not {1, 3} & set(came)
    assert max(index - place for place, index in enumerate(came)) <= 50 + 2  # no row comes long before its turn


def test_a_place_has_one_row_whichever_way_it_is_come_to():
    rows = [(index, {"text": str(index)}) for index in range(30)]
    begun = []

    def passes():
        return Passes(lambda: begun.append(0) or iter(rows), frozenset(), 7, 5, "t")

    one = passes()
    order = [one[place] for place in range(150)]
    assert len(begun) == 5
    for place in (149, 0, 31, 29, 30, 75):
        assert passes()[place] == order[place]
        assert one[place] == order[place]
    begun.clear()
    far = passes()
    assert far[140] == order[140]
    assert len(begun) == 2  # the first pass, which says how long one is, and the one that has the row
    assert [far[place] for place in range(141, 150)] == order[141:150]


def test_the_buffer_shuffles_evenly():
    """A row comes within about the buffer's size of its place, and every row once."""
    orders = np.array([list(shuffled(iter(range(200)), 40, np.random.default_rng(seed))) for seed in range(300)])
    assert (np.sort(orders, axis=1) == np.arange(200)).all()
    assert np.mean(orders[:, 0]) == pytest.approx(19.5, abs=3)  # drawn evenly from the first 40
    assert orders[:, 0].max() == 39
    whole = np.array([list(shuffled(iter(range(9)), 40, np.random.default_rng(seed))) for seed in range(2000)])
    assert whole.mean(axis=0) == pytest.approx(np.full(9, 4.0), abs=0.3)


def mixture(tmp_path):
    """Return a streamed task between two in memory, loaded anew."""
    write_rows(tmp_path / "rows.jsonl", numbered())
    for name in ("a", "b"):
        write_rows(tmp_path / name / "train.jsonl", [{**row, "text": f"{name} {row['text']}"} for row in numbered(30)])
    files = {"a": {"train": str(tmp_path / "a" / "train.jsonl")}, "s": {"train": str(tmp_path / "rows.jsonl")}}
    files["b"] = {"train": str(tmp_path / "b" / "train.jsonl")}
    files = {name: {**of, "validation": of["train"], "tune": of["train"]} for name, of in files.items()}
    streaming = {"s": Streaming(rows=ROWS, buffer=16)}
    return MixedRows(load_tasks(dict.fromkeys("asb", MOOD), ["train"], files=files, streaming=streaming).split("train"))


def test_streamed_rows_come_in_their_order_and_mixing_is_that_of_the_recipe(tmp_path):
    mixed = mixture(tmp_path)
    assert mixed.sizes == [30, 60, 30]
    assert mixed.streams == ["s"]
    sizes = dict(zip("asb", mixed.sizes, strict=True))
    sampler = TaskMixingSampler(MixingPlan(sizes, None, 8, 5.0, streams=mixed.streams), 0)
    came = []
    for epoch in range(3):
        order = [mixed[index] for index in sampler.order(epoch).tolist()]
        tasks = [row["task"] for row in order]
        assert {task: tasks.count(task) for task in "asb"} == {"a": 30, "s": 60, "b": 30}
        assert any(len(set(tasks[start : start + 8])) == 3 for start in range(0, 120, 8))
        came += [row["texts"][0] for row in order if row["task"] == "s"]
    stream = mixture(tmp_path).tasks[1][1]
    assert came == drawn(stream, 180)  # the stream in its order, over the epochs
    begun = [mixed[index]["task"] for index in sampler.order(1)[:40].tolist()]
    assert sampler.drawn_before(20).tolist() == [30 + begun.count("a"), 60 + begun.count("s"), 30 + begun.count("b")]


def test_several_processes_and_workers_read_the_rows_of_one(tmp_path):
    plan = MixingPlan({"a": 30, "s": 60, "b": 30}, None, 12, 2.0, processes=3, streams=["s"])
    sampler = TaskMixingSampler(plan, 1)
    whole, shares = [], [[], [], []]
    mixed, own = mixture(tmp_path), [mixture(tmp_path) for _ in range(3)]
    for epoch in range(2):
        sampler.set_epoch(epoch)
        whole += [mixed[index] for index in sampler]
        for rank in range(3):
            shares[rank] += [[own[rank][index] for index in batch] for batch in SharedBatches(sampler, 12, rank, 3)]
    together = [row for parts in zip(*shares, strict=True) for part in parts for row in part]
    assert together == whole
    sampler.set_epoch(0)
    loader = DataLoader(mixture(tmp_path), 12, sampler=sampler, num_workers=2, collate_fn=list)
    assert list(itertools.chain(*loader)) == whole[:120]


@pytest.mark.parametrize(
    ("spec", "files", "options", "says"),
    [
        ({}, "rows.json", {}, "cannot stream rows.json: a list in a .json file is read whole. Write it as .jsonl"),
        ({}, "rows.jsonl", {"limits": {"train": 9}}, r"cannot be streamed: tasks.limits.train draws 9 of all rows"),
        ({}, "rows.jsonl", {"rows": 12}, r"streaming.rows is 12, but its training data have 20 rows or more"),
        (
            {},
            "rows.jsonl",
            {"rows": 70, "buffer": 80},
            r"streaming.rows is 70, but its training data have 60 rows\.",
        ),
        ({"inputs": ["txet"]}, "rows.jsonl", {}, r"split 'train': no column 'txet'\. Did you mean 'text'\?"),
        ({"labels": ["0", "2"]}, "rows.jsonl", {}, r"split 'train', row \d: label 1 is outside"),
        ({"format": "instruction_options"}, "rows.jsonl", {}, "the format 'instruction_options' is read of whole tab"),
        (
            {"splits": {"train": {"of": "train", "part": [0, 0.5]}}},
            "rows.jsonl",
            {},
            "its `splits` are shares of all rows",
        ),
        (
            {"kind": "ranking", "labels": None, "inputs": ["text", "doc"], "metrics": ["mrr"], "primary": "mrr"},
            "rows.jsonl",
            {},
            "a ranking task gathers the rows of a query, which may stand anywhere",
        ),
        ({}, "empty.jsonl", {}, "cannot read empty.jsonl: "),
        ({}, "none.jsonl", {}, "no file none.jsonl"),
        ({}, "wide.csv", {}, "its rows have more values than its first line has names"),
        ({}, "ragged.csv", {}, r"line 12 has 3 values, its first line 2 names. Put quotes around texts"),
        ({}, "torn.jsonl", {}, "its training rows could be read up to row|cannot read torn.jsonl"),
    ],
)
def test_what_cannot_be_streamed_is_refused_before_training(tmp_path, spec, files, options, says):
    write_rows(tmp_path / "rows.jsonl", numbered())
    (tmp_path / "rows.json").write_text(json.dumps(numbered()))
    (tmp_path / "empty.jsonl").write_text("")
    (tmp_path / "wide.csv").write_text("text,label\n" + "a,1,2\n" * 30)
    (tmp_path / "ragged.csv").write_text("text,label\n" + "a,1\n" * 10 + "a,b,1\n")
    (tmp_path / "torn.jsonl").write_text('{"text": "a", "label": 1}\n{"text": \n')
    made = TaskSpec.model_validate({**SUITE["tasks"]["mood"], **spec})
    with pytest.raises((ConfigError, DataError), match=says):
        load(files, "train", "tune", "validation", spec=made, **options)


def test_a_wrong_row_far_on_is_named_when_it_comes(tmp_path):
    rows = numbered()
    rows[50]["label"] = 7
    write_rows(tmp_path / "rows.jsonl", rows)
    train = load("rows.jsonl", "train")["train"]
    with pytest.raises(DataError, match=r"split 'train', row 50: label 7 is outside .* go on with --resume"):
        drawn(train, 60)
    del rows[50]["text"]
    write_rows(tmp_path / "rows.jsonl", rows)
    with pytest.raises(DataError, match=r"row 50: column 'text' holds None, not a text"):
        drawn(load("rows.jsonl", "train")["train"], 60)


def test_wrong_numbers_of_rows_are_said(tmp_path):
    write_rows(tmp_path / "rows.jsonl", numbered())
    train = load("rows.jsonl", "train", rows=100)["train"]
    with pytest.warns(UserWarning, match=r"55 training rows were read in a pass, but mixing counts on 95"):
        drawn(train, 60)
    assert load("rows.jsonl", "train", rows="unknown")["train"].size is None
    assert load("rows.jsonl", "train", rows="unknown", buffer=100)["train"].size == 44  # a buffer that has seen the end
    write_rows(tmp_path / "rows.jsonl", numbered(40))
    with pytest.raises(DataError, match="ended after 35 of them, but had 55 before"):
        drawn(train, 120, 60)


def test_sizes_are_asked_for_where_mixing_goes_by_them():
    sizes = {"a": 10, "s": None}
    with pytest.raises(ConfigError, match=r"rows of s is unknown, but in training.mixing strategy 'proportional' goes"):
        MixingPlan(sizes, streams=["s"])

    def plan(**mixing):
        return MixingPlan(sizes, MixingSection.model_validate(mixing), 2, 3.0, streams=["s"])

    assert plan(strategy="equal", epoch_rows=8).counts(0) == [4, 4]
    assert plan(strategy="weights", weights={"a": 1, "s": 3}, epoch_rows=8).counts(1) == [2, 6]
    for mixing in (
        {"strategy": "equal"},
        {"strategy": "temperature", "epoch_rows": 8},
        {"strategy": "capped", "cap": 3, "epoch_rows": 8},
        {"strategy": "equal", "epoch_rows": 8, "schedule": {"strategy": "proportional"}},
    ):
        with pytest.raises(ConfigError, match=r"is unknown.* Give it as streaming.rows"):
            plan(**mixing)
    with pytest.raises(ConfigError, match="replacement draws from all rows of a task, but those of s are streamed"):
        plan(strategy="equal", epoch_rows=8, replacement=True)
