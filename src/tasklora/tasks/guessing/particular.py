"""How the particular kinds of tasks are recognised: those whose tables look like no plain classes or numbers."""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np

from tasklora.errors import ConfigError, DataError, UnsupportedError, counted
from tasklora.tasks.guessing.columns import Column, sampled_rows
from tasklora.tasks.guessing.guess import Guess, settings_of, shown_values
from tasklora.tasks.guessing.roles import (
    Table,
    check_finite,
    is_called_label,
    label_by_name,
    likely_label,
    plain,
    snake,
    text_inputs,
    words_of,
)
from tasklora.tasks.text_metrics import count_words

WORDS = ("tokens", "words")
TAGS = ("labels", "tags", "nertags", "postags", "chunktags")
CHOICES = ("choices", "options", "endings", "answers", "candidates", "alternatives")
ONE_CHOICE = r"(choice|option|ending|answer|sol|solution|alternative|candidate)_?(\d|[a-e])|[a-e]"
QUERIES = ("query", "searchquery", "q", "question")
OUTPUTS = ("output", "response", "completion", "answer", "target", "summary", "highlights", "translation", "solution")
ASKS = ("instruction", "prompt")
TALKS = ("messages", "conversations", "conversation", "chosen")
SEVERAL = ("labels", "tags", "genres", "topics", "categories", "emotions", "keywords")
SEPARATORS = ("|", ";", ",")
FEW_WORDS = 3  # answers of so many words are compared whole
MOST_LABELS = 200


def token_classification(table: Table) -> Guess | None:
    """Recognise a list of words with a list of as many tags."""
    lists = {name: column for name, column in table.columns.items() if column.holds == "lists of texts"}
    words = next((column for name, column in lists.items() if plain(name) in WORDS), None)
    if words is None and table.said.kind == "token_classification" and table.said.inputs:
        words = lists.get(table.said.inputs[0])
    if words is None:
        return None
    others = [c for c in table.columns.values() if c.holds.startswith("lists") and c is not words]
    if table.said.label is not None:
        others = [column for column in others if column.name == table.said.label]
    fit = [column for column in others if not _unlike(words, column)]
    if not fit:
        _check_tags(table, words, others)
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
    return Guess(settings_of("token_classification", [words.name], tags.name, metrics, labels=labels), why, (words,))


def _unlike(words: Column, tags: Column) -> list[int]:
    """Return which rows of the sample have not as many tags as words."""
    pairs = enumerate(zip(words.sample, tags.sample, strict=True))
    return [place for place, (one, two) in pairs if len(one or []) != len(two or [])]


def _check_tags(table: Table, words: Column, columns: Sequence[Column]) -> None:
    """Raise DataError if a column is tags, by its name and most rows or as the user said, but not in every row."""
    for tags in columns:
        wrong = _unlike(words, tags)
        called = plain(tags.name) in TAGS and len(wrong) < len(words.sample) / 2
        if not called and (table.said.kind != "token_classification" or len(columns) > 1):
            continue
        place = wrong[0]
        row = sampled_rows(words.rows)[place]
        raise DataError(
            f"{table.place}: row {row:,} (counted from 0) has {len(words.sample[place] or [])} words in '{words.name}' "
            f"and {len(tags.sample[place] or [])} tags in '{tags.name}': {len(wrong):,} of "
            f"{counted(len(words.sample), 'row')} have not as many of both. Give every word one tag, or leave them out."
        )


def multiple_choice(table: Table) -> Guess | None:
    """Recognise choices, in a list or in columns, and which one is right."""
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
    if len(inputs.columns) > 1:
        raise ConfigError(
            f"{table.place}: {' and '.join(inputs.names)} are texts beside the choices, and a multiple_choice task "
            f"reads one. Say which: {table.option('inputs', inputs.names[0])}."
        )
    count = len(choices) if isinstance(choices, list) else max(len(value) for value in named[0].values)
    _check_places(table, answer, count)
    why = {
        "kind": f"one of {count} choices is right",
        "inputs": inputs.why,
        "choices": "the texts to choose from, by " + ("its name" if isinstance(choices, str) else "their names"),
        "label": f"which one is right: {shown_values(answer)}",
    }
    settings = settings_of("multiple_choice", inputs.names, answer.name, ["accuracy"], choices=choices)
    return Guess(settings, why, (*inputs.columns, named[0] if named else max(single, key=lambda c: c.words)))


def _check_places(table: Table, answer: Column, count: int) -> None:
    """Raise ConfigError if the right choices are told by numbers that are not the places 0, 1, …."""
    check_finite(table.place, answer)
    other_places = answer.is_number and not (answer.low >= 0 and answer.high < count)
    if other_places or (answer.holds == "texts" and any(str(value).isdigit() for value in answer.counts)):
        told = ", ".join(map(str, sorted(answer.counts)[:6]))
        raise ConfigError(
            f"{table.place}: '{answer.name}' tells the right choice by {told}. Write its place as a number from 0 to "
            f"{count - 1}, its letter (A, B, …) or its text, or name another column: {table.option('label', 'COLUMN')}."
        )


def _of_two(columns: list[Column]) -> bool:
    """Whether two columns are choices 1 and 2, not a question's answer beside another text."""
    return {plain(column.name)[-1] for column in columns} in ({"0", "1"}, {"1", "2"}, {"a", "b"}) and all(
        len(plain(column.name)) > 1 for column in columns
    )


def ranking(table: Table) -> Guess | None:
    """Recognise queries that come again with several texts and their relevance."""
    said = table.said.inputs
    query = next((c for n, c in table.columns.items() if plain(n) in QUERIES and c.holds == "texts"), None)
    if said is not None and len(said) == 2:
        query = table.column(said[0], "inputs")
    if query is None:
        return None
    repeats = 1 / max(query.share_of_different, 1e-9)
    many = repeats >= (1.5 if table.said.kind else 3)
    label = likely_label(table, {query.name}) if many else None
    if label is None or not label.columns[0].is_number:
        return None
    relevance = label.columns[0]
    _check_grades(table, relevance)
    inputs = text_inputs(table, {relevance.name})
    if len(inputs.columns) != 2 or query not in inputs.columns:
        return None
    metrics = ["ndcg", "mrr"] if len(relevance.counts) > 2 else ["mrr", "ndcg"]
    why = {
        "kind": f"each '{query.name}' comes again with other texts, {repeats:.0f} times in the middle, and a relevance",
        "inputs": inputs.why,
        "primary": "relevance has several grades" if len(relevance.counts) > 2 else "relevant or not",
    }
    ordered = [query.name, *(name for name in inputs.names if name != query.name)]
    settings = settings_of("ranking", ordered, relevance.name, metrics)
    return Guess(settings, why, inputs.columns)


def _check_grades(table: Table, relevance: Column) -> None:
    check_finite(table.place, relevance)
    if relevance.is_number and relevance.low < 0:
        raise ConfigError(
            f"{table.place}: '{relevance.name}' goes down to {relevance.low:g}, but a relevance is 0 or more. Name "
            f"another column, {table.option('label', 'COLUMN')}, or another kind, {table.option('kind', 'regression')}."
        )


def multi_label(table: Table) -> Guess | None:
    """Recognise several labels in a row, as a list or joined by a mark."""
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
            "label": "as you said" if table.said.label is not None else "by its name",
            "labels": "all that occur in "
            + (f"{column.rows:,} rows" if column.counts else f"a sample of {len(column.sample):,} rows"),
            "primary": "F1 over all labels of all rows",
        }
        extra = {"labels": labels, "label_separator": separator}
        settings = settings_of("multi_label", inputs.names, name, ["f1_micro", "subset_accuracy"], **extra)
        return Guess(settings, why, inputs.columns, inputs.parts)
    return None


def _joined(column: Column, mark: str) -> bool:
    """Whether texts are short labels joined by a mark: some rows have several, and the labels come again."""
    split = [[piece.strip() for piece in value.split(mark)] for value in column.values]
    pieces = [piece for row in split for piece in row if piece]
    several = sum(len(row) > 1 for row in split) >= 0.05 * len(split)
    short = all(len(piece.split()) <= 4 for piece in pieces)
    return bool(pieces) and several and short and len(set(pieces)) <= min(MOST_LABELS, len(pieces) / 3)


def generation(table: Table) -> Guess | None:
    """Recognise texts to write."""
    said = table.said
    named = [table.column(said.label, "label")] if said.label is not None else list(table.columns.values())
    output = next((column for column in named if _is_written(table, column)), None)
    if said.kind is None and said.label is None and _has_classes(table, output):
        return None
    if output is None:
        _check_talks(table, named)
        return None
    _check_written(table, output)
    inputs = text_inputs(table, {output.name}, blanks=True)
    short = np.median([count_words(text) for text in output.values]) <= FEW_WORDS
    free = f"'{output.name}' holds texts that hardly come again ({words_of(output)}): they are to be written"
    why = {
        "kind": free if said.kind is None else "as you said",
        "inputs": inputs.why,
        "label": "as you said" if said.label is not None else "by its name",
        "primary": "answers of a few words are right or wrong" if short else "the words it shares with the right text",
    }
    metrics = ["exact_match", "word_f1"] if short else ["rouge_l", "word_f1"]
    settings = settings_of("generation", inputs.names, output.name, metrics)
    return Guess(settings, why, inputs.columns, inputs.parts, writes=output)


def _is_written(table: Table, column: Column) -> bool:
    """Whether a column holds texts to write: by its name and texts, or because the user says so in one way or other."""
    if column.holds != "texts":
        return False
    called, said = plain(column.name) in OUTPUTS, column.name == table.said.label
    if table.said.kind is not None:
        return called or said
    if column.no_text() is not None or column.has_repeats:
        return False
    others = [other for other in table.columns.values() if other is not column]
    asked = any(other.no_text() is None for other in others)
    labelled = any(is_called_label(other.name) and other.no_label() is None for other in others)
    return called or (said and asked and not labelled)


def _has_classes(table: Table, output: Column | None) -> bool:
    """Whether a column is called like a label, and is one: not a mere category of what is asked and written."""
    label = label_by_name(table, set())
    asks = output is not None and any(plain(name) in ASKS for name in table.columns)
    return label is not None and not (asks and not is_called_label(label.name))


def _check_talks(table: Table, columns: Sequence[Column]) -> None:
    """Raise UnsupportedError if texts to write stand in conversations, which are lists of messages."""
    for column in columns:
        if plain(column.name) in TALKS and column.holds == "mixed or nested values":
            raise UnsupportedError(
                f"{table.place}: '{column.name}' holds conversations. Write what is asked and what is to be said into "
                "columns of their own, such as prompt and response, a row for each answer; or, if another column "
                f"holds classes or numbers to predict, name it: {table.option('label', 'COLUMN')}."
            )


def _check_written(table: Table, output: Column) -> None:
    """Raise DataError if there are rows with nothing to write."""
    empty = output.missing + output.blank
    if empty:
        first = "" if output.first_blank is None else f", first in row {output.first_blank:,} (counted from 0)"
        raise DataError(
            f"{table.place}: column '{output.name}' has nothing to write in {empty:,} of {output.rows:,} rows{first}. "
            "Fill them in, or leave such rows out."
        )
