"""The mathematics: low-rank updates of a frozen linear layer that depend on the row's task.

    y = W x + b + ΔW_t x

Nothing here knows PEFT or transformers; see :mod:`tasklora.updates.base` for the three kinds of update.
"""

from tasklora.updates.base import BankUpdate, CoreUpdate, LowRankUpdate, UpdateOptions, is_number
from tasklora.updates.context import TaskAssignment, TaskContext, TaskNames, with_row_factor
from tasklora.updates.lora import LoraCore
from tasklora.updates.mtl_lora import MTLLora, MTLLoraOptions
from tasklora.updates.ops import Branch, add_branch
from tasklora.updates.per_task_lora import PerTaskLora, PerTaskLoraOptions

__all__ = [
    "BankUpdate",
    "Branch",
    "CoreUpdate",
    "LoraCore",
    "LowRankUpdate",
    "MTLLora",
    "MTLLoraOptions",
    "PerTaskLora",
    "PerTaskLoraOptions",
    "TaskAssignment",
    "TaskContext",
    "TaskNames",
    "UpdateOptions",
    "add_branch",
    "is_number",
    "with_row_factor",
]
