"""Metrics of generated texts: one number per row, so that resamples of the rows are quick.

Texts are compared as the evaluation script of SQuAD does (Rajpurkar et al., "SQuAD: 100,000+ Questions for Machine
Comprehension of Text", EMNLP 2016): in lower case, without punctuation, English articles and surplus spaces. Of scripts
that leave no spaces between words (Chinese, Japanese, Thai, Lao, Burmese, Khmer) every character is a word.
"""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Callable

import numpy as np

from tasklora.tasks.ragged import Array
from tasklora.tasks.row_metrics import Answers, mean_of_rows

UNSPACED = (
    "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u2e80-\u2fff\u3040-\u312f\u31f0-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
)
"""Characters of scripts without spaces between words, for a class of a regular expression."""
_PUNCTUATION = str.maketrans("", "", string.punctuation)
_BESIDE_UNSPACED = re.compile(
    "[\u3000-\u303f\uff01-\uff0f\uff1a-\uff20\uff3b-\uff40\uff5b-\uff65]"
)  # their punctuation
_WORD = re.compile(rf"[{UNSPACED}]|[^\s{UNSPACED}]+")
_LETTERS = re.compile(rf"[{UNSPACED}]|[^\W_{UNSPACED}]+")


def count_words(text: str) -> int:
    """Return the words of a text; of scripts that leave no spaces between words, the characters."""
    return len(_WORD.findall(text))


def normalised(text: str) -> list[str]:
    """Return the words of a text that are compared."""
    bare = _BESIDE_UNSPACED.sub("", text.lower().translate(_PUNCTUATION))
    return _WORD.findall(re.sub(r"\b(a|an|the)\b", " ", bare))


def exact_match(label: str, said: str) -> float:
    """Return whether two texts have the same words in the same order."""
    return float(normalised(label) == normalised(said))


def word_f1(label: str, said: str) -> float:
    """Return 2 P R / (P + R) of the words that two texts share, each as often as both have it.

    Where one has no words it is 1 if the other has none either, as in version 2.0 of the script.
    """
    wanted, got = normalised(label), normalised(said)
    if not wanted or not got:
        return float(wanted == got)
    return 2 * sum((Counter(wanted) & Counter(got)).values()) / (len(wanted) + len(got))


def rouge_l(label: str, said: str) -> float:
    """Return 2 P R / (P + R) of the longest common subsequence of words, without stemming.

    Source: Lin, "ROUGE: A Package for Automatic Evaluation of Summaries" (2004), with β = 1. Words are runs of letters
    and digits in lower case; articles count.
    """
    wanted, got = (_LETTERS.findall(text.lower()) for text in (label, said))
    if not wanted or not got:
        return float(wanted == got)
    best = [0] * (len(got) + 1)  # of the words so far, with each beginning of `got`
    for word in wanted:
        before = 0
        for place, other in enumerate(got, start=1):
            before, best[place] = best[place], before + 1 if word == other else max(best[place], best[place - 1])
    return 2 * best[-1] / (len(wanted) + len(got))


def _of_texts(compare: Callable[[str, str], float]) -> Callable[[Answers], Array]:
    def values(answers: Answers) -> Array:
        pairs = zip(answers.labels, answers.predictions, strict=True)
        return np.array([compare(str(label), str(said)) for label, said in pairs], dtype=np.float64)

    return values


EXACT_MATCH = mean_of_rows(_of_texts(exact_match))
WORD_F1 = mean_of_rows(_of_texts(word_f1))
ROUGE_L = mean_of_rows(_of_texts(rouge_l))
