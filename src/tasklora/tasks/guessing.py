"""Guesses of what a table's task is: its kind, columns, labels and metrics, each with its reason.

:data:`RULES` is the table of kinds, most particular first; the first rule that fits is taken.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from tasklora.errors import ConfigError, UnsupportedError, did_you_mean
from tasklora.tasks.answers import classes_of, outward, ways_to_score
from tasklora.tasks.columns import Column
from tasklora.tasks.roles import Chosen, Table, class_names, label_column, likely_label, plain, snake, text_inputs
from tasklora.tasks.spec import TaskSpec

GRADES = r"(\w+_)?(scores?|ratings?|stars|grade|points|similarity|relatedness)"
MOST_CLASSES = 20  # whole numbers with more different values are amounts, unless they are the ids 0, 1, 2, …
MOST_IDS = 200
WORDS = ("tokens", "words")
TAGS = ("labels", "tags", "nertags", "postags", "chunktags")
CHOICES = ("choices", "options", "endings", "answers", "candidates", "alternatives")
ONE_CHOICE = r"(choice|option|ending|answer|sol|solution|alternative|candidate)_?(\d|[a-e])|[a-e]"
QUERIES = ("query", "searchquery", "q", "question")
OUTPUTS = ("output", "response", "completion", "answer", "target", "summary", "highlights", "translation", "solution")
TALKS = ("messages", "conversations", "conversation", "chosen")
SEVERAL = ("labels", "tags", "genres", "topics", "categories", "emotions", "keywords")
SEPARATORS = ("|", ";", ",")


@dataclass(frozen=True)
class Guess:
    """What a task is taken for.

    Attributes:
        settings: fields of a :class:`~tasklora.tasks.TaskSpec`, in the order they are written in.
        why: field → the reason for it; not every field has one.
        reads: the columns of texts.
        parts: whether two texts are parts of one.
        left_out: column → why it is not used.
    """

    settings: dict[str, Any]
    why: dict[str, str]
    reads: tuple[Column, ...]
    parts: bool = False
    left_out: dict[str, str] = field(default_factory=dict)

    @property
    def kind(self) -> str:
        """The kind of task."""
        return str(self.settings["kind"])

    @property
    def label(self) -> str:
        """The label's column."""
        return str(self.settings["label"])


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
        UnsupportedError: if the kind is recognised, but not trained here.
    """
    kinds = {rule.kind: rule for rule in RULES}
    said = table.said.kind
    if said is not None and said not in kinds:
        raise ConfigError(f"--kind: unknown kind '{said}'.{did_you_mean(said, kinds)} One of: {', '.join(kinds)}.")
    for rule in RULES if said is None else (kinds[said],):
        guess = rule.read(table)
        if guess is not None:
            _check_trained(table, rule)
            used = {*_columns_of(guess.settings), *guess.left_out}
            others = {n: _why_unused(table, c) for n, c in table.columns.items() if n not in used}
            return Guess(guess.settings, guess.why, guess.reads, guess.parts, {**guess.left_out, **others})
    raise ConfigError(f"--kind {said}: {table.place} has no columns for it. It needs {kinds[str(said)].needs}.")


def trained_kinds() -> tuple[str, ...]:
    """Return the kinds of tasks that recipes train."""
    from typing import get_args

    return get_args(TaskSpec.model_fields["kind"].annotation)


def _check_trained(table: Table, rule: Rule) -> None:
    if rule.kind == "generation":
        raise UnsupportedError(
            f"{table.place} has texts to generate: it needs a decoder, which recipes do not train yet. Train it with "
            "TRL or the Trainer and `task_ids` (docs/integrations.md); or, if a column holds classes or numbers to "
            f"predict, name it: {table.option('label', 'COLUMN')}."
        )
    if rule.kind not in trained_kinds():
        raise UnsupportedError(
            f"{table.place} looks like {rule.kind} ({rule.needs}), which recipes do not train yet. They train "
            f"{', '.join(trained_kinds())}: say so with {table.option('kind', 'KIND')} if it is one of these."
        )


def _columns_of(settings: dict[str, Any]) -> set[str]:
    choices = settings.get("choices") or []
    named = [*settings["inputs"], settings["label"], settings.get("group")]
    return {str(name) for name in [*named, *([choices] if isinstance(choices, str) else choices)] if name is not None}


def _why_unused(table: Table, column: Column) -> str:
    if column.no_text() is None:
        return f"empty in {column.missing:,} rows" if column.missing else "further texts"
    return column.no_label() or str(column.no_text())


# --- the kinds, most particular first ---------------------------------------------------------------------------------


def _token_classification(table: Table) -> Guess | None:
    lists = {name: column for name, column in table.columns.items() if column.holds == "lists of texts"}
    words = next((column for name, column in lists.items() if plain(name) in WORDS), None)
    if words is None and table.said.kind == "token_classification" and table.said.inputs:
        words = lists.get(table.said.inputs[0])
    if words is None:
        return None
    fit = [
        c for name, c in table.columns.items() if c.holds.startswith("lists") and c is not words and _as_long(words, c)
    ]
    if table.said.label is not None:
        fit = [column for column in fit if column.name == table.said.label]
    fit = [column for column in fit if plain(column.name) in TAGS] or fit
    if not fit:
        return None
    if len(fit) > 1:
        raise ConfigError(
            f"{table.place}: {', '.join(c.name for c in fit)} are equally likely to be the tags of '{words.name}'. Say "
            f"which one: {table.option('label', fit[0].name)}."
        )
    (tags,) = fit
    labels = list(tags.names) or sorted(map(str, tags.counts), key=lambda tag: (tag != "O", tag))
    spans = any(re.match(r"[BI]-", label) for label in labels)
    metrics = ["span_f1", "token_accuracy"] if spans else ["token_accuracy"]
    why = {
        "kind": f"'{tags.name}' has a tag for each word of '{words.name}'",
        "labels": f"all tags of {tags.rows:,} rows",
        "primary": "tags B-, I- mark spans; whole spans are counted" if spans else "the tags mark no spans",
    }
    return Guess(_settings("token_classification", [words.name], tags.name, metrics, labels=labels), why, (words,))


def _as_long(words: Column, tags: Column) -> bool:
    pairs = zip(words.sample, tags.sample, strict=True)
    return all(len(one or []) == len(two or []) for one, two in pairs)


def _multiple_choice(table: Table) -> Guess | None:
    named = [c for n, c in table.columns.items() if c.holds == "lists of texts" and plain(n) in CHOICES]
    single = [c for n, c in table.columns.items() if c.holds == "texts" and re.fullmatch(ONE_CHOICE, snake(n))]
    if not named and len(single) < 3 - bool(table.said.kind) and not (len(single) == 2 and _of_two(single)):
        return None
    choices: str | list[str] = named[0].name if named else [column.name for column in single]
    besides = {choices} if isinstance(choices, str) else set(choices)
    label = likely_label(table, besides)
    if label is None:
        return None
    answer = label.columns[0]
    inputs = text_inputs(table, {*besides, answer.name})
    count = len(choices) if isinstance(choices, list) else max(len(value) for value in named[0].values)
    why = {
        "kind": f"one of {count} choices is right",
        "inputs": inputs.why,
        "choices": "the texts to choose from, by " + ("its name" if isinstance(choices, str) else "their names"),
        "label": f"which one is right: {_shown(answer)}",
    }
    settings = _settings("multiple_choice", inputs.names, answer.name, ["accuracy"], choices=choices)
    return Guess(settings, why, inputs.columns, inputs.parts)


def _of_two(columns: list[Column]) -> bool:
    """Whether two columns are choices 1 and 2, not a question's answer beside another text."""
    return {plain(column.name)[-1] for column in columns} in ({"0", "1"}, {"1", "2"}, {"a", "b"}) and all(
        len(plain(column.name)) > 1 for column in columns
    )


def _ranking(table: Table) -> Guess | None:
    said = table.said.inputs
    query = next((c for n, c in table.columns.items() if plain(n) in QUERIES and c.holds == "texts"), None)
    if said is not None and len(said) == 2:
        query = table.column(said[0], "inputs")
    if query is None:
        return None
    repeats = 1 / max(query.share_of_different, 1e-9)
    many = repeats >= (1.5 if table.said.kind else 3)
    label = likely_label(table, {query.name}) if many else None
    if label is None or not (label.columns[0].is_number or label.columns[0].holds == "truth values"):
        return None
    relevance = label.columns[0]
    inputs = text_inputs(table, {relevance.name})
    if len(inputs.columns) != 2 or query not in inputs.columns:
        return None
    metrics = ["ndcg", "mrr"] if len(relevance.counts) > 2 else ["mrr", "ndcg"]
    why = {
        "kind": f"each '{query.name}' comes again with other texts, {repeats:.0f} times in the middle, and a relevance",
        "inputs": inputs.why,
        "group": "texts of one query are ranked among each other",
        "primary": "relevance has several grades" if len(relevance.counts) > 2 else "relevant or not",
    }
    ordered = [query.name, *(name for name in inputs.names if name != query.name)]
    bounds = outward(relevance.low, relevance.high) if relevance.is_number else [0, 1]
    settings = _settings("ranking", ordered, relevance.name, metrics, range=bounds, group=query.name)
    return Guess(settings, why, inputs.columns)


def _multi_label(table: Table) -> Guess | None:
    wanted = table.said.kind == "multi_label" or table.said.label is not None
    for name, column in table.columns.items():
        called = snake(name) in SEVERAL if table.said.label is None else name == table.said.label
        if not (called or (wanted and table.said.label is None)):
            continue
        separator = None
        if column.holds == "texts":
            separator = next((mark for mark in SEPARATORS if _joined(column, mark)), None)
        if separator is None and not column.holds.startswith("lists"):
            continue
        inputs = text_inputs(table, {name})
        pieces = column.counts or dict.fromkeys(column.values, 1)
        if separator is None:
            found = {str(value) for value in column.counts}
        else:
            found = {piece.strip() for value in pieces for piece in value.split(separator)} - {""}
        if len(found) < 2:
            continue
        labels = list(column.names) or sorted(
            found, key=lambda piece: (len(piece), piece) if piece.isdigit() else (0, piece)
        )
        how = f"texts joined by '{separator}'" if separator else "lists"
        why = {
            "kind": f"'{name}' holds {how}: several labels may be right at once",
            "inputs": inputs.why,
            "labels": f"in {column.rows:,} rows" if column.counts else f"in a sample of {len(column.sample):,} rows",
        }
        extra = {"labels": labels, "label_separator": separator}
        settings = _settings("multi_label", inputs.names, name, ["f1_micro", "subset_accuracy"], **extra)
        return Guess(settings, why, inputs.columns, inputs.parts)
    return None


def _joined(column: Column, mark: str) -> bool:
    """Whether texts are short labels joined by a mark: some rows have several, and the labels come again."""
    split = [[piece.strip() for piece in value.split(mark)] for value in column.values]
    pieces = [piece for row in split for piece in row if piece]
    several = sum(len(row) > 1 for row in split) >= 0.05 * len(split)
    short = all(len(piece.split()) <= 4 for piece in pieces)
    return bool(pieces) and several and short and len(set(pieces)) <= min(MOST_IDS, len(pieces) / 3)


def _generation(table: Table) -> Guess | None:
    if table.said.kind is None and (table.said.label is not None or likely_label(table, set()) is not None):
        return None
    for name, column in table.columns.items():
        free = column.holds == "texts" and column.no_text() is None and plain(name) in OUTPUTS
        if free or plain(name) in TALKS:
            return Guess(_settings("generation", [], name, [""]), {}, (column,))
    return None


def _regression(table: Table) -> Guess | None:
    label, inputs = _label_and_inputs(table)
    column = label.columns[0]
    reason = _amounts(column)
    if table.said.kind is None and reason is None:
        return None
    if not column.is_number:
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
    settings = _settings("regression", inputs.names, column.name, metrics, range=outward(column.low, column.high))
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
    if column.holds not in ("texts", "truth values", "whole numbers") or not column.counts:
        raise ConfigError(
            f"{table.place}: column '{column.name}' cannot be a label of classes: {column.no_label() or column.holds}. "
            f"Name another one: {table.option('label', 'COLUMN')}."
        )
    names, partner = column.names, None
    for other in table.columns.values():
        found = class_names(column, other) if not names else None
        if found is not None and set(found) == set(range(len(found))):
            names, partner = tuple(found[index] for index in range(len(found))), other.name
    classes = classes_of(column, names, partner)
    metrics, primary_why, weights, weights_why = ways_to_score(classes)
    why = {
        "kind": f"'{column.name}' holds {_shown(column)}",
        "inputs": inputs.why,
        "label": label.why,
        "labels": classes.why,
        "primary": primary_why,
        "class_weights": weights_why,
    }
    settings = _settings("classification", inputs.names, column.name, metrics, labels=classes.labels)
    if weights_why:
        settings["class_weights"] = weights
    left_out = {partner: "the classes' names"} if partner is not None else {}
    return Guess(settings, why, inputs.columns, inputs.parts, left_out)


def _label_and_inputs(table: Table) -> tuple[Chosen, Chosen]:
    label = label_column(table, set())
    return label, text_inputs(table, {label.columns[0].name})


def _shown(column: Column) -> str:
    if column.names:
        return f"{len(column.names)} named classes"
    count = len(column.counts)
    if column.holds == "truth values":
        return "true and false"
    what = "whole numbers" if column.is_number else "words" if column.words < 2 else "short texts"
    return f"{count} different {what}"


def _settings(kind: str, inputs: list[str], label: str, metrics: list[str], **more: Any) -> dict[str, Any]:
    more = {key: value for key, value in more.items() if value is not None}
    return {"kind": kind, "inputs": inputs, "label": label, **more, "metrics": metrics, "primary": metrics[0]}


RULES = (
    Rule("token_classification", "a list of words and a list of as many tags", _token_classification),
    Rule("multiple_choice", "a list of choices, or a column for each, and which one is right", _multiple_choice),
    Rule("ranking", "queries that come again with several texts, and how relevant these are", _ranking),
    Rule("multi_label", "a column with several labels in a row, as a list or joined by a mark", _multi_label),
    Rule("generation", "a column of texts to write", _generation),
    Rule("regression", "a column of numbers", _regression),
    Rule("classification", "a column of classes", _classification),
)
