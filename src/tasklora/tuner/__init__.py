"""The PEFT side: configs, one layer, one tuner, registration. All contact with PEFT's internals lives here."""

from tasklora.tuner.auxiliary import auxiliary_loss
from tasklora.tuner.configs import (
    FORMAT_VERSION,
    HydraLoraConfig,
    MoELoraConfig,
    MTLLoraConfig,
    MultiLoraConfig,
    PerTaskLoraConfig,
    TALoraConfig,
    TaskLoraConfig,
)
from tasklora.tuner.layer import TaskLoraLayer
from tasklora.tuner.merging import merge_task
from tasklora.tuner.model import TaskLoraModel, context_of, find_context
from tasklora.tuner.peft_types import register_method
from tasklora.tuner.registry import METHODS, Method, method_of
from tasklora.tuner.wrappers import TaskPeftModel, active_adapters, register_wrappers, use_tasks

__all__ = [
    "FORMAT_VERSION",
    "METHODS",
    "HydraLoraConfig",
    "MTLLoraConfig",
    "Method",
    "MoELoraConfig",
    "MultiLoraConfig",
    "PerTaskLoraConfig",
    "TALoraConfig",
    "TaskLoraConfig",
    "TaskLoraLayer",
    "TaskLoraModel",
    "TaskPeftModel",
    "active_adapters",
    "auxiliary_loss",
    "context_of",
    "find_context",
    "merge_task",
    "method_of",
    "register",
    "use_tasks",
]

_registered = False


def register() -> None:
    """Register every method of the family with PEFT, once."""
    global _registered
    if _registered:
        return
    _registered = True
    for method in METHODS.values():
        register_method(method.name, method.config_cls, TaskLoraModel, method.update_cls.uses_task_ids)
    register_wrappers()


register()
