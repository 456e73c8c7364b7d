"""Dense vision: task streams through a Swin transformer (MTLoRA), decoders, dense tasks and their data.

Importing this package is light; the names below are loaded on first use.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tasklora.vision.methods import DENSE_METHODS
    from tasklora.vision.model import DenseModel
    from tasklora.vision.saved_model import load_dense_model, save_dense_model
    from tasklora.vision.spec import DenseSuite, DenseTaskSpec
    from tasklora.vision.swin.config import SwinMTLoRAConfig
    from tasklora.vision.swin.forward import StageFeatures, stage_features

_HOME = {
    "DENSE_METHODS": "tasklora.vision.methods",
    "DenseModel": "tasklora.vision.model",
    "DenseSuite": "tasklora.vision.spec",
    "DenseTaskSpec": "tasklora.vision.spec",
    "StageFeatures": "tasklora.vision.swin.forward",
    "SwinMTLoRAConfig": "tasklora.vision.swin.config",
    "load_dense_model": "tasklora.vision.saved_model",
    "save_dense_model": "tasklora.vision.saved_model",
    "stage_features": "tasklora.vision.swin.forward",
}

__all__ = [
    "DENSE_METHODS",
    "DenseModel",
    "DenseSuite",
    "DenseTaskSpec",
    "StageFeatures",
    "SwinMTLoRAConfig",
    "load_dense_model",
    "save_dense_model",
    "stage_features",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'tasklora.vision' has no attribute '{name}'")
    value = getattr(importlib.import_module(_HOME[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
