"""The configuration of each method: flat dataclasses like PEFT's own.

A config is PEFT's ``PeftConfig`` (what is adapted, how it is saved) plus the method's options from
:mod:`tasklora.updates` plus the tasks. A new method adds one small class here and one line in the registry.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

from peft import PeftConfig

from tasklora.errors import CheckpointError, ConfigError, did_you_mean, listing
from tasklora.tuner import peft_types
from tasklora.updates import (
    HydraLoraOptions,
    MoELoraOptions,
    MTLLoraOptions,
    MultiLoraOptions,
    PerTaskLoraOptions,
    TALoraOptions,
    UpdateOptions,
)

FORMAT_VERSION = 2
"""Version of the saved adapter format; see docs/adapter-format.md for what it promises."""

_TASK_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.+-]*")


def check_task_names(tasks: Sequence[str | None]) -> list[str | None]:
    """Return `tasks` as a list of distinct, usable names; None stands for a task that was removed.

    Raises:
        ConfigError: on anything but a list of names, on a duplicate, or on a name that could not be a folder's.
    """
    if isinstance(tasks, str) or not isinstance(tasks, Sequence):
        raise ConfigError(f"tasks must be a list of task names, got {tasks!r}.")
    for name in tasks:
        if name is not None and (not isinstance(name, str) or not _TASK_NAME.fullmatch(name)):
            raise ConfigError(
                f"task names consist of letters, digits and '_.+-' and begin with a letter, digit or '_'; got {name!r}."
            )
    duplicates = sorted(name for name, count in Counter(filter(None, tasks)).items() if count > 1)
    if duplicates:
        raise ConfigError(f"duplicate task names: {listing(duplicates)}. Every task needs a name of its own.")
    return list(tasks)


def check_keys(config_cls: Any, given: Mapping[str, Any], newest: int) -> None:
    """Check what a config is made of, before its dataclass sees it: a file of a newer format may have new keys.

    Raises:
        CheckpointError: if the format's version is above `newest`.
        ConfigError: on an unknown key; the nearest valid one is named.
    """
    version = given.get("version", newest)
    if not isinstance(version, int) or version > newest:
        raise CheckpointError(
            f"this adapter has format version {version!r}, but this tasklora reads up to {newest}. "
            "Upgrade tasklora to load it."
        )
    valid = [f.name for f in fields(config_cls)]
    for key in given:
        if key not in valid:
            raise ConfigError(
                f"{config_cls.__name__} has no option '{key}'.{did_you_mean(key, valid)} "
                f"Its options: {', '.join(valid)}."
            )


@dataclass
class TaskLoraConfig(PeftConfig, UpdateOptions):
    """What all methods of the family have in common. Use one of its subclasses.

    Raises:
        ConfigError: on an unknown key (the nearest valid one is named) or an unusable value.
    """

    tasks: list[str | None] = field(
        default_factory=list,
        metadata={"help": "Task names; the position is the task id. null is the id of a task that was removed."},
    )
    new_tasks: int = field(
        default=0,
        metadata={"help": "How many tasks, the last ones, were added: they alone are trained (tasklora.add_tasks)."},
    )
    target_modules: list[str] | str | None = field(
        default=None, metadata={"help": "Leaf names, a regex, or 'all-linear'; None takes PEFT's default of the model."}
    )
    exclude_modules: list[str] | str | None = field(default=None, metadata={"help": "Modules not to adapt."})
    modules_to_save: list[str] | None = field(
        default=None, metadata={"help": "Modules trained in full and saved with the adapter."}
    )
    rank_pattern: dict[str, int] = field(default_factory=dict, metadata={"help": "Module name or regex → r."})
    alpha_pattern: dict[str, float] = field(
        default_factory=dict, metadata={"help": "Module name or regex → lora_alpha."}
    )
    version: int = field(default=FORMAT_VERSION, metadata={"help": "Version of the adapter format."})

    def __new__(cls, *_args: Any, **kwargs: Any) -> TaskLoraConfig:
        """Refuse unknown keys by name; the dataclass would only say 'unexpected keyword argument'."""
        check_keys(cls, kwargs, FORMAT_VERSION)
        config: TaskLoraConfig = super().__new__(cls)
        return config

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check()
        self.peft_type = peft_types.peft_type_of(type(self))
        self.tasks = check_task_names(self.tasks)
        if not any(self.tasks) and peft_types.uses_task_ids(type(self)):
            raise ConfigError(f"{type(self).__name__} needs tasks: pass tasks=['first', 'second', …].")
        if not isinstance(self.new_tasks, int) or not 0 <= self.new_tasks < max(len(self.tasks), 1):
            raise ConfigError(
                f"new_tasks counts tasks that were added to others: 0 … {max(len(self.tasks), 1) - 1}, "
                f"got {self.new_tasks!r}."
            )
        if isinstance(self.target_modules, (list, tuple)):
            self.target_modules = set(self.target_modules)  # type: ignore[assignment]  # as PEFT's own configs do
        if isinstance(self.exclude_modules, (list, tuple)):
            self.exclude_modules = set(self.exclude_modules)  # type: ignore[assignment]

    @property
    def task_names(self) -> list[str]:
        """The names of the tasks that are there, in the order of their ids; those that were removed are left out."""
        return [task for task in self.tasks if task is not None]

    def to_dict(self) -> dict[str, Any]:
        """Return the config as plain data."""
        data: dict[str, Any] = super().to_dict()
        for key in ("target_modules", "exclude_modules"):
            if isinstance(data[key], set):
                data[key] = sorted(data[key])
        return data


@dataclass
class MTLLoraConfig(TaskLoraConfig, MTLLoraOptions):
    """MTL-LoRA (arXiv 2410.09437): ΔW_t = (α/r) Σ_i softmax(w_t/τ)_i B_i Λ_t A.

    Example:
        >>> MTLLoraConfig(tasks=["cola", "rte"], r=8, up_projections=3, target_modules=["query", "value"]).r
        8
    """


@dataclass
class TALoraConfig(TaskLoraConfig, TALoraOptions):
    """TA-LoRA: ΔW_t = (α/r) (B_s A_s + B diag(σ(G e_t/τ)) A); train it with ``tasklora.auxiliary_loss``."""


@dataclass
class MultiLoraConfig(TaskLoraConfig, MultiLoraOptions):
    """MultiLoRA (arXiv 2311.11501): ΔW = (α/r) Σ_i diag(s_i) B_i A_i, the same for every task."""


@dataclass
class MoELoraConfig(TaskLoraConfig, MoELoraOptions):
    """MoELoRA (arXiv 2310.18339): ΔW_t = (α/r) Σ_i softmax(G e_t)_i B_i A_i."""


@dataclass
class HydraLoraConfig(TaskLoraConfig, HydraLoraOptions):
    """HydraLoRA (arXiv 2404.19245): ΔW x = (α/r) Σ_i softmax(R x)_i B_i A x, routed token by token."""


@dataclass
class PerTaskLoraConfig(TaskLoraConfig, PerTaskLoraOptions):
    """One LoRA per task in one adapter: ΔW_t = (α/r) B_t A_t."""
