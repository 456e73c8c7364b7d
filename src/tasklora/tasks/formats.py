"""Published row formats that are not columns yet: what is written into one text, taken apart."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from tasklora.errors import DataError, listing
from tasklora.tasks.kinds import WrongValueError, require_columns

if TYPE_CHECKING:
    import datasets

INSTRUCTION_COLUMNS = ("instruction", "output", "answer")
ANSWER_FORMAT = "Answer format:"


def instruction_options(rows: datasets.Dataset, where: str) -> datasets.Dataset:
    """Return rows of the instruction format of LLM-Adapters' commonsense data with question, choices and label.

    An instruction there is ``LEAD: QUESTION`` and an empty line, the choices ``Name1: … Name2: …``, and
    ``Answer format: name1/name2``; `answer` is one of these names. A question to be answered by words that have no
    texts of their own (``Answer format: true/false``) has these words as choices. The columns `question`, `choices` (a
    list of texts), `names` (what the choices are called) and `label` (the place of the answer, from 0) are added; the
    others stay, for who wants the instruction itself and the output to it.

    Source: Hu et al., "LLM-Adapters" (EMNLP 2023), github.com/AGI-Edgerunners/LLM-Adapters, folder ``dataset``.

    Args:
        rows: with columns `instruction`, `output` and `answer`.
        where: what an error message begins with.

    Raises:
        DataError: naming the missing column, or the first row that is not of the format.
    """
    require_columns(rows, INSTRUCTION_COLUMNS, f"{where}, format 'instruction_options'")
    parsed = []
    for index, row in enumerate(rows):
        try:
            parsed.append(parse_instruction(row["instruction"], row["output"], row["answer"]))
        except WrongValueError as error:
            raise DataError(f"{where}, row {index}: {error}") from None
    columns = ("question", "choices", "names", "label")
    kept = rows.remove_columns([column for column in columns if column in rows.column_names])
    for column in columns:
        kept = kept.add_column(column, [row[column] for row in parsed])
    return kept


def parse_instruction(instruction: Any, output: Any, answer: Any) -> dict[str, Any]:
    """Return question, choices, their names and label of one row; see :func:`instruction_options`.

    Raises:
        WrongValueError: if it is not of the format.
    """
    if not isinstance(instruction, str) or ANSWER_FORMAT not in instruction:
        raise WrongValueError(f"the instruction {instruction!r} has no '{ANSWER_FORMAT}'.")
    body, _, given = instruction.rpartition(ANSWER_FORMAT)
    names = given.strip().split("/")
    if answer not in names:
        raise WrongValueError(f"the answer {answer!r} is none of {listing(names)}.")
    if output != f"the correct answer is {answer}":
        raise WrongValueError(f"the output {output!r} does not say the answer {answer!r}.")
    lead, colon, question = body.rstrip().partition(": ")
    if not lead or not colon:
        raise WrongValueError(f"the instruction {instruction!r} does not begin with what is to be done and a colon.")
    choices = names
    if any(name[-1:].isdigit() for name in names):
        question, choices = _numbered(question, names)
    if len(names) < 2 or not question.strip() or not all(choices):
        raise WrongValueError(f"the instruction {instruction!r} has no question, fewer than two choices or empty ones.")
    return {"question": question.strip(), "choices": choices, "names": names, "label": names.index(answer)}


def _numbered(body: str, names: list[str]) -> tuple[str, list[str]]:
    """Return the question and the texts of the choices that stand after ``Name1:``, ``Name2:`` … in their order."""
    markers = [f"{name.capitalize()}:" for name in names]
    found = [[match.start() for match in re.finditer(re.escape(marker), body)] for marker in markers]
    # A marker must stand once and after the one before it: else nobody could say which text is which choice.
    if any(len(places) != 1 for places in found) or sorted(found) != found:
        raise WrongValueError(f"{body!r} does not have the choices {listing(markers)} once each and in this order.")
    starts = [places[0] for places in found]
    ends = [*starts[1:], len(body)]
    texts = [body[start + len(marker) : end].strip() for marker, start, end in zip(markers, starts, ends, strict=True)]
    return body[: starts[0]], texts


FORMATS: dict[str, Callable[[Any, str], Any]] = {"instruction_options": instruction_options}
