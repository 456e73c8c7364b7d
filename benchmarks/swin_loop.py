"""MTLoRA's network in its literal form, as a peer of the library's own: a Python loop over tasks, in every layer that
has task modules and in every decoder.

    y_shared = W x + b + s B (A drop(x))        y_t = W x + b + s_t B_t (A_t x_t)

Attention and the MLP stand here as they are written; one A (r, d) and B (3d, r) serve q, k and v. In the last block
of each stage proj forks the stream (every task reads the dropped shared input), and norm, fc1, GELU, fc2 and patch
merging follow per task. A decoder upsamples its four reduced maps to the largest, concatenates and convolves.

Only "matrix" mode is here. Factors are parameters of modules named as the layers of transformers' SwinModel:
``encoder.layers.0.blocks.1.mlp.fc1.A``, ``….tasks_A.semseg``; those of q, k and v belong to ``….attention``.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

REDUCED = (18, 36, 72, 144)
Streams = dict[str, Tensor]


def factors(r: int, inputs: int, outputs: int) -> tuple[nn.Parameter, nn.Parameter]:
    """Return random A (r, in) and B (out, r) = 0."""
    a = nn.Parameter(torch.empty(r, inputs))
    nn.init.kaiming_uniform_(a, a=math.sqrt(5))
    return a, nn.Parameter(torch.zeros(outputs, r))


class LoopLinear(nn.Module):
    """A frozen linear layer with shared factors, and with those of each task where there are any."""

    def __init__(
        self, linear: nn.Linear, r: int, task_r: int, tasks: Sequence[str], scale: float, dropout: float
    ) -> None:
        super().__init__()
        self.weight, self.bias, self.scale, self.dropout = linear.weight, linear.bias, scale, nn.Dropout(dropout)
        self.A, self.B = factors(r, linear.in_features, linear.out_features) if r else (None, None)
        pairs = {task: factors(task_r, linear.in_features, linear.out_features) for task in tasks}
        self.tasks_A = nn.ParameterDict({task: a for task, (a, _) in pairs.items()})
        self.tasks_B = nn.ParameterDict({task: b for task, (_, b) in pairs.items()})

    def forward(self, x: Tensor, task_inputs: Streams | None = None) -> tuple[Tensor, Streams]:
        """Return the shared output and each task's; without `task_inputs` the tasks read the dropped shared input."""
        frozen = F.linear(x, self.weight, self.bias)
        dropped = self.dropout(x)
        outputs: Streams = {}
        for task, a in self.tasks_A.items():
            own = dropped if task_inputs is None else task_inputs[task]
            outputs[task] = frozen + self.scale * F.linear(F.linear(own, a), self.tasks_B[task])
        if self.A is None:
            return frozen, outputs
        return frozen + self.scale * F.linear(F.linear(dropped, self.A), self.B), outputs


class DropPath(nn.Module):
    """Drop a branch of a residual for whole images."""

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, x: Tensor) -> Tensor:
        """Return x, of training images some without and the others scaled up."""
        if not self.training or self.rate == 0:
            return x
        keep = torch.empty(len(x), 1, 1, device=x.device, dtype=x.dtype).bernoulli_(1 - self.rate)
        return x * keep / (1 - self.rate)


def windows(x: Tensor, side: int) -> Tensor:
    """Return (N·windows, side², C) of maps (N, H, W, C)."""
    n, height, width, channels = x.shape
    x = x.view(n, height // side, side, width // side, side, channels).transpose(2, 3)
    return x.reshape(-1, side * side, channels)


def unwindowed(x: Tensor, side: int, height: int, width: int) -> Tensor:
    """Return maps (N, H, W, C) of their windows."""
    x = x.view(-1, height // side, width // side, side, side, x.shape[-1])
    return x.transpose(2, 3).reshape(-1, height, width, x.shape[-1])


def shift_mask(height: int, width: int, side: int, shift: int, like: Tensor) -> Tensor | None:
    """Return (windows, side², side²): −100 between pixels that only the cyclic shift made neighbours."""
    if shift == 0:
        return None

    def region(length: int) -> Tensor:
        index = torch.arange(length, device=like.device)
        return (index >= length - side).long() + (index >= length - shift).long()

    regions = 3 * region(height)[:, None] + region(width)[None]
    own = windows(regions[None, :, :, None], side)[..., 0]  # (windows, side²)
    return (own[:, None] != own[:, :, None]).to(like.dtype) * -100.0


class LoopAttention(nn.Module):
    """Windowed attention; `proj` is transformers' o_proj."""

    def __init__(self, attention: nn.Module, r: int, task_r: int, tasks: Sequence[str], scale: float, drop: float):
        super().__init__()
        self.q_proj, self.k_proj, self.v_proj = attention.q_proj, attention.k_proj, attention.v_proj
        width = self.q_proj.in_features
        self.A, self.B = factors(r, width, 3 * width)
        self.o_proj = LoopLinear(attention.o_proj, r, task_r, tasks, scale, drop)
        self.heads, self.scale, self.dropout = attention.num_attention_heads, scale, nn.Dropout(drop)
        self.relative_position_bias = attention.relative_position_bias
        self.table_side = attention.relative_position_bias.window_size[0]

    def position_bias(self, side: int) -> Tensor:
        """Return (heads, side², side²): the table's entries by offset, whatever the window."""
        at = torch.arange(side, device=self.A.device)
        offset = at[:, None] - at[None] + self.table_side - 1  # (side, side), of one coordinate
        index = offset[:, None, :, None] * (2 * self.table_side - 1) + offset[None, :, None, :]
        table = self.relative_position_bias.relative_position_bias_table
        return table[index.reshape(-1)].view(side**2, side**2, -1).permute(2, 0, 1)

    def forward(self, x: Tensor, side: int, mask: Tensor | None) -> tuple[Tensor, Streams]:
        """Return the shared output (N·windows, side², C) and each task's."""
        rows, length, width = x.shape
        weight = torch.cat([each.weight for each in (self.q_proj, self.k_proj, self.v_proj)])
        bias = None
        if self.q_proj.bias is not None:
            bias = torch.cat([each.bias for each in (self.q_proj, self.k_proj, self.v_proj)])
        qkv = F.linear(x, weight, bias) + self.scale * F.linear(F.linear(self.dropout(x), self.A), self.B)
        q, k, v = qkv.view(rows, length, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        scores = q @ k.transpose(-2, -1) * (width // self.heads) ** -0.5 + self.position_bias(side)
        if mask is not None:
            scores = scores.view(-1, len(mask), *scores.shape[1:]) + mask[:, None]
            scores = scores.view(rows, self.heads, length, length)
        out = (scores.softmax(dim=-1) @ v).transpose(1, 2).reshape(rows, length, width)
        return self.o_proj(out)


class LoopMLP(nn.Module):
    """fc1, GELU, fc2."""

    def __init__(self, mlp: nn.Module, r: int, task_r: int, tasks: Sequence[str], scale: float, dropout: float) -> None:
        super().__init__()
        self.fc1 = LoopLinear(mlp.fc1, r, task_r, tasks, scale, dropout)
        self.fc2 = LoopLinear(mlp.fc2, r, task_r, tasks, scale, dropout)
        self.activation = mlp.activation_fn

    def forward(self, x: Tensor, task_inputs: Streams) -> tuple[Tensor, Streams]:
        """Return the shared output and each task's."""
        hidden, task_hidden = self.fc1(x, task_inputs)
        return self.fc2(self.activation(hidden), {task: self.activation(h) for task, h in task_hidden.items()})


class LoopBlock(nn.Module):
    """One block over SwinLayer's modules; with `tasks` it is the last one of its stage."""

    def __init__(self, layer: nn.Module, r: int, task_r: int, tasks: Sequence[str], scale: float, drop: float) -> None:
        super().__init__()
        self.layernorm_before, self.layernorm_after = layer.layernorm_before, layer.layernorm_after
        self.attention = LoopAttention(layer.attention, r, task_r, tasks, scale, drop)
        self.mlp = LoopMLP(layer.mlp, r, task_r, tasks, scale, drop)
        self.window_size, self.shift_size = layer.window_size, layer.shift_size
        self.drop_path = DropPath(getattr(layer.drop_path, "drop_prob", 0.0))

    def forward(self, x: Tensor, height: int, width: int) -> tuple[Tensor, Streams]:
        """Return the shared stream (N, H·W, C) and each task's."""
        side, shift = self.window_size, self.shift_size
        if min(height, width) <= side:
            side, shift = min(height, width), 0
        normed = self.layernorm_before(x).view(len(x), height, width, -1)
        normed = F.pad(normed, (0, 0, 0, -width % side, 0, -height % side))
        padded = normed.shape[1:3]
        if shift:
            normed = normed.roll((-shift, -shift), (1, 2))
        attended, task_attended = self.attention(windows(normed, side), side, shift_mask(*padded, side, shift, x))

        def residual(part: Tensor) -> Tensor:
            part = unwindowed(part, side, *padded)
            if shift:
                part = part.roll((shift, shift), (1, 2))
            return x + self.drop_path(part[:, :height, :width].reshape(x.shape))

        shared = residual(attended)
        tasks = {task: residual(part) for task, part in task_attended.items()}
        out, task_out = self.mlp(
            self.layernorm_after(shared), {task: self.layernorm_after(part) for task, part in tasks.items()}
        )
        streams = {task: part + self.drop_path(task_out[task]) for task, part in tasks.items()}
        return shared + self.drop_path(out), streams


class LoopMerging(nn.Module):
    """Patch merging; with r its reduction is adapted (MTLoRA+), else trained in full."""

    def __init__(self, merging: nn.Module, r: int, scale: float, dropout: float) -> None:
        super().__init__()
        self.norm, self.reduction = merging.norm, LoopLinear(merging.reduction, r, 0, (), scale, dropout)

    def forward(self, x: Tensor, height: int, width: int) -> Tensor:
        """Return (N, ⌈H/2⌉·⌈W/2⌉, 2C) of (N, H·W, C)."""
        maps = F.pad(x.view(len(x), height, width, -1), (0, 0, 0, width % 2, 0, height % 2))
        quarters = [maps[:, row::2, column::2] for column in range(2) for row in range(2)]
        return self.reduction(self.norm(torch.cat(quarters, dim=-1).flatten(1, 2)))[0]


class LoopStage(nn.Module):
    """The blocks of one stage and the patch merging after them."""

    def __init__(self, stage: nn.Module, plus: bool, r: int, task_r: int, tasks: Sequence[str], scale: float, p: float):
        super().__init__()
        last = len(stage.blocks) - 1
        self.blocks = nn.ModuleList(
            [LoopBlock(b, r, task_r, tasks if i == last else (), scale, p) for i, b in enumerate(stage.blocks)]
        )
        self.downsample = None
        if stage.downsample is not None:
            self.downsample = LoopMerging(stage.downsample, r if plus else 0, scale, p)

    def forward(self, x: Tensor, height: int, width: int) -> tuple[Tensor, Streams, int, int]:
        """Return the shared stream, each task's, and their height and width."""
        streams: Streams = {}
        for block in self.blocks:
            x, streams = block(x, height, width)
        if self.downsample is None:
            return x, streams, height, width
        streams = {task: self.downsample(stream, height, width) for task, stream in streams.items()}
        return self.downsample(x, height, width), streams, -(-height // 2), -(-width // 2)


class LoopDecoder(nn.Module):
    """One task's decoder as published."""

    def __init__(self, channels: Sequence[int], outputs: int) -> None:
        super().__init__()
        self.reduce = nn.ModuleList([nn.Conv2d(c, u, 1, bias=False) for c, u in zip(channels, REDUCED, strict=True)])
        self.fuse = nn.Conv2d(sum(REDUCED), 4 * sum(REDUCED), 1)
        self.norm = nn.BatchNorm2d(4 * sum(REDUCED))
        self.predict = nn.Conv2d(4 * sum(REDUCED), outputs, 1)

    def forward(self, maps: Sequence[Tensor], size: tuple[int, int]) -> Tensor:
        """Return (N, outputs, *size) of four maps (N, C, H, W)."""
        reduced = [reduce(x) for reduce, x in zip(self.reduce, maps, strict=True)]
        largest = reduced[0].shape[-2:]
        up = [F.interpolate(x, size=largest, mode="bilinear", align_corners=False) for x in reduced]
        y = self.predict(F.relu(self.norm(self.fuse(torch.cat(up, dim=1)))))
        return F.interpolate(y, size=size, mode="bilinear", align_corners=False)


class LoopMTLoRA(nn.Module):
    """MTLoRA over the modules of a SwinModel, with its decoders.

    Args:
        swin: transformers' SwinModel, without absolute positions; its modules are used, not copied.
        num_outputs: task → channels of its map.
        r: rank of the shared factors in every stage.
        task_r: rank of each task's.
        scale: of every low-rank branch, used as it is.
        dropout: on the shared input of every adapted layer.
        plus: MTLoRA+: the patch merging's reductions are adapted and frozen.
    """

    def __init__(
        self,
        swin: nn.Module,
        num_outputs: Mapping[str, int],
        r: int,
        task_r: int,
        scale: float = 4.0,
        dropout: float = 0.0,
        plus: bool = False,
    ) -> None:
        super().__init__()
        if swin.embeddings.position_embeddings is not None:
            raise ValueError("a Swin with absolute position embeddings is not MTLoRA's")
        tasks = list(num_outputs)
        swin.requires_grad_(False)
        self.embeddings = swin.embeddings
        self.encoder = nn.Module()
        self.encoder.layers = nn.ModuleList(
            [LoopStage(stage, plus, r, task_r, tasks, scale, dropout) for stage in swin.encoder.layers]
        )
        stages = swin.config.num_layers
        channels = [swin.config.embed_dim * 2 ** min(stage + 1, stages - 1) for stage in range(stages)]
        self.decoders = nn.ModuleDict({task: LoopDecoder(channels, n) for task, n in num_outputs.items()})
        for name, parameter in self.named_parameters():
            full_rank = ("norm" in name, "relative_position_bias_table" in name, name.startswith("embeddings."))
            if any(full_rank) or (name.endswith("downsample.reduction.weight") and not plus):
                parameter.requires_grad_(True)

    @torch.no_grad()
    def load_factors(
        self, layers: Mapping[str, tuple[Tensor, Tensor]], tasks: Mapping[str, Mapping[str, tuple[Tensor, Tensor]]]
    ) -> None:
        """Copy factors in.

        Args:
            layers: path of a layer in SwinModel → shared (A, B); of an attention module → those tied over q, k, v.
            tasks: path of a layer → task → (A_t, B_t).
        """
        for path, (a, b) in layers.items():
            module = self.get_submodule(path)
            module.A.copy_(a)
            module.B.copy_(b)
        for path, pairs in tasks.items():
            module = self.get_submodule(path)
            for task, (a, b) in pairs.items():
                module.tasks_A[task].copy_(a)
                module.tasks_B[task].copy_(b)

    def features(self, pixel_values: Tensor) -> list[tuple[Tensor, Streams, int, int]]:
        """Return the shared stream, each task's, height and width after every stage."""
        x, (height, width) = self.embeddings(pixel_values)
        found = []
        for stage in self.encoder.layers:
            x, streams, height, width = stage(x, height, width)
            found.append((x, streams, height, width))
        return found

    def forward(self, pixel_values: Tensor) -> Streams:
        """Return task → map (N, outputs, H, W) of images (N, 3, H, W)."""
        stages = self.features(pixel_values)
        outputs: Streams = {}
        for task, decoder in self.decoders.items():
            maps = [streams[task].transpose(1, 2).unflatten(2, (height, width)) for _, streams, height, width in stages]
            outputs[task] = decoder(maps, tuple(pixel_values.shape[-2:]))
        return outputs
