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
from tasklora.tuner.nearest import NearestTasks, embed_rows, nearest_tasks
from tasklora.tuner.peft_types import register_method
from tasklora.tuner.registry import METHODS, Method, method_of
from tasklora.tuner.task_lists import add_tasks, join_tasks, list_tasks, remove_tasks, rename_tasks
from tasklora.tuner.wrappers import TaskPeftModel, active_adapters, register_wrappers, use_tasks

__all__ = [
    "FORMAT_VERSION",
    "METHODS",
    "HydraLoraConfig",
    "MTLLoraConfig",
    "Method",
    "MoELoraConfig",
    "MultiLoraConfig",
    "NearestTasks",
    "PerTaskLoraConfig",
    "TALoraConfig",
    "TaskLoraConfig",
    "TaskLoraLayer",
    "TaskLoraModel",
    "TaskPeftModel",
    "active_adapters",
    "add_tasks",
    "auxiliary_loss",
    "context_of",
    "embed_rows",
    "find_context",
    "join_tasks",
    "list_tasks",
    "merge_task",
    "method_of",
    "nearest_tasks",
    "register",
    "remove_tasks",
    "rename_tasks",
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
