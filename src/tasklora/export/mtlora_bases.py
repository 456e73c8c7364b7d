"""The backbone under a checkpoint of MTLoRA's published code: one that is named, or the checkpoint's own."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any, cast

import torch

from tasklora.errors import CheckpointError, listing
from tasklora.tasks.base_model import fingerprint
from tasklora.tasks.saved_model import tensor_differences
from tasklora.vision.base_model import DenseBase, load_dense_base
from tasklora.vision.swin.reference import ReferenceNetwork

UNUSED = {"layernorm.weight", "layernorm.bias"}
"""The norm behind the last stage, which MTLoRA's network lacks."""
_BLOCK = re.compile(r"encoder\.layers\.(\d+)\.blocks\.(\d+)\.")


def base_of(
    checkpoint: str | Path,
    network: ReferenceNetwork,
    trained: tuple[str, ...],
    base: str,
    revision: str | None,
    drop_path: float | None,
) -> DenseBase:
    """Return a Swin by name, after a comparison of what is frozen.

    Args:
        checkpoint: for messages.
        network: its tensors.
        trained: ends of the names of modules that are trained in full.
        base: name or folder of the Swin.
        revision: its revision.
        drop_path: see :func:`load_dense_base`.

    Raises:
        CheckpointError: if it cannot be loaded, is of another architecture, or a frozen tensor differs.
    """
    try:
        loaded = load_dense_base(base, revision, drop_path=drop_path)
    except CheckpointError as error:
        raise CheckpointError(
            f"{error} Where the base cannot be had, write the checkpoint's own to a folder: --base-from-checkpoint."
        ) from error
    own = {name: tensor for name, tensor in loaded.model.state_dict().items() if name not in UNUSED - set(network.base)}
    if wrong := tensor_differences(own, network.base):
        raise CheckpointError(
            f"{checkpoint} is of another architecture than '{base}': {listing(wrong, 4)} are missing, unexpected or of "
            "another shape. Give the Swin that it was trained on."
        )
    frozen = [name for name in own if not name.rpartition(".")[0].endswith(trained)]
    if different := [name for name in frozen if not torch.equal(own[name], network.base[name])]:
        raise CheckpointError(
            f"{checkpoint} was trained on other weights than those of '{base}': {len(different)} of {len(frozen)} "
            f"frozen tensors differ, e.g. {listing(different, 3)}. Give the Swin that it was trained on, or write the "
            "checkpoint's own to a folder: --base-from-checkpoint."
        )
    return loaded


def own_base(
    checkpoint: str | Path, network: ReferenceNetwork, size: tuple[int, int], drop_path: float | None, name: str
) -> DenseBase:
    """Return the backbone that the checkpoint holds.

    Args:
        checkpoint: for messages.
        network: its tensors.
        size: height and width of the images, in pixels.
        drop_path: the largest rate of stochastic depth; None for transformers' default.
        name: what it is called.

    Raises:
        CheckpointError: if it is not whole.
    """
    from transformers import SwinConfig, SwinModel

    weights = network.base
    first = "encoder.layers.{}.blocks.0."
    blocks = [(int(found[1]), int(found[2])) for key in weights if (found := _BLOCK.match(key))]
    table = "attention.relative_position_bias.relative_position_bias_table"
    try:
        stages = sorted({stage for stage, _ in blocks})
        tables = [weights[first.format(stage) + table] for stage in stages]
        hidden, width = weights[f"{first.format(0)}mlp.fc1.weight"].shape
        projection = weights["embeddings.patch_embeddings.projection.weight"]
        config = SwinConfig(
            image_size=max(size),
            patch_size=projection.shape[-1],
            num_channels=projection.shape[1],
            embed_dim=projection.shape[0],
            depths=[1 + max(block for at, block in blocks if at == stage) for stage in stages],
            num_heads=[each.shape[1] for each in tables],
            window_size=(math.isqrt(tables[0].shape[0]) + 1) // 2,
            mlp_ratio=hidden / width,
            qkv_bias=f"{first.format(0)}attention.q_proj.bias" in weights,
            **({} if drop_path is None else {"drop_path_rate": drop_path}),
        )
        model = SwinModel(config, add_pooling_layer=False)
    except (KeyError, IndexError, ValueError) as error:
        raise CheckpointError(f"{checkpoint} holds no whole Swin: cannot tell its sizes ({error}).") from None
    own = {key: tensor for key, tensor in model.state_dict().items() if key not in UNUSED - set(weights)}
    if wrong := tensor_differences(own, weights):
        raise CheckpointError(f"{checkpoint} holds no whole Swin: {listing(wrong, 4)} do not fit the others.")
    model.load_state_dict(weights, strict=False)
    cast("Any", model).name_or_path = model.config._name_or_path = name
    return DenseBase(name, model, fingerprint(model))
