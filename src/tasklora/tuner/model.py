"""The one tuner: it puts :class:`TaskLoraLayer` around the targeted modules and owns the model's task context."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from peft.tuners.tuners_utils import BaseTuner
from peft.utils import TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING
from peft.utils.other import get_pattern_key
from torch import nn
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear

from tasklora.errors import CheckpointError, UnsupportedError, listing
from tasklora.tuner import registry
from tasklora.tuner.configs import TaskLoraConfig
from tasklora.tuner.layer import TaskLoraLayer
from tasklora.tuner.peft_types import PREFIX
from tasklora.updates import TaskContext, TaskNames


class TaskLoraModel(BaseTuner):
    """PEFT tuner of all methods of the family; which update a layer gets, the registry says."""

    prefix = PREFIX
    tuner_layer_cls = TaskLoraLayer
    target_module_mapping = TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING

    @property
    def task_context(self) -> TaskContext:
        """The task context that all layers of the model share."""
        return context_of(self.model)

    def _create_and_replace(
        self,
        peft_config: TaskLoraConfig,
        adapter_name: str,
        target: nn.Module,
        target_name: str,
        parent: nn.Module,
        current_key: str,
        **_: Any,
    ) -> None:
        method = registry.method_of(peft_config)
        base_layer = target.base_layer if isinstance(target, TaskLoraLayer) else target
        if isinstance(base_layer, NonDynamicallyQuantizableLinear):
            raise UnsupportedError(
                f"cannot adapt '{current_key}': nn.MultiheadAttention reads its weight without calling it, so an "
                "update would have no effect. Leave it out of target_modules (exclude_modules)."
            )
        if not isinstance(base_layer, nn.Linear):
            raise UnsupportedError(
                f"cannot adapt '{current_key}': {type(base_layer).__name__} is not a linear layer. "
                "Leave it out of target_modules."
            )
        context = self._context_for(adapter_name, peft_config)
        r_key = get_pattern_key(peft_config.rank_pattern, current_key)
        alpha_key = get_pattern_key(peft_config.alpha_pattern, current_key)
        options = replace(
            peft_config,
            r=peft_config.rank_pattern.get(r_key, peft_config.r),
            lora_alpha=peft_config.alpha_pattern.get(alpha_key, peft_config.lora_alpha),
        )
        update = method.update_cls(
            base_layer.in_features, base_layer.out_features, max(len(peft_config.tasks), 1), options
        )
        trainable = adapter_name in self.active_adapters and not peft_config.inference_mode
        if isinstance(target, TaskLoraLayer):
            target.add_update(adapter_name, update, inference_mode=not trainable)
            return
        layer = TaskLoraLayer(base_layer, context)
        layer.set_adapter(self.active_adapters)
        layer.add_update(adapter_name, update, inference_mode=peft_config.inference_mode)
        if not trainable:
            layer.requires_grad_(False)
        self._replace_module(parent, target_name, layer, target)

    def _context_for(self, adapter: str, config: TaskLoraConfig) -> TaskContext:
        """Return the context of the model being adapted, with the tasks of `adapter` registered in it."""
        existing = find_context(self.model)
        if existing is None:
            existing = self.__dict__.setdefault("_new_context", TaskContext())
        # Always anew: transformers' own `delete_adapter` does not tell the tuner that a name is free again.
        existing.tasks[adapter] = TaskNames(config.tasks, registry.method_of(config).update_cls.uses_task_ids)
        return existing

    def delete_adapter(self, adapter_name: str) -> None:
        """Delete an adapter and its task list."""
        super().delete_adapter(adapter_name)
        self.task_context.tasks.pop(adapter_name, None)

    @classmethod
    def _remap_adapter_state_dict_for_load(
        cls, model: nn.Module, config: Any, adapter_name: str, state_dict: dict[str, torch.Tensor]
    ) -> dict[str, torch.Tensor]:
        """Remap a checkpoint's keys as PEFT does, after checking that it fits this model.

        PEFT loads what matches and only warns about the rest; a file of another base would pass almost in silence.
        """
        remapped: dict[str, torch.Tensor] = super()._remap_adapter_state_dict_for_load(
            model, config, adapter_name, state_dict
        )
        wanted = {
            f"{name}.{key}": parameter.shape
            for name, module in model.named_modules()
            if isinstance(module, TaskLoraLayer) and adapter_name in module.task_updates
            for key, parameter in module.named_parameters()
            if key.startswith(f"{PREFIX}.{adapter_name}.")
        }
        given = {key: value.shape for key, value in remapped.items() if f".{PREFIX}." in key}
        missing = [key for key in wanted if key not in given]
        unexpected = [key for key in given if key not in wanted]
        misshapen = [
            f"{key}: {tuple(given[key])} in the file, {tuple(shape)} in the model"
            for key, shape in wanted.items()
            if key in given and tuple(given[key]) != tuple(shape)
        ]
        if missing or unexpected or misshapen:
            details = [
                f"{len(group)} {what} ({listing(group, 2)})"
                for what, group in (
                    ("tensors missing from the file", missing),
                    ("tensors that the model has no place for", unexpected),
                    ("tensors of another shape", misshapen),
                )
                if group
            ]
            raise CheckpointError(
                f"the adapter file does not fit this model: {'; '.join(details)}. It was made for base "
                f"'{config.base_model_name_or_path}' with tasks [{listing(config.tasks)}]; load it on that base with "
                "that task list, or make it anew."
            )
        return remapped


def find_context(model: nn.Module) -> TaskContext | None:
    """Return the task context of an adapted model, None if nothing in it is adapted by tasklora."""
    for module in model.modules():
        if isinstance(module, TaskLoraLayer):
            return module.context
    return None


def context_of(model: nn.Module) -> TaskContext:
    """Return the task context of an adapted model.

    Raises:
        UnsupportedError: if nothing in the model is adapted by tasklora.
    """
    context = find_context(model)
    if context is None:
        raise UnsupportedError(
            f"{type(model).__name__} has no tasklora adapter: wrap it first, "
            "e.g. `model = peft.get_peft_model(base, tasklora.MTLLoraConfig(tasks=[…]))`."
        )
    return context
