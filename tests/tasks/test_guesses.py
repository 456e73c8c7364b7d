"""Guesses of what a table's task is: a test for each rule, and for each question that is asked instead of guessing."""

import pytest
from datasets import ClassLabel, Dataset, Features, List, Value

from helpers_guesses import ROWS, WORDS, cycle, guess, table, texts
from tasklora.errors import ConfigError, DataError, TaskLoraError
from tasklora.tasks.guessing.answers import doubtful, outward
from tasklora.tasks.guessing.columns import MOST_VALUES, SAMPLE_ROWS, look_at, merged
from tasklora.tasks.guessing.roles import class_names
from tasklora.tasks.guessing.rules import guess_task

INFINITE = float("inf")


# --- columns


def test_values_are_counted_over_every_row_and_texts_over_a_sample():
    rows = 3 * SAMPLE_ROWS
    labels = ["no"] * (rows - 1) + ["yes"]  # the rarest class is in the last row alone
    columns = look_at(Dataset.from_dict({"label": labels, "text": texts(rows=rows, words=1), "x": list(range(rows))}))
    assert columns["label"].counts == {"no": rows - 1, "yes": 1}
    assert len(columns["text"].sample) == SAMPLE_ROWS
    assert columns["text"].counts == columns["x"].counts == {}
    assert (columns["x"].low, columns["x"].high) == (0, rows - 1)


def test_what_columns_hold():
    columns = look_at(
        Dataset.from_dict(
            {
                "text": ["a", None],
                "whole": [1.0, None],
                "fraction": [0.5, 1.0],
                "truth": [True, False],
                "words": [["a"], ["b", "c"]],
                "ids": [[1], [2, 3]],
                "nested": [{"a": 1}, {"a": 2}],
                "empty": [None, None],
            }
        )
    )
    assert {name: column.holds for name, column in columns.items()} == {
        "text": "texts",
        "whole": "whole numbers",
        "fraction": "numbers",
        "truth": "truth values",
        "words": "lists of texts",
        "ids": "lists of numbers",
        "nested": "mixed or nested values",
        "empty": "mixed or nested values",
    }
    assert [column.missing for column in columns.values()] == [1, 1, 0, 0, 0, 0, 0, 2]
    assert columns["whole"].counts == {1: 1}
    assert columns["ids"].counts == {1: 1, 2: 1, 3: 1}


def test_infinite_numbers_are_kept_apart():
    columns = look_at(Dataset.from_dict({"whole": [1.0, float("inf"), 3.0, None], "all": [float("-inf")] * 4}))
    whole, none = columns["whole"], columns["all"]
    assert (whole.holds, whole.infinite, whole.missing, whole.low, whole.high) == ("whole numbers", (1,), 1, 1, 3)
    assert whole.counts == {1: 1, 3: 1}
    assert (none.holds, none.infinite, none.missing) == ("numbers", (0, 1, 2, 3), 0)


def test_columns_of_several_splits_are_counted_together():
    one, other = (look_at(Dataset.from_dict({"y": values}))["y"] for values in ([0, 1, 1], [2, 1]))
    both = merged(one, other)
    assert (both.rows, both.counts, both.low, both.high) == (5, {0: 1, 1: 3, 2: 1}, 0, 2)
    texts_of_many = look_at(Dataset.from_dict({"y": [str(i) for i in range(MOST_VALUES + 1)]}))["y"]
    assert merged(one, texts_of_many).holds == "mixed or nested values"


# --- inputs


@pytest.mark.parametrize(
    "names",
    [
        ("sentence1", "sentence2"),
        ("premise", "hypothesis"),
        ("question1", "question2"),
        ("Question", "Answer"),
        ("left", "right"),
        ("text_a", "text_b"),
        ("query", "document"),
    ],
)
def test_pairs_by_their_names_whatever_else_there_is(names):
    columns = {"note": texts(3), names[1]: texts(2), names[0]: texts(1), "label": cycle([0, 1])}
    found = guess(columns)
    assert found.settings["inputs"] == list(names)
    assert "by their names" in found.why["inputs"]
    assert found.left_out == {"note": "further texts"}
    assert not found.parts


def test_one_text_two_texts_and_a_title():
    assert guess({"words_said": texts(), "label": cycle([0, 1])}).settings["inputs"] == ["words_said"]
    two = guess({"one": texts(1), "two": texts(2), "label": cycle([0, 1])})
    assert two.settings["inputs"] == ["one", "two"]
    assert "taken for a pair" in two.why["inputs"]
    titled = guess({"text": texts(1), "title": texts(2, words=3), "label": cycle([0, 1])})
    assert titled.settings["inputs"] == ["title", "text"]
    assert titled.parts


def test_of_three_texts_one_is_called_text_or_the_user_is_asked():
    columns = {"summary": texts(1), "text": texts(2), "remark": texts(3), "label": cycle([0, 1])}
    assert guess(columns).settings["inputs"] == ["text"]
    columns = {"one": texts(1), "two": texts(2), "three": texts(3), "label": cycle([0, 1])}
    with pytest.raises(ConfigError, match=r"3 columns hold texts: one, two, three.*--inputs one, or --inputs one,two"):
        guess(columns)
    assert guess(columns, inputs=("three", "one")).settings["inputs"] == ["three", "one"]


def test_what_is_no_text_is_left_out_with_the_reason():
    found = guess(
        {
            "": list(range(ROWS)),
            "id": [f"r-{row:04d}" for row in range(ROWS)],
            "number": list(range(100, 100 + ROWS)),
            "review": texts(),
            "link": [f"https://example.org/{row}" for row in range(ROWS)],
            "written": [f"2024-05-{row % 28 + 1:02d}" for row in range(ROWS)],
            "code": [f"AB-{row}/7" for row in range(ROWS)],
            "language": ["en"] * ROWS,
            "title": ["nice"] * (ROWS - 1) + [None],
            "label": cycle(["bad", "good"]),
        }
    )
    assert found.settings["inputs"] == ["review"]
    assert found.left_out == {
        "": "row numbers",
        "id": "ids",
        "number": "a different number in every row",
        "link": "addresses",
        "written": "dates",
        "code": "codes",
        "language": "the same value in every row",
        "title": "the same value in every row",
    }


# --- labels


@pytest.mark.parametrize(
    "name", ["label", "labels", "target", "class", "y", "gold_label", "category", "is_spam", "Intent"]
)
def test_the_label_goes_by_its_name(name):
    found = guess({"text": texts(), "other": cycle([3, 4, 5]), name: cycle(["a", "b", "c"])})
    assert (found.label, found.why["label"]) == (name, "by its name")
    assert found.left_out == {"other": "whole numbers"}


def test_a_better_name_wins():
    assert guess({"text": texts(), "topic": cycle(["a", "b"]), "label": cycle(["c", "d"])}).label == "label"
    assert guess({"text": texts(), "label": texts(2), "target": cycle([0, 1])}, inputs=("text",)).label == "target"


def test_without_a_name_it_is_the_only_column_that_can_be_one():
    found = guess({"text": texts(), "outcome": cycle(["won", "lost"])})
    assert (found.label, found.why["label"]) == ("outcome", "the only column that can be one")


@pytest.mark.parametrize("names", [("colour", "size"), ("category", "sentiment")])
def test_two_equally_likely_labels_are_a_question(names):
    columns = {"text": texts(), names[0]: cycle(["a", "b"]), names[1]: cycle(["c", "d", "e"])}
    with pytest.raises(ConfigError, match=rf"{names[0]}, {names[1]} are equally likely .*: --label {names[0]}\."):
        guess(columns)
    flags = {"text": texts(), "toxic": cycle([0, 1]), "insult": cycle([0, 0, 1])}
    with pytest.raises(ConfigError, match="labels of one multi_label task"):
        guess(flags)
    with pytest.raises(ConfigError, match=rf"--label mine:{names[0]}\."):
        guess_task(table(columns, several=True))
    assert guess(columns, label=names[1]).label == names[1]


def test_a_column_of_names_beside_the_ids_names_the_classes():
    found = guess({"text": texts(), "label": cycle([2, 0, 1]), "label_text": cycle(["good", "bad", "fair"])})
    assert found.settings["labels"] == ["bad", "fair", "good"]
    assert found.left_out == {"label_text": "the classes' names"}
    columns = look_at(Dataset.from_dict({"label": [0, 1, 1], "name": ["a", "b", "a"]}))
    assert class_names(columns["label"], columns["name"]) is None


# --- classification


@pytest.mark.parametrize(
    ("values", "labels"),
    [
        (["b", "a", "c"], ["a", "b", "c"]),
        (["yes", "no"], ["no", "yes"]),
        (["positive", "negative"], ["negative", "positive"]),
        (["x", "x", "x", "a"], ["x", "a"]),  # the rarer one second
        ([0, 1], ["0", "1"]),
        ([1.0, 0.0], ["0", "1"]),
        ([1, 2, 4], ["1", "2", "4"]),
        ([-1, 0, 1], ["-1", "0", "1"]),
        ([True, False], ["false", "true"]),
    ],
)
def test_classes_and_their_order(values, labels):
    found = guess({"text": texts(), "label": cycle(values)})
    assert found.kind == "classification"
    assert found.settings["labels"] == labels


def test_classes_named_in_the_file():
    def rows(names):
        features = Features({"text": Value("string"), "label": ClassLabel(names=names)})
        return Dataset.from_dict({"text": texts(), "label": cycle([0, 1])}, features=features)

    assert guess(rows(["ham", "spam"])).settings["labels"] == ["ham", "spam"]
    assert guess(rows(["0", "1"])).settings["labels"] == ["0", "1"]
    # of these, the number 1 in a row would be taken for the name of the first class
    assert guess(rows(["1", "2"])).settings["labels"] == ["class 1", "class 2"]


@pytest.mark.parametrize(
    ("counts", "primary", "weights"),
    [
        ({"no": 35, "yes": 25}, "accuracy", None),
        ({"no": 50, "yes": 10}, "f1", None),
        ({0: 10, 1: 50}, "mcc", None),  # f1 would be of the frequent class
        ({"no": 285, "yes": 15}, "f1", "balanced"),
        ({"no": 295, "yes": 5}, "f1", "none"),  # too few to weigh up
        ({"a": 30, "b": 30, "c": 25}, "accuracy", None),
        ({"a": 60, "b": 40, "c": 15}, "f1_macro", None),
        ({"a": 160, "b": 140, "c": 12}, "f1_macro", "balanced"),
        ({f"c{i}": 3 for i in range(30)}, "accuracy", None),  # 3 % each is even among thirty
    ],
)
def test_metrics_and_weights_follow_the_balance(counts, primary, weights):
    labels = [label for label, rows in counts.items() for _ in range(rows)]
    found = guess({"text": texts(rows=len(labels)), "label": labels})
    assert found.settings["primary"] == found.settings["metrics"][0] == primary
    assert found.settings.get("class_weights") == weights
    assert found.why["primary"]
    assert bool(found.why["class_weights"]) == (weights is not None)


# --- regression


def test_fractions_grades_and_amounts_are_numbers():
    assert guess({"text": texts(), "label": cycle([0.5, 1.0, 2.25])}).settings["range"] == [0, 3]
    grades = guess({"text": texts(), "stars": cycle([1, 2, 3, 4, 5])})
    assert (grades.kind, grades.settings["range"]) == ("regression", [1, 5])
    assert "--kind classification" in grades.why["kind"]
    assert guess({"text": texts(), "stars": cycle([1, 2, 3])}, kind="classification").settings["labels"] == list("123")
    amounts = guess({"text": texts(), "label": cycle(list(range(0, 60, 2)))})
    assert (amounts.kind, amounts.settings["range"]) == ("regression", [0, 60])


def test_ids_of_many_classes_are_no_amounts_and_a_score_of_0_or_1_is_no_grade():
    assert guess({"text": texts(), "label": cycle(list(range(25)))}).kind == "classification"
    assert guess({"text": texts(), "score": cycle([0, 1])}).kind == "classification"


@pytest.mark.parametrize(
    ("low", "high", "ends"),
    [
        (0, 5, [0, 5]),
        (1.2, 4.8, [1, 5]),
        (0.02, 0.97, [0, 1]),
        (13.7, 98.2, [10, 100]),
        (-0.4, 0.6, [-1, 1]),
        (0.31, 0.38, [0.31, 0.38]),
    ],
)
def test_ranges_are_rounded_outwards(low, high, ends):
    assert outward(low, high) == ends


def test_words_are_no_numbers():
    with pytest.raises(ConfigError, match=r"--kind regression: column 'label' of mine.csv holds texts, no numbers"):
        guess({"text": texts(), "label": cycle(["a", "b"])}, kind="regression")


# --- the other kinds


def test_token_classification():
    words = [text.split() for text in texts()]
    tags = [cycle(["O", "B-PER", "I-PER", "O"], len(row)) for row in words]
    found = guess({"id": list(range(ROWS)), "tokens": words, "ner_tags": tags})
    assert found.kind == "token_classification"
    assert found.settings["inputs"] == ["tokens"]
    assert found.settings["labels"] == ["O", "B-PER", "I-PER"]
    assert found.settings["primary"] == "span_f1"
    pos = [cycle(["NOUN", "VERB"], len(row)) for row in words]
    assert guess({"tokens": words, "tags": pos}).settings["metrics"] == ["token_accuracy"]
    with pytest.raises(ConfigError, match=r"ner_tags, pos_tags are equally likely to be the tags.*--label ner_tags"):
        guess({"tokens": words, "ner_tags": tags, "pos_tags": pos})
    assert guess({"tokens": words, "ner_tags": tags, "pos_tags": pos}, label="pos_tags").label == "pos_tags"


def test_tags_named_in_the_file():
    features = Features({"tokens": List(Value("string")), "tags": List(ClassLabel(names=["O", "B-X", "I-X"]))})
    words = [text.split() for text in texts()]
    rows = Dataset.from_dict({"tokens": words, "tags": [[0] * len(row) for row in words]}, features=features)
    assert guess(rows).settings["labels"] == ["O", "B-X", "I-X"]


def test_lists_of_other_lengths_are_no_tags():
    words = [text.split() for text in texts()]
    with pytest.raises(TaskLoraError, match="no column of texts"):
        guess({"tokens": words, "tags": [["O"]] * ROWS})


def test_multiple_choice():
    choices = [[f"{text} {place}" for place in range(4)] for text in texts(2, words=3)]
    found = guess({"question": texts(), "choices": choices, "label": cycle([0, 3, 1, 2])})
    assert found.kind == "multiple_choice"
    assert (found.settings["inputs"], found.settings["choices"], found.label) == (["question"], "choices", "label")
    columns = {f"ending{place}": texts(place + 5, words=4) for place in range(4)}
    found = guess({"ctx": texts(), **columns, "label": cycle([0, 1, 2, 3])})
    assert found.settings["choices"] == list(columns)
    letters = {letter: texts(place + 5, words=4) for place, letter in enumerate("ABCD")}
    found = guess({"question": texts(), **letters, "answer": cycle(["A", "C"])})
    assert (found.settings["choices"], found.label) == (list("ABCD"), "answer")
    two = guess({"goal": texts(), "sol1": texts(1), "sol2": texts(2), "label": cycle([0, 1])})
    assert two.settings["choices"] == ["sol1", "sol2"]


@pytest.mark.parametrize("answers", [[1, 2, 3, 4], ["1", "2"]])
def test_choices_are_counted_from_0(answers):
    choices = [[f"{text} {place}" for place in range(4)] for text in texts(2, words=3)]
    with pytest.raises(
        ConfigError, match=r"'label' tells the right choice by 1, 2.* Write its place as a number from 0"
    ):
        guess({"question": texts(), "choices": choices, "label": cycle(answers)})


def test_ranking():
    query = [f"cheap {WORDS[row // 6]} shoes" for row in range(ROWS)]
    found = guess({"query": query, "document": texts(), "label": cycle([0, 0, 1, 0, 2, 0])})
    assert found.kind == "ranking"
    assert (found.settings["inputs"], found.settings["primary"]) == (["query", "document"], "ndcg")
    found = guess({"document": texts(), "query": query, "relevant": cycle([1, 0])})
    assert (found.settings["inputs"], found.settings["primary"]) == (["query", "document"], "mrr")
    once = guess({"query": texts(2), "document": texts(), "label": cycle([0, 1])})
    assert once.kind == "classification"  # no query comes again
    with pytest.raises(ConfigError, match="a relevance is 0 or more"):
        guess({"query": query, "document": texts(), "label": cycle([-1, 0, 1])})


def test_multi_label():
    lists = guess({"text": texts(), "labels": cycle([["a"], ["b", "c"], []])})
    assert (lists.kind, lists.settings["labels"]) == ("multi_label", ["a", "b", "c"])
    assert "label_separator" not in lists.settings
    joined = guess({"text": texts(), "genres": cycle(["drama|crime", "comedy", "drama|comedy|family"])})
    assert (joined.kind, joined.settings["label_separator"]) == ("multi_label", "|")
    assert joined.settings["labels"] == ["comedy", "crime", "drama", "family"]
    assert guess({"text": texts(), "topics": cycle(["sports", "politics"])}).kind == "classification"


# --- what cannot be guessed


@pytest.mark.parametrize(
    ("columns", "error", "says"),
    [
        (
            {"a": cycle([1, 2]), "label": cycle([0, 1])},
            DataError,
            "no column of texts to read. It has: a (whole numbers)",
        ),
        ({"text": texts(), "label": ["x"] * ROWS}, DataError, "is 'x' in every row: with one class there is nothing"),
        ({"text": texts(), "id": list(range(ROWS))}, ConfigError, "no column looks like a label"),
        ({"text": texts()}, ConfigError, "Name it: --label COLUMN"),
        ({"text": texts(), "label": cycle([0, 1, None])}, DataError, "'label' is empty in 20 of 60 rows"),
        ({"text": [None, *texts()[1:]], "label": cycle([0, 1])}, DataError, "'text' is empty in 1 of 60 rows"),
        (
            {"text": texts(), "score": [row / 7 if row != 7 else INFINITE for row in range(ROWS)]},
            DataError,
            "column 'score' is infinite in 1 of 60 rows, first in row 7 (counted from 0). Correct them, or leave",
        ),
        (
            {"text": texts(), "label": [0.0, INFINITE] * (ROWS // 2)},
            DataError,
            "column 'label' is infinite in 30 of 60 rows, first in row 1",
        ),
        (
            {"query": cycle(texts(2)[:10]), "document": texts(), "label": cycle([0.0, 1.0, -INFINITE])},
            DataError,
            "column 'label' is infinite in 20 of 60 rows, first in row 2",
        ),
        (
            {"text": texts(), "score": [str(row / 7) if row else "nan" for row in range(ROWS)]},
            DataError,
            "column 'score' is read as texts: it holds numbers, but 'nan' is none. Write every number without quotes",
        ),
        (
            {"text": texts(), "score": [f"{row},5" for row in range(ROWS)]},
            DataError,
            "it holds numbers, but '0,5' is none. Write every number without quotes and with a decimal point (0.5)",
        ),
        (
            {"text": texts(), "score": [str(row / 7) for row in range(ROWS)]},
            DataError,
            "it holds numbers in quotes, as '0.0'. Write every number without quotes",
        ),
        (
            {"tokens": [["a", "b"]] * ROWS, "tags": [["O", "B-X"]] * 7 + [["O"]] + [["O", "O"]] * (ROWS - 8)},
            DataError,
            "row 7 (counted from 0) has 2 words in 'tokens' and 1 tags in 'tags': 1 of 60 rows have not as many",
        ),
    ],
)
def test_what_cannot_be_guessed_says_what_settles_it(columns, error, says):
    with pytest.raises(error) as caught:
        guess(columns)
    assert says in str(caught.value)
    assert str(caught.value).startswith("mine.csv: ")


@pytest.mark.parametrize(
    ("said", "says"),
    [
        (
            {"label": "lable"},
            "--label: mine.csv has no column 'lable'. Did you mean 'label'? It has: text, other, label.",
        ),
        ({"inputs": ("txt",)}, "--inputs: mine.csv has no column 'txt'. Did you mean 'text'?"),
        ({"inputs": ("label",)}, "--inputs: column 'label' of mine.csv holds whole numbers, no texts"),
        ({"inputs": ("text", "text")}, "--inputs names one column or two different ones, got: text, text"),
        ({"kind": "classificaton"}, "--kind: unknown kind 'classificaton'. Did you mean 'classification'?"),
        (
            {"kind": "token_classification"},
            "--kind token_classification: mine.csv has no columns for it. It needs a list",
        ),
        (
            {"label": "text"},
            "column 'text' cannot be a label of classes: texts that hardly come again. Name another one: --label "
            "COLUMN. If it is a text to write: --kind generation",
        ),
    ],
)
def test_what_the_user_says_is_checked(said, says):
    with pytest.raises(ConfigError) as caught:
        guess({"text": texts(), "other": texts(2), "label": cycle([0, 1])}, **said)
    assert says in str(caught.value)


@pytest.mark.parametrize("kind", ["regression", None])
def test_a_label_that_is_named_and_would_be_numbers_is_told_by_its_value(kind):
    columns = {"text": texts(), "price": [f"{row},5" for row in range(ROWS)]}
    with pytest.raises(DataError, match="column 'price' is read as texts: it holds numbers, but '0,5' is none"):
        guess(columns, label="price", kind=kind)
    with pytest.raises(DataError, match="column 'price' is read as texts"):
        guess(columns, kind="regression")
    found = guess({**columns, "label": cycle([0, 1])})
    assert found.settings["inputs"] == ["text"]  # numbers with a decimal comma are no text to read
    assert found.left_out == {"price": "numbers, but '0,5' is none"}


def test_tags_that_the_user_says_they_are_name_the_row_that_has_too_few():
    columns = {"said": [["a", "b"]] * ROWS, "kinds": [["x"]] * (ROWS - 1) + [["x", "y"]]}
    with pytest.raises(
        DataError, match=r"row 0 \(counted from 0\) has 2 words in 'said' and 1 tags in 'kinds': 59 of 60"
    ):
        guess(columns, kind="token_classification", inputs=("said",))


def test_what_is_doubtful_about_names_of_classes():
    assert doubtful(["No", "Yes", "no ", "yes", "nan", "Nano"]) == [
        "the classes 'No' and 'no ' look alike: if they are one, write it alike in every row",
        "the classes 'Yes' and 'yes' look alike: if they are one, write it alike in every row",
        "the class 'nan' looks like a missing value: if it is one, leave such rows out",
    ]
    assert doubtful(["bad", "good", "0"]) == []


def test_of_two_words_that_are_as_frequent_none_is_called_the_rarer():
    assert "'b' second" in guess({"text": texts(), "label": cycle(["a", "b"])}).why["labels"]
    assert "rarer" not in guess({"text": texts(), "label": cycle(["a", "b"])}).why["labels"]
    assert "the rarer 'b' second" in guess({"text": texts(), "label": cycle(["a", "b", "a"])}).why["labels"]
