"""Guesses of texts to write: which column they are, and what asks for them."""

import pytest
from datasets import Dataset

from helpers_guesses import ROWS, cycle, guess, texts
from tasklora.errors import ConfigError, DataError, UnsupportedError
from tasklora.tasks.guessing.columns import SAMPLE_ROWS, look_at

REVIEWS = {"review": texts(1), "summary": texts(2), "stars": cycle([1, 5])}
DOLLY = {"instruction": texts(1), "context": texts(2), "response": texts(3), "category": cycle(["qa", "summary"])}
ALPACA = {"instruction": texts(1), "input": texts(4), "output": texts(3)}
HALF = [text * (place % 2) for place, text in enumerate(texts(2))]
NAMES = [f"person {row % 40}" for row in range(ROWS)]
TALKS = [[{"role": "user", "content": "hi"}]] * ROWS
CHINESE = ["\u597d\u7684\u7535\u5f71" * 3 + str(row) for row in range(ROWS)]


@pytest.mark.parametrize(
    ("columns", "said", "read", "primary"),
    [
        (
            {"instruction": texts(1), "input": texts(2), "output": texts(3)},
            {},
            "instruction input -> output",
            "rouge_l",
        ),
        ({**ALPACA, "input": HALF}, {}, "instruction input -> output", "rouge_l"),
        (
            {"instruction": texts(1), "input": cycle(["", "x"]), "output": texts(3)},
            {},
            "instruction -> output",
            "rouge_l",
        ),
        ({"article": texts(1), "highlights": texts(2)}, {}, "article -> highlights", "rouge_l"),
        ({"question": texts(1), "answer": texts(2, words=1)}, {}, "question -> answer", "exact_match"),
        ({"question": texts(1), "answer": NAMES}, {"kind": "generation"}, "question -> answer", "exact_match"),
        ({"question": texts(1), "answer": CHINESE}, {}, "question -> answer", "rouge_l"),
        (DOLLY, {}, "instruction context -> response", "rouge_l"),
        (DOLLY, {"kind": "generation"}, "instruction context -> response", "rouge_l"),
        ({"a": texts(1), "b": texts(2)}, {"kind": "generation", "label": "b"}, "a -> b", "rouge_l"),
        ({"en": texts(1), "de": texts(2)}, {"label": "de"}, "en -> de", "rouge_l"),
        (
            {"q": texts(1), "more": [x or None for x in HALF], "output": texts(3)},
            {"inputs": ("q", "more")},
            "q more -> output",
            "rouge_l",
        ),
        (REVIEWS, {"label": "summary"}, "review -> summary", "rouge_l"),
    ],
)
def test_texts_to_write(columns, said, read, primary):
    found = guess(columns, **said)
    assert found.kind == "generation"
    assert f"{' '.join(found.settings['inputs'])} -> {found.label}" == read
    assert found.settings["primary"] == primary
    assert found.writes.name == found.label


def test_a_pair_that_is_compared_must_be_whole():
    pairs = {"first": texts(1), "second": [x or None for x in HALF], "label": cycle([0, 1])}
    with pytest.raises(DataError, match="column 'second' is empty in 30 of 60 rows"):
        guess(pairs, inputs=("first", "second"))


def test_answers_that_come_again_are_classes_and_not_written():
    assert guess({"question": texts(), "answer": cycle(["yes it is", "no it is not"])}).kind == "classification"
    assert guess({**REVIEWS, "label": cycle(["a", "b"])}, inputs=("review",)).kind == "classification"
    judged = {"prompt": texts(1), "response": texts(2), "label": cycle(["harmless", "harmful"])}
    assert guess(judged).kind == "classification"


def test_the_longest_text_and_blank_ones_are_of_all_rows():
    written = ["short"] * (3 * SAMPLE_ROWS - 4) + ["\u00e9" * 50, "", " ", None]
    column = look_at(Dataset.from_dict({"output": written}))["output"]
    assert (column.longest, column.blank, column.missing) == (100, 2, 1)  # two bytes each
    assert column.first_blank == len(written) - 3


@pytest.mark.parametrize(
    ("columns", "said", "error", "says"),
    [
        (
            {"messages": [[{"role": "user", "content": "hi"}]] * ROWS},
            {},
            UnsupportedError,
            "'messages' holds conversat",
        ),
        ({"prompt": texts(1), "output": ["", *texts(2)[1:]]}, {}, DataError, "in 1 of 60 rows, first in row 0"),
        ({"a": texts(1), "b": texts(2)}, {"kind": "generation"}, ConfigError, "texts to write: name it with --label"),
        ({"a": texts(1), "b": texts(2)}, {}, ConfigError, "Name it: --label COLUMN, which may be a text to write"),
        (
            {"a": texts(1), "translation": TALKS},
            {},
            ConfigError,
            "nested or mixed needs a column of plain values first",
        ),
    ],
)
def test_texts_that_cannot_be_written(columns, said, error, says):
    with pytest.raises(error, match=says):
        guess(columns, **said)
