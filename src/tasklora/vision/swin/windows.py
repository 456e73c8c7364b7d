"""Swin's attention over windows, without state.

transformers' own block changes its window and shift for good when it meets a feature map smaller than a window; here
both are worked out from the map each time, so that one model serves any sequence of resolutions. Where the window is
cut to the map, the part of the bias that belongs to the remaining positions is taken.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


def window_and_shift(window: int, shifted: bool, height: int, width: int) -> tuple[int, int]:
    """Return the window's side and the cyclic shift of a block on a map of this size.

    A map whose shorter side is not larger than the window is cut into windows of that side, and not shifted.

    Args:
        window: the side of the block's full window.
        shifted: whether the block shifts its windows: every second one of a stage.
        height: of the map.
        width: of the map.
    """
    if min(height, width) <= window:
        return min(height, width), 0
    return window, window // 2 if shifted else 0


def partition(x: Tensor, window: int) -> Tensor:
    """Return (N, H, W, C) cut into windows, (N·H/w·W/w, w², C)."""
    images, height, width, channels = x.shape
    x = x.view(images, height // window, window, width // window, window, channels)
    return x.transpose(2, 3).reshape(-1, window * window, channels)


def join(windows: Tensor, window: int, height: int, width: int) -> Tensor:
    """Return windows (N·H/w·W/w, w², C) put together again, (N, H, W, C)."""
    channels = windows.shape[-1]
    x = windows.view(-1, height // window, width // window, window, window, channels)
    return x.transpose(2, 3).reshape(-1, height, width, channels)


def shift_mask(height: int, width: int, window: int, shift: int, like: Tensor) -> Tensor:
    """Return what keeps parts of a window apart that the cyclic shift joined: (windows, w², w²), 0 or −100."""
    rows, columns = (torch.arange(size, device=like.device) for size in (height, width))
    down, across = (
        (at >= size - window).long() + (at >= size - shift).long() for at, size in ((rows, height), (columns, width))
    )
    region = (down[:, None] * 3 + across[None, :]).view(1, height, width, 1)
    of_window = partition(region, window).squeeze(-1)  # (windows, w²)
    apart = of_window.unsqueeze(1) != of_window.unsqueeze(2)
    return torch.zeros_like(apart, dtype=like.dtype).masked_fill_(apart, -100.0)


def position_bias(attention: Any, window: int) -> Tensor:
    """Return the bias of each pair of places in a window, (heads, w², w²)."""
    table = attention.relative_position_bias
    bias: Tensor = table().squeeze(0)
    full = table.window_size[0]
    if window == full:
        return bias
    places = torch.arange(full * full, device=bias.device).view(full, full)[:window, :window].flatten()
    return bias[:, places][:, :, places]


def attend(query: Tensor, key: Tensor, value: Tensor, attention: Any, bias: Tensor) -> Tensor:
    """Return softmax(q kᵀ / √d + bias) v of windows, the heads side by side.

    Args:
        query: (N·windows, w², C).
        key: the same.
        value: the same.
        attention: transformers' module, for its sizes.
        bias: (heads, w², w²), or (windows, heads, w², w²) where windows differ.
    """
    count, length, channels = query.shape
    heads = channels // attention.head_dim
    query, key, value = (part.view(count, length, heads, -1).transpose(1, 2) for part in (query, key, value))
    scores = (query * attention.scaling) @ key.mT  # (N·windows, heads, w², w²)
    if bias.dim() == 3:
        bias = bias.unsqueeze(0)
    scores = (scores.view(-1, *bias.shape) + bias).view_as(scores)
    weights = torch.softmax(scores, dim=-1)
    if attention.training and attention.attention_dropout:
        weights = F.dropout(weights, attention.attention_dropout)
    return (weights.to(value.dtype) @ value).transpose(1, 2).reshape(count, length, channels)
