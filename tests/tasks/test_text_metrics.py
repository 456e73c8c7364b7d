"""Metrics of generated texts: numbers worked out by hand, and those of the scripts that are the reference."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tasklora.tasks import METRICS, Answers
from tasklora.tasks.text_metrics import exact_match, normalised, rouge_l, word_f1

# Words that repeat, articles, words that begin with one, punctuation inside words and beside them, digits, blanks.
PIECES = [
    "cat",
    "Cat",
    "sat",
    "the",
    "The",
    "a",
    "an",
    "theatre",
    "mat.",
    "well-known",
    "it's",
    "3",
    "3.5",
    ",",
    "_",
    " ",
]
texts = st.lists(st.sampled_from(PIECES), max_size=9).map(" ".join)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("The Eiffel Tower, in Paris.", ["eiffel", "tower", "in", "paris"]),
        ("a well-known  theatre\n", ["wellknown", "theatre"]),  # punctuation goes without leaving a space
        ("An apple a day; 3.5 the", ["apple", "day", "35"]),
        ("the", []),
        ("Élan ÜBER", ["élan", "über"]),
        ("我们去公园。", list("我们去公园")),  # a character is a word where no spaces are left
        ("한국어 텍스트", ["한국어", "텍스트"]),  # Korean leaves them
        ("BERT 模型！", ["bert", "模", "型"]),
    ],
)
def test_what_is_compared(text, words):
    assert normalised(text) == words


@pytest.mark.parametrize(
    ("label", "said", "exact", "f1"),
    [
        # {eiffel, tower, in, paris} and {eiffel, tower}: P = 2/2, R = 2/4, 2 · 1 · ½ / (1 + ½) = 2/3
        ("The Eiffel Tower, in Paris.", "eiffel tower", 0, 2 / 3),
        # cat cat sat and cat sat sat share one cat and one sat: P = 2/3, R = 2/3, F1 = 2/3
        ("the cat, cat sat", "cat sat sat", 0, 2 / 3),
        # sat cat and cat sat: all words, another order
        ("sat cat", "cat sat", 0, 1),
        # one of one, and one of five: P = 1/5, R = 1/1, 2 · 1/5 / (6/5) = 1/3
        ("Paris", "it is in paris france", 0, 1 / 3),
        ("well-known", "wellknown!", 1, 1),
        ("well-known", "well known", 0, 0),  # one word and two others
        ("yes", "no", 0, 0),
        ("yes", "", 0, 0),  # nothing was said
        ("the", "an", 1, 1),  # neither has a word
    ],
)
def test_exact_match_and_the_f1_of_words(label, said, exact, f1):
    assert exact_match(label, said) == exact_match(said, label) == exact
    assert word_f1(label, said) == pytest.approx(f1)
    assert word_f1(said, label) == pytest.approx(f1)  # P and R change places


@pytest.mark.parametrize(
    ("label", "said", "value"),
    [
        # The example of Lin (2004), section 3: "police the gunman", 3 of 4 words of each; then "the gunman", 2 of 4.
        ("police killed the gunman", "police kill the gunman", 3 / 4),
        ("police killed the gunman", "the gunman kill police", 2 / 4),
        # "the gunman" or "police killed", but not both: 2 of 4
        ("police killed the gunman", "the gunman police killed", 2 / 4),
        # b c, with a gap: 2 of 5 and 2 of 3, 2 · 2 / (5 + 3)
        ("a b x c d", "b, C! e", 4 / 8),
        # articles count, as in "the cat" of 2 and "cat" of 1: 2 · 1 / 3
        ("the cat", "cat", 2 / 3),
        # no stemming
        ("cats", "cat", 0),
        # letters and digits make words: a_b and well-known are two, 3.5 too
        ("a_b", "a b", 1),
        ("well-known 3.5", "well known 3 5", 1),
        # a repeated word counts as often as both have it: x y and x x: 1, 2 · 1 / 4
        ("x y", "x x", 2 / 4),
        ("yes", "", 0),
        ("...", "!", 1),  # neither has a word
        ("我们今天去学校。", "我们今天去公园", 5 / 7),  # of characters; punctuation is none
        ("กา", "กี", 1 / 2),  # a vowel sign is one
    ],
)
def test_rouge_l(label, said, value):
    assert rouge_l(label, said) == pytest.approx(value)
    assert rouge_l(said, label) == pytest.approx(value)


def test_metrics_are_means_over_the_rows():
    """(1 + 0 + 0) / 3, (1 + 2/3 + 0) / 3; ROUGE-L: (1 + 2 · 2 / (5 + 2) + 0) / 3, the label's articles counted."""
    labels = np.array(["yes", "The Eiffel Tower, in Paris", "warm"], dtype=object)
    said = np.array(["Yes.", "Eiffel tower", "cold"], dtype=object)
    values = {name: METRICS[name].compute(Answers(labels, said)) for name in ("exact_match", "word_f1", "rouge_l")}
    assert values == pytest.approx({"exact_match": 1 / 3, "word_f1": 5 / 9, "rouge_l": (1 + 4 / 7) / 3})


@given(label=texts, said=texts)
def test_they_are_those_of_squads_script(label, said):
    """As lm-eval has it for English, with the F1 of SQuAD 1.1: 0 where neither side has a word, which 2.0 made 1."""
    squad = pytest.importorskip("lm_eval.tasks.tydiqa.utils", reason="lm-eval is not installed")
    assert normalised(label) == squad.normalize_answer(label, "en").split()
    assert exact_match(label, said) == squad.exact_match_score(said, label, "en")
    if normalised(label) or normalised(said):
        assert word_f1(label, said) == pytest.approx(squad.f1_score(said, label, "en"))
    else:
        assert (word_f1(label, said), squad.f1_score(said, label, "en")) == (1.0, 0)


@given(label=texts, said=texts)
def test_rouge_l_is_that_of_rouge_score(label, said):
    """Google's package, which comes with lm-eval; it gives 0 where neither side has a word."""
    scorer = pytest.importorskip(
        "rouge_score.rouge_scorer", reason="rouge_score, which lm-eval needs, is not installed"
    )
    expected = scorer.RougeScorer(["rougeL"]).score(label, said)["rougeL"].fmeasure
    if any(map(str.isalnum, label + said)):
        assert rouge_l(label, said) == pytest.approx(expected)
    else:
        assert (rouge_l(label, said), expected) == (1.0, 0)
