"""Rows of tasks of one's own: every kind of file and folder, what is held out, and files that cannot be read."""

import json

import pytest
from datasets import Dataset, DatasetDict

from tasklora.errors import DataError
from tasklora.tasks import TaskSpec, load_tasks
from tasklora.tasks.sources import VALIDATION_MAX_ROWS, OwnRows, find_splits, hold_out
from tasklora.tasks.table_files import read_table, stream_table

SPEC = TaskSpec(kind="classification", inputs=["text"], labels=["no", "yes"], metrics=["accuracy"], primary="accuracy")
COLUMNS = {"text": [f"row {index}" for index in range(50)], "label": [index % 2 for index in range(50)]}


def write(path, rows=50):
    """Write a table in the format of its suffix; a folder is saved by `datasets`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    table = Dataset.from_dict({name: values[:rows] for name, values in COLUMNS.items()})
    if path.suffix == ".json":
        path.write_text(json.dumps([dict(row) for row in table]))
    else:
        {
            ".csv": table.to_csv,
            ".tsv": lambda place: table.to_csv(place, sep="\t"),
            ".jsonl": table.to_json,
            ".parquet": table.to_parquet,
            "": table.save_to_disk,
        }[path.suffix](str(path))
    return path


def load(files, splits=("train", "tune", "validation"), **options):
    loaded = load_tasks({"mine": SPEC}, list(splits), files={"mine": files}, **options).splits["mine"]
    return {split: [row["texts"][0] for row in rows] for split, rows in loaded.items()}


@pytest.mark.parametrize("name", ["rows.csv", "rows.tsv", "rows.jsonl", "rows.json", "rows.parquet", "rows"])
def test_one_file_of_every_format_is_parted_into_three(tmp_path, name):
    rows = load(str(write(tmp_path / name)))
    assert [len(rows[split]) for split in ("train", "tune", "validation")] == [36, 4, 10]
    assert sorted(text for found in rows.values() for text in found) == sorted(COLUMNS["text"])


@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".parquet"])
def test_a_name_that_could_be_a_pattern_is_that_of_one_file(tmp_path, suffix):
    path = write(tmp_path / "[old]" / f"rows[1]{suffix}")
    for other in ("rows1", "rows["):
        write(tmp_path / "[old]" / f"{other}{suffix}", rows=3)
    write(tmp_path / "o" / f"rows1{suffix}", rows=3)
    assert len(read_table(path)) == 50
    assert len(list(stream_table(path))) == 50


def test_validation_is_the_same_for_every_seed_and_never_trained_on(tmp_path):
    path = str(write(tmp_path / "rows.csv"))
    one, other = load(path, seed=1), load(path, seed=2)
    assert one["validation"] == other["validation"]
    assert one["tune"] != other["tune"]
    assert load(path, ["train"], seed=1)["train"] == one["train"]
    assert load(path, ["validation"]) == {"validation": one["validation"]}


def test_at_most_so_many_rows_are_held_out():
    rows = Dataset.from_dict({"x": list(range(20_000))})
    kept, held = hold_out(rows, 0.2, VALIDATION_MAX_ROWS, seed=0)
    assert (len(kept), len(held)) == (18_000, 2_000)
    assert sorted(kept["x"][:] + held["x"][:]) == list(range(20_000))


def test_a_file_for_each_split(tmp_path):
    files = {"train": "a.csv", "validation": "b.jsonl", "tune": "c.parquet", "test": "d"}
    paths = {
        split: str(write(tmp_path / name, rows))
        for (split, name), rows in zip(files.items(), (9, 8, 7, 6), strict=True)
    }
    rows = load(paths, ["train", "validation", "tune", "test"])
    assert {split: len(found) for split, found in rows.items()} == {"train": 9, "validation": 8, "tune": 7, "test": 6}


def test_a_folder_of_split_files_under_their_usual_names(tmp_path):
    for name, rows in (("train.csv", 20), ("dev.csv", 8), ("test.csv", 6), ("notes.txt", None)):
        write(tmp_path / "mine" / name, rows) if rows else (tmp_path / "mine" / name).write_text("x")
    rows = load(str(tmp_path / "mine"), ["train", "validation", "tune", "test"])
    assert {split: len(found) for split, found in rows.items()} == {"train": 18, "tune": 2, "validation": 8, "test": 6}


def test_a_folder_of_several_splits_that_datasets_saved(tmp_path):
    table = Dataset.from_dict(COLUMNS)
    DatasetDict(train=table, valid=table.select(range(5))).save_to_disk(str(tmp_path / "saved"))
    rows = load(str(tmp_path / "saved"))
    assert [len(rows[split]) for split in ("train", "tune", "validation")] == [45, 5, 5]


def test_a_data_root_takes_the_place_of_files(tmp_path):
    write(tmp_path / "root" / "mine" / "validation.csv", 3)
    assert len(load("nowhere.csv", ["validation"], data_root=tmp_path / "root")["validation"]) == 3


def test_only_empty_cells_of_a_csv_are_missing(tmp_path):
    (tmp_path / "rows.csv").write_text("text,label\nNA,None\nnan,null\n,x\n")
    assert read_table(tmp_path / "rows.csv")[:] == {"text": ["NA", "nan", None], "label": ["None", "null", "x"]}


def test_a_byte_order_mark_is_no_part_of_a_name(tmp_path):
    (tmp_path / "rows.csv").write_bytes(b"\xef\xbb\xbftext,label\na,1\n")
    assert read_table(tmp_path / "rows.csv").column_names == ["text", "label"]


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("r.csv", b"text;label\na;1\nb;2\n", "its columns seem to be separated by semicolons"),
        (
            "r.csv",
            b"text\tlabel\na\t1\n",
            "separated by tabs. A .csv file has commas, a .tsv file tabs: save it so, or",
        ),
        ("r.tsv", b"text,label\na,1\n", "separated by commas"),
        (
            "r.csv",
            b"text,label\none, two,1\nthree, four,2\n",
            "its rows have more values than its first line has names",
        ),
        ("r.csv", b"text,text,label\na,b,1\n", "its first line names text more than once"),
        ("r.csv", "text,label\nna\u00efve,1\n".encode("cp1252"), "it is not UTF-8"),
        ("r.csv", "text,label\na,1\n".encode("utf-16"), "it is not UTF-8"),
        ("r.csv", b"text,label\n", "it has no rows"),
        ("r.csv", b"", "it is empty"),
        ("r.tsv", b"\n", "it is empty"),
        (
            "r.csv",
            b"text,label\na,1\none, two,1\n",
            "line 3 has 3 values, its first line 2 names. Put quotes around texts that hold a comma",
        ),
        (
            "r.json",
            b'{"version": 1, "data": [{"text": "a", "label": 1}, {"text": "b", "label": 0}]}',
            "it holds one object with the keys version, data, not a list of rows. Save the list under 'data' alone",
        ),
        ("r.json", b'{"text": {"0": "a"}, "label": {"0": 1}}', "Save the rows as a list, [{…}, {…}], or write one row"),
        ("r.jsonl", b"", "it is empty"),
        ("r.jsonl", b'{"text": "a", "label": 1}\n{"text": "b", "la\n', "JSON parse error"),
        ("r.csv", b"text,label\n" + b"a,1\n" * 12_000 + b"b,x\n", "numbers first and texts later"),
        ("r.parquet", b"PAR1 no", "cannot read"),
        ("r.xlsx", b"", "use one of .jsonl, .json, .csv, .tsv, .parquet, or a folder that `datasets` saved"),
    ],
)
def test_files_that_cannot_be_read_say_why(tmp_path, name, content, says):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError) as caught:
        OwnRows("mine", {"train": str(tmp_path / name)}).load("train")
    assert str(caught.value).startswith(f"task 'mine': cannot read {tmp_path / name}: ")
    assert says in str(caught.value)


@pytest.mark.parametrize("name", ["r.csv", "r.tsv"])
def test_an_empty_file_is_called_so_where_it_is_streamed(tmp_path, name):
    (tmp_path / name).write_text("")
    with pytest.raises(DataError, match=rf"^cannot read .*{name}: it is empty"):
        stream_table(tmp_path / name)


def test_paths_that_are_not_there_or_hold_nothing(tmp_path):
    write(tmp_path / "reviews.csv")
    with pytest.raises(
        DataError, match=r"task 'mine': no file .*rewiews.csv. Did you mean 'reviews.csv'\? Relative paths"
    ):
        OwnRows("mine", str(tmp_path / "rewiews.csv"))
    with pytest.raises(DataError, match=r"no file .*validaton.csv"):
        OwnRows("mine", {"train": str(tmp_path / "reviews.csv"), "validation": str(tmp_path / "validaton.csv")})
    with pytest.raises(DataError, match=r"holds no split: no file train.csv, "):
        find_splits(tmp_path)
    for name in ("dev.csv", "valid.csv"):
        write(tmp_path / name)
    with pytest.raises(DataError, match=r"dev.csv and .*valid.csv are both the split 'validation'"):
        find_splits(tmp_path)


def test_splits_that_are_not_there(tmp_path):
    path = str(write(tmp_path / "rows.csv"))
    with pytest.raises(
        DataError, match=r"no rows for split 'test': its files are those of train.*`files: \{test: PATH\}`"
    ):
        load(path, ["test"])
    with pytest.raises(DataError, match="no rows for split 'train': its files are those of test"):
        load({"test": path}, ["train"])
    few = str(write(tmp_path / "few.csv", 2))
    with pytest.raises(DataError, match="task 'mine': 2 rows are too few to hold some out for validation"):
        load(few)
    DatasetDict(train=Dataset.from_dict(COLUMNS)).save_to_disk(str(tmp_path / "saved"))
    with pytest.raises(DataError, match=r"holds several splits: train. Name one, as .*saved/train"):
        load({"train": str(tmp_path / "saved"), "validation": path})
