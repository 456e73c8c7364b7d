"""The one tuner: it puts :class:`TaskLoraLayer` around the targeted modules and owns the model's task context."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from peft.tuners.tuners_utils import BaseTuner
from peft.utils import TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING
from peft.utils.other import get_pattern_key
from torch import nn

from tasklora.errors import UnsupportedError, listing
from tasklora.tuner import registry
from tasklora.tuner.base_layers import geometry_of, shared_weights
from tasklora.tuner.checkpointing import recompute_under_tasks
from tasklora.tuner.configs import TaskLoraConfig
from tasklora.tuner.fitting import check_fit
from tasklora.tuner.layer import TaskLoraLayer
from tasklora.tuner.peft_types import PREFIX
from tasklora.tuner.row_factors import place_of
from tasklora.updates import OneHot, TaskContext, TaskNames


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
        geometry = geometry_of(base_layer, current_key)
        one_hot = self._one_hot(base_layer, method, current_key) if isinstance(base_layer, nn.Embedding) else None
        context = self._context_for(adapter_name, peft_config)
        r_key = get_pattern_key(peft_config.rank_pattern, current_key)
        alpha_key = get_pattern_key(peft_config.alpha_pattern, current_key)
        options = replace(
            peft_config,
            r=peft_config.rank_pattern.get(r_key, peft_config.r),
            lora_alpha=peft_config.alpha_pattern.get(alpha_key, peft_config.lora_alpha),
        )
        first_tasks = max(len(peft_config.tasks), 1) - peft_config.new_tasks
        update = method.update_cls(geometry.in_features, geometry.out_features, first_tasks, options)
        if one_hot is not None:
            update.read_ids(one_hot)
        if peft_config.new_tasks:
            update.add_tasks(peft_config.new_tasks)
        trainable = adapter_name in self.active_adapters and not peft_config.inference_mode
        if isinstance(target, TaskLoraLayer):
            target.add_update(adapter_name, update, inference_mode=not trainable)
            return
        layer = TaskLoraLayer(base_layer, geometry, context, place_of(self.model, current_key))
        layer.set_adapter(self.active_adapters)
        layer.add_update(adapter_name, update, inference_mode=peft_config.inference_mode)
        if not trainable:
            layer.requires_grad_(False)
        self._replace_module(parent, target_name, layer, target)

    def inject_adapter(self, model: nn.Module, adapter_name: str, *args: Any, **kwargs: Any) -> None:
        """Put an adapter into the model; checkpointing that was enabled before serves its ids from now on.

        Raises:
            UnsupportedError: if the model has task streams already (MTLoRA), which take no task ids.
        """
        if any(getattr(module, "has_task_streams", False) for module in model.modules()):
            raise UnsupportedError(
                "this model is adapted by MTLoRA (SwinMTLoRAConfig): its tasks have streams, through which every image "
                "goes, not ids by which rows choose. Adapt a model of its own with MTL-LoRA (MTLLoraConfig); the names "
                "differ by one letter."
            )
        super().inject_adapter(model, adapter_name, *args, **kwargs)
        recompute_under_tasks(model, context_of(model))

    def _one_hot(self, embedding: nn.Embedding, method: registry.Method, name: str) -> OneHot:
        """Return what an update of `embedding` must know of its ids.

        Raises:
            UnsupportedError: if the method reads features, or the module stands at several places of the model, of
                which PEFT would replace one.
        """
        if method.update_cls.kind == "routed":
            raise UnsupportedError(
                f"cannot adapt '{name}': the gate of {method.title} reads each token's features, and an embedding gets "
                "ids. Leave it out of target_modules (exclude_modules), or take a method whose ΔW depends on the task."
            )
        places = [path for path, module in self.model.named_modules(remove_duplicate=False) if module is embedding]
        if len(places) > 1:
            raise UnsupportedError(
                f"cannot adapt '{name}': the same embedding also stands at {listing(places[1:], 2)}, where it would go "
                "without the update. Leave it out of target_modules (exclude_modules)."
            )
        return OneHot(embedding.padding_idx)

    def _check_merge_allowed(self) -> None:
        """Refuse to merge into a weight that another module holds too: it would change with it.

        Raises:
            UnsupportedError: for tied embeddings.
        """
        shared = shared_weights(self.model)
        for name, layer in self.model.named_modules():
            if not isinstance(layer, TaskLoraLayer) or not any(a in layer.task_updates for a in layer.active_adapters):
                continue
            holders = shared.get(id(layer.base_layer._parameters.get("weight")), [])
            others = [holder for holder in holders if holder.removesuffix(".base_layer") != name]
            if others:
                raise UnsupportedError(
                    f"cannot merge into '{name}': its weight is tied to that of {listing(others, 2)}, which would "
                    "change with it. Export the task as plain LoRA; or untie the two before the model is adapted, with "
                    "`layer.weight = nn.Parameter(layer.weight.detach().clone())` and "
                    "`model.config.tie_word_embeddings = False`."
                )

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
        """Remap a checkpoint's keys as PEFT does, after checking that it fits this model."""
        remapped: dict[str, torch.Tensor] = super()._remap_adapter_state_dict_for_load(
            model, config, adapter_name, state_dict
        )
        check_fit(model, TaskLoraLayer, adapter_name, remapped, config.base_model_name_or_path, config.task_names)
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
