"""The collator: which encoder row belongs to which row and task, how pairs are encoded, and truncation."""

import pytest
import torch

from helpers_runs import SUITE, tiny_tokenizer
from tasklora.tasks import MultiTaskCollator, TaskSpec

ENCODINGS = {"mood": "separate", "answer": "joint", "heat": "separate"}
SPECS = {name: TaskSpec(**SUITE["tasks"][name]) for name in ENCODINGS}
ROWS = [
    {"task": "heat", "texts": ["the cake", "it was icy"], "label": 3.5},
    {"task": "mood", "texts": ["good film"], "label": 1.0},
    {"task": "answer", "texts": ["is it", "maybe so"], "label": 1.0},
    {"task": "heat", "texts": ["a room", "hot"], "label": 4.0},
]


@pytest.fixture(scope="module")
def tokenizer():
    return tiny_tokenizer()


def text_of(tokenizer, batch, row):
    """Return the tokens of an encoder row without its padding."""
    ids = batch["input_ids"][row][batch["attention_mask"][row].bool()]
    return " ".join(tokenizer.convert_ids_to_tokens(ids))


def test_rows_pairs_and_tasks_of_a_mixed_batch(tokenizer):
    batch = MultiTaskCollator(tokenizer, SPECS, ENCODINGS, 32)(ROWS)
    assert batch["task_ids"].tolist() == [2, 0, 1, 2]
    assert batch["entries"].tolist() == [[0], [2], [3], [4]]
    assert batch["entry_pairs"].tolist() == [[1], [-1], [-1], [5]]
    assert batch["row_task_ids"].tolist() == [2, 2, 0, 1, 2, 2]
    assert [text_of(tokenizer, batch, row) for row in range(6)] == [
        "[CLS] the cake [SEP]",
        "[CLS] it was icy [SEP]",
        "[CLS] good film [SEP]",
        "[CLS] is it [SEP] maybe so [SEP]",
        "[CLS] a room [SEP]",
        "[CLS] hot [SEP]",
    ]
    assert batch["token_type_ids"][3].tolist() == [0, 0, 0, 0, 1, 1, 1]
    assert batch["labels"].tolist() == [[3.5], [1.0], [1.0], [4.0]]
    assert batch["labels"].dtype == torch.float32
    assert {key: tuple(value.shape) for key, value in batch.items() if key not in ("input_ids", "labels")} == {
        "attention_mask": (6, 7),
        "token_type_ids": (6, 7),
        "row_task_ids": (6,),
        "task_ids": (4,),
        "word_places": (0, 2),
        "entries": (4, 1),
        "entry_pairs": (4, 1),
    }


def test_rows_without_labels_give_a_batch_without_labels(tokenizer):
    batch = MultiTaskCollator(tokenizer, SPECS, ENCODINGS, 32)([{"task": "mood", "texts": ["good"]}])
    assert "labels" not in batch
    assert batch["entry_pairs"].tolist() == [[-1]]


def test_long_texts_are_truncated(tokenizer):
    collator = MultiTaskCollator(tokenizer, SPECS, ENCODINGS, 8)
    long = " ".join(["the"] * 30)
    batch = collator(
        [
            {"task": "mood", "texts": [long]},
            {"task": "answer", "texts": [long, long]},
            {"task": "heat", "texts": ["a", long]},
        ]
    )
    assert batch["input_ids"].shape == (4, 8)
    assert text_of(tokenizer, batch, 1).split().count("[SEP]") == 2  # both texts of a pair keep their end
    assert text_of(tokenizer, batch, 2) == "[CLS] a [SEP]"


def test_padding_is_masked(tokenizer):
    batch = MultiTaskCollator(tokenizer, SPECS, ENCODINGS, 32)(ROWS)
    assert ((batch["input_ids"] == tokenizer.pad_token_id) == (batch["attention_mask"] == 0)).all()
    assert batch["attention_mask"].sum(dim=1).tolist() == [4, 5, 4, 7, 4, 3]
