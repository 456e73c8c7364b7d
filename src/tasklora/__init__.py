"""tasklora: one frozen model, many tasks, one small adapter that knows which task each row belongs to.

Importing this package registers its methods with PEFT: at once if PEFT is imported already, else as soon as it is. It
imports neither PEFT nor torch by itself, so that the command line starts quickly; the names below are loaded on
first use.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from tasklora._registration import register_with_peft
from tasklora.errors import TaskLoraError

if TYPE_CHECKING:
    from tasklora.export import export_lora
    from tasklora.tuner import (
        METHODS,
        HydraLoraConfig,
        MoELoraConfig,
        MTLLoraConfig,
        MultiLoraConfig,
        PerTaskLoraConfig,
        TALoraConfig,
        TaskLoraConfig,
        auxiliary_loss,
        context_of,
        merge_task,
        use_tasks,
    )

__version__ = "0.1.0"

_HOME = {
    "METHODS": "tasklora.tuner",
    "HydraLoraConfig": "tasklora.tuner",
    "MoELoraConfig": "tasklora.tuner",
    "MultiLoraConfig": "tasklora.tuner",
    "TALoraConfig": "tasklora.tuner",
    "MTLLoraConfig": "tasklora.tuner",
    "PerTaskLoraConfig": "tasklora.tuner",
    "TaskLoraConfig": "tasklora.tuner",
    "auxiliary_loss": "tasklora.tuner",
    "context_of": "tasklora.tuner",
    "export_lora": "tasklora.export",
    "merge_task": "tasklora.tuner",
    "use_tasks": "tasklora.tuner",
}

__all__ = [
    "METHODS",
    "HydraLoraConfig",
    "MTLLoraConfig",
    "MoELoraConfig",
    "MultiLoraConfig",
    "PerTaskLoraConfig",
    "TALoraConfig",
    "TaskLoraConfig",
    "TaskLoraError",
    "__version__",
    "auxiliary_loss",
    "context_of",
    "export_lora",
    "merge_task",
    "use_tasks",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'tasklora' has no attribute '{name}'")
    value = getattr(importlib.import_module(_HOME[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__


register_with_peft()
