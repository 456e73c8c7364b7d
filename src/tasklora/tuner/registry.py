"""The methods of the family, one entry each: name, config, update and where it is from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from tasklora.errors import ConfigError
from tasklora.tuner.configs import (
    HydraLoraConfig,
    MoELoraConfig,
    MTLLoraConfig,
    MultiLoraConfig,
    PerTaskLoraConfig,
    TALoraConfig,
    TaskLoraConfig,
)
from tasklora.updates import HydraLora, LowRankUpdate, MoELora, MTLLora, MultiLora, PerTaskLora, TALora


@dataclass(frozen=True)
class Method:
    """One method.

    Attributes:
        name: as in recipes and on the command line; its PEFT type is the name in capitals.
        title: as in tables.
        config_cls: the PEFT config.
        update_cls: the update it puts into each layer.
        formula: its ΔW_t.
        parity: what the tests hold its numbers against.
        paper: where it is described.
    """

    name: str
    title: str
    config_cls: type[TaskLoraConfig]
    update_cls: type[LowRankUpdate]
    formula: str
    parity: str
    paper: str


METHODS: dict[str, Method] = {
    method.name: method
    for method in (
        Method(
            "mtl_lora",
            "MTL-LoRA",
            MTLLoraConfig,
            MTLLora,
            formula="(α/r) Σ_i softmax(w_t/τ)_i B_i Λ_t A",
            parity="published code, 1e-10",
            paper="arXiv 2410.09437",
        ),
        Method(
            "ta_lora",
            "TA-LoRA",
            TALoraConfig,
            TALora,
            formula="(α/r) (B_s A_s + B diag(σ(G e_t/τ)) A)",
            parity="none published; the family's law",
            paper="prose only",
        ),
        Method(
            "multi_lora",
            "MultiLoRA",
            MultiLoraConfig,
            MultiLora,
            formula="(α/r) Σ_i diag(s_i) B_i A_i",
            parity="published code, 1e-10",
            paper="arXiv 2311.11501",
        ),
        Method(
            "moe_lora",
            "MoELoRA",
            MoELoraConfig,
            MoELora,
            formula="(α/r) Σ_i softmax(G e_t)_i B_i A_i",
            parity="published code, 1e-10",
            paper="arXiv 2310.18339",
        ),
        Method(
            "hydra_lora",
            "HydraLoRA",
            HydraLoraConfig,
            HydraLora,
            formula="(α/r) Σ_i softmax(R x)_i B_i A",
            parity="published code, 1e-10",
            paper="arXiv 2404.19245",
        ),
        Method(
            "per_task_lora",
            "one LoRA per task",
            PerTaskLoraConfig,
            PerTaskLora,
            formula="(α/r) B_t A_t",
            parity="PEFT's LoRA, task by task",
            paper="arXiv 2106.09685",
        ),
    )
}


def method_of(config: Any) -> Method:
    """Return the method of a config object."""
    for method in METHODS.values():
        if type(config) is method.config_cls:
            return method
    raise ConfigError(f"{type(config).__name__} is not a tasklora method. Methods: {', '.join(METHODS)}.")
