"""The config of a checkpoint of MTLoRA's published code; see :mod:`tasklora.export.mtlora_checkpoints`."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from tasklora.errors import CheckpointError, ConfigError, UnsupportedError, listing
from tasklora.updates import is_number
from tasklora.vision.swin.config import SwinMTLoRAConfig
from tasklora.vision.swin.reference import ReferenceNetwork

_FACTOR = re.compile(r"backbone\.layers\.(\d+)\.(.+)\.lora_(shared|tasks)_A(?:\.(.+))?")
_BLOCK = re.compile(r"encoder\.layers\.(\d+)\.blocks\.(\d+)\.")


@dataclass(frozen=True)
class FileSettings:
    """What a checkpoint says of itself; None where it does not."""

    tasks: list[str] | None = None
    scale: list[float] | None = None
    task_scale: dict[str, list[float]] | None = None
    mode: str | None = None
    dropout: float | None = None
    drop_path: float | None = None
    image_size: tuple[int, int] | None = None


def settings_of(
    recorded: dict[str, Any] | None, tasks: Sequence[str], stages: int, checkpoint: str | Path
) -> FileSettings:
    """Return what a checkpoint's settings say.

    Args:
        recorded: its ``config`` entry.
        tasks: the tasks that it has factors of, by their published names.
        stages: of its backbone.
        checkpoint: for messages.

    Raises:
        CheckpointError: if a value cannot be understood.
    """
    if recorded is None:
        return FileSettings()

    def at(path: str) -> Any:
        value: Any = recorded
        for key in path.split("."):
            value = _item(value, key)
        return value

    def unusable(path: str, needed: str) -> CheckpointError:
        return CheckpointError(f"{checkpoint}: its settings have {path} = {at(path)!r}, which is not {needed}.")

    def numbers(path: str, value: Any) -> list[float] | None:
        if value is None:
            return None
        each = list(value) if isinstance(value, (list, tuple)) else [value]
        each = each * stages if len(each) == 1 else each
        if len(each) != stages or not all(is_number(one) for one in each):
            raise unusable(path, f"a number for each of {stages} stages")
        return [float(one) for one in each]

    names = at("TASKS")
    if names is not None and not (isinstance(names, (list, tuple)) and all(isinstance(name, str) for name in names)):
        raise unusable("TASKS", "a list of names")
    scale = numbers("MODEL.MTLORA.SHARED_SCALE", at("MODEL.MTLORA.SHARED_SCALE"))
    per_task = at("MODEL.MTLORA.SCALE_PER_TASK")
    own: dict[str, list[float]] | None = None
    if isinstance(per_task, dict) and per_task and scale is not None:
        path = "MODEL.MTLORA.SCALE_PER_TASK"
        own = {task: numbers(path, _item(per_task, task)) or scale for task in tasks}
    mode = at("MODEL.MTLORA.SHARED_MODE")
    if mode is not None and not isinstance(mode, str):
        raise unusable("MODEL.MTLORA.SHARED_MODE", "a name")
    dropout = numbers("MODEL.MTLORA.DROPOUT", at("MODEL.MTLORA.DROPOUT"))
    drop_path = at("MODEL.DROP_PATH_RATE")
    if drop_path is not None and not (is_number(drop_path) and 0 <= drop_path < 1):
        raise unusable("MODEL.DROP_PATH_RATE", "a rate from 0 to below 1")
    size = at("DATA.IMG_SIZE")
    sides = list(size) if isinstance(size, (list, tuple)) else [size, size]
    if size is not None and not (len(sides) == 2 and all(type(side) is int and side > 0 for side in sides)):
        raise unusable("DATA.IMG_SIZE", "a side, or height and width, in pixels")
    return FileSettings(
        tasks=None if names is None else list(names),
        scale=scale,
        task_scale=own,
        mode=mode,
        dropout=None if dropout is None else max(dropout),
        drop_path=None if drop_path is None else float(drop_path),
        image_size=None if size is None else (sides[0], sides[1]),
    )


def stages_in(state: Mapping[str, Tensor]) -> int:
    """Return the number of stages that a checkpoint's names speak of."""
    return 1 + max(
        (int(found[1]) for key in state if (found := re.match(r"backbone\.layers\.(\d+)\.", key))), default=0
    )


def config_of(
    state: Mapping[str, Tensor],
    network: ReferenceNetwork,
    settings: FileSettings,
    names: Mapping[str, str],
    scale: float | None,
    mode: str | None,
) -> SwinMTLoRAConfig:
    """Return the adapter's config: ranks from the shapes, the rest from the settings.

    Args:
        state: the checkpoint's tensors.
        network: the same, sorted.
        settings: what the file says of itself.
        names: the tasks' published names → names here, in their order.
        scale: where the file does not say.
        mode: where the file does not say.

    Raises:
        CheckpointError: if ranks differ within a stage, or factors are missing.
        UnsupportedError: if there are task modules that the published code does not use.
        ConfigError: if a setting is missing, is given twice, or cannot be used.
    """
    ranks: dict[tuple[int, str], dict[str, int]] = defaultdict(dict)  # (stage, task or "") → layer → rank
    for key, tensor in state.items():
        if factor := _FACTOR.fullmatch(key):
            if tensor.dim() != 2:
                raise CheckpointError(f"'{key}' has shape {tuple(tensor.shape)}, not (rank, inputs).")
            ranks[int(factor[1]), factor[4] or ""][factor[2]] = int(tensor.shape[0])
    stages = stages_in(state)
    _check_ranks(ranks, network, stages)

    def each_stage(task: str) -> Any:
        return agreed_stages([next(iter(ranks[stage, task].values())) for stage in range(stages)])

    has_tasks = any(task for _, task in ranks)
    shared = agreed("scale", settings.scale, None if scale is None else [scale] * stages)
    own = settings.task_scale or dict.fromkeys(names, shared)
    return SwinMTLoRAConfig(
        tasks=list(names.values()),
        r=each_stage(""),
        task_r=agreed_tasks({names[task]: each_stage(task) for task in names}) if has_tasks else 0,
        scale=agreed_stages(shared),
        task_scale=agreed_tasks({names[task]: agreed_stages(own[task]) for task in names}),
        lora_dropout=settings.dropout or 0.0,
        mode=agreed("mode", settings.mode, mode),
        plus=any(key.endswith("downsample.reduction.lora_shared_A") for key in state),
    )


def _check_ranks(ranks: Mapping[tuple[int, str], Mapping[str, int]], network: ReferenceNetwork, stages: int) -> None:
    """Refuse ranks that differ within a stage, missing factors, and task modules outside a stage's last block.

    Raises:
        CheckpointError: on the first two.
        UnsupportedError: on the third.
    """
    of_tasks = network.tasks if any(task for _, task in ranks) else []
    for stage in range(stages):
        for task in ["", *of_tasks]:
            found = ranks.get((stage, task), {})
            who = f"task '{task}'" if task else "the shared factors"
            if not found:
                raise CheckpointError(f"stage {stage} has no low-rank factors of {task or 'the shared stream'}.")
            if len(set(found.values())) > 1:
                each = listing(f"{layer}: {rank}" for layer, rank in found.items())
                raise CheckpointError(
                    f"{who} have several ranks in stage {stage}: {each}. One rank a stage is possible."
                )
    last = dict.fromkeys(range(stages), 0)
    for name in network.base:
        if block := _BLOCK.match(name):
            last[int(block[1])] = max(last[int(block[1])], int(block[2]))
    early = [
        f"stage {stage} {layer}"
        for (stage, task), found in ranks.items()
        for layer in found
        if task and not layer.startswith(f"blocks.{last[stage]}.")
    ]
    if early:
        raise UnsupportedError(
            f"it has task modules before the last block of a stage ({listing(dict.fromkeys(early), 3)}; "
            "INTERMEDIATE_SPECIALIZATION): the published code never uses their output. Take them out of the file; what "
            "it computes stays the same."
        )


def _item(value: Any, key: str) -> Any:
    """Return an item of a mapping, by dict's own method: the object was made from a file, attributes and all."""
    return dict.get(value, key) if isinstance(value, dict) else None


def agreed(name: str, recorded: Any, given: Any) -> Any:
    """Return a setting that the file has, or that was given.

    Raises:
        ConfigError: if neither has it, or they differ.
    """
    option = f"--{name.replace('_', '-')}"
    if recorded is None and given is None:
        raise ConfigError(f"the checkpoint has no settings to read {name} from: give {option} as it was trained with.")
    if recorded is not None and given is not None and recorded != given:
        raise ConfigError(f"the checkpoint's settings have {name} {recorded}, {option} says {given}: leave it out.")
    return given if recorded is None else recorded


def agreed_stages(values: Sequence[Any]) -> Any:
    """Return one value for all stages where they have the same one, else the list."""
    return values[0] if len(set(values)) == 1 else list(values)


def agreed_tasks(values: Mapping[str, Any]) -> Any:
    """Return one value for all tasks where they have the same one, else the mapping."""
    first = next(iter(values.values()))
    return first if all(value == first for value in values.values()) else dict(values)
