"""Where rows come from: files of a folder, files of one's own, or the Hugging Face hub by public name."""

from __future__ import annotations

import contextlib
import functools
import glob
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

import numpy as np

from tasklora.errors import DataError, did_you_mean, first_line, listing
from tasklora.tasks.spec import Split, TaskSpec

if TYPE_CHECKING:
    import datasets

FILE_FORMATS = {".jsonl": "json", ".json": "json", ".csv": "csv", ".tsv": "csv", ".parquet": "parquet"}
SPLIT_WORDS: dict[str, Split] = {
    "train": "train",
    "training": "train",
    "tune": "tune",
    "validation": "validation",
    "valid": "validation",
    "val": "validation",
    "dev": "validation",
    "test": "test",
}
VALIDATION_FRACTION = 0.2
VALIDATION_MAX_ROWS = 2000
VALIDATION_SEED = 0
FEWEST_ROWS = 3  # one each to train on, to tune with and to validate on

Files: TypeAlias = dict[Split, str] | str
"""Where a task's rows are: a path, or a path for each split."""


class Rows(Protocol):
    """A source of one task's rows.

    Attributes:
        holds_out_validation: whether validation is to be held out of train.
    """

    @property
    def holds_out_validation(self) -> bool:
        """See the class."""

    def has(self, split: Split) -> bool:
        """Return whether the split can be loaded."""

    def load(self, split: Split) -> datasets.Dataset:
        """Return the rows of a split."""

    def stream(self, split: Split) -> datasets.IterableDataset:
        """Return the rows of a split, read anew at every iteration and never held whole."""


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
    try:
        rows = readers[FILE_FORMATS[path.suffix]](glob.escape(str(path)), **options)
    except (StopIteration, DatasetGenerationError, ValueError, OSError) as error:
        # What datasets says of a file without content; older ones miss what to infer columns from.
        if isinstance(error, StopIteration) or isinstance(error.__cause__, SchemaInferenceError):
            raise DataError(f"{where}cannot read {path}: it is empty.") from None
        raise DataError(f"{where}cannot read {path}: {_cause(error)}") from None
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
        raise DataError(f"{where}cannot read {path}: {_cause(error)}") from None
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
    csv = {"keep_default_na": False, "na_values": [""], "sep": "\t" if path.suffix == ".tsv" else ","}
    return csv if FILE_FORMATS[path.suffix] == "csv" else {}


def _cause(error: Exception) -> str:
    cause = error.__cause__ or error
    if isinstance(cause, UnicodeDecodeError):
        return f"it is not UTF-8 ({first_line(cause)}). Save it as UTF-8."
    if "corresponds to no data" in str(cause):
        return "it has no rows."
    if "Failed to parse string" in str(cause):
        return f"a column holds numbers first and texts later ({first_line(cause)}). Put such a file into .jsonl."
    return first_line(cause)


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
            f"{where}cannot read {path}: its rows have more values than its first line has names. Put quotes around "
            "texts that hold a comma, or name every column."
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


def hold_out(
    rows: datasets.Dataset, fraction: float, most: int, seed: int
) -> tuple[datasets.Dataset, datasets.Dataset]:
    """Return (rows that stay, rows held out), both in their order; which ones is drawn by `seed`.

    Args:
        rows: all of them.
        fraction: share that is held out, at least one row.
        most: rows held out at most.
        seed: of the draw.
    """
    order = np.random.default_rng(seed).permutation(len(rows))
    held = max(1, min(most, int(len(rows) * fraction)))
    return rows.select(np.sort(order[held:])), rows.select(np.sort(order[:held]))


def is_saved_dataset(folder: Path) -> bool:
    """Return whether `datasets` saved one split here (``Dataset.save_to_disk``)."""
    return (folder / "state.json").is_file() and (folder / "dataset_info.json").is_file()


def find_splits(path: Path, where: str = "") -> dict[Split, Path]:
    """Return where each split's rows are: of a file, of a folder that `datasets` saved, or of a folder of split files.

    Split files are called by a word of :data:`SPLIT_WORDS`: ``train.csv``, ``dev.jsonl``, …

    Raises:
        DataError: if there is nothing of the kind, or two files for one split.
    """
    if path.is_file() or is_saved_dataset(path):
        return {"train": path}
    if not path.is_dir():
        siblings = [p.name for p in path.parent.iterdir()] if path.parent.is_dir() else []
        raise DataError(
            f"{where}no file {path}.{did_you_mean(path.name, siblings)} Relative paths begin at the folder that "
            "tasklora is started in."
        )
    found: dict[Split, Path] = {}
    saved = (path / "dataset_dict.json").is_file()
    for place in sorted(path.iterdir()):
        if not (is_saved_dataset(place) if saved else place.is_file() and place.suffix in FILE_FORMATS):
            continue
        split = SPLIT_WORDS.get(place.stem.lower())
        if split is None:
            continue
        if split in found:
            raise DataError(f"{where}{found[split]} and {place} are both the split '{split}'. Name the file to take.")
        found[split] = place
    if not found:
        raise DataError(
            f"{where}{path} holds no split: no file {listing(w + '.csv' for w in SPLIT_WORDS)} (or "
            f"{', '.join(suffix for suffix in FILE_FORMATS if suffix != '.csv')}), and `datasets` saved nothing there."
        )
    return found


class OwnRows:
    """Rows of a task of one's own: a file, a file for each split, or a folder; see :func:`find_splits`.

    Where there is no ``validation``, some of the rows of train are held out for it, when a task's rows are loaded.
    """

    def __init__(self, name: str, files: Files) -> None:
        self.where = f"task '{name}': "
        self._read = functools.cache(read_table)  # train is asked for twice where validation is held out of it
        if isinstance(files, str):
            self.paths = find_splits(Path(files), self.where)
        else:
            self.paths = {split: Path(path) for split, path in files.items()}
            for path in self.paths.values():
                if not path.exists():
                    find_splits(path, self.where)  # says that there is none, and what is near

    @property
    def holds_out_validation(self) -> bool:
        """Whether there is none, but there are rows to train on."""
        return "validation" not in self.paths and "train" in self.paths

    def has(self, split: Split) -> bool:
        """Return whether the split has rows of its own."""
        return split in self.paths

    def load(self, split: Split) -> datasets.Dataset:
        """Return the rows of a split."""
        return self._read(self._path(split), self.where)

    def stream(self, split: Split) -> datasets.IterableDataset:
        """Return the rows of a split, read anew at every iteration."""
        return stream_table(self._path(split), self.where)

    def _path(self, split: Split) -> Path:
        if split not in self.paths:
            raise DataError(
                f"{self.where}no rows for split '{split}': its files are those of {listing(self.paths)}. Name a file "
                f"for it: `files: {{{split}: PATH}}`."
            )
        return self.paths[split]


class LocalRows:
    """Files ``SPLIT.jsonl`` (or .json, .csv, .tsv, .parquet) in a task's folder."""

    holds_out_validation = False

    def __init__(self, name: str, folder: Path) -> None:
        self.folder = folder
        self.name = name
        if not folder.is_dir():
            siblings = [p.name for p in folder.parent.iterdir() if p.is_dir()] if folder.parent.is_dir() else []
            raise DataError(
                f"task '{name}': no folder {folder}.{did_you_mean(name, siblings)} "
                "Expected DATA_ROOT/TASK/{train,tune,validation}.jsonl."
            )

    def _file(self, split: Split) -> Path | None:
        return next((p for suffix in FILE_FORMATS if (p := self.folder / f"{split}{suffix}").is_file()), None)

    def has(self, split: Split) -> bool:
        """Return whether the split has a file."""
        return self._file(split) is not None

    def load(self, split: Split) -> datasets.Dataset:
        """Return the rows of a split."""
        return read_table(self._path(split), f"task '{self.name}': ")

    def stream(self, split: Split) -> datasets.IterableDataset:
        """Return the rows of a split, read anew at every iteration."""
        return stream_table(self._path(split), f"task '{self.name}': ")

    def _path(self, split: Split) -> Path:
        path = self._file(split)
        if path is None:
            raise DataError(
                f"task '{self.name}': no file for split '{split}' in {self.folder} "
                f"(looked for {', '.join(split + suffix for suffix in FILE_FORMATS)})."
            )
        return path


class HubRows:
    """A data set on the Hugging Face hub, by its public name.

    Args:
        name: the task's name.
        spec: the task.
        streaming: never prepare the whole data set, but read the rows of a split as they come.
    """

    holds_out_validation = False

    def __init__(self, name: str, spec: TaskSpec, streaming: bool = False) -> None:
        if spec.hub is None:
            raise DataError(
                f"task '{name}' has no public source: give its files with --data-root DIR, or `files` in the recipe."
            )
        self.hub = spec.hub
        self.name = name
        self.streaming = streaming

    def has(self, split: Split) -> bool:
        """Return whether the data set names the split; `tune` never stands on the hub unless the suite says so."""
        return split in self.hub.splits or split != "tune"

    def load(self, split: Split) -> datasets.Dataset:
        """Return the rows of a split."""
        from datasets import Dataset

        with self._explained(split):
            if self.streaming:
                rows = self.stream(split)
                return Dataset.from_list(list(rows), features=rows.features)
            loaded: Dataset = self._loaded(split, streaming=False)
            return loaded

    def stream(self, split: Split) -> datasets.IterableDataset:
        """Return the rows of a split, read anew at every iteration."""
        with self._explained(split):
            rows: datasets.IterableDataset = self._loaded(split, streaming=True)
            return rows

    def _loaded(self, split: Split, streaming: bool) -> Any:
        from datasets import load_dataset

        hub = self.hub
        name = hub.splits.get(split, split)
        return load_dataset(hub.path, hub.config, split=name, revision=hub.revision, streaming=streaming)

    @contextlib.contextmanager
    def _explained(self, split: Split) -> Iterator[None]:
        try:
            yield
        except DataError:
            raise
        except Exception as error:  # the hub raises many kinds; all mean that the rows are not to be had
            raise DataError(
                f"task '{self.name}': cannot load '{self.hub.path}' ({self.hub.config or 'default'}, {split}) from the "
                f"hub: {first_line(error)} Give local files with --data-root DIR instead."
            ) from error


def source_of(
    name: str, spec: TaskSpec, data_root: str | Path | None, files: Mapping[str, Files], streaming: bool = False
) -> Rows:
    """Return where a task's rows come from: the folder `data_root`, else files of its own, else the hub.

    Args:
        name: the task's name.
        spec: the task.
        data_root: the folder.
        files: task name → files of its own.
        streaming: whether its training rows will be streamed.

    Raises:
        DataError: if there is nothing.
    """
    if data_root is not None:
        return LocalRows(name, Path(data_root) / name)
    return OwnRows(name, files[name]) if name in files else HubRows(name, spec, streaming)
