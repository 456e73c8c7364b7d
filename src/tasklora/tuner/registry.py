"""The methods of the family, one entry each: name, config, update and where it is from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from tasklora.errors import ConfigError
from tasklora.tuner.configs import MTLLoraConfig, PerTaskLoraConfig, TaskLoraConfig
from tasklora.updates import LowRankUpdate, MTLLora, PerTaskLora


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
