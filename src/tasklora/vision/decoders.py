"""Decoders: from the features of every stage and task to a map per task at the image's size.

Two kinds stand in :data:`DECODERS`, with one signature: the published one of MTLoRA, and a lighter one made of
SegFormer's heads. Both begin at random and are trained in full, beside any adapter of the encoder.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tasklora.errors import ConfigError, listing
from tasklora.vision.pyramid_head import Pyramid, joined, pyramid_head, resized

REDUCED = (18, 36, 72, 144)
"""Channels c_s to which MTLoRA reduces the four stages."""
FUSED = 4 * sum(REDUCED)
"""Channels of its hidden layer, 1080."""
SEGFORMER_CHANNELS = 64
"""Channels per stage of :class:`SegformerDecoders`: concatenated about as many as MTLoRA's, 256 and 270."""


class Decoders(nn.Module):
    """What all decoders share: a module per task in `heads`, and the checks.

    Args:
        channels: C_s of each stage, the finest first.
        num_outputs: task → channels of its map, in the order of the task streams.

    Raises:
        ConfigError: if there is no task or stage, a number is below 1, or torch cannot have a module of a task's name.
    """

    heads: nn.ModuleDict

    def __init__(self, channels: Sequence[int], num_outputs: Mapping[str, int]) -> None:
        super().__init__()
        self.channels = tuple(channels)
        self.num_outputs = dict(num_outputs)
        if not self.channels or min(self.channels) < 1:
            raise ConfigError(f"decoders need the channels of each stage, all above 0, got {list(self.channels)}.")
        if not self.num_outputs:
            raise ConfigError("decoders need at least one task, got none.")
        for task, outputs in self.num_outputs.items():
            if not task or "." in task or hasattr(nn.ModuleDict(), task):
                raise ConfigError(
                    f"task '{task}' cannot have a decoder: torch takes no dots and not this name; rename it."
                )
            if outputs < 1:
                raise ConfigError(f"task '{task}' must have 1 output channel or more, got {outputs}.")

    def check(self, features: Sequence[Tensor]) -> None:
        """Raise ConfigError unless `features` are (S, N, C_s, H_s, W_s) per stage, with S = 1 or a stream per task."""
        given = [tuple(each.shape) for each in features]
        streams = {1, len(self.num_outputs)}
        fits = len(given) == len(self.channels) and all(
            len(shape) == 5 and shape[0] in streams and shape[2] == channels and 0 not in shape
            for shape, channels in zip(given, self.channels, strict=False)
        )
        if not fits or len({shape[1] for shape in given}) > 1:
            expected = ", ".join(f"(S, N, {channels}, H, W)" for channels in self.channels)
            raise ConfigError(
                f"decoders got features of shapes {given}, expected {expected} with one N and S either 1 or "
                f"{len(self.num_outputs)}, a stream for each of: {listing(self.num_outputs)}."
            )


class MTLoRADecoders(Decoders):
    """MTLoRA's decoder (Agiza et al., CVPR 2024), for each task t with features x_s of C_s channels:

        u_s = D_s x_s                       D_s: C_s → 18, 36, 72, 144 without bias
        z = W [u_0; ↑u_1; ↑u_2; ↑u_3] + b   ↑ bilinear to the finest stage; W: 270 → 1080
        y = ↑(V relu(BatchNorm(z)) + c)     V: 1080 → the task's outputs; ↑ bilinear to the image

    computed as :mod:`tasklora.vision.pyramid_head` says. Trainable per task are 18 C_0 + 36 C_1 + 72 C_2 + 144 C_3 +
    294,840 + 1,081 per output: 1,946,624 for Swin-T and PASCAL's four tasks.
    In training BatchNorm takes the statistics of the batch, of each task's own stream, and keeps running ones.

    Args:
        channels: C_s of four stages, the finest first.
        num_outputs: task → channels of its map, in the order of the task streams.

    Raises:
        ConfigError: if there are not four stages, or as :class:`Decoders` says.
    """

    def __init__(self, channels: Sequence[int], num_outputs: Mapping[str, int]) -> None:
        super().__init__(channels, num_outputs)
        if len(self.channels) != len(REDUCED):
            raise ConfigError(
                f"MTLoRA's decoder is defined for {len(REDUCED)} stages, got {len(self.channels)}; "
                "'segformer' takes any number."
            )
        self.heads = nn.ModuleDict({task: _MTLoRAHead(self.channels, n) for task, n in self.num_outputs.items()})

    def forward(self, features: Sequence[Tensor], size: tuple[int, int]) -> dict[str, Tensor]:
        """Return task → map (N, outputs, *size).

        Args:
            features: a tensor (S, N, C_s, H_s, W_s) per stage, the finest first; S is 1 if all tasks share them, else
                a stream per task. Fastest as views of (S, N, H_s, W_s, C_s), the layout of tokens.
            size: height and width of the maps, in pixels.

        Returns:
            Maps in the features' dtype; in float32 at least under autocast.

        Raises:
            ConfigError: if the features do not fit.
        """
        self.check(features)
        heads = [head for head in self.heads.values() if isinstance(head, _MTLoRAHead)]
        reduced = [self._reduced(x, [head.reduction(s) for head in heads]) for s, x in enumerate(features)]
        outputs: dict[str, Tensor] = {}
        # One task after the other: the products are large enough, and the memory is that of one task.
        for name, head, stages in zip(self.heads, heads, zip(*reduced, strict=True), strict=True):
            maps = joined(stages)
            pyramid = Pyramid([(each.shape[1], each.shape[2]) for each in maps], maps[0])
            y = pyramid_head(maps, pyramid, head.fuse, head.norm, head.predict)
            if torch.is_autocast_enabled(y.device.type):
                y = y.float()
            outputs[name] = resized(y, size)
        return outputs

    @staticmethod
    def _reduced(x: Tensor, weights: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Return D_t x of every task t, (N, H, W, c) each, by one product; x is (S, N, C, H, W)."""
        streams, images, channels, height, width = x.shape
        rows = x.permute(0, 1, 3, 4, 2).reshape(streams, -1, channels)  # (S, N·H·W, C)
        stacked = torch.stack(list(weights))  # (T, c, C)
        if streams == 1:
            u = F.linear(rows[0], stacked.flatten(0, 1)).unflatten(-1, stacked.shape[:2]).movedim(1, 0)
        else:
            u = torch.bmm(rows, stacked.transpose(1, 2))  # (T, N·H·W, c)
        per_task: tuple[Tensor, ...] = u.unflatten(1, (images, height, width)).unbind()
        return per_task


class _MTLoRAHead(nn.Module):
    """The parameters of one task, each where torch's own modules would have them."""

    def __init__(self, channels: Sequence[int], outputs: int) -> None:
        super().__init__()
        self.reduce = nn.ModuleList(
            [nn.Conv2d(c, reduced, 1, bias=False) for c, reduced in zip(channels, REDUCED, strict=True)]
        )
        self.fuse = nn.Conv2d(sum(REDUCED), FUSED, 1)
        self.norm = nn.BatchNorm2d(FUSED)
        self.predict = nn.Conv2d(FUSED, outputs, 1)

    def reduction(self, stage: int) -> Tensor:
        """Return D_s (c_s, C_s)."""
        weight = self.reduce[stage].weight
        assert isinstance(weight, Tensor)
        return weight.flatten(1)


class SegformerDecoders(Decoders):
    """One all-MLP head of SegFormer (Xie et al., NeurIPS 2021) per task, as transformers has it:

        u_s = P_s x_s + p_s                 P_s: C_s → 64
        z = W [↑u_S; …; u_0]                ↑ bilinear to the finest stage; W: 64 per stage → 64, without bias
        y = ↑(V drop(relu(BatchNorm(z))) + c)

    With 64 channels, not the 256 of SegFormer-B0: for Swin-T and PASCAL's four tasks it has 609,824 parameters, a
    third of MTLoRA's decoders. The head's dropout is SegFormer's, 0.1. Any number of stages.

    Args:
        channels: C_s of each stage, the finest first.
        num_outputs: task → channels of its map, in the order of the task streams.

    Raises:
        ConfigError: as :class:`Decoders` says.
    """

    def __init__(self, channels: Sequence[int], num_outputs: Mapping[str, int]) -> None:
        super().__init__(channels, num_outputs)
        from transformers import SegformerConfig
        from transformers.models.segformer.modeling_segformer import SegformerDecodeHead

        def head(outputs: int) -> nn.Module:
            config = SegformerConfig(
                num_encoder_blocks=len(self.channels),
                hidden_sizes=list(self.channels),
                decoder_hidden_size=SEGFORMER_CHANNELS,
                num_labels=outputs,
            )
            module = SegformerDecodeHead(config)
            assert isinstance(module, nn.Module)
            return module

        self.heads = nn.ModuleDict({task: head(outputs) for task, outputs in self.num_outputs.items()})

    def forward(self, features: Sequence[Tensor], size: tuple[int, int]) -> dict[str, Tensor]:
        """Return task → map (N, outputs, *size); see :meth:`MTLoRADecoders.forward`."""
        self.check(features)
        outputs: dict[str, Tensor] = {}
        for task, (name, head) in enumerate(self.heads.items()):
            y = head(tuple(x[task if len(x) > 1 else 0] for x in features))
            if torch.is_autocast_enabled(y.device.type):
                y = y.float()
            outputs[name] = resized(y, size)
        return outputs


DECODERS: dict[str, type[MTLoRADecoders] | type[SegformerDecoders]] = {
    "mtlora": MTLoRADecoders,
    "segformer": SegformerDecoders,
}
"""Name in a recipe → decoders."""
