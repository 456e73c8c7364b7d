"""One small random model of each base family: how to make it, its inputs, and what is adapted in it."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
import transformers as hf
from torch import Tensor, nn

from helpers_models import tokens

TEXT = {"vocab_size": 64, "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 48}
SPECIAL = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
DECODER = {**TEXT, **SPECIAL, "num_key_value_heads": 2}
SWIN = {"image_size": 16, "patch_size": 2, "embed_dim": 16, "depths": [2, 1], "num_heads": [2, 2], "window_size": 2}


@dataclass(frozen=True)
class Family:
    """One base family.

    Attributes:
        make: makes a model from its config.
        config: the config's class.
        sizes: what the config is given.
        targets: the modules that the tests adapt.
        modality: "text", "text_pair" (encoder and decoder), "image" or "speech" (or "speech_pair").
        exclude: what "all-linear" has to leave out; without it a mixed batch is refused.
    """

    make: Callable[[Any], nn.Module]
    config: type
    sizes: dict[str, Any]
    targets: list[str]
    modality: str = "text"
    exclude: list[str] = field(default_factory=list)


ATTENTION = ["q_proj", "v_proj"]
OLDER = ["query", "value", "output.dense"]  # what older releases of transformers call them in vision models
WHISPER = {
    "vocab_size": 64,
    "d_model": 32,
    "num_mel_bins": 8,
    "max_source_positions": 10,
    "max_target_positions": 32,
    "encoder_layers": 1,
    "decoder_layers": 1,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
    "encoder_ffn_dim": 48,
    "decoder_ffn_dim": 48,
    "decoder_start_token_id": 3,
    "begin_suppress_tokens": None,
    "suppress_tokens": None,
    **SPECIAL,
}
FAMILIES: dict[str, Family] = {
    "llama": Family(hf.LlamaForCausalLM, hf.LlamaConfig, DECODER, [*ATTENTION, "down_proj"]),
    "qwen2": Family(hf.Qwen2ForCausalLM, hf.Qwen2Config, DECODER, [*ATTENTION, "down_proj"]),
    "qwen3": Family(hf.Qwen3ForCausalLM, hf.Qwen3Config, {**DECODER, "head_dim": 16}, [*ATTENTION, "o_proj"]),
    "gpt2": Family(
        hf.GPT2LMHeadModel,
        hf.GPT2Config,
        {"vocab_size": 64, "n_embd": 32, "n_layer": 1, "n_head": 2, "n_positions": 32, **SPECIAL},
        ["c_attn", "c_fc"],
    ),
    "t5": Family(
        hf.T5ForConditionalGeneration,
        hf.T5Config,
        {
            "vocab_size": 64,
            "d_model": 32,
            "d_kv": 16,
            "d_ff": 48,
            "num_layers": 1,
            "num_heads": 2,
            "pad_token_id": 0,
            "decoder_start_token_id": 0,
            "eos_token_id": 1,
        },
        ["q", "v", "wo"],
        "text_pair",
    ),
    "bart": Family(
        hf.BartForConditionalGeneration,
        hf.BartConfig,
        {
            "vocab_size": 64,
            "d_model": 32,
            "max_position_embeddings": 32,
            "decoder_start_token_id": 2,
            "forced_eos_token_id": None,
            **{f"{side}_layers": 1 for side in ("encoder", "decoder")},
            **{f"{side}_attention_heads": 2 for side in ("encoder", "decoder")},
            **{f"{side}_ffn_dim": 48 for side in ("encoder", "decoder")},
            **SPECIAL,
        },
        [*ATTENTION, "fc2"],
        "text_pair",
    ),
    "bert": Family(hf.BertForSequenceClassification, hf.BertConfig, TEXT, ["query", "value", "dense"]),
    "roberta": Family(
        hf.RobertaForSequenceClassification, hf.RobertaConfig, {**TEXT, "pad_token_id": 0}, ["query", "value", "dense"]
    ),
    "deberta_v2": Family(
        hf.DebertaV2ForSequenceClassification,
        hf.DebertaV2Config,
        {
            **TEXT,
            "relative_attention": True,
            "position_buckets": 8,
            "share_att_key": True,
            "pos_att_type": ["p2c", "c2p"],
            "norm_rel_ebd": "layer_norm",
            "max_position_embeddings": 32,
        },
        ["value_proj", "dense"],
        exclude=["query_proj", "key_proj"],  # they also see the table of relative positions, which has no rows
    ),
    "vit": Family(
        hf.ViTForImageClassification,
        hf.ViTConfig,
        {**TEXT, "image_size": 16, "patch_size": 4},
        ["q_proj", "v_proj", "fc1", *OLDER],
        "image",
    ),
    "swin": Family(
        hf.SwinForImageClassification,
        hf.SwinConfig,
        SWIN,
        ["q_proj", "v_proj", "o_proj", "fc2", "reduction", *OLDER],
        "image",
    ),
    "swinv2": Family(
        hf.Swinv2ForImageClassification,
        hf.Swinv2Config,
        SWIN,
        ["query", "value", "dense", "reduction"],
        "image",
        exclude=["continuous_position_bias_mlp.0", "continuous_position_bias_mlp.2"],
    ),
    "whisper_encoder": Family(
        hf.WhisperForAudioClassification, hf.WhisperConfig, WHISPER, [*ATTENTION, "fc1"], "speech"
    ),
    "whisper": Family(
        hf.WhisperForConditionalGeneration, hf.WhisperConfig, WHISPER, [*ATTENTION, "fc1"], "speech_pair"
    ),
}


def each(families: Iterable[str]) -> list[Any]:
    """Return the names as parameters of a test; what repeats another family's mechanism is left to `make test-full`."""
    return [pytest.param(name, marks=pytest.mark.slow) if name == "qwen2" else name for name in families]


@functools.cache
def _made(name: str) -> nn.Module:
    family = FAMILIES[name]
    torch.manual_seed(0)
    model = family.make(family.config(**family.sizes)).eval()
    with torch.no_grad():
        for parameter in model.parameters():  # their own initialisation is so small that tasks would hardly differ
            if parameter.dim() > 1:
                parameter.normal_(0, 0.3)
    return model


def base_of(name: str) -> nn.Module:
    """Return a fresh copy of the family's model, in eval mode."""
    return copy.deepcopy(_made(name))


def inputs_of(name: str, rows: int = 3) -> dict[str, Tensor]:
    """Return inputs for some rows; the last row of text is padded."""
    modality = FAMILIES[name].modality
    generator = torch.Generator().manual_seed(0)
    if modality == "image":
        return {"pixel_values": torch.randn(rows, 3, 16, 16, generator=generator)}
    if modality.startswith("speech"):
        inputs = {"input_features": torch.randn(rows, 8, 20, generator=generator)}
    else:
        mask = torch.ones(rows, 6, dtype=torch.long)
        mask[-1, 4:] = 0
        inputs = {"input_ids": tokens(rows) * mask, "attention_mask": mask}
    if modality.endswith("pair"):
        inputs["decoder_input_ids"] = tokens(rows, 4, seed=1)
    return inputs


@torch.no_grad()
def outputs_of(model: nn.Module, inputs: dict[str, Tensor], **options: Any) -> Tensor:
    return model(**inputs, **options).logits
