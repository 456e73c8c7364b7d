"""Tiny random transformers, and how to put an adapter of each case on them."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import torch
from peft import PeftModel, get_peft_model
from torch import Tensor, nn
from transformers import (
    AutoModelForSeq2SeqLM,
    BertConfig,
    BertForQuestionAnswering,
    BertForSequenceClassification,
    BertForTokenClassification,
    BertModel,
    LlamaConfig,
    LlamaForCausalLM,
    T5Config,
)

from helpers_updates import CASES, Case, randomize
from tasklora.tuner import METHODS, TaskLoraConfig, TaskLoraLayer

TASKS = ["cola", "rte", "sst2"]
# In whole models one case of each method, and both forms of Λ; the others vary numbers of the update alone.
ADAPTERS = [case for case in CASES if case.method is not None and not case.id.endswith(("-n1", "-n4"))]

BERT_TARGETS = ["query", "value", "dense"]
LLAMA_TARGETS = ["q_proj", "v_proj", "down_proj"]
T5_TARGETS = ["q", "v", "wo"]


def tiny_bert(kind: type[nn.Module] = BertForSequenceClassification, hidden: int = 32, **config: Any) -> nn.Module:
    torch.manual_seed(0)
    sizes = {"hidden_size": hidden, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 48}
    options = {"vocab_size": 64, "max_position_embeddings": 32, "num_labels": 3}
    return kind(BertConfig(**{**options, **sizes, **config})).eval()


def tiny_llama(**config: Any) -> nn.Module:
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 48}
    tokens = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    return LlamaForCausalLM(LlamaConfig(vocab_size=64, num_key_value_heads=2, **sizes, **tokens, **config)).eval()


def tiny_t5() -> nn.Module:
    torch.manual_seed(0)
    sizes = {"d_model": 32, "d_kv": 16, "d_ff": 48, "num_layers": 2, "num_heads": 2}
    tokens = {"pad_token_id": 0, "decoder_start_token_id": 0, "eos_token_id": 1}
    return AutoModelForSeq2SeqLM.from_config(T5Config(vocab_size=64, dropout_rate=0.0, **sizes, **tokens)).eval()


# task type → model, target modules
TYPED: dict[str, tuple[Any, list[str]]] = {
    "SEQ_CLS": (tiny_bert, BERT_TARGETS),
    "TOKEN_CLS": (lambda: tiny_bert(BertForTokenClassification), BERT_TARGETS),
    "QUESTION_ANS": (lambda: tiny_bert(BertForQuestionAnswering, num_labels=2), BERT_TARGETS),
    "FEATURE_EXTRACTION": (lambda: tiny_bert(BertModel), BERT_TARGETS),
    "CAUSAL_LM": (tiny_llama, LLAMA_TARGETS),
    "SEQ_2_SEQ_LM": (tiny_t5, T5_TARGETS),
}


def config_of(case: Case | str = "mtl_lora", **options: Any) -> TaskLoraConfig:
    """Return the PEFT config of a case (or of a method's first case) with three tasks."""
    if isinstance(case, str):
        case = next(adapter for adapter in ADAPTERS if adapter.method == case)
    method = METHODS[case.method or ""]
    return method.config_cls(**{**asdict(case.options), "tasks": TASKS, **options})


def adapt(base: nn.Module, config: TaskLoraConfig, seed: int = 0, **options: Any) -> PeftModel:
    """Return the adapted model in eval mode, its updates filled with random numbers."""
    model = get_peft_model(base, config, **options)
    fill(model, seed)
    return model.eval()


def fill(model: nn.Module, seed: int = 0, adapter: str | None = None, scale: float = 0.3) -> None:
    """Fill the updates of all adapters (or of one) with random numbers."""
    for index, layer in enumerate(layers(model)):
        for name, update in layer.task_updates.items():
            if adapter in (None, name):
                randomize(update, seed * 1000 + index, scale)


def layers(model: nn.Module) -> list[TaskLoraLayer]:
    return [module for module in model.modules() if isinstance(module, TaskLoraLayer)]


def tokens(rows: int = 3, length: int = 6, seed: int = 0) -> Tensor:
    """Return random token ids without the special ones."""
    return torch.randint(3, 64, (rows, length), generator=torch.Generator().manual_seed(seed))


def inputs_of(model: nn.Module, rows: int = 3) -> dict[str, Tensor]:
    inputs = {"input_ids": tokens(rows)}
    if model.config.is_encoder_decoder:
        inputs["decoder_input_ids"] = tokens(rows, 4, seed=1)
    return inputs


@torch.no_grad()
def run(model: nn.Module, task_ids: Any = None, **options: Any) -> Tensor:
    """Return the model's first output for the standard rows."""
    if task_ids is not None:
        options["task_ids"] = task_ids
    return model(**inputs_of(model), **options)[0]


def adapter_state(model: nn.Module) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in model.named_parameters() if ".task_updates." in name}
