"""The mathematics: low-rank updates of a frozen linear layer that depend on the row's task.

    y = W x + b + ΔW_t x

Nothing here knows PEFT or transformers; see :mod:`tasklora.updates.base` for the three kinds of update.
"""

from tasklora.updates.base import BankUpdate, CoreUpdate, LowRankUpdate, RoutedUpdate, UpdateOptions, is_number
from tasklora.updates.context import TaskAssignment, TaskContext, TaskNames, with_row_factor
from tasklora.updates.hydra_lora import HydraLora, HydraLoraOptions
from tasklora.updates.lookup import OneHot
from tasklora.updates.lora import LoraCore
from tasklora.updates.moe_lora import MoELora, MoELoraOptions
from tasklora.updates.mtl_lora import MTLLora, MTLLoraOptions
from tasklora.updates.multi_lora import MultiLora, MultiLoraOptions
from tasklora.updates.ops import Branch, add_branch
from tasklora.updates.per_task_lora import PerTaskLora, PerTaskLoraOptions
from tasklora.updates.ta_lora import TALora, TALoraOptions

__all__ = [
    "BankUpdate",
    "Branch",
    "CoreUpdate",
    "HydraLora",
    "HydraLoraOptions",
    "LoraCore",
    "LowRankUpdate",
    "MTLLora",
    "MTLLoraOptions",
    "MoELora",
    "MoELoraOptions",
    "MultiLora",
    "MultiLoraOptions",
    "OneHot",
    "PerTaskLora",
    "PerTaskLoraOptions",
    "RoutedUpdate",
    "TALora",
    "TALoraOptions",
    "TaskAssignment",
    "TaskContext",
    "TaskNames",
    "UpdateOptions",
    "add_branch",
    "is_number",
    "with_row_factor",
]
