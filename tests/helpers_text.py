"""Tiny random decoders with small tokenizers, and a project of tasks that are answered in text.

``BASES`` has the architectures of the recipes. Their tokenizers are byte-level BPE, trained here: LLaMA's begins a
sequence and has no padding token, Qwen's has padding and nothing that begins.
"""

from __future__ import annotations

import functools
import random
from pathlib import Path
from typing import Any

import datasets
import pytest
import torch
import yaml
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

from helpers_runs import BAD, GOOD, HEAT, THINGS, Project, words, write_rows

CORPUS = [
    "Below is an instruction that describes a task. Write a response that appropriately completes the request.",
    "### Instruction:\n### Response:\nthe correct answer is answer1 answer2 answer3 answer4 answer5 solution1 option2",
    "Please choose the correct answer to the question. Answer format: true/false ending1/ending2 options\nAnswer:",
    "question text reply choices first second 0 1 2 3 4 5 6 7 8 9 0.5 the a was is it good bad warm cold A. B. C. D.",
]
VOCABULARY = 420
SIZES = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 512,
    "vocab_size": VOCABULARY,
}
SPECIAL = {
    "llama": {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"},
    "qwen3": {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"},
}
CLASSES: dict[str, Any] = {"llama": (LlamaConfig, LlamaForCausalLM), "qwen3": (Qwen3Config, Qwen3ForCausalLM)}

SUITE: dict[str, Any] = {
    "name": "words",
    "version": 1,
    "tasks": {
        "mood": {
            "kind": "classification",
            "inputs": ["text"],
            "labels": ["bad", "good"],
            "metrics": ["accuracy", "f1", "mcc", "f1_macro"],
            "primary": "accuracy",
        },
        "pick": {
            "kind": "multiple_choice",
            "inputs": ["question"],
            "choices": "choices",
            "metrics": ["accuracy"],
            "primary": "accuracy",
        },
        "heat": {
            "kind": "regression",
            "inputs": ["first", "second"],
            "range": [0, 4],
            "metrics": ["pearson", "rmse"],
            "primary": "rmse",
        },
        "echo": {
            "kind": "generation",
            "inputs": ["text"],
            "metrics": ["exact_match", "word_f1", "rouge_l"],
            "primary": "word_f1",
        },
    },
}


def row_of(task: str, generator: random.Random) -> dict[str, Any]:
    """Return one row of a task."""
    if task == "mood":
        label = generator.randrange(2)
        return {"text": words(generator, generator.choice([BAD, GOOD][label])), "label": label}
    if task == "pick":
        count = generator.randint(2, 4)
        label = generator.randrange(count)
        choices = [generator.choice(GOOD if place == label else BAD) for place in range(count)]
        return {"question": words(generator), "choices": choices, "label": label}
    if task == "heat":
        degree = generator.randrange(5)
        return {"first": words(generator), "second": words(generator, HEAT[degree]), "label": float(degree)}
    thing = generator.choice(THINGS)
    return {"text": f"the {thing}", "label": thing}


def small_tokenizer(kind: str) -> PreTrainedTokenizerFast:
    """Return a tokenizer of the kind of an architecture's."""
    special = SPECIAL[kind]
    tokenizer = Tokenizer(models.BPE(unk_token=special.get("unk_token")))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=list(special.values()),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    if "bos_token" in special:
        begin = special["bos_token"]
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{begin} $A", special_tokens=[(begin, tokenizer.token_to_id(begin))]
        )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special)


def save_decoder(folder: Path, kind: str = "llama", seed: int = 0, **options: Any) -> Path:
    """Save a random decoder with its tokenizer."""
    torch.manual_seed(seed)
    tokenizer = small_tokenizer(kind)
    config_cls, model_cls = CLASSES[kind]
    config = config_cls(
        **{**SIZES, **options},
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    model_cls(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@functools.cache
def _text_project(root: Path) -> Project:
    root.mkdir(exist_ok=True)
    base, data = save_decoder(root / "base"), root / "data"
    for place, task in enumerate(SUITE["tasks"]):
        generator = random.Random(place)
        for split, count in {"train": 32, "tune": 8, "validation": 12}.items():
            write_rows(data / task / f"{split}.jsonl", [row_of(task, generator) for _ in range(count)])
    suite = root / "suite.yaml"
    suite.write_text(yaml.safe_dump(SUITE, sort_keys=False))
    content = {
        "model": {"name": str(base), "view": "text_to_text", "max_length": 96, "max_new_tokens": 6},
        "tasks": {"suite": str(suite), "data_root": str(data)},
        "method": {"name": "mtl_lora", "r": 4, "lora_alpha": 8, "up_projections": 2},
        "training": {"epochs": 1, "batch_size": 16, "learning_rate": 0.01, "logging_steps": 1, "warmup_ratio": 0.0},
        "output": {"directory": str(root / "runs" / "default")},
    }
    recipe = root / "recipe.yaml"
    recipe.write_text(yaml.safe_dump(content, sort_keys=False))
    return Project(root, base, data, suite, recipe)


@pytest.fixture(scope="session")
def text_project(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """Return a tiny project on a random LLaMA with a task of every kind that can be text, and its data."""
    root = tmp_path_factory.getbasetemp() / "text"
    datasets.config.HF_DATASETS_CACHE = root / "cache"  # not the user's
    return _text_project(root)
