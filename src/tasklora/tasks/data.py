"""Rows of a task: from the Hugging Face hub by public name, or from local files with the same columns."""

from __future__ import annotations

import functools
import hashlib
import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from torch.utils.data import Dataset as TorchDataset

from tasklora.errors import DataError, counted, listing
from tasklora.tasks.formats import FORMATS
from tasklora.tasks.kinds import KINDS, WrongValueError, require_columns
from tasklora.tasks.ragged import count, padded, unpadded
from tasklora.tasks.sources import (
    FEWEST_ROWS,
    VALIDATION_FRACTION,
    VALIDATION_MAX_ROWS,
    VALIDATION_SEED,
    Files,
    Rows,
    hold_out,
    source_of,
)
from tasklora.tasks.spec import Part, Split, TaskSpec
from tasklora.tasks.streaming import PLACE, Passes, StreamedSource, Streaming, check_streamed

if TYPE_CHECKING:
    import datasets

TUNE_FRACTION = 0.1
TUNE_MAX_ROWS = 1000
EVALUATION_SEED = 0


class TaskRows(TorchDataset[dict[str, Any]]):
    """The rows of one split of one task, checked.

    Args:
        name: the task's name.
        spec: the task.
        rows: a ``datasets.Dataset`` with the task's columns, one row per row of the task (:func:`arranged`); messages
            name a row by its place in it, or by :data:`PLACE` where it has this column.
        split: which split this is, for messages.
        keep: further columns that rows come with, as templates read them.

    Attributes:
        labels: (rows,) class ids or values; (rows, V) where a row has several, NaN where it has fewer. float64. Of a
            task whose labels are texts, (rows,) of these.
        streamed: whether training draws rows in the order in which they are read, and others than these.

    Raises:
        DataError: on missing columns, no rows, inputs that are not what the kind reads, or labels outside the head's
            range.
    """

    streamed: ClassVar[bool] = False

    def __init__(
        self, name: str, spec: TaskSpec, rows: datasets.Dataset, split: Split, keep: Sequence[str] = ()
    ) -> None:
        self.name = name
        self.spec = spec
        self.split = split
        self.keep = list(keep)
        self.kind = KINDS[spec.kind]
        where = _where(name, split)
        columns = self.kind.text_columns(spec)
        require_columns(rows, [*columns, spec.label, *keep], where)
        if len(rows) == 0:
            raise DataError(f"{where}: no rows.")
        self.rows = rows.select_columns(list(dict.fromkeys([*columns, spec.label, *keep])))
        places = rows[PLACE] if PLACE in rows.column_names else range(len(rows))
        labels = []
        for place, *values, label in zip(places, *(rows[column] for column in [*columns, spec.label]), strict=True):
            try:
                labels.append(self.kind.label(spec, label, self.kind.texts(spec, values)))
            except WrongValueError as error:
                raise DataError(f"{where}, row {place}: {error}") from None
        self.labels = padded(labels)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        row = self.rows[int(index)]
        texts = self.kind.texts(self.spec, [row[column] for column in self.kind.text_columns(self.spec)])
        return self._loaded(texts, self.labels[index], row)

    def _loaded(self, texts: list[str], label: Any, row: Mapping[str, Any]) -> dict[str, Any]:
        loaded: dict[str, Any] = {"texts": texts, "label": unpadded(label, count(label))}
        if self.keep:
            loaded["columns"] = {column: row[column] for column in self.keep}
        return loaded

    @property
    def size(self) -> int | None:
        """How many rows there are to train on; None if that is unknown."""
        return len(self)

    def drawn(self, place: int) -> dict[str, Any]:
        """Return the row that training draws at a place."""
        return self[place]

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return (self[index] for index in range(len(self)))

    def texts(self) -> Iterator[list[str]]:
        """Return the texts of every row."""
        columns = [self.rows[column] for column in self.kind.text_columns(self.spec)]
        return (self.kind.texts(self.spec, values) for values in zip(*columns, strict=True))

    def fingerprint(self) -> str:
        """Return a short digest of the rows: their texts and labels, in order."""
        texts = self.labels.dtype == object
        digest = hashlib.sha256(repr(self.labels.tolist()).encode() if texts else self.labels.tobytes())
        for kept in self.keep:
            digest.update(repr(self.rows[kept][:]).encode())
        for column in itertools.zip_longest(*self.texts()):
            for text in column:  # a row that has fewer texts than others has something here that is no text
                digest.update(b"\xff" if text is None else text.encode() + b"\0")
        return digest.hexdigest()[:16]

    def lengths(self) -> np.ndarray[Any, np.dtype[np.int64]]:
        """Return the length in characters of the longest sequence that the encoder reads of each row."""
        return np.array([self.kind.length(texts) for texts in self.texts()], dtype=np.int64)

    def class_weights(self) -> torch.Tensor | None:
        """Return balanced class weights, (C,), n / (C · n_c) or what the kind has for it; None without.

        Raises:
            DataError: if a class has no row, so that its weight is undefined.
        """
        if self.spec.class_weights == "none":
            return None
        counts = self.kind.counts(self.spec, self.labels)
        if (counts == 0).any():
            absent = [self.spec.labels[i] for i in np.flatnonzero(counts == 0)]  # type: ignore[index]
            raise DataError(
                f"task '{self.name}': class_weights 'balanced' needs rows of every class in train, none of: "
                f"{listing(absent)}. Use class_weights: none, or more rows."
            )
        return torch.tensor(self.kind.balanced_weights(self.spec, self.labels), dtype=torch.float32)


class StreamedRows(TaskRows):
    """The training rows of a task that are streamed: the first ones, checked, and the way to all of them.

    What is known before training is known of the first rows: labels, digest, class weights, a sample. Every other row
    is checked when it comes.

    Args:
        name: the task's name.
        spec: the task.
        first: those of the first rows that are not held out.
        source: reads the others.
        seed: of their order.
        keep: further columns that rows come with.
    """

    streamed: ClassVar[bool] = True

    def __init__(
        self,
        name: str,
        spec: TaskSpec,
        first: datasets.Dataset,
        source: StreamedSource,
        seed: int,
        keep: Sequence[str] = (),
    ) -> None:
        super().__init__(name, spec, first, "train", keep)
        left_out = frozenset(range(len(source.first))) - frozenset(first[PLACE])
        self._size = source.size(len(left_out))
        self._passes = Passes(
            functools.partial(source.read, self.rows.column_names),
            left_out,
            source.streaming.buffer,
            seed,
            _where(name, "train"),
            self._size,
        )

    @property
    def size(self) -> int | None:
        """How many rows there are to train on, as the recipe says; None if that is unknown."""
        return self._size

    def drawn(self, place: int) -> dict[str, Any]:
        """Return the row at a place of the stream, which has no end; forward is fast, back is not.

        Raises:
            DataError: naming the row, if it is none of the task, or cannot be read.
        """
        number, row = self._passes[place]
        try:
            texts = self.kind.texts(self.spec, [row[column] for column in self.kind.text_columns(self.spec)])
            label = padded([self.kind.label(self.spec, row[self.spec.label], texts)])[0]
        except WrongValueError as error:
            raise DataError(
                f"{_where(self.name, 'train')}, row {number}: {error} The last checkpoint is kept: mend the row where "
                "it stands and go on with --resume."
            ) from None
        return self._loaded(texts, label, row)


@dataclass(frozen=True)
class TaskData:
    """All rows of a set of tasks: name → split → rows."""

    specs: Mapping[str, TaskSpec]
    splits: Mapping[str, Mapping[Split, TaskRows]]

    @property
    def names(self) -> list[str]:
        """Task names in the order of their ids."""
        return list(self.specs)

    def split(self, split: Split) -> dict[str, TaskRows]:
        """Return the rows of one split of every task that has it."""
        return {name: rows[split] for name, rows in self.splits.items() if split in rows}


def load_tasks(
    specs: Mapping[str, TaskSpec],
    splits: list[Split],
    data_root: str | Path | None = None,
    limits: Mapping[Split, int] | None = None,
    seed: int = 0,
    files: Mapping[str, Files] | None = None,
    keep: Mapping[str, Sequence[str]] | None = None,
    streaming: Mapping[str, Streaming] | None = None,
) -> TaskData:
    """Load the splits of several tasks.

    Where a task has no ``tune`` split, a seeded tenth of train (at most 1,000 rows) is held out for it, whichever
    splits are asked for: ``train`` never holds a row of ``tune``. Of `files` without ``validation``, a fifth of train
    (at most 2,000 rows) is held out for it before, the same whatever the seed.

    Args:
        specs: name → task.
        splits: which splits to load.
        data_root: folder with ``TASK/SPLIT.jsonl`` (or .json, .csv, .parquet); None takes the task's `files`,
            else loads from the hub.
        limits: split → number of rows per task. Rows of train and tune are drawn by `seed`; those of validation and
            test are the same whatever the seed, so that runs of several seeds are scored on the same rows.
        seed: of the hold-out and the draw.
        files: task name → files of its own.
        keep: task name → further columns that its rows come with.
        streaming: task name → how its training rows are streamed: those of tune (and of validation, where it is held
            out) are drawn from the first ones.

    Raises:
        DataError: naming the missing file, column or row.
        ConfigError: if rows that are to be streamed cannot be.
    """
    for name in streaming or {}:
        check_streamed(name, specs[name], (limits or {}).get("train"))
    loaded: dict[str, dict[Split, TaskRows]] = {}
    for name, spec in specs.items():
        streams = (streaming or {}).get(name)
        source = source_of(name, spec, data_root, files or {}, streams is not None)
        stream = None if streams is None else StreamedSource(name, source, streams)
        source = stream or source
        held_out = "tune" not in spec.splits and not source.has("tune")
        raw = {split: _load(source, name, spec, split) for split in splits if split != "tune" or not held_out}
        if held_out and ("train" in splits or "tune" in splits):
            train = raw["train"] if "train" in raw else _load(source, name, spec, "train")
            if len(train) == 1:
                raise DataError(
                    f"task '{name}': its one training row cannot be held out for tune as well. Give it more rows, or "
                    "rows of its own for tune."
                )
            raw["train"], raw["tune"] = hold_out(train, TUNE_FRACTION, TUNE_MAX_ROWS, seed)
        loaded[name] = {}
        for split in splits:
            limit = (limits or {}).get(split)
            draw_seed = seed if split in ("train", "tune") else EVALUATION_SEED
            rows = _draw(raw[split], limit, draw_seed)
            if split == "train":
                rows = KINDS[spec.kind].for_training(spec, rows)
            columns = (keep or {}).get(name, ())
            loaded[name][split] = (
                TaskRows(name, spec, rows, split, columns)
                if stream is None or split != "train"
                else StreamedRows(name, spec, rows, stream, seed, columns)
            )
    return TaskData(specs, loaded)


def arranged(name: str, spec: TaskSpec, rows: datasets.Dataset, split: Split) -> datasets.Dataset:
    """Return a table with the task's columns and one row per row of the task, of a table as it is kept.

    Args:
        name: the task's name, for messages.
        spec: the task: its format, and its kind, which may gather several rows into one.
        rows: as read.
        split: which split this is, for messages.

    Raises:
        DataError: naming a missing column or the row that cannot be used.
    """
    where = _where(name, split)
    if spec.format is not None:
        rows = FORMATS[spec.format](rows, where)
    return KINDS[spec.kind].arranged(spec, rows, where)


def _arranged(source: Rows, name: str, spec: TaskSpec, split: Split) -> datasets.Dataset:
    """Return the rows of a split with the column :data:`PLACE`: whatever is drawn of them, messages name them by it."""
    rows = arranged(name, spec, source.load(split), split)
    return rows if PLACE in rows.column_names else rows.add_column(PLACE, np.arange(len(rows)))


def _where(name: str, split: Split) -> str:
    return f"task '{name}', split '{split}'"


def _load(source: Rows, name: str, spec: TaskSpec, split: Split) -> datasets.Dataset:
    """Return the rows of a split, taken from another one where the suite says that it is a part of it.

    Of a source that lacks validation, rows are held out of train for it: the same ones whatever the run's seed.
    """
    part = spec.splits.get(split)
    if part is None and split in ("train", "validation") and not spec.splits and source.holds_out_validation:
        rows = _arranged(source, name, spec, "train")
        if len(rows) < FEWEST_ROWS:
            few = f"{counted(len(rows), 'row')} {'is' if len(rows) == 1 else 'are'}"
            raise DataError(
                f"task '{name}': {few} too few to hold some out for validation. Add rows, or name a "
                "file for it: `files: {validation: PATH}`."
            )
        train, validation = hold_out(rows, VALIDATION_FRACTION, VALIDATION_MAX_ROWS, VALIDATION_SEED)
        return train if split == "train" else validation
    if part is None:
        return _arranged(source, name, spec, split)
    rows = _arranged(source, name, spec, part.of)
    require_columns(rows, spec.inputs, _where(name, split))
    return rows.select(_part(spec, rows, part))


def _part(spec: TaskSpec, rows: datasets.Dataset, part: Part) -> list[int]:
    """Return the rows of a part, in their order; rows with the same input are where the first of them is."""
    begin, end = (round(share * len(rows)) for share in part.part)
    first: dict[str, int] = {}
    inputs = zip(*(rows[column] for column in spec.inputs), strict=True)
    return [index for index, values in enumerate(inputs) if begin <= first.setdefault(repr(values), index) < end]


def _draw(rows: datasets.Dataset, limit: int | None, seed: int) -> datasets.Dataset:
    if limit is None or limit >= len(rows):
        return rows
    return rows.select(np.random.default_rng(seed).permutation(len(rows))[:limit])
