"""Small Swin transformers with MTLoRA, for tests."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from peft import PeftModel, get_peft_model
from torch import Tensor, nn
from transformers import SwinConfig, SwinModel

from tasklora.updates.streams import TaskFactors
from tasklora.vision import SwinMTLoRAConfig
from tasklora.vision.swin.updates import StageUpdates

TASKS = ["semseg", "normals", "depth"]


def tiny_swin(seed: int = 0, **changes: Any) -> SwinModel:
    """Return a random Swin of three stages; at 64 pixels its maps are 16, 8 and 4 wide, windows 4."""
    torch.manual_seed(seed)
    options = {
        "image_size": 64,
        "embed_dim": 8,
        "depths": [2, 2, 2],
        "num_heads": [1, 2, 4],
        "window_size": 4,
        "drop_path_rate": 0.0,
    } | changes
    model = SwinModel(SwinConfig(**options), add_pooling_layer=False)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "relative_position_bias_table" in name:
                parameter.normal_(std=0.5)
    return model.eval()


def tiny_mtlora(seed: int = 0, filled: bool = True, swin: SwinModel | None = None, **options: Any) -> PeftModel:
    """Return a tiny Swin with MTLoRA, its up-projections random (as after training) or zero."""
    options = {"tasks": TASKS, "r": 3, "task_r": 2} | options
    model = get_peft_model(swin if swin is not None else tiny_swin(seed), SwinMTLoRAConfig(**options))
    if filled:
        fill(model, seed)
    return model.eval()


def fill(model: nn.Module, seed: int = 0) -> None:
    """Make every up-projection random."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if ".task_updates." in name and name.endswith(".B"):
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.05)


def stage_updates(model: nn.Module, adapter: str = "default") -> list[StageUpdates]:
    """Return the updates of every stage."""
    return [
        module.task_updates[adapter]
        for name, module in model.named_modules()
        if getattr(module, "has_task_streams", False)
    ]


def task_factors(model: nn.Module) -> Iterator[TaskFactors]:
    """Yield the tasks' own factors of every layer that has some."""
    return (module for module in model.modules() if isinstance(module, TaskFactors))


def pixels(height: int = 64, width: int = 64, images: int = 2, seed: int = 0) -> Tensor:
    """Return a batch of random images."""
    return torch.randn(images, 3, height, width, generator=torch.Generator().manual_seed(seed))
