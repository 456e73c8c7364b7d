"""Several plain LoRAs, one per task, as one adapter: files in, files out, without the base model."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from tasklora.errors import CheckpointError, ConfigError, listing
from tasklora.export.files import ADAPTER_FILE, check_output, filling, write_tensors
from tasklora.export.importing import PlainLora, read_lora
from tasklora.tuner import PerTaskLoraConfig


def bank_of_loras(
    loras: Mapping[str, str | Path], directory: str | Path, *, overwrite: bool = False
) -> tuple[PerTaskLoraConfig, list[str]]:
    """Write plain LoRAs as one adapter of ``per_task_lora``, which runs batches of all their tasks.

    The update of each task is its LoRA's, exactly: the scaling is folded in (``lora_alpha`` = r), smaller ranks are
    padded with zeros, and a module that one LoRA lacks is zero for its task.

    Args:
        loras: task → directory of a PEFT LoRA.
        directory: where to; new or empty unless `overwrite`.
        overwrite: replace files of the same names.

    Returns:
        The adapter's config, and what the LoRAs hold besides factors (heads), which the adapter does not.

    Raises:
        CheckpointError: if one is no plain LoRA, is damaged, or they were made for different bases.
        UnsupportedError: if one is more than factors A and B.
        ConfigError: if there are none, or a name cannot be used.
        OutputError: if the directory holds something.
    """
    if not loras:
        raise ConfigError("no LoRA was given: name at least one, TASK=DIRECTORY.")
    read = {task: read_lora(place) for task, place in loras.items()}
    bases = {str(lora.config.get("base_model_name_or_path")): task for task, lora in read.items()}
    kinds = {lora.config.get("task_type") for lora in read.values()}
    if len(bases) > 1:
        raise CheckpointError(
            f"the LoRAs were made for different base models: {listing(bases)}. One adapter has one base."
        )
    if len(kinds) > 1:
        raise CheckpointError(f"the LoRAs have different task types: {listing(sorted(map(str, kinds)))}.")
    sizes = _sizes(read)
    rank = max(lora.rank for lora in read.values())
    config = PerTaskLoraConfig(
        tasks=list(loras),
        r=rank,
        lora_alpha=rank,
        target_modules=_targets(sizes),
        base_model_name_or_path=next(lora.config.get("base_model_name_or_path") for lora in read.values()),
        revision=next(lora.config.get("revision") for lora in read.values()),
        task_type=next(iter(kinds)),
        inference_mode=True,
    )
    path = check_output(directory, overwrite)
    tensors: dict[str, Tensor] = {}
    for layer, (size_in, size_out) in sizes.items():
        downs, ups = torch.zeros(len(loras), rank, size_in), torch.zeros(len(loras), size_out, rank)
        for index, lora in enumerate(read.values()):
            if layer in lora.factors:
                down, up = lora.factors[layer]
                downs[index, : down.shape[0]], ups[index, :, : up.shape[1]] = down, up
        tensors[f"base_model.model.{layer}.task_updates.A"] = downs
        tensors[f"base_model.model.{layer}.task_updates.B"] = ups
    with filling(path) as folder:
        write_tensors(folder / ADAPTER_FILE, tensors)
        config.save_pretrained(str(folder))
    return config, sorted({name for lora in read.values() for name in lora.left_out})


def _sizes(read: Mapping[str, PlainLora]) -> dict[str, tuple[int, int]]:
    """Return path → (in, out) over all LoRAs; layers that are zero in all of them are left out."""
    sizes: dict[str, tuple[int, int]] = {}
    alive: set[str] = set()
    for task, lora in read.items():
        for path, (down, up) in lora.factors.items():
            size = (down.shape[1], up.shape[0])
            if sizes.setdefault(path, size) != size:
                raise CheckpointError(
                    f"'{path}' is {sizes[path]} in one LoRA and {size} in that of '{task}': not the same base model."
                )
            if down.any() and up.any():
                alive.add(path)
    kept = {path: size for path, size in sizes.items() if path in alive}
    return kept or sizes


def _targets(sizes: Mapping[str, object]) -> list[str]:
    """Return the paths themselves: leaf names could match modules that no LoRA adapted."""
    return sorted(sizes)
