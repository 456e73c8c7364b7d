"""The sections that recipes of every shape have."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Any, Literal

import pydantic
import yaml

from tasklora.errors import ConfigError, did_you_mean
from tasklora.tasks import Strict
from tasklora.training.balancing import BalancingSection

Positive = pydantic.PositiveInt


def check_task_options(options: Iterable[str], specs: Collection[str]) -> None:
    """Raise ConfigError unless every task that options are given for is one of the recipe's."""
    for name in options:
        if name not in specs:
            raise ConfigError(
                f"tasks.options names '{name}', which is no task of this recipe.{did_you_mean(name, specs)}"
            )


class MethodSection(pydantic.BaseModel):
    """The method's name and its options, which are those of its PEFT config."""

    model_config = pydantic.ConfigDict(extra="allow")
    name: str

    @property
    def options(self) -> dict[str, Any]:
        """The options, without the name."""
        return dict(self.model_extra or {})


class OptimisationSection(Strict):
    """Optimisation, as far as it does not depend on what a row is; see the sections of the shapes."""

    epochs: float = pydantic.Field(3.0, gt=0)
    max_steps: Positive | None = None
    batch_size: Positive = 32
    gradient_accumulation_steps: Positive = 1
    learning_rate: float = pydantic.Field(1e-3, gt=0)
    weight_decay: float = pydantic.Field(0.0, ge=0)
    warmup_ratio: float = pydantic.Field(0.06, ge=0, lt=1)
    scheduler: Literal["linear", "cosine", "constant", "constant_with_warmup"] = "linear"
    max_grad_norm: float = pydantic.Field(1.0, ge=0)
    balancing: BalancingSection | None = None
    seed: int = pydantic.Field(0, ge=0, lt=2**32)
    evaluate_every: Literal["epoch"] | Positive = "epoch"
    early_stopping_patience: Positive | None = None
    precision: Literal["float32", "bfloat16"] = "float32"
    gradient_checkpointing: bool = False
    logging_steps: Positive = 10
    eval_batch_size: Positive = 64
    keep_checkpoints: Positive = 2
    report_to: list[str] = []


class OutputSection(Strict):
    """Where the run goes.

    Attributes:
        directory: the run directory; must be new or empty.
    """

    directory: str = "runs/tasklora"


class WrittenOut(Strict):
    """A record that can be written with every default."""

    def to_yaml(self) -> str:
        """Return the recipe with every default written out."""
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False, allow_unicode=True)
