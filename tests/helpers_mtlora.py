"""Small networks as MTLoRA's published code saves them, for tests of their conversion."""

from __future__ import annotations

import sys
import types
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import SwinModel

from helpers_swin import tiny_mtlora, tiny_swin
from tasklora.export import write_mtlora
from tasklora.tasks.base_model import fingerprint
from tasklora.vision import DenseModel, save_dense_model
from tasklora.vision.data import load_dense_suite
from tasklora.vision.saved_model import SavedDenseModel

FOUR = ["semseg", "parts", "saliency", "normals"]
THEIRS = ["semseg", "human_parts", "sal", "normals"]


def save_base(folder: Path, seed: int = 0) -> SwinModel:
    """Save a random Swin of four stages, as MTLoRA's decoders want; at 64 pixels its maps are 16, 8, 4 and 2 wide."""
    swin = tiny_swin(seed, depths=[2, 1, 1, 2], num_heads=[1, 1, 2, 2])
    swin.save_pretrained(folder)
    return swin


def save_model(
    folder: Path, base: Path, tasks: list[str] | None = None, decoder: str = "mtlora", **options: Any
) -> DenseModel:
    """Save a dense model with random factors, norms, tables, decoders and statistics around the Swin in `base`."""
    swin = SwinModel.from_pretrained(base, add_pooling_layer=False)
    swin.name_or_path = swin.config._name_or_path = str(base)
    digest = fingerprint(swin)
    tasks = tasks or FOUR
    specs = load_dense_suite("pascal_context@1").select(tasks)
    model = DenseModel(tiny_mtlora(swin=swin, tasks=tasks, **options), specs, decoder)
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.02)
        for name, buffer in model.decoders.named_buffers():
            if name.endswith("running_var"):
                buffer.uniform_(0.5, 2, generator=generator)
    about = SavedDenseModel(base=str(base), fingerprint=digest, image_size=(64, 64), decoder=decoder, tasks=specs)
    save_dense_model(model, about, folder)
    return model.eval()


def published_state(folder: Path, **options: Any) -> dict[str, Tensor]:
    """Return a small network's tensors under their published names; its base goes to ``folder/base``."""
    save_base(folder / "base")
    save_model(folder / "made", folder / "base", **options)
    write_mtlora(folder / "made", folder / "made.pth")
    state: dict[str, Tensor] = torch.load(folder / "made.pth", weights_only=True)["model"]
    return state


@contextmanager
def yacs() -> Iterator[type]:
    """Yield a class that pickles as ``yacs.config.CfgNode`` does; outside there is none."""
    package, module = types.ModuleType("yacs"), types.ModuleType("yacs.config")

    class CfgNode(dict):  # type: ignore[type-arg]
        def __init__(self, values: dict[str, Any], **attributes: Any) -> None:
            super().__init__({k: CfgNode(v) if isinstance(v, dict) else v for k, v in values.items()})
            notes = {
                "__immutable__": True,
                "__deprecated_keys__": set(),
                "__renamed_keys__": {},
                "__new_allowed__": False,
            }
            self.__dict__.update(notes, **attributes)

    CfgNode.__module__, CfgNode.__qualname__ = "yacs.config", "CfgNode"
    module.CfgNode = CfgNode  # type: ignore[attr-defined]
    sys.modules.update({"yacs": package, "yacs.config": module})
    try:
        yield CfgNode
    finally:
        del sys.modules["yacs"], sys.modules["yacs.config"]


def settings(**changes: Any) -> dict[str, Any]:
    """Return what the published code's settings hold, as far as it matters; `changes` are those of MODEL.MTLORA."""
    mtlora = {
        "ENABLED": True,
        "R": [3] * 4,
        "SHARED_SCALE": [4.0] * 4,
        "TASK_SCALE": [99.0] * 4,  # never read by that code
        "DROPOUT": [0.05] * 4,
        "SHARED_MODE": "matrix",
    }
    return {
        "TASKS": THEIRS,
        "DATA": {"IMG_SIZE": 64, "BATCH_SIZE": 32},
        "MODEL": {"DROP_PATH_RATE": 0.2, "MTLORA": mtlora | changes},
    }


def save_checkpoint(
    path: Path, state: dict[str, Tensor], config: dict[str, Any] | None = None, **attributes: Any
) -> Path:
    """Save what the published code saves: the network, an optimiser's state, and the settings as a yacs object."""
    content: dict[str, Any] = {"model": state, "optimizer": {"state": {}, "param_groups": [{"lr": 0.1}]}, "epoch": 3}
    if config is None:
        torch.save(content, path)
        return path
    with yacs() as node:
        torch.save(content | {"config": node(config, **attributes)}, path)
    return path


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


def some_slow(names, quick):
    return [name if name in quick else pytest.param(name, marks=pytest.mark.slow) for name in names]
