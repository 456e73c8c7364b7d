"""Class names, ranges and metrics that fit what a label column holds."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from tasklora.errors import counted
from tasklora.tasks.guessing.columns import Column

POSITIVE = ("yes", "true", "positive", "pos", "spam", "match", "duplicate", "relevant", "toxic", "hate", "acceptable")
EVEN_ENOUGH = 0.3  # of two classes, the smaller one's share from which accuracy says enough
RARE = 0.1
MISSING = ("", "nan", "na", "n/a", "#n/a", "<na>", "null", "none", "nil", "missing", "?", "-")
FEWEST_TO_WEIGH = (
    10  # rows of the rarest class from which on balanced weights are sensible and train is sure to have some
)


@dataclass(frozen=True)
class Classes:
    """Classes of a label column.

    Attributes:
        labels: their names, in the order of their ids.
        rows: rows of each, in the same order.
        why: in plain words.
    """

    labels: list[str]
    rows: list[int]
    why: str

    @property
    def shares(self) -> list[float]:
        """The share of each class."""
        return [rows / sum(self.rows) for rows in self.rows]


def classes_of(column: Column, names: Sequence[str], partner: str | None = None) -> Classes:
    """Return the classes of a label column, in the order of their ids.

    Ids keep their order. Of two words the one that stands for "yes" is the second, which F1 is taken of, or else the
    rarer one; more words are in alphabetical order.

    Args:
        column: whole numbers, truth values or words.
        names: names of the ids 0, 1, …, if they are known.
        partner: the column that says the names, if one does.
    """
    counts = column.counts
    if names:
        rows = [counts.get(index, counts.get(name, 0)) for index, name in enumerate(names)]
        where = f"named by '{partner}'" if partner else "named in the file"
        if all(name.removeprefix("-").isdecimal() for name in names) and list(names) != [
            str(i) for i in range(len(names))
        ]:
            names = [f"class {name}" for name in names]  # a number alone would be read as what the rows hold
        return Classes(list(names), rows, f"{where}; {_shares(names, rows)}")
    if column.holds == "truth values":
        rows = [counts.get(False, 0), counts.get(True, 0)]
        return Classes(["false", "true"], rows, _shares(["false", "true"], rows))
    if column.is_number:
        values = sorted(counts)
        labels, rows = [str(value) for value in values], [counts[value] for value in values]
        ids = values == list(range(len(values)))
        told = "ids; names may be written here instead, in this order" if ids else "numbers as in the file"
        return Classes(labels, rows, f"{told}; {_shares(labels, rows)}")
    labels = sorted(counts)
    order = "in alphabetical order"
    if len(labels) == 2:
        labels, order = _two_words(labels, counts)
    rows = [counts[label] for label in labels]
    return Classes(labels, rows, f"{order}; {_shares(labels, rows)}")


def doubtful(labels: Sequence[str]) -> list[str]:
    """Return what is doubtful about names of classes: that two are written alike, or that one is a missing value."""
    notes = []
    alike: dict[str, list[str]] = {}
    for label in labels:
        alike.setdefault(label.strip().casefold(), []).append(label)
    for same in alike.values():
        if len(same) > 1:
            names = " and ".join(repr(label) for label in same)
            notes.append(f"the classes {names} look alike: if they are one, write it alike in every row")
    for label in labels:
        if label.strip().casefold() in MISSING:
            notes.append(f"the class {label!r} looks like a missing value: if it is one, leave such rows out")
    return notes


def _two_words(labels: list[str], counts: Mapping[str, int]) -> tuple[list[str], str]:
    said = [label for label in labels if label.strip().lower() in POSITIVE]
    if len(said) == 1:
        first = next(label for label in labels if label != said[0])
        return [first, said[0]], f"'{said[0]}' second: f1 is of that class"
    first, second = sorted(labels, key=lambda label: (-counts[label], label))
    which = "the rarer" if counts[second] < counts[first] else "as frequent as the other,"
    return [first, second], f"{which} '{second}' second: f1 is of that class"


def _shares(labels: Sequence[str], rows: Sequence[int]) -> str:
    total = sum(rows)
    if len(labels) > 4:
        rarest = min(range(len(labels)), key=lambda index: rows[index])
        return (
            f"{len(labels)} classes in {total:,} rows, '{labels[rarest]}' rarest with {percent(rows[rarest] / total)}"
        )
    shares = ", ".join(f"'{label}' {percent(count / total)}" for label, count in zip(labels, rows, strict=True))
    return f"{shares} of {total:,} rows"


def percent(share: float) -> str:
    """Return a share in per cent, with a digit more where it is small."""
    return f"{100 * share:.0f} %" if share >= 0.01 else f"{100 * share:.1g} %"


def ways_to_score(classes: Classes) -> tuple[list[str], str, str, str]:
    """Return the metrics (the primary one first), why it is primary, class weights, and why (empty for none)."""
    shares = classes.shares
    least = min(shares)
    rarest = classes.labels[shares.index(least)]
    share = f"'{rarest}' has {percent(least)} of the rows"
    if len(shares) == 2 and least >= EVEN_ENOUGH:
        metrics, why = (
            ["accuracy", "f1", "mcc"],
            f"both classes are frequent ({percent(least)} and {percent(1 - least)})",
        )
    elif len(shares) == 2 and shares[1] == least:
        metrics, why = ["f1", "mcc", "accuracy"], f"{share}: accuracy would be high without finding it"
    elif len(shares) == 2:
        metrics = ["mcc", "f1_macro", "accuracy"]
        why = f"{share}: accuracy would be high without finding it, and f1 is of the other class"
    elif least >= 0.5 / len(shares):
        metrics, why = ["accuracy", "f1_macro"], f"no class is rare (the least frequent has {percent(least)})"
    else:
        metrics, why = ["f1_macro", "accuracy"], f"{share}: macro F1 counts every class alike"
    if least >= RARE or least >= 0.5 / len(shares):
        return metrics, why, "none", ""
    if min(classes.rows) < FEWEST_TO_WEIGH:
        few = f"'{rarest}' is rare, but has {counted(min(classes.rows), 'row')}: too few to weigh it up"
        return metrics, why, "none", few
    return metrics, why, "balanced", f"so rare a class as '{rarest}' would hardly be learned else"


def outward(low: float, high: float) -> list[float | int]:
    """Return a range around [low, high] with round ends: [0.02, 4.9] → [0, 5]."""
    step = 10.0 ** math.floor(math.log10(high - low)) if high > low else 1.0
    digits = max(0, -math.floor(math.log10(step)))
    ends = [math.floor(low / step + 1e-9) * step, math.ceil(high / step - 1e-9) * step]
    return [round(end, digits) if digits else round(end) for end in ends]
