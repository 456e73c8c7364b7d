"""What the columns of a table hold: what kind of values, how many different ones, which are missing.

Values of labels are counted over every row; how long texts are is read off a sample.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

if TYPE_CHECKING:
    import datasets
    import pyarrow as pa

SAMPLE_ROWS = 2000
MOST_VALUES = 500  # a column with more different values in the sample holds no classes

Holds = Literal[
    "texts", "whole numbers", "numbers", "truth values", "lists of texts", "lists of numbers", "mixed or nested values"
]
_ADDRESS = re.compile(r"(https?://|www\.)\S+$", re.IGNORECASE)
_DATE = re.compile(r"\d{1,4}[-/.]\d{1,2}[-/.]\d{1,4}([T ]\d{1,2}:\d{2}.*)?$")
_NUMBER = re.compile(r"[+-]?(\d+([.,]\d*)?|[.,]\d+)(e[+-]?\d+)?", re.IGNORECASE)  # also with a decimal comma
_CODE = re.compile(r"(?=.*\d)[\w\-.:/#]+$", re.ASCII)  # texts without spaces are no codes in scripts that have none


@dataclass(frozen=True)
class Column:
    """One column of a table.

    Attributes:
        name: its name.
        holds: what its values are. Whole numbers may be written as 1.0.
        rows: number of rows, all of them.
        missing: how many have no value.
        sample: values of a sample of rows, evenly spread; None where one is missing.
        counts: value → rows, over all rows; empty if there are more than :data:`MOST_VALUES`. Of lists: of their
            elements.
        low: smallest number, over all rows.
        high: largest number, over all rows.
        names: names of the classes 0, 1, …, where the table says them (a ``ClassLabel`` of `datasets`).
        infinite: the rows, counted from 0, with an infinite number; `low`, `high` and `holds` are of the others.
        longest: bytes of its longest text, over all rows.
        blank: how many texts are empty or blank.
        first_blank: the first row, counted from 0, with such a text or none at all; None if every one has some. Of
            several tables, of the first.
    """

    name: str
    holds: Holds
    rows: int
    missing: int
    sample: Sequence[Any]
    counts: Mapping[Any, int] = field(default_factory=dict)
    low: float = 0.0
    high: float = 0.0
    names: tuple[str, ...] = ()
    infinite: tuple[int, ...] = ()
    longest: int = 0
    blank: int = 0
    first_blank: int | None = None

    @property
    def is_number(self) -> bool:
        """Whether it holds numbers."""
        return self.holds in ("whole numbers", "numbers")

    @property
    def values(self) -> list[Any]:
        """The sample's values, without those that are missing."""
        return [value for value in self.sample if value is not None]

    @property
    def words(self) -> float:
        """Median number of words, split at spaces, of its texts that are not blank.

        What leaves no spaces is one word: few words tell names of classes from texts, see :meth:`no_text`.
        """
        words = [len(text.split()) for text in self.values if text.strip()]
        return float(np.median(words)) if words else 0.0

    @property
    def has_repeats(self) -> bool:
        """Whether values that are not blank come again so often that they may be classes."""
        different = sum(bool(str(value).strip()) for value in self.counts)
        return 0 < different <= max(2, (self.rows - self.missing - self.blank) / 2)

    @property
    def share_of_different(self) -> float:
        """Different values of the sample as a share of its rows."""
        return len({str(value) for value in self.values}) / max(1, len(self.values))

    def share(self, pattern: re.Pattern[str]) -> float:
        """Return the share of the sample's texts that match a pattern from their beginning."""
        return sum(bool(pattern.match(text.strip())) for text in self.values) / max(1, len(self.values))

    def nearly_numbers(self) -> str | None:
        """Return what makes texts of a column that is numbers else, as '0,5' or 'nan'; None if it holds other texts."""
        if self.holds != "texts" or not self.values:
            return None
        texts = [text.strip() for text in self.values]
        if sum(bool(_NUMBER.fullmatch(text)) for text in texts) < len(texts) / 2:
            return None
        other = next((text for text in texts if not _NUMBER.fullmatch(text)), None)
        if other is None and not any("," in text for text in texts):
            return f"numbers in quotes, as '{texts[0]}'"
        other = next(text for text in texts if "," in text) if other is None else other
        return f"numbers, but '{other}' is none"

    def no_text(self) -> str | None:
        """Return why the column is no text that a model could read; None if it is one."""
        if self.holds != "texts":
            return self.holds
        if self.missing == self.rows:
            return "empty"
        if len(self.counts) == 1:
            return "the same value in every row"
        if self.share(_ADDRESS) > 0.9:
            return "addresses"
        if self.share(_DATE) > 0.9:
            return "dates"
        if self.share(_CODE) > 0.9 and self.share_of_different > 0.9:
            return "codes"
        if self.nearly_numbers() is not None:
            return self.nearly_numbers()
        if self.words < 3 and self.has_repeats:
            return f"{len(self.counts)} different values, no texts"
        return None

    def no_label(self) -> str | None:
        """Return why the column can be no label; None if it may be one."""
        if self.missing == self.rows:
            return "empty"
        if self.holds == "mixed or nested values":
            return self.holds
        if len(self.counts) == 1 and not self.holds.startswith("lists"):
            return "the same value in every row"
        if re.fullmatch(r"(unnamed: ?\d*|__index_level_\d+__|)", self.name.lower()):
            return "row numbers"
        if re.fullmatch(
            r"(?!label|class|categor|target|intent)(.*[_\W])?(id|idx|index|uuid|guid|pid|qid|no|nr)|.*Id|.*ID",
            self.name,
        ):
            return "ids"
        if self.holds == "whole numbers" and self.share_of_different == 1 and self.rows > 20:
            return "a different number in every row"
        if self.holds == "texts" and (self.no_text() in ("addresses", "dates", "codes") or not self.has_repeats):
            return self.nearly_numbers() or self.no_text() or "texts that hardly come again"
        return None


def sampled_rows(rows: int) -> list[int]:
    """Return which rows of so many are a sample, evenly spread."""
    places: list[int] = np.unique(np.linspace(0, max(0, rows - 1), min(rows, SAMPLE_ROWS)).astype(int)).tolist()
    return places


def look_at(rows: datasets.Dataset) -> dict[str, Column]:
    """Return what each column of a table holds."""
    import datasets

    sample = rows.select(sampled_rows(len(rows)))[:] if len(rows) else {name: [] for name in rows.column_names}
    columns = {}
    for name in rows.column_names:
        feature = rows.features[name]
        values = rows.select_columns([name]).with_format("arrow")[:].column(0) if len(rows) else None
        feature = getattr(feature, "feature", feature)  # of a list's elements
        names = tuple(feature.names) if isinstance(feature, datasets.ClassLabel) else ()
        columns[name] = _column(name, values, list(sample[name]), names)
    return columns


def _column(name: str, values: pa.ChunkedArray | None, sample: list[Any], names: tuple[str, ...]) -> Column:
    import pyarrow as pa
    import pyarrow.compute as pc

    if values is None:
        return Column(name, "mixed or nested values", 0, 0, sample)
    holds = _holds(values.type)
    about: dict[str, Any] = {"rows": len(values), "missing": values.null_count, "sample": sample, "names": names}
    if holds in ("whole numbers", "numbers") and values.null_count < len(values):
        if pa.types.is_floating(values.type):
            infinite = pc.fill_null(pc.is_inf(values.cast(pa.float64())), False)
            about["infinite"] = tuple(np.flatnonzero(infinite.to_numpy()).tolist())
            if about["infinite"]:
                values = pc.if_else(infinite, None, values)
            missing = pc.sum(pc.is_null(values, nan_is_null=True)).as_py()
            whole = (
                pc.all(pc.equal(values, pc.floor(values)), skip_nulls=True).as_py() if missing < len(values) else None
            )
            holds = "whole numbers" if whole else "numbers"
            about["missing"] = missing - len(about["infinite"])
        limits = pc.min_max(values).as_py()
        about |= {"low": float(limits["min"] or 0), "high": float(limits["max"] or 0)}
    if holds == "texts":
        written = values.cast(pa.large_string())
        about["longest"] = pc.max(pc.binary_length(written)).as_py() or 0
        bare = pc.equal(pc.utf8_trim_whitespace(written), "")
        about["blank"] = pc.sum(bare).as_py() or 0
        place = pc.index(pc.fill_null(bare, True), True).as_py()
        about["first_blank"] = place if place >= 0 else None
    if holds.startswith("lists"):
        counts = _counted(pc.list_flatten(values))
    elif holds == "mixed or nested values" or len(set(map(str, sample))) > MOST_VALUES:
        counts = {}
    else:
        counts = _counted(values.cast(pa.large_string()) if pa.types.is_dictionary(values.type) else values)
    if holds == "whole numbers":
        counts = {int(value): rows for value, rows in counts.items() if value is not None and value == value}
    kept = {value: rows for value, rows in counts.items() if value is not None and value == value}
    return Column(name, holds, counts=kept if len(kept) <= MOST_VALUES else {}, **about)


def _counted(values: pa.ChunkedArray) -> dict[Any, int]:
    """Return value → how often it stands there; nothing where there are far too many for classes."""
    import pyarrow.compute as pc

    found = pc.value_counts(values)
    return {entry["values"]: entry["counts"] for entry in found.to_pylist()} if len(found) <= 20 * MOST_VALUES else {}


def merged(one: Column, other: Column) -> Column:
    """Return what a column of two tables holds; the sample stays that of the first."""
    holds = one.holds if one.holds == other.holds else "mixed or nested values"
    if one.is_number and other.is_number and holds == "mixed or nested values":
        holds = "numbers"
    counts = {**one.counts}
    for value, rows in other.counts.items():
        counts[value] = counts.get(value, 0) + rows
    known = (one.counts or one.rows == one.missing) and (other.counts or other.rows == other.missing)
    return replace(
        one,
        holds=holds,
        rows=one.rows + other.rows,
        missing=one.missing + other.missing,
        counts=counts if known and len(counts) <= MOST_VALUES else {},
        low=min(one.low, other.low),
        high=max(one.high, other.high),
        longest=max(one.longest, other.longest),
        blank=one.blank + other.blank,
        first_blank=one.first_blank,
    )


def _holds(kind: pa.DataType) -> Holds:
    import pyarrow as pa

    types = pa.types
    if types.is_dictionary(kind):
        kind = kind.value_type
    if types.is_string(kind) or types.is_large_string(kind) or types.is_string_view(kind):
        return "texts"
    if types.is_boolean(kind):
        return "truth values"
    if types.is_integer(kind):
        return "whole numbers"
    if types.is_floating(kind) or types.is_decimal(kind):
        return "numbers"
    if types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind):
        of = _holds(kind.value_type)
        return (
            "lists of texts"
            if of == "texts"
            else "lists of numbers"
            if of == "whole numbers"
            else "mixed or nested values"
        )
    return "mixed or nested values"
