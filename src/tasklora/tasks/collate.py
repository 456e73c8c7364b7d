"""Rows of any tasks → one padded batch of a tokenizer's inputs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, NamedTuple, TypeAlias

import torch

from tasklora.tasks.ragged import padded
from tasklora.tasks.spec import TaskSpec

PairEncoding = Literal["joint", "separate"]


class MultiTaskCollator:
    """Tokenises and pads rows of mixed tasks.

    A pair of texts is encoded jointly, as one sequence with a separator (a cross-encoder), or separately, as two rows
    of the encoder whose embeddings the head compares (a bi-encoder; what sentence-embedding models were trained for).
    So are a question and its choices, and a query and its documents: separately, the question is one encoder row for
    all of them.

    Args:
        tokenizer: a fast tokenizer with a padding token.
        specs: task name → task, in the order of the task ids.
        pair_encodings: task name → how its pairs are encoded.
        max_length: longest sequence, in tokens; longer ones are truncated.

    Returns (when called with rows ``{"task", "texts", "label"}``):
        ``input_ids``, ``attention_mask`` (and what else the tokenizer gives): (R, L), R encoder rows;
        ``row_task_ids`` (R,); ``task_ids`` (N,);
        ``word_places`` (K, 2): encoder row and position of the first token of each word that a head reads;
        ``entries`` (N, W): what each row's head reads, one vector or one for each choice, word or document: places
        among R + K vectors, first the encoder rows', then the words'; −1 where a row has fewer, or a word is cut off;
        ``entry_pairs`` (N, W): the encoder rows of the second texts of separate pairs, −1 where there is none;
        ``labels`` (N, V), float, NaN where a row has fewer than V, if the rows have labels.
    """

    def __init__(
        self, tokenizer: Any, specs: Mapping[str, TaskSpec], pair_encodings: Mapping[str, PairEncoding], max_length: int
    ) -> None:
        self.tokenizer = tokenizer
        self.specs = dict(specs)
        self.pair_encodings = dict(pair_encodings)
        self.max_length = max_length
        self._ids = {name: index for index, name in enumerate(self.specs)}

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, torch.Tensor]:
        """Return the batch of `rows`; see the class."""
        sequences = Sequences(self.tokenizer, self.max_length)
        entries = []
        for row in rows:
            spec, separate = self.specs[row["task"]], self.pair_encodings[row["task"]] == "separate"
            sequences.task_id = self._ids[row["task"]]
            entries.append(LAYOUTS[spec.kind](sequences, row["texts"], separate))
        batch = sequences.tensors()
        encoder_rows, width = len(sequences.task_ids), max(map(len, entries), default=0)
        table = torch.full((2, len(rows), width), -1)
        for place, of_row in enumerate(entries):
            for column, entry in enumerate(of_row):
                table[0, place, column] = entry.first + encoder_rows * entry.is_word if entry.first >= 0 else -1
                table[1, place, column] = entry.second
        batch["entries"], batch["entry_pairs"] = table.unbind()
        batch["task_ids"] = torch.tensor([self._ids[row["task"]] for row in rows])
        if rows and "label" in rows[0]:
            labels = [row["label"] if isinstance(row["label"], list) else [row["label"]] for row in rows]
            batch["labels"] = torch.tensor(padded(labels), dtype=torch.float32)
        return batch


class Entry(NamedTuple):
    """What a head reads for one answer.

    Attributes:
        first: an encoder row, or the place of a word among those that are read; −1 for a word that was cut off.
        second: the encoder row of a separate pair's second text, else −1.
        is_word: whether `first` is a word.
    """

    first: int
    second: int = -1
    is_word: bool = False


class Sequences:
    """The encoder's rows of a batch, as they come.

    Attributes:
        task_id: the task of the sequences that are added next.
        task_ids: the task of each encoder row.
        words: encoder row and position of the first token of each word that is read.
    """

    def __init__(self, tokenizer: Any, max_length: int) -> None:
        self.task_id = 0
        self.task_ids: list[int] = []
        self.words: list[tuple[int, int]] = []
        self._tokenizer = tokenizer
        self._max_length = max_length
        self._encoded: list[Any] = []

    def add(self, *texts: str) -> int:
        """Add one text, or a pair as one sequence; return its encoder row."""
        return self._add(self._tokenizer(*texts, truncation=True, max_length=self._max_length))

    def add_words(self, words: list[str]) -> list[int]:
        """Add a sentence of words; return the place in :attr:`words` of each, −1 for those that have no token."""
        encoded = self._tokenizer(words, is_split_into_words=True, truncation=True, max_length=self._max_length)
        row = self._add(encoded)
        places = [-1] * len(words)
        for position, word in enumerate(encoded.word_ids()):
            if word is not None and places[word] < 0:
                places[word] = len(self.words)
                self.words.append((row, position))
        return places

    def tensors(self) -> dict[str, torch.Tensor]:
        """Return the tokenizer's padded tensors, ``row_task_ids`` and ``word_places``."""
        batch = dict(self._tokenizer.pad(self._encoded, return_tensors="pt"))
        batch["row_task_ids"] = torch.tensor(self.task_ids)
        batch["word_places"] = torch.tensor(self.words, dtype=torch.long).reshape(-1, 2)
        return batch

    def _add(self, encoded: Any) -> int:
        self._encoded.append(encoded)
        self.task_ids.append(self.task_id)
        return len(self.task_ids) - 1


def _one(sequences: Sequences, texts: list[str], separate: bool) -> list[Entry]:
    """One entry: the text, or the pair."""
    if separate and len(texts) == 2:
        return [Entry(sequences.add(texts[0]), sequences.add(texts[1]))]
    return [Entry(sequences.add(*texts))]


def _candidates(sequences: Sequences, texts: list[str], separate: bool) -> list[Entry]:
    """An entry for each text after the first: a choice of a question, a document of a query."""
    first, *others = texts
    if separate:
        row = sequences.add(first)
        return [Entry(row, sequences.add(text)) for text in others]
    return [Entry(sequences.add(first, text)) for text in others]


def _words(sequences: Sequences, texts: list[str], separate: bool) -> list[Entry]:
    """An entry for each word: the vector of its first token."""
    return [Entry(place, is_word=True) for place in sequences.add_words(texts)]


Layout: TypeAlias = Callable[[Sequences, list[str], bool], list[Entry]]
"""(sequences, a row's texts, whether pairs are encoded separately) → the row's entries."""

LAYOUTS: dict[str, Layout] = {
    "classification": _one,
    "regression": _one,
    "multi_label": _one,
    "multiple_choice": _candidates,
    "token_classification": _words,
    "ranking": _candidates,
}
