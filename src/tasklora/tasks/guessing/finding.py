"""From paths to proposed tasks: which files belong together, what each task is taken for, what is left out and why."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tasklora.errors import ConfigError, DataError, counted, did_you_mean, first_line, listing
from tasklora.tasks.guessing.answers import doubtful
from tasklora.tasks.guessing.columns import Column, look_at, merged
from tasklora.tasks.guessing.guess import Guess
from tasklora.tasks.guessing.roles import Said, Table, check_finite
from tasklora.tasks.guessing.rules import guess_task
from tasklora.tasks.sources import (
    FEWEST_ROWS,
    SPLIT_WORDS,
    VALIDATION_FRACTION,
    VALIDATION_MAX_ROWS,
    Files,
    find_splits,
    is_saved_dataset,
)
from tasklora.tasks.spec import SPLITS, Split
from tasklora.tasks.table_files import FILE_FORMATS, read_table

if TYPE_CHECKING:
    import datasets

HUB = "hub:"
_WORDS = "|".join(SPLIT_WORDS)
_AFTER = re.compile(rf"(?P<base>.*?)[-_. ]?(?<![a-z])(?P<word>{_WORDS})", re.IGNORECASE)
_BEFORE = re.compile(rf"(?P<word>{_WORDS})[-_. ](?P<base>.*)", re.IGNORECASE)


@dataclass(frozen=True)
class Place:
    """Where one task's rows are: files for splits, or a public name.

    Attributes:
        shown: as in messages.
        files: split → path; "train" alone for one file.
        hub: fields of a :class:`~tasklora.tasks.spec.HubSource`.
    """

    shown: str
    files: Mapping[Split, Path] = field(default_factory=dict)
    hub: Mapping[str, Any] | None = None


@dataclass(frozen=True)
class Proposal:
    """A task as it is proposed.

    Attributes:
        task: its name.
        place: where its rows are; only the splits that are used.
        guess: what it is taken for.
        rows: split → rows, of the splits that have files.
        notes: what else was noticed, in plain words.
    """

    task: str
    place: Place
    guess: Guess
    rows: Mapping[Split, int]
    notes: tuple[str, ...] = ()

    @property
    def files(self) -> Files | None:
        """What a recipe says under `files`."""
        if self.place.hub is not None:
            return None
        if list(self.place.files) == ["train"]:
            return str(self.place.files["train"])
        return {split: str(path) for split, path in self.place.files.items()}

    @property
    def train_rows(self) -> int:
        """Rows that are left to train and tune on."""
        return self.rows["train"] - (0 if "validation" in self.rows else self.held_out)

    @property
    def held_out(self) -> int:
        """Rows held out of train for validation where no file has them."""
        return max(1, min(VALIDATION_MAX_ROWS, int(self.rows["train"] * VALIDATION_FRACTION)))


def find_tasks(paths: Sequence[str]) -> tuple[dict[str, Place], list[str]]:
    """Return the tasks that paths hold, by name, and what was passed over.

    A file is a task, a folder with a file for each split is one, so is a folder that `datasets` saved; of any other
    folder, its files and its subfolders are tasks. Files whose names differ by a word such as ``train`` or ``dev`` are
    splits of one task. ``hub:NAME`` or ``hub:NAME:CONFIG`` is a public name.

    Raises:
        DataError: if a path does not exist or holds no table, or two files are the same split.
    """
    places: list[tuple[str, Place]] = []
    passed: list[str] = []
    files: list[Path] = []
    for given in paths:
        path = Path(given)
        if given.startswith(HUB):
            places.append(_public(given))
        elif path.is_dir():
            found, others = _of_folder(path)
            places += found
            passed += others
            if not found:
                raise DataError(
                    f"{path} holds no table: no file {', '.join(FILE_FORMATS)}, and nothing that `datasets` saved."
                )
        elif path.is_file():
            if path.suffix not in FILE_FORMATS:
                raise DataError(f"{path} is no table that can be read: use one of {', '.join(FILE_FORMATS)}.")
            files.append(path)
        else:
            find_splits(path)  # says that there is none, and what is near
    places += _grouped(files)
    return _named(places), passed


def _of_folder(folder: Path) -> tuple[list[tuple[str, Place]], list[str]]:
    name = folder.resolve().name
    if is_saved_dataset(folder) or (folder / "dataset_dict.json").is_file():
        return [(name, Place(str(folder), find_splits(folder)))], []
    entries = [entry for entry in sorted(folder.iterdir()) if not entry.name.startswith((".", "_"))]
    tables = [entry for entry in entries if entry.is_file() and entry.suffix in FILE_FORMATS]
    found = _grouped(tables)
    passed = [str(entry) for entry in entries if entry.is_file() and entry not in tables]
    for entry in entries:
        if entry.is_dir():
            below, others = _of_folder(entry)
            found += below
            passed += others
    return found, passed


def _grouped(files: Iterable[Path]) -> list[tuple[str, Place]]:
    """Return the tasks of files: those that differ by a split's word only are one."""
    groups: dict[tuple[Path, str], dict[Split, Path]] = {}
    for path in files:
        match = _AFTER.fullmatch(path.stem) or _BEFORE.fullmatch(path.stem)
        base = match["base"] if match else path.stem
        split = SPLIT_WORDS[match["word"].lower()] if match else "train"
        group = groups.setdefault((path.parent, base), {})
        if split in group and group[split] != path:
            raise DataError(
                f"{group[split]} and {path} are both the split '{split}' of one task, by their names. Give one of "
                "them, or rename one."
            )
        group[split] = path
    places = []
    for (folder, base), group in groups.items():
        if "train" not in group and len(group) == 1:  # the only file there is, whatever it is called
            group = {"train": next(iter(group.values()))}
        shown = str(folder) if not base and len(group) > 1 else str(next(iter(group.values())))
        ordered = {split: group[split] for split in SPLITS if split in group}
        places.append((base or folder.resolve().name, Place(shown, ordered)))
    return places


def _public(given: str) -> tuple[str, Place]:
    path, _, config = given.removeprefix(HUB).partition(":")
    if not path:
        raise ConfigError(f"'{given}' names no data set. Write hub:NAME or hub:NAME:CONFIG, e.g. hub:nyu-mll/glue:rte.")
    hub = {"path": path, **({"config": config} if config else {})}
    return config or path.rstrip("/").rpartition("/")[2], Place(given, hub=hub)


def _named(places: Iterable[tuple[str, Place]]) -> dict[str, Place]:
    """Return the tasks by names that differ and that a head can have."""
    from torch import nn

    named: dict[str, Place] = {}
    for wish, place in places:
        name = re.sub(r"\W+", "_", wish).strip("_") or "task"
        if hasattr(nn.ModuleDict(), name):  # a task's head is an entry of one
            name = f"{name}_task"
        first, count = name, 1
        while name in named:
            count += 1
            name = f"{first}_{count}"
        named[name] = place
    return named


def propose(
    places: Mapping[str, Place], said: Mapping[str, Said], report: Callable[[str], None] | None = None
) -> list[Proposal]:
    """Return what each task is taken for.

    Args:
        places: task → where its rows are.
        said: task → what the user said of it.
        report: called with what is being read.

    Raises:
        TaskLoraError: as :func:`~tasklora.tasks.guessing.rules.guess_task`, or if rows cannot be read.
    """
    proposals = []
    for task, place in places.items():
        if report is not None:
            report(f"reading {place.shown}")
        proposals.append(_proposed(task, place, said.get(task, Said()), len(places) > 1))
    return proposals


def _proposed(task: str, place: Place, said: Said, several: bool) -> Proposal:
    place, tables = _load(place)
    rows: dict[Split, int] = {split: len(table) for split, table in tables.items()}
    if "train" not in rows:
        raise DataError(f"{place.shown}: no rows to train on, only {listing(rows)}. Name the file to train on too.")
    if not rows["train"]:
        raise DataError(f"{place.shown}: no rows.")
    if rows["train"] < FEWEST_ROWS:
        raise DataError(
            f"{place.shown}: {counted(rows['train'], 'row')} to train on, too few to hold any out. Add rows."
        )
    looks = {split: look_at(table) for split, table in tables.items()}
    _check_header(place.shown, looks["train"], said)
    first = guess_task(Table(task, place.shown, looks["train"], said, several))
    notes = []
    for split in [split for split in looks if split != "train"]:
        why = _unusable(looks[split], first)
        if why is not None:
            notes.append(f"{split} is left out: {why}")
            del looks[split], rows[split]
    for part, look in looks.items():
        check_finite(str(place.files.get(part, f"{place.shown}, {part}")), look[first.label])
    together = looks["train"]
    for name, look in looks.items():
        if name != "train":
            together = {n: merged(c, look[n]) if n in look else c for n, c in together.items()}
    for name in [*first.settings["inputs"], first.label]:
        if together[name].holds == "mixed or nested values":
            held = ", ".join(f"{look[name].holds} in {split}" for split, look in looks.items())
            raise DataError(f"{place.shown}: column '{name}' holds {held}. Write it alike in every file.")
    guess = guess_task(Table(task, place.shown, together, said, several))
    notes += doubtful(guess.settings.get("labels") or [])
    if guess.kind == "ranking":
        query = guess.settings["inputs"][0]
        rows = {split: len(set(tables[split][query])) for split in rows}
        notes.append("rows are counted by query")
    used = Place(place.shown, {s: p for s, p in place.files.items() if s in rows}, place.hub)
    if used.hub is not None and "validation" not in rows:
        raise DataError(
            f"{place.shown} has no labelled split for validation. Save it as files first, from which some rows can "
            f"be held out: load_dataset('{used.hub['path']}').save_to_disk('FOLDER') in Python, then `tasklora init "
            "FOLDER`."
        )
    return Proposal(task, used, guess, rows, tuple(notes))


def _load(place: Place) -> tuple[Place, dict[Split, datasets.Dataset]]:
    if place.hub is None:
        return place, {split: read_table(path) for split, path in place.files.items()}
    from datasets import load_dataset

    hub = dict(place.hub)
    try:
        found = load_dataset(hub["path"], hub.get("config"))
    except Exception as error:  # the hub raises many kinds; all mean that the rows are not to be had
        raise DataError(
            f"{place.shown}: cannot load it from the hub: {first_line(error).rstrip('.')}. Look the name up on "
            "huggingface.co/datasets and write hub:NAME or hub:NAME:CONFIG; without a network, give files."
        ) from error
    theirs = {SPLIT_WORDS[name.lower()]: name for name in found if name.lower() in SPLIT_WORDS}
    renamed = {split: name for split, name in theirs.items() if split != name or split == "tune"}
    if renamed:
        hub["splits"] = renamed
    return Place(place.shown, hub=hub), {split: found[theirs[split]] for split in SPLITS if split in theirs}


def _check_header(place: str, columns: Mapping[str, Column], said: Said) -> None:
    """Raise DataError if a table's column names look like a row, which they are where a CSV file has no first line."""
    meant = {said.label, *(said.inputs or ())}
    for column in columns.values():
        name = column.name
        number = re.fullmatch(r"-?\d+(\.\d+)?", name) and column.is_number
        if name not in meant and (number or len(name.split()) > 7):
            shown = name if len(name) < 40 else name[:37] + "…"
            raise DataError(
                f"{place}: the first line looks like a row, not like column names ('{shown}'). Put a first line with "
                "the columns' names, or, if it is a name, name its column with --inputs or --label."
            )


def _unusable(columns: Mapping[str, Column], guess: Guess) -> str | None:
    """Return why a split cannot be used by a task; None if it can."""
    needed = [*guess.settings["inputs"], guess.label]
    absent = [name for name in needed if name not in columns]
    if absent:
        return f"it has no column {listing(absent)}{did_you_mean(absent[0], columns)}"
    label = columns[guess.label]
    if label.rows == 0:
        return "it has no rows"
    if label.missing == label.rows or (guess.kind != "regression" and set(label.counts) == {-1}):
        return "its rows have no labels"
    return None
