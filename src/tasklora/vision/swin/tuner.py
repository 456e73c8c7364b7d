"""The PEFT side of MTLoRA: it puts :class:`MTLoRAStage` around the stages of a Swin transformer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import torch
from peft.tuners.tuners_utils import BaseTuner, BaseTunerLayer
from peft.utils import ModulesToSaveWrapper
from torch import Tensor, nn

from tasklora.errors import ConfigError, UnsupportedError
from tasklora.tuner.fitting import check_fit
from tasklora.tuner.peft_types import PREFIX, register_method
from tasklora.vision.swin.config import SwinMTLoRAConfig
from tasklora.vision.swin.forward import run_stage
from tasklora.vision.swin.updates import StageUpdates


class MTLoRAStage(nn.Module, BaseTunerLayer):
    """A stage of a Swin transformer with the updates of its linear layers, shared and of each task.

    Args:
        base_layer: transformers' ``SwinStage``.
    """

    adapter_layer_names = ("task_updates",)
    other_param_names = ()
    has_task_streams = True

    # What PEFT's mixin brings, for the type checker: it would take them for submodules.
    active_adapters: list[str]
    disable_adapters: bool
    set_adapter: Callable[..., None]

    def __init__(self, base_layer: Any) -> None:
        super().__init__()
        self.base_layer = base_layer
        self.task_updates = nn.ModuleDict()
        self.merged_adapters: list[str] = []
        self._disable_adapters = False

    @property
    def downsample(self) -> nn.Module | None:
        """The stage's patch merging, which ``SwinEncoder`` looks at."""
        return cast("nn.Module | None", self.base_layer.downsample)

    def add_updates(self, adapter: str, updates: StageUpdates, inference_mode: bool) -> None:
        """Add the updates of a new adapter, on the stage's device and in its dtype."""
        weight = next(self.base_layer.parameters())
        self.task_updates[adapter] = updates.to(weight.device, weight.dtype)
        self.set_adapter(self.active_adapters, inference_mode=inference_mode)

    def active_updates(self) -> StageUpdates | None:
        """Return the updates of the active adapter; None where adapters are disabled.

        Raises:
            UnsupportedError: if several are active: each has streams of its own.
        """
        if self.disable_adapters:
            return None
        active = [adapter for adapter in self.active_adapters if adapter in self.task_updates]
        if len(active) > 1:
            raise UnsupportedError(
                f"adapters {', '.join(active)} are active at once: streams of several adapters do not add up. "
                "Activate one with set_adapter."
            )
        return cast("StageUpdates", self.task_updates[active[0]]) if active else None

    def forward(
        self,
        hidden_states: Tensor,
        input_dimensions: tuple[int, int],
        always_partition: bool = False,
        output_hidden_states_before_downsampling: bool = False,
        **_: Any,
    ) -> tuple[Tensor, Tensor, None]:
        """Return what ``SwinStage`` returns, of the shared stream; :func:`stage_features` has those of the tasks.

        Raises:
            UnsupportedError: with `always_partition` or features before merging, as ``SwinBackbone`` asks for them.
        """
        if always_partition or output_hidden_states_before_downsampling:
            raise UnsupportedError(
                "MTLoRA's features are taken behind patch merging, and maps smaller than a window are not padded to "
                "it: use tasklora.vision.stage_features on a SwinModel, not SwinBackbone."
            )
        x = hidden_states.view(hidden_states.shape[0], *input_dimensions, -1)
        shared = run_stage(self.base_layer, self.active_updates(), x).shared  # (N, H, W, C)
        return shared.flatten(1, 2), shared.movedim(-1, 1).contiguous(), None


class SwinMTLoRAModel(BaseTuner):
    """PEFT tuner of MTLoRA on Swin."""

    prefix = PREFIX
    tuner_layer_cls = MTLoRAStage
    target_module_mapping: dict[str, list[str]] = {}

    def _create_and_replace(
        self,
        peft_config: SwinMTLoRAConfig,
        adapter_name: str,
        target: nn.Module,
        target_name: str,
        parent: nn.Module,
        current_key: str,
        **_: Any,
    ) -> None:
        stage = target.base_layer if isinstance(target, MTLoRAStage) else target
        _check_stage(stage, current_key)
        stages = len(cast("nn.ModuleList", parent))
        updates = StageUpdates(stage, peft_config.stage_options(int(target_name), stages))
        trainable = adapter_name in self.active_adapters and not peft_config.inference_mode
        if isinstance(target, MTLoRAStage):
            target.add_updates(adapter_name, updates, inference_mode=not trainable)
            return
        layer = MTLoRAStage(stage)
        layer.set_adapter(self.active_adapters)
        layer.add_updates(adapter_name, updates, inference_mode=peft_config.inference_mode)
        if not trainable:
            layer.requires_grad_(False)
        self._replace_module(parent, target_name, layer, target)

    def _replace_module(self, parent: nn.Module, child_name: str, new_module: nn.Module, child: nn.Module) -> None:
        """Replace a stage. PEFT's own would hand on its weight, which a stage has none of."""
        setattr(parent, child_name, new_module)

    def unload(self) -> nn.Module:
        """Return the backbone as it was. PEFT's own would leave in it what the adapter trained in full."""
        for name, module in list(self.model.named_modules()):
            if isinstance(module, ModulesToSaveWrapper):
                owner, _, leaf = name.rpartition(".")
                setattr(self.model.get_submodule(owner), leaf, module.original_module)
        backbone: nn.Module = super().unload()
        return backbone

    def inject_adapter(self, model: nn.Module, adapter_name: str, *args: Any, **kwargs: Any) -> None:
        """Put an adapter into the model.

        Raises:
            ConfigError: if the model is no Swin transformer.
            UnsupportedError: if an adapter with task ids is in it already.
        """
        from tasklora.tuner import find_context  # PEFT's import brings this module in while that one is being made

        if find_context(model) is not None:
            raise UnsupportedError(
                "this model is adapted by a method with task ids (MTLLoraConfig and its kin): its rows choose a task "
                "each, where MTLoRA sends every image through the streams of all. Adapt a model of its own."
            )
        if not any(type(module).__name__ == "SwinModel" for module in model.modules()):
            raise ConfigError(
                f"SwinMTLoRAConfig (MTLoRA) adapts Swin transformers of transformers' SwinModel, got "
                f"{type(model).__name__}. For the layers of a language model, or of any other, take MTL-LoRA: "
                "tasklora.MTLLoraConfig."
            )
        super().inject_adapter(model, adapter_name, *args, **kwargs)

    def _check_merge_allowed(self) -> None:
        raise UnsupportedError(
            "MTLoRA cannot be merged: behind the fork the tasks' streams are different networks, and the shared one "
            "alone is none of theirs. Serve the model with its adapter."
        )

    @classmethod
    def _remap_adapter_state_dict_for_load(
        cls, model: nn.Module, config: Any, adapter_name: str, state_dict: dict[str, torch.Tensor]
    ) -> dict[str, torch.Tensor]:
        """Remap a checkpoint's keys as PEFT does, after checking that it fits this model."""
        remapped: dict[str, torch.Tensor] = super()._remap_adapter_state_dict_for_load(
            model, config, adapter_name, state_dict
        )
        check_fit(model, MTLoRAStage, adapter_name, remapped, config.base_model_name_or_path, config.tasks)
        return remapped


def _check_stage(stage: Any, name: str) -> None:
    if type(stage).__name__ != "SwinStage":
        raise ConfigError(
            f"'{name}' is a {type(stage).__name__}, not transformers' SwinStage: MTLoRA adapts SwinModel only. "
            "For other models take MTL-LoRA: tasklora.MTLLoraConfig."
        )
    config = stage.blocks[0].attention.config
    if config.hidden_dropout_prob:
        raise ConfigError(
            f"hidden_dropout_prob is {config.hidden_dropout_prob}: the streams have DropPath instead. Load the base "
            "with hidden_dropout_prob=0."
        )


register_method("swin_mtlora", SwinMTLoRAConfig, SwinMTLoRAModel, uses_task_ids=False)
