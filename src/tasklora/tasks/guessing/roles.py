"""Which columns of a table a task reads, and which one is its label; guessed by names first, then by what they hold."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from tasklora.errors import ConfigError, DataError, did_you_mean, listing
from tasklora.tasks.guessing.columns import Column
from tasklora.tasks.text_metrics import count_words

LABEL_NAMES = (
    r"labels?",
    r"target|class|y|gold|gold_?labels?|class_?label|label_?id|ground_?truth",
    r"category|categories|sentiment|intent|topics?|tags?|genres?|emotions?|scores?|ratings?|stars|grade|relevance|relevant"
    r"|similarity|overall|duplicate|match|spam|stance|polarity|answer_?key|(is|has)_\w+|label_\w+|\w+_(label|class|category|score|rating)",
)
"""Names of label columns: those of an earlier line go before those of a later one."""

TEXT_NAMES = (
    *("text", "sentence", "content", "body", "review", "document", "message", "comment", "tweet", "question"),
    *("article", "dialogue", "instruction", "prompt"),
)

PAIRS = (
    ("sentence1", "sentence2"),
    ("premise", "hypothesis"),
    ("question1", "question2"),
    ("text1", "text2"),
    ("question", "answer"),
    ("question", "sentence"),
    ("question", "passage"),
    ("question", "context"),
    ("query", "document"),
    ("query", "passage"),
    ("query", "text"),
    ("query", "product"),
    ("query", "title"),
    ("claim", "evidence"),
    ("instruction", "input"),
    ("instruction", "context"),
    ("left", "right"),
    ("texta", "textb"),
    ("sentencea", "sentenceb"),
    ("a", "b"),
)
TITLES = ("title", "headline", "subject", "heading")


@dataclass(frozen=True)
class Said:
    """What the user said of one table, in place of guesses."""

    kind: str | None = None
    label: str | None = None
    inputs: tuple[str, ...] | None = None


@dataclass(frozen=True)
class Table:
    """A table to guess a task of.

    Attributes:
        task: the task's name.
        place: the file or folder, as in messages.
        columns: name → column.
        said: what the user said of it.
        several: whether it is one of several tasks, so that an option needs the task's name.
    """

    task: str
    place: str
    columns: Mapping[str, Column]
    said: Said = Said()
    several: bool = False

    def option(self, name: str, value: str) -> str:
        """Return how an option for this table is written."""
        return f"--{name} {self.task}:{value}" if self.several else f"--{name} {value}"

    def column(self, name: str, option: str) -> Column:
        """Return a column that the user named.

        Raises:
            ConfigError: if there is none.
        """
        if name not in self.columns:
            raise ConfigError(
                f"--{option}: {self.place} has no column '{name}'.{did_you_mean(name, self.columns)} "
                f"It has: {listing(self.columns)}."
            )
        return self.columns[name]


@dataclass(frozen=True)
class Chosen:
    """Columns that were chosen, and why.

    Attributes:
        columns: one or two.
        why: in plain words.
        parts: whether two columns are parts of one text (a title and its body), not two texts to compare.
    """

    columns: tuple[Column, ...]
    why: str
    parts: bool = False

    @property
    def names(self) -> list[str]:
        """The columns' names."""
        return [column.name for column in self.columns]


def text_inputs(table: Table, besides: set[str], blanks: bool = False) -> Chosen:
    """Return the column of texts that the task reads, or the pair.

    Args:
        table: the table.
        besides: columns that are something else.
        blanks: whether rows may lack one text of a pair that belongs together by its names, or that the user named.

    Raises:
        ConfigError: if several are equally likely, or what the user named cannot be read.
        DataError: if there is none, or texts are missing.
    """
    if table.said.inputs is not None:
        return _said_inputs(table, blanks)
    texts = [c for name, c in table.columns.items() if name not in besides and c.no_text() is None]
    whole = [column for column in texts if not column.missing]
    if not texts:
        held = ", ".join(f"{name} ({c.no_text() or 'the label'})" for name, c in table.columns.items())
        raise DataError(
            f"{table.place}: no column of texts to read. It has: {held}. If one of them is the text, say so: "
            f"{table.option('inputs', 'COLUMN')}."
        )
    if not whole:
        _check_whole(table, texts[0])
    if blanks:
        pair = _pair_by_name(texts)
        if pair is not None and not all(column.missing for column in pair.columns):
            return pair
    return _pair_by_name(whole) or _one_or_two(table, whole)


def _said_inputs(table: Table, blanks: bool) -> Chosen:
    names = table.said.inputs or ()
    if not 1 <= len(names) <= 2 or len(set(names)) != len(names):
        raise ConfigError(f"--inputs names one column or two different ones, got: {listing(names) or 'none'}.")
    columns = tuple(table.column(name, "inputs") for name in names)
    for column in columns:
        if column.holds not in ("texts", "lists of texts"):
            raise ConfigError(f"--inputs: column '{column.name}' of {table.place} holds {column.holds}, no texts.")
        if not (blanks and len(columns) == 2):
            _check_whole(table, column)
    return Chosen(columns, "as you said", parts=plain(names[0]) in TITLES)


def _check_whole(table: Table, column: Column) -> None:
    if column.missing:
        raise DataError(
            f"{table.place}: column '{column.name}' is empty in {column.missing:,} of {column.rows:,} rows. Fill them "
            "in, or leave such rows out."
        )


def _pair_by_name(columns: list[Column]) -> Chosen | None:
    by_name = {plain(column.name): column for column in columns}
    for first, second in PAIRS:
        if first in by_name and second in by_name:
            return Chosen((by_name[first], by_name[second]), "two texts that belong together, by their names")
    for first in TITLES:
        for second in TEXT_NAMES:
            if first in by_name and second in by_name:
                why = f"a {first} and what stands under it, read as one text"
                return Chosen((by_name[first], by_name[second]), why, parts=True)
    return None


def _one_or_two(table: Table, texts: list[Column]) -> Chosen:
    if len(texts) == 1:
        return Chosen((texts[0],), f"the only column of texts ({words_of(texts[0])})")
    named = next((c for name in TEXT_NAMES for c in texts if plain(c.name) == name), None)
    if len(texts) == 2 and not (named and min(c.words for c in texts) < 3):
        why = "the only two columns of texts, taken for a pair"
        return Chosen((texts[0], texts[1]), why, parts=plain(texts[0].name) in TITLES)
    if named is None:
        names = [column.name for column in texts]
        raise ConfigError(
            f"{table.place}: {len(texts)} columns hold texts: {listing(names)}. Say which one the task reads, or which "
            f"two: {table.option('inputs', names[0])}, or {table.option('inputs', ','.join(names[:2]))}."
        )
    return Chosen((named,), f"by its name, of {len(texts)} columns of texts ({words_of(named)})")


def label_column(table: Table, besides: set[str]) -> Chosen:
    """Return the label column.

    Args:
        table: the table.
        besides: columns that are something else.

    Raises:
        ConfigError: if several are equally likely, or there is none.
        DataError: if it holds one class only, or labels are missing.
    """
    chosen = likely_label(table, besides)
    if chosen is None:
        for name, column in table.columns.items():
            called = any(re.fullmatch(names, snake(name)) for names in LABEL_NAMES) or table.said.kind == "regression"
            if called and column.no_label() == column.nearly_numbers() and name not in besides:
                check_numbers(table, column)
        why = "; ".join(f"{n}: {c.no_label() or 'an input'}" for n, c in table.columns.items())
        texts = sum(column.no_text() is None for column in table.columns.values())
        nested = any(column.holds == "mixed or nested values" for column in table.columns.values())
        raise ConfigError(
            f"{table.place}: no column looks like a label ({why}). Name it: {table.option('label', 'COLUMN')}"
            f"{', which may be a text to write' if texts > 1 else ''}."
            f"{' What is nested or mixed needs a column of plain values first.' if nested else ''}"
        )
    column = chosen.columns[0]
    check_finite(table.place, column)
    if len(column.counts) == 1 and not column.holds.startswith("lists"):
        (value,) = column.counts
        raise DataError(
            f"{table.place}: column '{column.name}' is {value!r} in every row: with one class there is nothing to "
            f"learn. Add rows of another class, or name another column: {table.option('label', 'COLUMN')}."
        )
    _check_whole(table, column)
    return chosen


def check_numbers(table: Table, column: Column) -> None:
    """Raise DataError if a column would hold numbers, but for a value that makes texts of them."""
    why = column.nearly_numbers()
    if why is not None:
        raise DataError(
            f"{table.place}: column '{column.name}' is read as texts: it holds {why}. Write every number without "
            "quotes and with a decimal point (0.5), and leave out rows that have none."
        )


def check_finite(place: str, column: Column) -> None:
    """Raise DataError if a column of numbers has infinite ones."""
    if column.infinite:
        first = column.infinite[0]
        raise DataError(
            f"{place}: column '{column.name}' is infinite in {len(column.infinite):,} of {column.rows:,} rows, "
            f"first in row {first:,} (counted from 0). Correct them, or leave such rows out."
        )


def likely_label(table: Table, besides: set[str]) -> Chosen | None:
    """Return the column that is most likely the label, whatever it holds; None if there is none.

    Raises:
        ConfigError: if several are equally likely.
    """
    if table.said.label is not None:
        return Chosen((table.column(table.said.label, "label"),), "as you said")
    named = label_by_name(table, besides)
    if named is not None:
        return Chosen((named,), "by its name")
    likely = _likely(table, besides)
    return Chosen((_only(table, likely),), "the only column that can be one") if likely else None


def label_by_name(table: Table, besides: set[str]) -> Column | None:
    """Return the column that is called like a label and can be one; None if there is none.

    Raises:
        ConfigError: if several are equally likely.
    """
    for pattern in LABEL_NAMES:
        named = [column for column in _likely(table, besides) if re.fullmatch(pattern, snake(column.name))]
        if named:
            return _only(table, named)
    for name, column in table.columns.items():  # one that is called label and is constant says more than no label
        if is_called_label(name) and len(column.counts) == 1 and name not in besides:
            return column
    return None


def is_called_label(name: str) -> bool:
    """Whether a column's name says that it is a label, and not only what it may be one of."""
    return any(re.fullmatch(pattern, snake(name)) for pattern in LABEL_NAMES[:2])


def _likely(table: Table, besides: set[str]) -> list[Column]:
    inputs = {*(table.said.inputs or ()), *besides}
    return [column for name, column in table.columns.items() if name not in inputs and column.no_label() is None]


def _only(table: Table, columns: list[Column]) -> Column:
    first, *others = columns
    apart = [column for column in others if class_names(first, column) is None and class_names(column, first) is None]
    if not apart:  # the others say the same in other words: numbers and their names
        return next((column for column in columns if column.is_number), first)
    names = [first.name, *(column.name for column in apart)]
    flags = all(set(column.counts) <= {0, 1} for column in (first, *apart))
    hint = " If they are labels of one multi_label task, write their names into one column of lists." if flags else ""
    raise ConfigError(
        f"{table.place}: {listing(names)} are equally likely to be the label. Say which one is: "
        f"{table.option('label', names[0])}.{hint}"
    )


def class_names(label: Column, other: Column) -> dict[int, str] | None:
    """Return id → name where a column of texts names the classes that another one numbers; None where it does not."""
    if label.holds != "whole numbers" or other.holds != "texts" or not 1 < len(label.counts) == len(other.counts):
        return None
    pairs = {(int(one), two) for one, two in zip(label.sample, other.sample, strict=True) if None not in (one, two)}
    names = dict(pairs)
    agree = len(pairs) == len(names) == len(set(names.values())) == len(label.counts)
    return names if agree and all(label.counts[one] == other.counts.get(two) for one, two in names.items()) else None


def plain(name: str) -> str:
    """Return a name in small letters without marks: ``Text_A`` → ``texta``."""
    return re.sub(r"[\W_]", "", name.lower())


def snake(name: str) -> str:
    """Return a name in small letters with underscores: ``goldLabel`` → ``gold_label``."""
    return re.sub(r"\W+", "_", re.sub(r"(?<=[a-z])(?=[A-Z])", "_", name)).lower().strip("_")


def words_of(column: Column) -> str:
    """Return how long a column's texts are, in words."""
    words = round(float(np.median([count_words(text) for text in column.values if text.strip()] or [0])))
    return f"about {words} word{'' if words == 1 else 's'} each"
