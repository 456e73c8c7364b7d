"""The configuration of MTLoRA on a Swin transformer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, cast

from peft import PeftConfig

from tasklora.errors import ConfigError, did_you_mean, listing
from tasklora.tuner.configs import check_keys, check_task_names
from tasklora.tuner.peft_types import peft_type_of
from tasklora.updates import UpdateOptions
from tasklora.updates.base import check_positive, check_positive_integer
from tasklora.updates.streams import StreamMode, check_mode
from tasklora.vision.swin.updates import StageOptions

FORMAT_VERSION = 1
STAGES = r"(.*\.)?encoder\.layers\.\d+"

TRAINED_IN_FULL = [
    "patch_embeddings.projection",
    "embeddings.norm",
    "layernorm_before",
    "layernorm_after",
    "relative_position_bias",
    "downsample.norm",
]
"""What MTLoRA trains beside its factors, as published: norms, patch embedding, tables of relative positions."""
REDUCTION = "downsample.reduction"

PerStage = int | float | list[int] | list[float]


@dataclass
class SwinMTLoRAConfig(PeftConfig):
    """MTLoRA (CVPR 2024): task streams through a Swin transformer.

    Scales multiply the low-rank terms as they are (they are no α to be divided by a rank). Every rank and scale may be
    one number, or a list with one for each stage; those of the tasks also a mapping from each task to such a value.

    Example:
        >>> SwinMTLoRAConfig(tasks=["semseg", "depth"], r=16, task_r={"semseg": 8, "depth": 4}).mode
        'matrix'

    Raises:
        ConfigError: on an unknown key (the nearest valid one is named) or an unusable value.
    """

    tasks: list[str] = field(default_factory=list, metadata={"help": "Task names, in the order of the streams."})
    r: int | list[int] = field(default=16, metadata={"help": "Rank of the shared updates, or one for each stage."})
    task_r: int | list[int] | dict[str, Any] = field(
        default=4, metadata={"help": "Rank of each task's own updates; 0 for none: one shared stream (plain LoRA)."}
    )
    scale: float | list[float] = field(default=4.0, metadata={"help": "Scale of the shared updates."})
    task_scale: float | list[float] | dict[str, Any] = field(
        default=4.0, metadata={"help": "Scale of each task's own updates."}
    )
    lora_dropout: float = field(default=0.0, metadata={"help": "Dropout on each update's shared input."})
    mode: str = field(default="matrix", metadata={"help": "matrix, matrixv2 or addition."})
    plus: bool = field(
        default=False,
        metadata={"help": "MTLoRA+: patch merging gets a shared update instead of being trained in full."},
    )
    all_blocks: bool = field(
        default=False, metadata={"help": "Task modules in every block of a stage, not only in its last one."}
    )
    modules_to_save: list[str] | None = field(
        default=None,
        metadata={"help": "What is trained in full; None for what MTLoRA trains: norms, patch embedding, …"},
    )
    target_modules: str | None = field(default=STAGES, metadata={"help": "The stages; not to be changed."})
    version: int = field(default=FORMAT_VERSION, metadata={"help": "Version of the adapter format."})

    def __new__(cls, *_args: Any, **kwargs: Any) -> SwinMTLoRAConfig:
        """Refuse unknown keys by name; the dataclass would only say 'unexpected keyword argument'."""
        check_keys(cls, kwargs, FORMAT_VERSION)
        config: SwinMTLoRAConfig = super().__new__(cls)
        return config

    def __post_init__(self) -> None:
        super().__post_init__()
        self.peft_type = peft_type_of(type(self))
        self.tasks = [name for name in check_task_names(self.tasks) if name is not None]
        if not self.tasks:
            raise ConfigError("SwinMTLoRAConfig needs tasks: pass tasks=['first', 'second', …].")
        check_mode(self.mode)
        if self.target_modules != STAGES:
            raise ConfigError("target_modules cannot be chosen: MTLoRA adapts every stage. Leave it out.")
        if self.modules_to_save is None:
            self.modules_to_save = [*TRAINED_IN_FULL, *([] if self.plus else [REDUCTION])]
        for stage in range(self._stages_given() or 1):
            self.stage_options(stage, self._stages_given() or 1)

    def _stages_given(self) -> int | None:
        """Return the number of stages that a list speaks of, None if no list does."""
        values: list[Any] = [self.r, self.scale]
        for value in (self.task_r, self.task_scale):
            values += value.values() if isinstance(value, Mapping) else [value]
        return next((len(value) for value in values if isinstance(value, (list, tuple))), None)

    def stage_options(self, stage: int, stages: int) -> StageOptions:
        """Return the ranks and scales of one of `stages` stages.

        Raises:
            ConfigError: if a value cannot be used, names an unknown task or another number of stages.
        """
        task_r = [_of_stage("task_r", value, stage, stages) for value in self._of_tasks("task_r")]
        task_scale = [_of_stage("task_scale", value, stage, stages) for value in self._of_tasks("task_scale")]
        r, scale = _of_stage("r", self.r, stage, stages), _of_stage("scale", self.scale, stage, stages)
        check_positive_integer("r", r)
        check_positive("scale", scale)
        if set(task_r) == {0}:
            task_r = task_scale = []
        for rank in task_r:
            check_positive_integer("task_r", rank)
        for value in task_scale:
            check_positive("task_scale", value)
        UpdateOptions(r=r, lora_dropout=self.lora_dropout).check()
        if self.mode == "addition" and not task_r:
            raise ConfigError("mode 'addition' adds up the tasks' own terms: give them a rank (task_r).")
        return StageOptions(
            r,
            scale,
            task_r,
            task_scale,
            self.lora_dropout,
            cast("StreamMode", self.mode),
            self.plus,
            self.all_blocks,
        )

    def _of_tasks(self, name: str) -> list[Any]:
        """Return an option's value of each task."""
        value = getattr(self, name)
        if not isinstance(value, Mapping):
            return [value] * len(self.tasks)
        unknown = [task for task in value if task not in self.tasks]
        missing = [task for task in self.tasks if task not in value]
        if unknown or missing:
            near = did_you_mean(unknown[0], self.tasks) if unknown else ""
            raise ConfigError(
                f"{name} must have a value for each of the tasks {listing(self.tasks)}; "
                f"unknown: {listing(unknown) or 'none'}, missing: {listing(missing) or 'none'}.{near}"
            )
        return [value[task] for task in self.tasks]


def _of_stage(name: str, value: Any, stage: int, stages: int) -> Any:
    if not isinstance(value, (list, tuple)):
        return value
    if len(value) != stages:
        raise ConfigError(f"{name} lists {len(value)} values, {list(value)}, for {stages} stages: give one for each.")
    return value[stage]
