"""Guesses of what a table's task is: its kind, columns, labels and metrics, each with its reason.

:data:`RULES` is the table of kinds, most particular first; the first rule that fits is taken.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from tasklora.errors import ConfigError, counted, did_you_mean
from tasklora.tasks.guessing.answers import classes_of, outward, ways_to_score
from tasklora.tasks.guessing.columns import Column
from tasklora.tasks.guessing.guess import Guess, settings_of, shown_values
from tasklora.tasks.guessing.particular import generation, multi_label, multiple_choice, ranking, token_classification
from tasklora.tasks.guessing.roles import Chosen, Table, check_numbers, class_names, label_column, snake, text_inputs

GRADES = r"(\w+_)?(scores?|ratings?|stars|grade|points|similarity|relatedness|overall)"
MOST_CLASSES = 20  # whole numbers with more different values are amounts, unless they are the ids 0, 1, 2, …
MOST_IDS = 200


@dataclass(frozen=True)
class Rule:
    """How one kind of task is recognised.

    Attributes:
        kind: the kind.
        needs: what a table of it has, for messages.
        read: table → guess; None where it is no table of this kind. Of a table that the user says is of this kind, it
            goes by what the columns hold, not by their names.
    """

    kind: str
    needs: str
    read: Callable[[Table], Guess | None]


def guess_task(table: Table) -> Guess:
    """Return what a table's task is.

    Raises:
        ConfigError: if something is equally likely to be one thing or another, or the user named what is not there.
        DataError: if there is no text, one class only, or values are missing.
        UnsupportedError: if texts to write stand in conversations.
    """
    kinds = {rule.kind: rule for rule in RULES}
    said = table.said.kind
    if said is not None and said not in kinds:
        raise ConfigError(f"--kind: unknown kind '{said}'.{did_you_mean(said, kinds)} One of: {', '.join(kinds)}.")
    if table.said.inputs is not None:
        text_inputs(table, set(), blanks=True)  # checked first: what is wrong with it explains the rest
    for rule in RULES if said is None else (kinds[said],):
        guess = rule.read(table)
        if guess is not None:
            used = {*_columns_of(guess.settings), *guess.left_out}
            others = {n: _why_unused(c) for n, c in table.columns.items() if n not in used}
            return replace(guess, left_out={**guess.left_out, **others})
    raise ConfigError(f"--kind {said}: {table.place} has no columns for it. It needs {kinds[str(said)].needs}.")


def _columns_of(settings: dict[str, Any]) -> set[str]:
    choices = settings.get("choices") or []
    named = [*settings["inputs"], settings["label"], settings.get("group")]
    return {str(name) for name in [*named, *([choices] if isinstance(choices, str) else choices)] if name is not None}


def _why_unused(column: Column) -> str:
    if column.no_text() is None:
        return f"empty in {counted(column.missing, 'row')}" if column.missing else "further texts"
    return column.no_label() or str(column.no_text())


def _regression(table: Table) -> Guess | None:
    label, inputs = _label_and_inputs(table)
    column = label.columns[0]
    reason = _amounts(column)
    if table.said.kind is None and reason is None:
        return None
    if not column.is_number:
        check_numbers(table, column)
        raise ConfigError(
            f"--kind regression: column '{column.name}' of {table.place} holds {column.holds}, no numbers."
        )
    why = {
        "kind": reason or "as you said",
        "inputs": inputs.why,
        "label": label.why,
        "range": f"{column.rows:,} rows go from {column.low:g} to {column.high:g}; predictions stay in the range",
        "primary": "it does not depend on the labels' scale",
    }
    metrics = ["pearson", "spearman", "rmse"]
    settings = settings_of("regression", inputs.names, column.name, metrics, range=outward(column.low, column.high))
    return Guess(settings, why, inputs.columns, inputs.parts)


def _amounts(column: Column) -> str | None:
    """Return why a column holds amounts and not classes; None if it holds classes."""
    if column.names or not column.is_number:
        return None
    if column.holds == "numbers":
        return f"'{column.name}' holds numbers with fractions"
    count, ids = len(column.counts), sorted(column.counts)
    if re.fullmatch(GRADES, snake(column.name)) and count != 2:
        return (
            f"'{column.name}' holds grades from {column.low:g} to {column.high:g}: an error of one is smaller than one "
            "of three. For separate classes: --kind classification"
        )
    if count and ids == list(range(count)) and count <= MOST_IDS:
        return None
    if count > MOST_CLASSES or not count:
        return f"'{column.name}' holds {count or 'very many'} different whole numbers: amounts, not classes"
    return None


def _classification(table: Table) -> Guess | None:
    label, inputs = _label_and_inputs(table)
    column = label.columns[0]
    classes_like = column.has_repeats or column.holds != "texts"
    if column.holds not in ("texts", "truth values", "whole numbers") or not column.counts or not classes_like:
        check_numbers(table, column)
        free = column.holds == "texts" and column.no_text() is None
        written = f" If it is a text to write: {table.option('kind', 'generation')}." if free else ""
        raise ConfigError(
            f"{table.place}: column '{column.name}' cannot be a label of classes: {column.no_label() or column.holds}. "
            f"Name another one: {table.option('label', 'COLUMN')}.{written}"
        )
    names, partner = column.names, None
    for other in table.columns.values():
        found = class_names(column, other) if not names else None
        if found is not None and set(found) == set(range(len(found))):
            names, partner = tuple(found[index] for index in range(len(found))), other.name
    classes = classes_of(column, names, partner)
    metrics, primary_why, weights, weights_why = ways_to_score(classes)
    why = {
        "kind": f"'{column.name}' holds {shown_values(column)}",
        "inputs": inputs.why,
        "label": label.why,
        "labels": classes.why,
        "primary": primary_why,
        "class_weights": weights_why,
    }
    settings = settings_of("classification", inputs.names, column.name, metrics, labels=classes.labels)
    if weights_why:
        settings["class_weights"] = weights
    left_out = {partner: "the classes' names"} if partner is not None else {}
    return Guess(settings, why, inputs.columns, inputs.parts, left_out, min(classes.shares))


def _label_and_inputs(table: Table) -> tuple[Chosen, Chosen]:
    label = label_column(table, set())
    return label, text_inputs(table, {label.columns[0].name})


RULES = (
    Rule("token_classification", "a list of words and a list of as many tags", token_classification),
    Rule("multiple_choice", "a list of choices, or a column for each, and which one is right", multiple_choice),
    Rule("ranking", "queries that come again with several texts, and how relevant these are", ranking),
    Rule("multi_label", "a column with several labels in a row, as a list or joined by a mark", multi_label),
    Rule("generation", "a column of texts to write: name it with --label", generation),
    Rule("regression", "a column of numbers", _regression),
    Rule("classification", "a column of classes", _classification),
)
