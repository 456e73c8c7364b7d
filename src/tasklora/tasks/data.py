"""Rows of a task: from the Hugging Face hub by public name, or from local files with the same columns."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch.utils.data import Dataset as TorchDataset

from tasklora.errors import DataError, did_you_mean, listing
from tasklora.tasks.sources import Files, hold_out, source_of
from tasklora.tasks.spec import Split, TaskSpec

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
        rows: a ``datasets.Dataset`` with the task's columns.
        split: which split this is, for messages.

    Attributes:
        labels: (rows,) class ids or values, float64.

    Raises:
        DataError: on missing columns, no rows, inputs that are no text, or labels outside the head's range.
    """

    def __init__(self, name: str, spec: TaskSpec, rows: datasets.Dataset, split: Split) -> None:
        self.name = name
        self.spec = spec
        self.split = split
        where = f"task '{name}', split '{split}'"
        for column in [*spec.inputs, spec.label]:
            if column not in rows.column_names:
                raise DataError(
                    f"{where}: no column '{column}'.{did_you_mean(column, rows.column_names)} "
                    f"The file has: {listing(rows.column_names)}."
                )
        if len(rows) == 0:
            raise DataError(f"{where}: no rows.")
        self.rows = rows.select_columns([*spec.inputs, spec.label])
        self.labels = self._checked_labels(self.rows[spec.label], where)
        for column in spec.inputs:
            for index, value in enumerate(self.rows[column]):
                if not isinstance(value, str):
                    raise DataError(f"{where}, row {index}: column '{column}' holds {value!r}, not a text.")

    def _checked_labels(self, values: Any, where: str) -> np.ndarray[Any, np.dtype[np.float64]]:
        spec = self.spec
        class_id = class_ids(spec.labels or [])
        labels = np.empty(len(values), dtype=np.float64)
        for index, value in enumerate(values):
            label = class_id(value)
            if spec.kind == "classification":
                valid = isinstance(label, int) and 0 <= label < spec.num_outputs
                allowed = f"0 … {spec.num_outputs - 1} ({listing(spec.labels or [])})"
            else:
                low, high = spec.range or (-math.inf, math.inf)
                valid = isinstance(label, (int, float)) and math.isfinite(label) and low <= label <= high
                allowed = f"{low} … {high}"
            if not valid:
                raise DataError(
                    f"{where}, row {index}: label {value!r} is outside the head's range {allowed}. "
                    "Mend the row, or the task's labels."
                )
            labels[index] = label
        return labels

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        row = self.rows[int(index)]
        return {"texts": [row[column] for column in self.spec.inputs], "label": float(self.labels[index])}

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return (self[index] for index in range(len(self)))

    def fingerprint(self) -> str:
        """Return a short digest of the rows: their texts and labels, in order."""
        digest = hashlib.sha256(self.labels.tobytes())
        for column in self.spec.inputs:
            for text in self.rows[column]:
                digest.update(text.encode() + b"\0")
        return digest.hexdigest()[:16]

    def lengths(self) -> np.ndarray[Any, np.dtype[np.int64]]:
        """Return the length in characters of each row's longest text."""
        columns = [[len(text) for text in self.rows[column]] for column in self.spec.inputs]
        lengths: np.ndarray[Any, np.dtype[np.int64]] = np.asarray(columns).max(axis=0)
        return lengths

    def class_weights(self) -> torch.Tensor | None:
        """Return balanced class weights n / (C · n_c), (C,); None where the task asks for none.

        Raises:
            DataError: if a class has no row, so that its weight is undefined.
        """
        if self.spec.class_weights == "none":
            return None
        counts = np.bincount(self.labels.astype(int), minlength=self.spec.num_outputs)
        if (counts == 0).any():
            absent = [self.spec.labels[i] for i in np.flatnonzero(counts == 0)]  # type: ignore[index]
            raise DataError(
                f"task '{self.name}': class_weights 'balanced' needs rows of every class in train, none of: "
                f"{listing(absent)}. Use class_weights: none, or more rows."
            )
        return torch.tensor(len(self) / (self.spec.num_outputs * counts), dtype=torch.float32)


def class_ids(names: Sequence[str]) -> Callable[[Any], Any]:
    """Return the function that turns a class, written as its name or its id, into its id.

    Whole numbers are ids, unless all classes are called by whole numbers: of labels ["1", "2"], 1 is the first class.
    True and False are the ids 1 and 0. What is neither name nor number comes back as it is.
    """
    ids: dict[Any, int] = {name: index for index, name in enumerate(names)}
    numbered = bool(names) and all(name.removeprefix("-").isdecimal() for name in names)

    def class_id(value: Any) -> Any:
        if isinstance(value, bool) or not names:
            return value
        if isinstance(value, float) and value.is_integer():  # what pandas makes of whole numbers if one is missing
            value = int(value)
        written = str(value) if numbered else value
        return ids.get(written, written) if isinstance(written, str) else written

    return class_id


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
) -> TaskData:
    """Load the splits of several tasks.

    Where a task has no ``tune`` split, a seeded tenth of train (at most 1,000 rows) is held out for it, whichever
    splits are asked for: ``train`` never holds a row of ``tune``.

    Args:
        specs: name → task.
        splits: which splits to load.
        data_root: folder with ``TASK/SPLIT.jsonl`` (or .json, .csv, .parquet); None takes the task's `files`,
            else loads from the hub.
        limits: split → number of rows per task. Rows of train and tune are drawn by `seed`; those of validation and
            test are the same whatever the seed, so that runs of several seeds are scored on the same rows.
        seed: of the hold-out and the draw.
        files: task name → files of its own.

    Raises:
        DataError: naming the missing file, column or row.
    """
    loaded: dict[str, dict[Split, TaskRows]] = {}
    for name, spec in specs.items():
        source = source_of(name, spec, data_root, files or {})
        held_out = not source.has("tune")
        raw = {split: source.load(split) for split in splits if split != "tune" or not held_out}
        if held_out and ("train" in splits or "tune" in splits):
            train = raw["train"] if "train" in raw else source.load("train")
            raw["train"], raw["tune"] = hold_out(train, TUNE_FRACTION, TUNE_MAX_ROWS, seed)
        loaded[name] = {}
        for split in splits:
            limit = (limits or {}).get(split)
            draw_seed = seed if split in ("train", "tune") else EVALUATION_SEED
            loaded[name][split] = TaskRows(name, spec, _draw(raw[split], limit, draw_seed), split)
    return TaskData(specs, loaded)


def _draw(rows: datasets.Dataset, limit: int | None, seed: int) -> datasets.Dataset:
    if limit is None or limit >= len(rows):
        return rows
    return rows.select(np.random.default_rng(seed).permutation(len(rows))[:limit])
