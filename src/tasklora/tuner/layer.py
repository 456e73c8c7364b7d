"""The one adapted layer: y = base(x) + Σ_{active adapters} ΔW_t x, with a frozen base layer."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, cast

import torch
from peft.tuners.tuners_utils import BaseTunerLayer, check_adapters_to_merge
from torch import Tensor, nn

from tasklora.errors import BrokenAdapterError, TaskIdsError, UnsupportedError
from tasklora.tuner.base_layers import Geometry, embedding_scale, is_quantised
from tasklora.tuner.sharding import check_not_sharded
from tasklora.updates import LayerPlace, LowRankUpdate, TaskContext, add_branch


class TaskLoraLayer(nn.Module, BaseTunerLayer):
    """A frozen linear layer with task-dependent low-rank updates.

    Args:
        base_layer: the layer to adapt.
        geometry: how it is laid out (:func:`tasklora.tuner.base_layers.geometry_of`).
        context: the task context of the model, shared by all its layers.
        place: where the layer stands in the model, which says what its rows are.
    """

    adapter_layer_names = ("task_updates",)
    other_param_names = ()

    # What PEFT's mixin brings, for the type checker: it would take them for submodules.
    active_adapters: list[str]
    disable_adapters: bool
    merged: bool
    _move_adapter_to_device_of_base_layer: Callable[[str], None]

    def __init__(
        self, base_layer: nn.Module, geometry: Geometry, context: TaskContext, place: LayerPlace | None = None
    ) -> None:
        super().__init__()
        self.base_layer = base_layer
        self.geometry = geometry
        self.reads_features = geometry.reads == "features"
        self.context = context
        self.place = place or LayerPlace()
        self.task_updates = nn.ModuleDict()
        self.merged_adapters: list[str] = []
        self._disable_adapters = False
        self._base_before_merge: Tensor | None = None

    def add_update(self, adapter: str, update: LowRankUpdate, inference_mode: bool) -> None:
        """Add the update of a new adapter, on the base layer's device and (if floating) in its dtype."""
        self.task_updates[adapter] = update
        self._move_adapter_to_device_of_base_layer(adapter)
        self.set_adapter(self.active_adapters, inference_mode=inference_mode)

    def set_adapter(self, adapter_names: str | list[str], inference_mode: bool = False) -> None:
        """Activate adapters as PEFT does; where tasks were added, only what is their own becomes trainable."""
        super().set_adapter(adapter_names, inference_mode=inference_mode)
        self.freeze_all_but_new_tasks()

    def freeze_all_but_new_tasks(self) -> None:
        """Freeze all parameters that added tasks share with others; see :func:`tasklora.add_tasks`."""
        for adapter in self.task_updates:
            self._update_of(adapter).freeze_all_but_new()

    def _get_base_layer_device_and_dtype(self, base_layer: nn.Module) -> tuple[Any, torch.dtype | None]:
        """Return what PEFT gives a new adapter: no dtype of one byte (fp8), in which no factor can be trained."""
        device, dtype = super()._get_base_layer_device_and_dtype(base_layer)
        return device, None if dtype is not None and dtype.itemsize < 2 else dtype

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Return base(x) plus the updates of the active adapters.

        Args:
            x: (rows, …, in_features); (rows, in_features, height, width) of a convolution; ids (rows, …) of an
                embedding.
            *args: passed on to the base layer.
            **kwargs: passed on to the base layer.

        Raises:
            TaskIdsError: if an active adapter needs task ids and none are current, or they do not fit the rows.
            UnsupportedError: if a quantised base layer is trained through that has no backward.
        """
        if self.disable_adapters and self.merged:
            self.unmerge()  # as PEFT's own layers do: "disabled" means the base model's output
        if not self.reads_features:
            return self._forward_of_other_input(x, *args, **kwargs)
        branches = []
        in_place = self._base_is_plain()
        if not (self.disable_adapters or self.merged):
            for adapter in self.active_adapters:
                if adapter in self.task_updates:
                    tasks = self.context.lookup(adapter, x, self.place)
                    x, branch = self._update_of(adapter).branch(x, tasks, in_place)
                    branches.append(branch)
        result: Tensor = self.base_layer(x, *args, **kwargs)
        if branches and not in_place:
            self._check_gradients(x, result)
        for branch in branches:
            result = add_branch(result, branch, in_place)
        return result

    def _forward_of_other_input(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Return what :meth:`forward` returns, of a base layer that reads channels or ids."""
        result: Tensor = self.base_layer(x, *args, **kwargs)
        if self.disable_adapters or self.merged:
            return result
        for adapter in self.active_adapters:
            if adapter in self.task_updates:
                add = self._plus_of_ids if self.geometry.reads == "ids" else self._plus_of_channels
                result = add(adapter, x, result)
        return result

    def _plus_of_ids(self, adapter: str, ids: Tensor, result: Tensor) -> Tensor:
        tasks = self.context.lookup(adapter, ids.unsqueeze(-1), self.place)
        branch = self._update_of(adapter).branch_of_ids(ids, tasks)
        scale = embedding_scale(self.base_layer, like=result)
        return add_branch(result, branch if scale is None else replace(branch, h=branch.h * scale), in_place=False)

    def _plus_of_channels(self, adapter: str, x: Tensor, result: Tensor) -> Tensor:
        x = self.geometry.channels_last(x)
        tasks = self.context.lookup(adapter, x, self.place)
        if tasks is not None and tasks.per_token:
            raise TaskIdsError(
                f"{self.place.label} is a convolution and takes one task id per row, got ids of shape "
                f"{tuple(tasks.tensor.shape)}: which of them is a place of the image's is not known."
            )
        added: Tensor = self._update_of(adapter)(x, tasks).movedim(-1, 1)  # (rows, out, height, width)
        return result + added.to(result.dtype)

    def _check_gradients(self, x: Tensor, result: Tensor) -> None:
        """Refuse to train through a base layer without a backward: what stands before it would learn nothing."""
        if torch.is_grad_enabled() and x.requires_grad and not result.requires_grad:
            raise UnsupportedError(
                f"{self.place.label} ({type(self.base_layer).__name__}) gives no gradient to its input: this "
                "quantisation is for inference. Run it under torch.no_grad(), or train on another base and load the "
                "adapter here."
            )

    def _base_is_plain(self) -> bool:
        """Return whether what the base layer returns, forward and backward, is fresh and seen by nobody else.

        True of ``nn.Linear`` itself without hooks. Of a subclass, or a weight of another type (quantised, sharded), it
        is not known.
        """
        base = self.base_layer
        hooks = (base._forward_hooks, base._forward_pre_hooks, base._backward_hooks, base._backward_pre_hooks)
        return type(base) is nn.Linear and type(base._parameters["weight"]) is nn.Parameter and not any(hooks)

    def _update_of(self, adapter: str) -> LowRankUpdate:
        return cast("LowRankUpdate", self.task_updates[adapter])

    def check_mergeable(self, adapter: str) -> None:
        """Raise what merging the current single task would raise, without changing anything.

        Raises:
            TaskIdsError: if no single task is current.
            UnsupportedError: if the base weight is quantised or sharded, or the update depends on the token.
            BrokenAdapterError: if the update holds NaN or infinity.
        """
        check_not_sharded(self, "merging")
        if is_quantised(self.base_layer):
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
        for adapter in check_adapters_to_merge(self, adapter_names):
            if adapter not in self.task_updates:
                continue
            self.check_mergeable(adapter)
            weight = cast("nn.Parameter", self.base_layer.weight)
            task = self.context.one_task(adapter)
            with torch.no_grad():
                delta = self.geometry.laid_out(self._update_of(adapter).delta_weight(task))
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
            weight = cast("nn.Parameter", self.base_layer.weight)  # the model may have been moved or cast since merging
            weight.data = self._base_before_merge.to(weight.device, weight.dtype)
            self._base_before_merge = None
        for adapter in self.merged_adapters:
            self.context.merged.pop(adapter, None)
        self.merged_adapters.clear()
