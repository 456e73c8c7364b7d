"""Training rows that are read through, pass after pass, and never held whole.

The stream of a task is an endless sequence: the rows of its source in an order that seed and pass decide, pass after
pass. Row p of it is the same whoever asks and whatever was asked before, so a resumed run, and each of several
processes, draws the rows that an uninterrupted one would.
"""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Callable, Iterable, Iterator
from collections.abc import Set as AbstractSet
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, TypeVar

import numpy as np
import pydantic

from tasklora.errors import ConfigError, DataError, TaskLoraError, counted, first_line
from tasklora.tasks.kinds import KINDS
from tasklora.tasks.sources import Rows
from tasklora.tasks.spec import Split, TaskSpec
from tasklora.tasks.strict import Strict
from tasklora.tasks.table_files import why_unread

if TYPE_CHECKING:
    import datasets

Row: TypeAlias = dict[str, Any]
Element = TypeVar("Element")

READ_AT_ONCE = 1000
"""Rows that are taken from a source together; one by one, `datasets` needs ten times as long."""

PLACE = "__place__"
"""Column of the first rows of a source: where in it they stand."""


class Streaming(Strict):
    """That a task's training rows are streamed: read while training goes on, a pass after another.

    Attributes:
        rows: how many the training data have, roughly, or "unknown": mixing by size and the length of an epoch go by
            it.
        buffer: rows that are held, to draw the next one from. The first ones of the data, as many, are read before
            training: rows for tune and validation are held out of them where these have none of their own, and the
            mean of a regression's labels and balanced class weights are taken from them.
    """

    rows: pydantic.PositiveInt | Literal["unknown"]
    buffer: pydantic.PositiveInt = 10_000


class StreamedSource:
    """A source whose training rows are streamed; ``train`` of it is the first rows, with their places.

    Args:
        name: the task's name.
        source: where the rows come from.
        streaming: how.
    """

    def __init__(self, name: str, source: Rows, streaming: Streaming) -> None:
        self.name = name
        self.source = source
        self.streaming = streaming

    @property
    def holds_out_validation(self) -> bool:
        """Whether validation is to be held out of train."""
        return self.source.holds_out_validation

    def has(self, split: Split) -> bool:
        """Return whether the split can be loaded."""
        return self.source.has(split)

    def load(self, split: Split) -> datasets.Dataset:
        """Return the rows of a split; of train, the first ones, with the column :data:`PLACE`."""
        return self.first if split == "train" else self.source.load(split)

    def stream(self, split: Split) -> datasets.IterableDataset:
        """Return all rows of a split, read anew at every iteration."""
        return self.source.stream(split)

    @cached_property
    def first(self) -> datasets.Dataset:
        """The first rows, as many as the buffer holds.

        Raises:
            DataError: if they cannot be read, or the number of rows that was given cannot be right.
        """
        from datasets import Dataset

        rows = list(itertools.islice(self.read(), self.streaming.buffer))
        seen, given = len(rows), self.streaming.rows
        is_all = seen < self.streaming.buffer
        if given != "unknown" and (given < seen or (is_all and given != seen)):
            raise DataError(
                f"task '{self.name}': streaming.rows is {given}, but its training data have {counted(seen, 'row')}"
                f"{'' if is_all else ' or more'}. Correct it, or say `rows: unknown`."
            )
        try:
            return Dataset.from_list([{**row, PLACE: place} for place, row in rows])
        except (ValueError, TypeError) as error:
            raise DataError(
                f"task '{self.name}': a column of its first {seen} training rows holds values of several types "
                f"({first_line(error)})."
            ) from None

    def read(self, columns: Iterable[str] | None = None) -> Iterator[tuple[int, Row]]:
        """Yield the training rows in the order of the source, with their places.

        Args:
            columns: which columns; all by default.

        Raises:
            DataError: if reading fails; it says where.
        """
        place = 0
        try:
            for batch in self.stream("train").iter(batch_size=READ_AT_ONCE):
                names = list(batch) if columns is None else columns
                count = len(next(iter(batch.values())))
                values = [batch.get(name, [None] * count) for name in names]
                for row in zip(*values, strict=True):
                    yield place, dict(zip(names, row, strict=True))
                    place += 1
        except TaskLoraError:
            raise
        except Exception as error:  # files, formats and the network raise many kinds
            raise DataError(
                f"task '{self.name}': its training rows could be read up to row {place} only: "
                f"{why_unread(error)} Mend the data or the connection; a run that had begun goes on "
                "with --resume."
            ) from error

    def size(self, left_out: int) -> int | None:
        """Return how many rows there are to train on, as far as that is known.

        Args:
            left_out: rows that are held out.
        """
        if len(self.first) < self.streaming.buffer:
            return len(self.first) - left_out
        return None if self.streaming.rows == "unknown" else max(1, self.streaming.rows - left_out)


def check_streamed(name: str, spec: TaskSpec, limit: int | None) -> None:
    """Refuse a task whose training rows cannot be read one after the other.

    Args:
        name: the task's name.
        spec: the task.
        limit: rows of train at most.

    Raises:
        ConfigError: saying what needs all rows at once.
    """
    needs = None
    if KINDS[spec.kind].gathers_rows:
        needs = f"a {spec.kind} task gathers the rows of a query, which may stand anywhere"
    elif spec.format is not None:
        needs = f"the format '{spec.format}' is read of whole tables"
    elif "train" in spec.splits or any(part.of == "train" for part in spec.splits.values()):
        needs = "its `splits` are shares of all rows: name a file for each split instead"
    elif limit is not None:
        needs = (
            f"tasks.limits.train draws {limit} of all rows: leave it out, and limit the run by training.max_steps or "
            "mixing.epoch_rows"
        )
    if needs:
        raise ConfigError(f"task '{name}': its training rows cannot be streamed: {needs}. Or leave out `streaming`.")


def shuffled(rows: Iterator[Element], buffer: int, generator: np.random.Generator) -> Iterator[Element]:
    """Yield rows in random order, each drawn from `buffer` ones, in whose place the next one comes.

    Args:
        rows: in their order.
        buffer: rows that are held.
        generator: draws.
    """
    held = list(itertools.islice(rows, buffer))
    for row in rows:
        place = int(generator.integers(len(held)))
        yield held[place]
        held[place] = row
    for index in generator.permutation(len(held)).tolist():
        yield held[index]


class Passes:
    """The rows of a source, pass after pass, by their place in that endless sequence.

    Places are read forward. To go back, or to begin anywhere, rows are read and dropped up to the place asked for.

    Args:
        read: begins to read the source: yields rows with their places in it.
        left_out: places of rows that are held out.
        buffer: rows that are held; see :func:`shuffled`.
        seed: of the order.
        where: what an error message begins with.
        expected: how many rows of a pass were counted on; None if that is unknown.
    """

    def __init__(
        self,
        read: Callable[[], Iterator[tuple[int, Row]]],
        left_out: AbstractSet[int],
        buffer: int,
        seed: int,
        where: str,
        expected: int | None = None,
    ) -> None:
        self.read = read
        self.left_out = left_out
        self.buffer = buffer
        self.seed = seed
        self.where = where
        self.expected = expected
        self.length: int | None = None  # rows of a pass, known after the first one
        self._pass = -1
        self._next = 0
        self._rows: Iterator[tuple[int, Row]] = iter(())

    def __getitem__(self, place: int) -> tuple[int, Row]:
        """Return a row and its place in the source.

        Raises:
            DataError: if there is none, or the source has become shorter.
        """
        while True:
            number, within = divmod(place, self.length) if self.length is not None else (0, place)
            if number != self._pass or within < self._next:
                self._begin(number)
            for row in self._rows:
                self._next += 1
                if self._next > within:
                    return row
            self._end_pass()

    def _begin(self, number: int) -> None:
        kept = (row for row in self.read() if row[0] not in self.left_out)
        self._rows = shuffled(kept, self.buffer, np.random.default_rng([self.seed, number]))
        self._pass, self._next = number, 0

    def _end_pass(self) -> None:
        """Note how long a pass is."""
        if self._next == 0 or (self.length is not None and self._next != self.length):
            raise DataError(
                f"{self.where}: a pass over the training rows ended after {self._next} of them"
                f"{'' if self.length is None else f', but had {self.length} before'}. Do not change the data while a "
                "run goes on."
            )
        if self.length is None and self.expected is not None and abs(self._next - self.expected) > 0.1 * self.expected:
            warnings.warn(
                f"{self.where}: {self._next} training rows were read in a pass, but mixing counts on {self.expected}: "
                "its share goes by that number. Correct streaming.rows in the next run.",
                stacklevel=2,
            )
        self.length = self._next
        self._pass = -1
