"""The one adapted layer: y = base(x) + Σ_{active adapters} ΔW_t x, with a frozen base layer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import torch
from peft.tuners.tuners_utils import BaseTunerLayer, check_adapters_to_merge
from torch import Tensor, nn

from tasklora.errors import BrokenAdapterError, UnsupportedError
from tasklora.updates import LowRankUpdate, TaskContext, add_branch


class TaskLoraLayer(nn.Module, BaseTunerLayer):
    """A frozen linear layer with task-dependent low-rank updates.

    Args:
        base_layer: the layer to adapt, ``nn.Linear`` or a (quantised) subclass of it.
        context: the task context of the model, shared by all its layers.
    """

    adapter_layer_names = ("task_updates",)
    other_param_names = ()

    # What PEFT's mixin brings, for the type checker: it would take them for submodules.
    active_adapters: list[str]
    disable_adapters: bool
    merged: bool
    set_adapter: Callable[..., None]
    _move_adapter_to_device_of_base_layer: Callable[[str], None]

    def __init__(self, base_layer: nn.Linear, context: TaskContext) -> None:
        super().__init__()
        self.base_layer = base_layer
        self.context = context
        self.task_updates = nn.ModuleDict()
        self.merged_adapters: list[str] = []
        self._disable_adapters = False
        self._base_before_merge: Tensor | None = None

    def add_update(self, adapter: str, update: LowRankUpdate, inference_mode: bool) -> None:
        """Add the update of a new adapter, on the base layer's device and (if floating) in its dtype."""
        self.task_updates[adapter] = update
        self._move_adapter_to_device_of_base_layer(adapter)
        self.set_adapter(self.active_adapters, inference_mode=inference_mode)

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Return base(x) plus the updates of the active adapters.

        Args:
            x: (rows, …, in_features).
            *args: passed on to the base layer.
            **kwargs: passed on to the base layer.

        Raises:
            TaskIdsError: if an active adapter needs task ids and none are current, or they do not fit the rows.
        """
        if self.disable_adapters and self.merged:
            self.unmerge()  # as PEFT's own layers do: "disabled" means the base model's output
        branches = []
        in_place = self._base_is_plain()
        if not (self.disable_adapters or self.merged):
            for adapter in self.active_adapters:
                if adapter in self.task_updates:
                    tasks = self.context.lookup(adapter, x)
                    x, branch = self._update_of(adapter).branch(x, tasks, in_place)
                    branches.append(branch)
        result: Tensor = self.base_layer(x, *args, **kwargs)
        for branch in branches:
            result = add_branch(result, branch, in_place)
        return result

    def _base_is_plain(self) -> bool:
        """Return whether what the base layer returns, forward and backward, is fresh and seen by nobody else.

        True of ``nn.Linear`` itself without hooks. Of a subclass (quantised, sharded) it is not known.
        """
        base = self.base_layer
        hooks = (base._forward_hooks, base._forward_pre_hooks, base._backward_hooks, base._backward_pre_hooks)
        return type(base) is nn.Linear and not any(hooks)

    def _update_of(self, adapter: str) -> LowRankUpdate:
        return cast("LowRankUpdate", self.task_updates[adapter])

    def check_mergeable(self, adapter: str) -> None:
        """Raise what merging the current single task would raise, without changing anything.

        Raises:
            TaskIdsError: if no single task is current.
            UnsupportedError: if the base weight is quantised or the update depends on the token.
            BrokenAdapterError: if the update holds NaN or infinity.
        """
        weight = self.base_layer.weight
        if not weight.is_floating_point() or type(weight) is not nn.Parameter:
            raise UnsupportedError(
                f"cannot merge into a quantised base layer ({type(self.base_layer).__name__}): load the base model "
                "unquantised, or export the task as plain LoRA."
            )
        with torch.no_grad():
            factors = self._update_of(adapter).lora_factors(self.context.one_task(adapter))
        if not all(bool(torch.isfinite(factor).all()) for factor in factors):
            raise BrokenAdapterError(
                f"NaN or infinity in the update of adapter '{adapter}': it is broken and is not merged."
            )

    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        """Add ΔW_t of the current single task to the base weight.

        The base weight is kept aside on the same device, so that unmerging restores it bit by bit.

        Raises:
            TaskIdsError: if no single task is current (see ``tasklora.merge_task``).
            UnsupportedError: if the base weight is quantised or the update depends on the token.
            BrokenAdapterError: if the update holds NaN or infinity, or `safe_merge` finds them in the merged weight.
        """
        weight = self.base_layer.weight
        for adapter in check_adapters_to_merge(self, adapter_names):
            if adapter not in self.task_updates:
                continue
            self.check_mergeable(adapter)
            task = self.context.one_task(adapter)
            with torch.no_grad():
                delta = self._update_of(adapter).delta_weight(task)
                merged = (weight.to(delta.dtype) + delta.to(weight.device)).to(weight.dtype)
            if safe_merge and not torch.isfinite(merged).all():
                raise BrokenAdapterError(f"NaN or infinity in the weights merged with adapter '{adapter}'.")
            if self._base_before_merge is None:
                self._base_before_merge = weight.data
            weight.data = merged
            self.merged_adapters.append(adapter)
            self.context.merged[adapter] = task

    def unmerge(self) -> None:
        """Restore the base weight that was there before merging."""
        if self._base_before_merge is not None:
            weight = self.base_layer.weight  # the model may have been moved or cast since merging
            weight.data = self._base_before_merge.to(weight.device, weight.dtype)
            self._base_before_merge = None
        for adapter in self.merged_adapters:
            self.context.merged.pop(adapter, None)
        self.merged_adapters.clear()
