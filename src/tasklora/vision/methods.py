"""How a Swin backbone becomes what is trained on dense tasks: MTLoRA, and the methods that it is compared with."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from peft import LoraConfig, PeftConfig, get_peft_model
from torch import nn

from tasklora.errors import ConfigError, TaskLoraError, did_you_mean, first_line
from tasklora.tasks import TRAINING_METHODS
from tasklora.tasks.methods import ENCODER_LEARNING_RATE, check_options
from tasklora.tuner import PerTaskLoraConfig
from tasklora.vision.separate import DenseEncoderKind, SeparateEncoders
from tasklora.vision.swin.config import SwinMTLoRAConfig
from tasklora.vision.swin.forward import swin_of

LINEAR_LAYERS = ["q_proj", "k_proj", "v_proj", "o_proj", "fc1", "fc2"]
"""What plain LoRA adapts in a Swin: the layers that MTLoRA adapts."""


@dataclass(frozen=True)
class DenseMethod:
    """One way to train a backbone on dense tasks; every one has a decoder per task besides.

    Attributes:
        name: as in recipes and on the command line.
        title: as in tables.
        encoder: what is saved of the encoder; see :data:`tasklora.vision.separate.DenseEncoderKind`.
        options: the names of its options.
        config: (task names, options) → PEFT config; None where there is no adapter.
        is_trained: name of a parameter of the backbone → whether it is trained; for methods without adapter.
        scale: the rank and scale that it has where an option does not say.
    """

    name: str
    title: str
    encoder: DenseEncoderKind
    options: frozenset[str] = frozenset()
    config: Callable[[list[str], dict[str, Any]], PeftConfig] | None = None
    is_trained: Callable[[str], bool] = field(default=lambda name: False)
    scale: Mapping[str, Any] = field(default_factory=dict)

    def check(self, options: Mapping[str, Any]) -> None:
        """Raise ConfigError if an option is not one of the method's; the nearest valid one is named."""
        check_options(self.name, self.options, options)

    def adapt(self, base: nn.Module, tasks: list[str], options: Mapping[str, Any]) -> nn.Module:
        """Return the encoder that is trained, made of `base`, which it takes over.

        Args:
            base: transformers' ``SwinModel``.
            tasks: task names in the order of their ids.
            options: the method's options.

        Raises:
            ConfigError: if an option is unknown or cannot be used on this base.
        """
        self.check(options)
        if self.config is None:
            unused = {id(parameter) for parameter in swin_of(base).layernorm.parameters()}
            for name, parameter in base.named_parameters():
                parameter.requires_grad_(self.is_trained(name) and id(parameter) not in unused)
            return SeparateEncoders(base, len(tasks)) if self.encoder == "separate" else base
        try:
            encoder: nn.Module = get_peft_model(base, self.config(tasks, dict(options)))  # type: ignore[arg-type]
        except TaskLoraError:
            raise
        except (TypeError, ValueError) as error:  # how PEFT says that a value or a target module cannot be used
            raise ConfigError(f"method '{self.name}' with {dict(options)}: {first_line(error)}") from error
        return encoder


def _mtlora(tasks: list[str], options: dict[str, Any]) -> PeftConfig:
    return SwinMTLoRAConfig(tasks=tasks, **options)


def _mtlora_plus(tasks: list[str], options: dict[str, Any]) -> PeftConfig:
    return SwinMTLoRAConfig(tasks=tasks, plus=True, **options)


def _lora(tasks: list[str], options: dict[str, Any]) -> PeftConfig:
    return LoraConfig(**{"target_modules": LINEAR_LAYERS, **options})


def _per_task_lora(tasks: list[str], options: dict[str, Any]) -> PeftConfig:
    return PerTaskLoraConfig(tasks=list(tasks), **{"target_modules": LINEAR_LAYERS, **options})


def _option_names(config_cls: Any) -> frozenset[str]:
    return frozenset(option.name for option in fields(config_cls)) - {"tasks"}


def _own_options(config_cls: Any) -> frozenset[str]:
    """Return the options that a config adds to PEFT's own; which layers MTLoRA adapts cannot be chosen."""
    inherited = {option.name for option in fields(PeftConfig)}
    return _option_names(config_cls) - inherited - {"target_modules", "version"}


def _scale(config_cls: Any, *names: str) -> dict[str, Any]:
    return {option.name: option.default for option in fields(config_cls) if option.name in names}


DENSE_METHODS: dict[str, DenseMethod] = {
    method.name: method
    for method in (
        DenseMethod(
            "mtlora",
            "MTLoRA",
            "adapter",
            _own_options(SwinMTLoRAConfig),
            _mtlora,
            scale=_scale(SwinMTLoRAConfig, "r", "scale", "task_r", "task_scale"),
        ),
        DenseMethod(
            "mtlora_plus",
            "MTLoRA+",
            "adapter",
            _own_options(SwinMTLoRAConfig) - {"plus"},
            _mtlora_plus,
            scale=_scale(SwinMTLoRAConfig, "r", "scale", "task_r", "task_scale"),
        ),
        DenseMethod(
            "per_task_lora",
            "one LoRA per task",
            "adapter",
            _option_names(PerTaskLoraConfig),
            _per_task_lora,
            scale=_scale(PerTaskLoraConfig, "r", "lora_alpha"),
        ),
        DenseMethod(
            "lora",
            "one LoRA for all tasks",
            "adapter",
            _option_names(LoraConfig),
            _lora,
            scale=_scale(LoraConfig, "r", "lora_alpha"),
        ),
        DenseMethod(
            "bitfit",
            "BitFit",
            "full",
            frozenset({ENCODER_LEARNING_RATE}),
            is_trained=lambda name: name.endswith(".bias"),
        ),
        DenseMethod(
            "full_fine_tuning",
            "full fine-tuning",
            "full",
            frozenset({ENCODER_LEARNING_RATE}),
            is_trained=lambda name: True,
        ),
        DenseMethod(
            "single_task",
            "full fine-tuning, one task each",
            "separate",
            frozenset({ENCODER_LEARNING_RATE}),
            is_trained=lambda name: True,
        ),
        DenseMethod("decoders_only", "decoders only", "frozen"),
    )
}


def dense_method(name: str) -> DenseMethod:
    """Return a method by name.

    Raises:
        ConfigError: if there is none; the nearest one is named.
    """
    if name in DENSE_METHODS:
        return DENSE_METHODS[name]
    hint = did_you_mean(name, DENSE_METHODS)
    if name in TRAINING_METHODS:
        hint = f" It is for rows that have one task each; in a dense recipe every image has all.{hint}"
    raise ConfigError(f"unknown method '{name}' for dense tasks.{hint} Methods: {', '.join(DENSE_METHODS)}.")
