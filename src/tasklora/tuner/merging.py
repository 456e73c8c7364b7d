"""One task, no overhead: merging a task's update into the base weights."""

from __future__ import annotations

from torch import Tensor, nn

from tasklora.tuner.layer import TaskLoraLayer
from tasklora.tuner.wrappers import TaskIds, use_tasks


def merge_task(
    model: nn.Module, task: TaskIds | None = None, *, task_weights: Tensor | None = None, safe_merge: bool = True
) -> nn.Module:
    """Merge ΔW_t of one task into W and return the plain base model.

    W ← W + ΔW_t in every adapted layer; the result has no adapter left and costs what the base model costs. The adapter
    is gone from `model` afterwards: load it again for another task, or use ``model.merge_adapter()`` under
    ``use_tasks`` to be able to ``model.unmerge_adapter()``.

    Args:
        model: a PEFT model of this family.
        task: the task's name or id.
        task_weights: instead of a task, a mixture (T,).
        safe_merge: refuse to merge NaN or infinity.

    Returns:
        The base model (a plain transformers model, if it was one).

    Raises:
        UnknownTaskError: if the adapter has no such task.
        UnsupportedError: if a base weight is quantised, or the method has no plain LoRA per task.
        BrokenAdapterError: if an update holds NaN or infinity.
    """
    with use_tasks(model, task, task_weights=task_weights):
        # All layers are checked before the first one is changed: a refusal leaves the model as it was.
        for module in model.modules():
            if isinstance(module, TaskLoraLayer):
                for adapter in module.active_adapters:
                    if adapter in module.task_updates:
                        module.check_mergeable(adapter)
        return model.merge_and_unload(safe_merge=safe_merge)  # type: ignore[operator, no-any-return]
