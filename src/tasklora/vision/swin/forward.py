"""The way of an image through Swin's stages: the shared stream, and one of each task through a stage's last block.

It runs over the modules of transformers' ``SwinModel`` (typed `Any`: torch types no submodules), whatever adapter
stands in them, and leaves no state. Differences from ``SwinModel.forward``: streams; DropPath on the MLP's branch
too, as in Swin's original code and MTLoRA's; and a map smaller than a window is cut for this forward only.

Source of the streams: Agiza et al., "MTLoRA" (CVPR 2024), section 3.3.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast

import torch.nn.functional as F
from torch import Tensor, nn

from tasklora.errors import ConfigError
from tasklora.updates.ops import Branch, add_branch
from tasklora.updates.streams import StreamUpdate, add_to_streams
from tasklora.vision.swin.task_gelu import task_gelu
from tasklora.vision.swin.updates import BlockUpdates, StageUpdates
from tasklora.vision.swin.windows import attend, join, partition, position_bias, shift_mask, window_and_shift


@dataclass(frozen=True)
class StageFeatures:
    """What a stage gives, after its patch merging if it has one.

    Attributes:
        shared: (N, H, W, C), of the shared stream, which alone feeds the next stage.
        tasks: (T, N, H, W, C), of the tasks' streams; None without task modules.
    """

    shared: Tensor
    tasks: Tensor | None = None

    def maps(self) -> Tensor:
        """Return what decoders read: (T, N, C, H, W), or (1, N, C, H, W) where all tasks read the shared features."""
        features = self.shared.unsqueeze(0) if self.tasks is None else self.tasks
        return features.movedim(-1, 2)


def swin_of(model: nn.Module) -> Any:
    """Return the ``SwinModel`` in a model.

    Raises:
        ConfigError: if there is none.
    """
    for module in model.modules():
        if type(module).__name__ == "SwinModel":
            return module
    raise ConfigError(
        f"{type(model).__name__} holds no Swin transformer: dense tasks need transformers' SwinModel, "
        "e.g. microsoft/swin-tiny-patch4-window7-224."
    )


def stage_features(model: nn.Module, pixel_values: Tensor) -> list[StageFeatures]:
    """Return the features of every stage.

    Args:
        model: a ``SwinModel``, or a model that holds one, adapted or not.
        pixel_values: (N, 3, height, width) of any size.

    Raises:
        ConfigError: if there is no Swin in the model.
    """
    swin = swin_of(model)
    interpolate = swin.embeddings.position_embeddings is not None
    x, (height, width) = swin.embeddings(pixel_values, interpolate_pos_encoding=interpolate)
    x = x.view(x.shape[0], height, width, -1)
    features = []
    for stage in swin.encoder.layers:
        base, updates = (stage.base_layer, stage.active_updates()) if hasattr(stage, "base_layer") else (stage, None)
        features.append(run_stage(base, updates, x))
        x = features[-1].shared
    return features


def run_stage(stage: Any, updates: StageUpdates | None, x: Tensor) -> StageFeatures:
    """Return the features of one stage.

    Args:
        stage: transformers' ``SwinStage``.
        updates: what adapts it; None for nothing.
        x: (N, H, W, C).
    """
    streams: Tensor | None = None
    for place, block in enumerate(stage.blocks):
        own = updates.block(place) if updates is not None else None
        if block.training and getattr(block, "gradient_checkpointing", False):
            x, streams = block._gradient_checkpointing_func(run_block, block, place % 2 == 1, own, x, streams)
        else:
            x, streams = run_block(block, place % 2 == 1, own, x, streams)
    if stage.downsample is None:
        return StageFeatures(x, streams)
    reduction = updates.reduction if updates is not None else None
    merged = merge(stage.downsample, reduction, x)
    if streams is None:
        return StageFeatures(merged)
    of_tasks = merge(stage.downsample, reduction, streams.flatten(0, 1))
    return StageFeatures(merged, of_tasks.view(streams.shape[0], *merged.shape))


def run_block(
    block: Any, shifted: bool, updates: BlockUpdates | None, x: Tensor, streams: Tensor | None = None
) -> tuple[Tensor, Tensor | None]:
    """Return the output of one block on the shared stream and on those of the tasks.

    Args:
        block: transformers' ``SwinLayer``.
        shifted: whether its windows are shifted.
        updates: what adapts it; None for nothing.
        x: (N, H, W, C), the shared stream.
        streams: (T, N, H, W, C), those of the tasks, if they have forked before this block.

    Returns:
        The same; None in place of the streams as long as they have not forked.
    """
    attended = _attended(block, shifted, updates.qkv if updates is not None else None, x)
    projection, first, second = block.attention.o_proj, block.mlp.fc1, block.mlp.fc2
    if updates is None or updates.proj.tasks is None:
        proj, fc1, fc2 = (updates.proj, updates.fc1, updates.fc2) if updates is not None else (None, None, None)
        x = x + block.drop_path(linear(projection, proj, attended))
        hidden = block.mlp.activation_fn(linear(first, fc1, block.layernorm_after(x)))
        return x + block.drop_path(linear(second, fc2, hidden)), None

    proj, fc1, fc2 = updates.proj, updates.fc1, updates.fc2
    assert proj.tasks is not None
    assert fc1.tasks is not None
    assert fc2.tasks is not None
    # Attention is the shared stream's own; behind it the streams fork, each with the residual of its own input.
    attended, own, h = proj.project(attended, fork=True)
    assert h is not None
    frozen = projection(attended)
    shared = proj.shared_output(frozen, own, h)
    before = x if streams is None else streams
    kept = _kept(block, h.shape[0], x)
    streams = add_to_streams(before, proj.frozen_of_tasks(frozen, shared), h, proj.tasks.up(), kept)
    x = x + block.drop_path(shared)

    h = fc1.down(block.layernorm_after(streams))  # (T, R, r)
    normed, own, _ = fc1.project(block.layernorm_after(x))
    frozen = first(normed)
    shared = fc1.shared_output(frozen, own, h)
    h = _through_activation(block, fc1.frozen_of_tasks(frozen, shared), h, fc1.tasks.up(), fc2.tasks.down())
    hidden, own, _ = fc2.project(block.mlp.activation_fn(shared))
    frozen = second(hidden)
    shared = fc2.shared_output(frozen, own, h)
    kept = _kept(block, h.shape[0], x)
    streams = add_to_streams(streams, fc2.frozen_of_tasks(frozen, shared), h, fc2.tasks.up(), kept)
    return x + block.drop_path(shared), streams


def linear(layer: nn.Module, update: StreamUpdate | None, x: Tensor) -> Tensor:
    """Return the output of a linear layer with its shared update, if it has one."""
    if update is None:
        return cast("Tensor", layer(x))
    plain = _is_plain(layer)
    x, own, _ = update.project(x, in_place=plain)
    return update.shared_output(layer(x), own, in_place=plain)


def merge(downsample: Any, update: StreamUpdate | None, x: Tensor) -> Tensor:
    """Return patches merged two by two, (M, ⌈H/2⌉, ⌈W/2⌉, 2C), of maps (M, H, W, C)."""
    height, width, channels = x.shape[1:]
    x = padded(x, height % 2, width % 2)
    # The four patches side by side, columns before rows: one copy, where slices would be added up again in backward.
    x = x.view(-1, -(-height // 2), 2, -(-width // 2), 2, channels).permute(0, 1, 3, 4, 2, 5)
    x = x.reshape(*x.shape[:3], 4 * channels)
    return linear(downsample.reduction, update, downsample.norm(x))


def padded(x: Tensor, rows: int, columns: int) -> Tensor:
    """Return maps (M, H, W, C) with rows and columns of zeros added; ``pad`` would copy even where there are none."""
    return F.pad(x, (0, 0, 0, columns, 0, rows)) if rows or columns else x


def _attended(block: Any, shifted: bool, update: StreamUpdate | None, x: Tensor) -> Tensor:
    """Return what attention gives before its output projection, (N, H, W, C)."""
    attention, (_, height, width, _) = block.attention, x.shape
    full = attention.relative_position_bias.window_size[0]
    window, shift = window_and_shift(full, shifted, height, width)
    x = block.layernorm_before(x)
    x = padded(x, -height % window, -width % window)
    padded_height, padded_width = x.shape[1:3]
    if shift:
        x = x.roll((-shift, -shift), (1, 2))
    query, key, value = _query_key_value(attention, update, partition(x, window))
    bias = position_bias(attention, window)
    if shift:
        apart = shift_mask(padded_height, padded_width, window, shift, bias)
        bias = bias + apart.unsqueeze(1)  # (windows, heads, w², w²)
    x = join(attend(query, key, value, attention, bias), window, padded_height, padded_width)
    if shift:
        x = x.roll((shift, shift), (1, 2))
    return x if (padded_height, padded_width) == (height, width) else x[:, :height, :width]


def _query_key_value(attention: Any, update: StreamUpdate | None, x: Tensor) -> list[Tensor]:
    """Return q, k and v of windows; the update is that of one fused layer d → 3d."""
    layers = [attention.q_proj, attention.k_proj, attention.v_proj]
    if update is None:
        return [layer(x) for layer in layers]
    assert update.shared is not None
    plain = all(_is_plain(layer) for layer in layers)
    shape = x.shape
    x, h, _ = update.project(x, in_place=plain)
    assert h is not None
    ups = (update.shared.B * update.shared.scaling).to(h.dtype).chunk(3)  # (d, r) each
    outputs = []
    for layer, up in zip(layers, ups, strict=True):
        rows = layer(x).view(1, -1, shape[-1])
        outputs.append(add_branch(rows, Branch(h, up, None, None, rows.shape), plain).view(shape))
    return outputs


def _through_activation(block: Any, frozen: Tensor, h: Tensor, up: Tensor, down: Tensor) -> Tensor:
    """Return D_t act(P + U_t h_t) of every task, (T, R, k)."""
    frozen = frozen.flatten(0, -2)
    if block.attention.config.hidden_act == "gelu":
        return task_gelu(frozen, h, up, down)
    hidden: Tensor = block.mlp.activation_fn(frozen + h @ up.to(h.dtype))  # (T, R, 4C)
    return hidden @ down.to(h.dtype).mT


def _kept(block: Any, tasks: int, x: Tensor) -> Tensor | None:
    """Return which streams of which images survive DropPath, rescaled, (T, N, 1, 1, 1); None for all."""
    rate = getattr(block.drop_path, "drop_prob", 0.0)
    if not block.training or not rate:
        return None
    return x.new_empty(tasks, x.shape[0], 1, 1, 1).bernoulli_(1 - rate).div_(1 - rate)


def _is_plain(layer: nn.Module) -> bool:
    """Return whether a layer's output and its input's gradient are fresh and nobody else's."""
    hooks = (layer._forward_hooks, layer._forward_pre_hooks, layer._backward_hooks, layer._backward_pre_hooks)
    return type(layer) is nn.Linear and type(layer._parameters["weight"]) is nn.Parameter and not any(hooks)
