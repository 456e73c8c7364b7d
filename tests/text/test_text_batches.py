"""Prompts, responses, options and batches of text-to-text models."""

from __future__ import annotations

import pytest
import torch

from helpers_text import SUITE, row_of, small_tokenizer
from tasklora.errors import ConfigError, DataError
from tasklora.tasks import TEXT_FORMS, TaskSpec, Template, TextToText, TextToTextCollator, split_texts_by_task
from tasklora.tasks.text_collate import IGNORED

SPECS = {name: TaskSpec(**task) for name, task in SUITE["tasks"].items()}


def collator_of(kind="llama", max_length=200, evaluation="likelihood", tokenizer=None, **templates):
    made = {name: templates.get(name) or TEXT_FORMS[spec.kind].default(spec) for name, spec in SPECS.items()}
    text = TextToText(templates=made, evaluation=evaluation, max_new_tokens=6)
    return TextToTextCollator(tokenizer or small_tokenizer(kind), SPECS, text, max_length)


def row(task, texts, label, **columns):
    return {"task": task, "texts": texts, "label": label, **({"columns": columns} if columns else {})}


ROWS = [
    row("mood", ["the film was good"], 1.0),
    row("pick", ["is it", "a cake", "the room of the day", "no"], 2.0),
    row("heat", ["the room", "it was warm"], 3.0),
    row("echo", ["the lamp"], "lamp"),
]


def said(collator, targets):
    """Return a row's response as text, without the end of sequence."""
    tokens = targets[targets != IGNORED].tolist()
    assert tokens[-1] == collator.tokenizer.eos_token_id
    return collator.tokenizer.decode(tokens[:-1])


@pytest.mark.parametrize("kind", ["llama", "qwen3"])
def test_only_the_response_and_the_end_of_sequence_are_learned(kind):
    collator = collator_of(kind)
    batch = collator(ROWS)
    assert [said(collator, of_row) for of_row in batch["targets"]] == [" good", " C", " 3.0", " lamp"]
    assert batch["response_tokens"].tolist() == (batch["targets"] != IGNORED).sum(dim=1).tolist()
    for place in range(len(ROWS)):
        length = int(batch["attention_mask"][place].sum())
        ids, targets = batch["input_ids"][place], batch["targets"][place]
        assert batch["attention_mask"][place].tolist() == [1] * length + [0] * (len(ids) - length)
        learned = (targets != IGNORED).nonzero().flatten()
        assert torch.equal(targets[learned], ids[learned + 1])  # each is the token that follows
        assert learned.tolist() == list(range(length - 1 - len(learned), length - 1))  # the last ones
        assert ids[length - 1] == collator.tokenizer.eos_token_id


def test_a_prompt_is_written_as_its_kinds_template_says():
    collator = collator_of()
    prompts = [collator.tokenizer.decode(collator.prompt(one), skip_special_tokens=True) for one in ROWS]
    assert prompts == [
        "text: the film was good\nOptions: bad/good\nAnswer:",
        "question: is it\nA. a cake\nB. the room of the day\nC. no\nAnswer:",
        "first: the room\nsecond: it was warm\nAnswer with a number from 0 to 4:",
        "text: the lamp\nAnswer:",
    ]


def test_the_prompt_that_is_trained_after_is_the_one_that_is_asked_with():
    """Where a response's first letters would join the prompt's last token, the two are tokenised apart."""
    joined = Template(prompt="text: {text} answ", response="er: {answer}")
    collator = collator_of(mood=joined)
    batch, prompt = collator(ROWS[:1]), collator.prompt(ROWS[0])
    together = collator.tokenizer("text: the film was good answer: good")["input_ids"]
    assert together[: len(prompt)] != prompt  # the case is there
    assert batch["input_ids"][0, : len(prompt)].tolist() == prompt
    assert said(collator, batch["targets"][0]) == "er: good"


@pytest.mark.parametrize("kind", ["llama", "qwen3"])
def test_a_long_prompt_loses_its_beginning_and_never_the_response(kind):
    collator = collator_of(kind, max_length=40)
    long = row("mood", ["lovely " * 60 + "the film was dull"], 0.0)
    batch = collator([long])
    assert batch["input_ids"].shape == (1, 40)
    assert said(collator, batch["targets"][0]) == " bad"
    begins = collator.tokenizer.bos_token_id
    assert kind == "qwen3" or batch["input_ids"][0, 0] == begins
    text = collator.tokenizer.decode(batch["input_ids"][0], skip_special_tokens=True)
    assert text.endswith("the film was dull\nOptions: bad/good\nAnswer: bad")
    assert len(collator.prompt(long)) == 40


def test_a_response_that_does_not_fit_is_an_error_that_says_so_before_training():
    collator = collator_of(max_length=20)
    rows = [row("echo", ["the lamp"], "lamp"), row("echo", ["the lamp"], "the lamp and the room " * 9)]
    collator.check_responses("echo", rows[:1])
    with pytest.raises(DataError, match=r"leaves no room for its prompt: model\.max_length is 20") as error:
        collator.check_responses("echo", rows)
    assert "raise max_length" in str(error.value)
    with pytest.raises(DataError, match="leaves no room"):
        collator(rows)


def test_a_tokenizer_without_padding_pads_with_what_is_masked_and_one_without_an_end_is_refused():
    collator = collator_of("llama")
    assert collator.tokenizer.pad_token_id is None
    batch = collator(ROWS)
    padding = batch["attention_mask"] == 0
    assert padding.any()
    assert set(batch["input_ids"][padding].tolist()) == {collator.tokenizer.eos_token_id}
    assert (batch["targets"][padding] == IGNORED).all()
    qwen = collator_of("qwen3")
    assert qwen.pad_token_id == qwen.tokenizer.pad_token_id != qwen.tokenizer.eos_token_id
    endless = small_tokenizer("llama")
    endless.eos_token = None
    with pytest.raises(ConfigError, match="no end of sequence"):
        collator_of(tokenizer=endless)


def test_a_token_that_a_tokenizer_puts_at_the_end_is_not_left_inside():
    from tokenizers import processors

    ending = small_tokenizer("qwen3")
    ending.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="$A <|im_end|>", special_tokens=[("<|im_end|>", ending.eos_token_id)]
    )
    with_end, without = collator_of(tokenizer=ending), collator_of("qwen3")
    assert torch.equal(with_end(ROWS)["input_ids"], without(ROWS)["input_ids"])


def test_a_mixed_batch_falls_apart_by_task():
    batch = collator_of()(ROWS)
    parts = split_texts_by_task(batch)
    assert [part["task_ids"].tolist() for part in parts] == [[0], [1], [2], [3]]
    alone = [collator_of()([one]) for one in ROWS]
    for part, one in zip(parts, alone, strict=True):
        assert part.keys() == one.keys()
        assert all(torch.equal(part[name], one[name]) for name in one)


def test_numbers_are_named_by_the_nearest_one_and_read_as_their_mean():
    form, spec = TEXT_FORMS["regression"], SPECS["heat"]
    names = form.options(spec, form.default(spec), "heat", ROWS[2])
    assert len(names) == len(set(names)) == 26
    assert (names[0], names[-1]) == ("0.0", "4.0")
    assert form.answer(spec, names, 1.1) == "1.1"
    import numpy as np

    scores = np.full(26, -1e9)
    scores[[0, 25]] = 0.0
    assert form.of_scores(spec, names, scores)[0] == pytest.approx(2.0)
    glue = TaskSpec(kind="regression", inputs=["a"], range=(0, 5), metrics=["rmse"], primary="rmse")
    assert form.options(glue, form.default(glue), "stsb", {"texts": ["x"]})[:3] == ["0.0", "0.2", "0.4"]  # T5's


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ("the correct answer is answer3", 2),
        ("answer2, not answer1", 1),
        ("3", 2),  # a digit is a part of one option's name alone
        ("answer5 or answer1", None),  # the first match counts, and it is no option of this row
        ("I do not know", None),
        ("", None),
    ],
)
def test_answers_are_extracted_as_the_published_evaluation_does(text, place):
    options = ["answer1", "answer2", "answer3", "answer4"]
    patterns = ["answer1|answer2|answer3|answer4|answer5", "1|2|3|4"]
    template = Template(prompt="{question}", response="the correct answer is {answer}", options="n", extract=patterns)
    assert template.extracted(text, options) == place


def test_without_patterns_the_first_name_that_stands_as_a_word_is_the_answer():
    template = Template(prompt="{text}")
    names = ["entailment", "not_entailment"]
    assert template.extracted(" not_entailment", names) == 1
    assert template.extracted(" it is entailment.", names) == 0
    assert template.extracted("A", ["A", "B"]) == 0
    assert template.extracted("All of B", ["A", "B"]) == 1
    assert template.extracted("Apples", ["A", "B"]) is None


@pytest.mark.parametrize(
    ("given", "what"),
    [
        ({"prompt": "{text} "}, "does not end with a space"),
        ({"prompt": ""}, "does not end with a space"),
        ({"prompt": "{text:>3}"}, "write a name in braces"),
        ({"prompt": "{}"}, "write a name in braces"),
        ({"prompt": "{text"}, "prompt|expected|brace"),
        ({"prompt": "{text}", "response": "yes"}, "has the field {answer} and no other"),
        ({"prompt": "{text}", "response": "{answer} {text}"}, "has the field {answer} and no other"),
        ({"prompt": "{text}", "options": ["good"]}, "two names or more"),
        ({"prompt": "{text}", "options": ["good", "good enough"]}, "is how the option 'good enough' begins"),
        ({"prompt": "{text}", "options": ["A", "A"]}, "is how the option 'A' begins"),
        ({"prompt": "{text}", "extract": ["("]}, "no regular expression"),
    ],
)
def test_a_template_that_cannot_be_used_is_refused(given, what):
    with pytest.raises(ValueError, match=what):
        Template(**given)


def test_a_column_that_a_row_lacks_is_named():
    asks = Template(prompt="{instruction}", options="names")
    collator = collator_of(pick=asks)
    with pytest.raises(ConfigError, match="its template reads instruction, names, which the row has not"):
        collator([ROWS[1]])
    whole = row("pick", ROWS[1]["texts"], 1.0, instruction="do it", names=["one", "two", "three"])
    assert said(collator, collator([whole])["targets"][0]) == "two"
    with pytest.raises(DataError, match="are not as many names as the row has options"):
        collator([row("pick", ROWS[1]["texts"], 1.0, instruction="do it", names=["one", "two"])])
    with pytest.raises(DataError, match="is how the option 'answer10' begins"):
        collator([row("pick", ROWS[1]["texts"], 1.0, instruction="i", names=["answer1", "answer10", "answer2"])])


def test_rows_of_the_project_are_as_the_collator_takes_them():
    import random

    generator = random.Random(0)
    assert {task for task in SPECS if row_of(task, generator)} == set(SPECS)
