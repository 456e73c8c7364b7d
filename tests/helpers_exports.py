"""Which methods have a plain LoRA, and what stock PEFT makes of an exported one."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel
from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel

from helpers_models import (
    ADAPTERS,
    BERT_TARGETS,
    LLAMA_TARGETS,
    T5_TARGETS,
    Case,
    adapt,
    config_of,
    layers,
    tiny_bert,
    tiny_llama,
    tiny_t5,
)
from helpers_runs import METHODS as ADAPTER_METHODS
from tasklora.tuner import METHODS
from tasklora.updates import TaskAssignment

ROUTED = [name for name in ADAPTER_METHODS if name in METHODS and METHODS[name].update_cls.kind == "routed"]
EXACT = [name for name in ADAPTER_METHODS if name not in ROUTED]

EXACT_CASES = [case for case in ADAPTERS if METHODS[case.method or ""].update_cls.kind != "routed"]
ROUTED_CASES = [case for case in ADAPTERS if case not in EXACT_CASES]
BANK_CASES = [case for case in ADAPTERS if METHODS[case.method or ""].update_cls.kind == "bank"]
SHARED_CASES = [case for case in ADAPTERS if case not in BANK_CASES]


def tiny_gpt2() -> nn.Module:
    torch.manual_seed(0)
    sizes = {"n_embd": 32, "n_layer": 2, "n_head": 2, "n_inner": 48, "n_positions": 32}
    tokens = {"bos_token_id": 1, "eos_token_id": 2}
    return GPT2LMHeadModel(
        GPT2Config(vocab_size=64, attn_pdrop=0.0, embd_pdrop=0.0, resid_pdrop=0.0, **sizes, **tokens)
    ).eval()


# kind → model, task type, target modules
KINDS: dict[str, Any] = {
    "bert": (tiny_bert, "SEQ_CLS", BERT_TARGETS),
    "llama": (tiny_llama, "CAUSAL_LM", LLAMA_TARGETS),
    "t5": (tiny_t5, "SEQ_2_SEQ_LM", T5_TARGETS),
    "gpt2": (tiny_gpt2, "CAUSAL_LM", ["c_attn", "c_fc"]),
}


def adapted(kind: str, case: Case | str = "mtl_lora", **options: Any) -> PeftModel:
    """Return a tiny model of a kind with an adapter of random numbers."""
    make, task_type, targets = KINDS[kind]
    return adapt(make(), config_of(case, task_type=task_type, target_modules=targets, **options))


def one_of_each(which: list[Case]) -> list[Case]:
    """Return the first case of each method."""
    return list({case.method: case for case in reversed(which)}.values())[::-1]


def cases(which: list[Case]) -> pytest.MarkDecorator:
    """Return the decorator that runs a test for each of some cases."""
    return pytest.mark.parametrize("case", which, ids=lambda case: case.id)


def exact_rank(model: nn.Module) -> int:
    """Return the largest rank among the plain LoRAs of a model's layers."""
    adapted = [module.task_updates["default"] for module in layers(model)]
    first = TaskAssignment(ids=torch.zeros((), dtype=torch.long))
    return max(update.lora_factors(first)[0].shape[0] for update in adapted)


def in_stock_peft(base: nn.Module, directory: Path) -> PeftModel:
    """Return a fresh base with the export, as stock PEFT loads it; it must do so without a word."""
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        model = PeftModel.from_pretrained(base, directory).eval()
    assert type(model.peft_config["default"]) is LoraConfig
    return model
