"""Tables as files: CSV, JSON, Parquet, and folders that `datasets` saved; what is wrong with one is said."""

from __future__ import annotations

import glob
import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tasklora.errors import DataError, first_line, listing

if TYPE_CHECKING:
    import datasets

FILE_FORMATS = {".jsonl": "json", ".json": "json", ".csv": "csv", ".tsv": "csv", ".parquet": "parquet"}
_EMPTY = "it is empty. Put rows into it, or name another file."
_SURPLUS = "Put quotes around texts that hold a comma (in a .tsv file, a tab), or name every column."


def read_table(path: Path, where: str = "") -> datasets.Dataset:
    """Return the rows of a file whose suffix is in :data:`FILE_FORMATS`, or of a folder that `datasets` saved.

    Of a CSV file, only empty cells are missing values: "NA" and "None" are texts.

    Args:
        path: the file or folder.
        where: what an error message begins with.

    Raises:
        DataError: if it cannot be read, or a CSV file's columns are not those that its first line names.
    """
    from datasets import Dataset
    from datasets.arrow_writer import SchemaInferenceError
    from datasets.exceptions import DatasetGenerationError

    readers = {"json": Dataset.from_json, "csv": Dataset.from_csv, "parquet": Dataset.from_parquet}
    if path.is_dir():
        return _saved_rows(path, where)
    options = _options(path, where)
    if path.suffix == ".json":
        _check_rows(path, where)
    try:
        rows = readers[FILE_FORMATS[path.suffix]](glob.escape(str(path)), **options)
    except (StopIteration, DatasetGenerationError, ValueError, OSError) as error:
        # What datasets says of a file without content; older ones miss what to infer columns from.
        if isinstance(error, StopIteration) or isinstance(error.__cause__, SchemaInferenceError):
            raise DataError(f"{where}cannot read {path}: {_EMPTY}") from None
        raise DataError(f"{where}cannot read {path}: {why_unread(error)}") from None
    if options:
        _check_columns(path, options["sep"], rows.column_names, where)
    return rows


def stream_table(path: Path, where: str = "") -> datasets.IterableDataset:
    """Return what :func:`read_table` returns, read anew at every iteration and never held whole.

    Args:
        path: the file or folder.
        where: what an error message begins with.

    Raises:
        DataError: if it cannot be read, or only whole; rows after the first ones are read later.
    """
    from datasets import load_dataset

    if path.is_dir():
        return _saved_rows(path, where).to_iterable_dataset()
    options = _options(path, where)
    if path.suffix == ".json":
        raise DataError(f"{where}cannot stream {path}: a list in a .json file is read whole. Write it as .jsonl.")
    try:
        file = glob.escape(str(path))  # to `datasets`, data[1].csv is a pattern that data1.csv fits
        rows = load_dataset(FILE_FORMATS[path.suffix], data_files=file, split="train", streaming=True, **options)
        columns = list(next(rows.iter(batch_size=1)))  # plain `iter` would share the rows out among loading workers
    except StopIteration:
        raise DataError(f"{where}cannot read {path}: it has no rows.") from None
    except Exception as error:  # streams raise what the readers do, not what `datasets` makes of it
        raise DataError(f"{where}cannot read {path}: {why_unread(error)}") from None
    if options:
        _check_columns(path, options["sep"], columns, where)
    return rows


def _options(path: Path, where: str) -> dict[str, Any]:
    """Return how a file is read; none but for CSV.

    Raises:
        DataError: if its suffix is unknown.
    """
    if path.suffix not in FILE_FORMATS:
        raise DataError(
            f"{where}cannot read {path}: use one of {', '.join(FILE_FORMATS)}, or a folder that `datasets` saved."
        )
    if FILE_FORMATS[path.suffix] != "csv":
        return {}
    return {"keep_default_na": False, "na_values": [""], "sep": "\t" if path.suffix == ".tsv" else ","}


def why_unread(error: Exception) -> str:
    """Return what an error of a library says of a file, in words that say what to do where it is a known one."""
    cause = error.__cause__ or error
    if "No columns to parse" in str(cause):  # what pandas says of a CSV file without content
        return _EMPTY
    surplus = re.search(r"Expected (\d+) fields in line (\d+), saw (\d+)", str(cause))
    if surplus is not None:
        names, line, values = surplus.groups()
        return f"line {line} has {values} values, its first line {names} names. {_SURPLUS}"
    if isinstance(cause, UnicodeDecodeError):
        return f"it is not UTF-8 ({first_line(cause)}). Save it as UTF-8."
    if "corresponds to no data" in str(cause):
        return "it has no rows."
    if "Failed to parse string" in str(cause):
        return f"a column holds numbers first and texts later ({first_line(cause)}). Put such a file into .jsonl."
    return first_line(cause)


def _check_rows(path: Path, where: str) -> None:
    """Raise DataError if a JSON file holds one object that has the rows somewhere inside."""
    try:
        with path.open(encoding="utf-8-sig") as file:
            if not file.read(1000).lstrip().startswith("{"):
                return
        text = path.read_text(encoding="utf-8-sig").strip()
        found, end = json.JSONDecoder().raw_decode(text)
    except (ValueError, OSError):
        return  # the reader says what is wrong
    if not isinstance(found, dict) or end < len(text):
        return
    lists = [key for key, value in found.items() if isinstance(value, list) and value and isinstance(value[0], dict)]
    if lists or any(isinstance(value, dict) for value in found.values()):
        rows = f"Save the list under '{lists[0]}' alone" if lists else "Save the rows as a list, [{…}, {…}]"
        raise DataError(
            f"{where}cannot read {path}: it holds one object with the keys {listing(found)}, not a list of rows. "
            f"{rows}, or write one row per line as .jsonl."
        )


def _check_columns(path: Path, separator: str, columns: list[str], where: str) -> None:
    """Raise DataError if a CSV file's rows have not as many values as its first line has names, or names repeat."""
    import csv

    with path.open(encoding="utf-8-sig", newline="") as file:
        names = next(csv.reader(file, delimiter=separator), [])
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise DataError(f"{where}cannot read {path}: its first line names {listing(twice)} more than once. Rename one.")
    other = next((mark for mark in ";\t|," if len(names) == 1 and mark != separator and mark in names[0]), None)
    if other is not None:
        marks = {";": "semicolons", "\t": "tabs", "|": "bars", ",": "commas"}
        raise DataError(
            f"{where}cannot read {path}: its columns seem to be separated by {marks[other]}. A .csv file has commas, a "
            ".tsv file tabs: save it so" + (", or call it .tsv." if other == "\t" else ".")
        )
    if any(name.startswith("__index_level_") for name in columns):  # where pandas puts surplus values
        raise DataError(
            f"{where}cannot read {path}: its rows have more values than its first line has names. {_SURPLUS}"
        )


def _saved_rows(path: Path, where: str) -> datasets.Dataset:
    from datasets import Dataset, load_from_disk

    try:
        rows = load_from_disk(str(path))
    except (ValueError, OSError) as error:
        raise DataError(f"{where}cannot read {path} as a saved `datasets` folder: {first_line(error)}") from None
    if not isinstance(rows, Dataset):
        raise DataError(f"{where}{path} holds several splits: {listing(rows)}. Name one, as {path / next(iter(rows))}.")
    return rows
