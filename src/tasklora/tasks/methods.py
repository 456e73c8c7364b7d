"""How a base encoder becomes what is trained: the methods of the family, and the baselines they are compared with.

A recipe names one of :data:`TRAINING_METHODS`. A new method of the family appears here by itself.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Set
from dataclasses import dataclass, field, fields
from functools import partial
from typing import Any

from peft import LoraConfig, PeftConfig, get_peft_model
from torch import nn

from tasklora.errors import ConfigError, TaskLoraError, did_you_mean, first_line
from tasklora.tasks.saved_model import EncoderKind
from tasklora.tuner import METHODS
from tasklora.updates import is_number

# Pretrained weights bear a far smaller learning rate than heads that begin at random: full fine-tuning at one rate for
# both would either spoil the encoder or leave the heads untrained.
ENCODER_LEARNING_RATE = "encoder_learning_rate"


def check_options(method: str, valid: Set[str], options: Mapping[str, Any]) -> None:
    """Raise ConfigError if an option is not one of the method's; the nearest valid one is named."""
    for key in options:
        if key == "tasks":
            raise ConfigError("method.tasks is not to be given: a recipe's tasks are those of its section `tasks`.")
        if key not in valid:
            those = f"Its options: {', '.join(sorted(valid))}." if valid else "It has none."
            raise ConfigError(f"method '{method}' has no option '{key}'.{did_you_mean(key, valid)} {those}")
    rate = options.get(ENCODER_LEARNING_RATE)
    if rate is not None and (not is_number(rate) or rate <= 0):
        raise ConfigError(f"method.{ENCODER_LEARNING_RATE} must be a positive number, got {rate!r}.")


Config = Callable[[list[str], dict[str, Any]], PeftConfig]


@dataclass(frozen=True)
class TrainingMethod:
    """One way to train a base encoder on several tasks; every one has a head per task besides.

    Attributes:
        name: as in recipes and on the command line.
        title: as in tables.
        encoder: what is trained and saved of the encoder: an adapter, all of it, or nothing.
        options: the names of its options.
        config: (task names, options) → PEFT config; None where there is no adapter.
        scale: the rank and α that it has where an option does not say; PEFT's own α is not the family's.
    """

    name: str
    title: str
    encoder: EncoderKind
    options: frozenset[str] = frozenset()
    config: Config | None = None
    scale: Mapping[str, Any] = field(default_factory=dict)

    def check(self, options: dict[str, Any]) -> None:
        """Raise ConfigError if an option is not one of the method's; the nearest valid one is named."""
        check_options(self.name, self.options, options)

    def adapt(
        self, base: nn.Module, tasks: list[str], options: dict[str, Any], task_type: str | None = None
    ) -> nn.Module:
        """Return the encoder that is trained, made of `base`, which it takes over.

        Args:
            base: the encoder.
            tasks: task names in the order of their ids.
            options: the method's options; all linear layers but a pooler's are adapted unless they say otherwise.
            task_type: PEFT's word for what the base is; None for a bare encoder.

        Raises:
            ConfigError: if an option is unknown or cannot be used on this base.
        """
        self.check(options)
        if self.config is None:
            base.requires_grad_(self.encoder == "full")
            pooler = getattr(base, "pooler", None)
            if isinstance(pooler, nn.Module):
                pooler.requires_grad_(False)  # the heads pool token vectors themselves
            return base
        options = {"target_modules": "all-linear", **({"task_type": task_type} if task_type else {}), **options}
        if isinstance(getattr(getattr(base, "pooler", None), "dense", None), nn.Linear):
            # As above: an adapted pooler would train nothing and cost parameters.
            options.setdefault("exclude_modules", ["pooler.dense"])
        try:
            encoder: nn.Module = get_peft_model(base, self.config(tasks, options))  # type: ignore[arg-type]
        except TaskLoraError:
            raise
        except (TypeError, ValueError) as error:  # how PEFT says that a value or a target module cannot be used
            raise ConfigError(f"method '{self.name}' with {options}: {first_line(error)}") from error
        return encoder


def _plain_lora(tasks: list[str], options: dict[str, Any]) -> PeftConfig:
    return LoraConfig(**options)


def _family(config_cls: Any, tasks: list[str], options: dict[str, Any]) -> PeftConfig:
    config: PeftConfig = config_cls(tasks=tasks, **options)
    return config


def _option_names(config_cls: Any) -> frozenset[str]:
    return frozenset(option.name for option in fields(config_cls)) - {"tasks"}


def _scale(config_cls: Any) -> dict[str, Any]:
    return {option.name: option.default for option in fields(config_cls) if option.name in ("r", "lora_alpha")}


TRAINING_METHODS: dict[str, TrainingMethod] = {
    method.name: method
    for method in (
        *(
            TrainingMethod(
                family.name,
                family.title,
                "adapter",
                _option_names(family.config_cls),
                partial(_family, family.config_cls),
                _scale(family.config_cls),
            )
            for family in METHODS.values()
        ),
        TrainingMethod(
            "lora", "one LoRA for all tasks", "adapter", _option_names(LoraConfig), _plain_lora, _scale(LoraConfig)
        ),
        TrainingMethod("full_fine_tuning", "full fine-tuning", "full", frozenset({ENCODER_LEARNING_RATE})),
        TrainingMethod("heads_only", "heads only", "frozen"),
    )
}


def training_method(name: str) -> TrainingMethod:
    """Return a method by name.

    Raises:
        ConfigError: if there is none; the nearest one is named.
    """
    if name not in TRAINING_METHODS:
        raise ConfigError(
            f"unknown method '{name}'.{did_you_mean(name, TRAINING_METHODS)} Methods: {', '.join(TRAINING_METHODS)}."
        )
    return TRAINING_METHODS[name]
