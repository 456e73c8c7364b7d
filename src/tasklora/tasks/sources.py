"""Where rows come from: files of a folder, files of one's own, or the Hugging Face hub by public name."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

import numpy as np

from tasklora.errors import DataError, did_you_mean, first_line, listing
from tasklora.tasks.spec import Split, TaskSpec
from tasklora.tasks.table_files import FILE_FORMATS, read_table, stream_table

if TYPE_CHECKING:
    import datasets

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
