"""FSDP2, as ``accelerate launch --use_fsdp`` asks for it: parameters sharded over the processes of a run.

The launcher says what it wants in environment variables (``ACCELERATE_USE_FSDP``, ``FSDP_…``), and torchrun takes the
same ones. They are read here and the model is sharded here, by torch's ``fully_shard``: accelerate's own sharding does
not run on CPUs, knows nothing of per-task heads, and writes the frozen base into every checkpoint.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from tasklora.errors import ConfigError, UnsupportedError, did_you_mean, listing
from tasklora.training.dense_recipe import DenseRecipe
from tasklora.training.processes import is_on, process_count
from tasklora.training.recipe import Recipe
from tasklora.tuner import auxiliary_loss
from tasklora.tuner.sharding import placed_like

USE_FSDP = "ACCELERATE_USE_FSDP"


@dataclass(frozen=True)
class Sharding:
    """How parameters are sharded.

    Attributes:
        blocks: names of the classes whose modules are gathered one after another; None for what transformers calls the
            model's blocks.
        reshard_after_forward: let go of a block's parameters between forward and backward.
    """

    blocks: tuple[str, ...] | None = None
    reshard_after_forward: bool = True

    @classmethod
    def of_launcher(cls) -> Sharding | None:
        """Return what the launcher asks for; None if it asks for no sharding.

        Raises:
            UnsupportedError: naming what it asks for that is not done here.
            ConfigError: if a variable that says yes or no says neither.
        """
        if not is_on(USE_FSDP):
            return None
        if process_count() == 1:
            raise UnsupportedError(
                "FSDP shards over processes, but the launcher started one. Start more, or drop FSDP."
            )
        if os.environ.get("FSDP_VERSION", "1") != "2":
            raise UnsupportedError(
                "tasklora trains with FSDP2 only: pass --fsdp_version 2 to accelerate launch, or set FSDP_VERSION=2."
            )
        policy = os.environ.get("FSDP_AUTO_WRAP_POLICY", "TRANSFORMER_BASED_WRAP").upper()
        refused = {
            "FSDP_AUTO_WRAP_POLICY": (
                policy != "TRANSFORMER_BASED_WRAP",
                "a model is sharded by its blocks: TRANSFORMER_BASED_WRAP, which is taken where none is given",
            ),
            "FSDP_ACTIVATION_CHECKPOINTING": (
                is_on("FSDP_ACTIVATION_CHECKPOINTING"),
                "it would recompute without task ids: set training.gradient_checkpointing in the recipe",
            ),
            "FSDP_OFFLOAD_PARAMS": (is_on("FSDP_OFFLOAD_PARAMS"), "parameters stay on the device"),
            "ACCELERATE_USE_PARALLELISM_CONFIG": (
                is_on("ACCELERATE_USE_PARALLELISM_CONFIG"),
                "tasklora shards over one mesh of all processes",
            ),
            "FSDP_IGNORED_MODULES": (bool(os.environ.get("FSDP_IGNORED_MODULES")), "all parameters are sharded"),
        }
        for name, (is_asked, why) in refused.items():
            if is_asked:
                raise UnsupportedError(f"the launcher set {name}={os.environ[name]}, but {why}. Leave it out.")
        named = os.environ.get("FSDP_TRANSFORMER_CLS_TO_WRAP")
        return cls(
            tuple(name.strip() for name in named.split(",")) if named else None,
            is_on("FSDP_RESHARD_AFTER_FORWARD", default="true"),
        )

    def check(self, recipe: Recipe | DenseRecipe) -> None:
        """Raise UnsupportedError if a recipe needs whole parameters while it trains."""
        for name in ("balancing", "gradient_cosines"):
            if getattr(recipe.training, name, None) is not None:
                raise UnsupportedError(
                    f"training.{name} takes gradients of whole parameters, but FSDP shards them: leave it out, or "
                    "train with plain processes (DDP)."
                )

    def check_model(self, model: nn.Module) -> None:
        """Check that a model can be sharded.

        Raises:
            ConfigError: if the encoder has no block of a class, or says of none what its blocks are.
            UnsupportedError: if its loss or its dtypes need whole parameters.
        """
        self._blocks_of(model)
        if auxiliary_loss(model).requires_grad:
            raise UnsupportedError(
                "the auxiliary loss needs whole parameters, but FSDP shards them: train with plain processes (DDP), or "
                "leave it out (TA-LoRA: orthogonality: 0)."
            )
        dtypes = {str(parameter.dtype) for parameter in model.parameters() if parameter.requires_grad}
        if len(dtypes) > 1:
            raise UnsupportedError(
                f"FSDP2 shards what is trained in one dtype, but here there are {listing(sorted(dtypes))}: take "
                "model.dtype: float32, or train with plain processes (DDP)."
            )

    def shard(self, model: nn.Module) -> None:
        """Shard a model in place, every block of its encoder and then the rest; it moves to the processes' devices.

        Args:
            model: a model that :meth:`check_model` has passed.
        """
        from torch.distributed import get_world_size
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method

        device = torch.accelerator.current_accelerator(check_available=True)
        mesh = init_device_mesh(device.type if device else "cpu", (get_world_size(),))
        for block in self._blocks_of(model):
            fully_shard(block, mesh=mesh, reshard_after_forward=self.reshard_after_forward)
        # What is outside of the blocks (embeddings, heads) stays gathered between forward and backward.
        root: Any = fully_shard(model, mesh=mesh, reshard_after_forward=False)
        root.set_reduce_scatter_unused_params(True)  # a process whose rows lack a task has no gradient of its head
        for name in ("log_probabilities", "generate"):
            if hasattr(model, name):
                register_fsdp_forward_method(model, name)

    def _blocks_of(self, model: nn.Module) -> list[nn.Module]:
        """Return the blocks of the encoder, inner ones first."""
        encoder: Any = model.encoder
        classes = {type(module).__name__ for module in encoder.modules()}
        if self.blocks is None:
            names = set(getattr(encoder, "_no_split_modules", None) or ()) & classes
            if not names:
                raise ConfigError(
                    "FSDP: the base model does not say what its blocks are. Name their class: "
                    "--fsdp_transformer_layer_cls_to_wrap, or FSDP_TRANSFORMER_CLS_TO_WRAP."
                )
        else:
            names = set(self.blocks)
            for name in self.blocks:
                if name not in classes:
                    raise ConfigError(
                        f"FSDP_TRANSFORMER_CLS_TO_WRAP: the encoder has no module of class '{name}'."
                        f"{did_you_mean(name, classes)}"
                    )
        found = [module for module in encoder.modules() if type(module).__name__ in names]
        # What is tied to a parameter elsewhere is gathered with the rest.
        return [block for block in reversed(found) if not _shares_parameters(block, model)]


@contextlib.contextmanager
def unseen_by_accelerate() -> Iterator[None]:
    """Hide from accelerate and transformers that the launcher asks for FSDP: in the block they leave the model alone.

    They would shard it themselves, and load weights in the first process only.
    """
    asked = os.environ.pop(USE_FSDP, None)
    try:
        yield
    finally:
        if asked is not None:
            os.environ[USE_FSDP] = asked


class ShardedOptimizerState:
    """Cuts the state in an optimiser's checkpoint, whose tensors are whole, into the parts that this process holds."""

    def __call__(self, optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> dict[str, Any]:
        """Return the state that the optimiser loads; see ``Optimizer.register_load_state_dict_pre_hook``."""
        own = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        saved = [index for group in state["param_groups"] for index in group["params"]]
        parameters = dict(zip(saved, own, strict=True))
        placed = {
            index: {
                key: placed_like(value, parameters[index])
                if isinstance(value, torch.Tensor) and value.shape == parameters[index].shape
                else value
                for key, value in entries.items()
            }
            for index, entries in state["state"].items()
        }
        return {**state, "state": placed}


def _shares_parameters(block: nn.Module, model: nn.Module) -> bool:
    """Return whether a parameter of a block is also one of a module outside of it."""
    own = {id(parameter) for parameter in block.parameters()}
    inside = {id(module) for module in block.modules()}
    return any(
        id(parameter) in own
        for module in model.modules()
        if id(module) not in inside
        for parameter in module._parameters.values()
        if parameter is not None
    )
