"""A head over features of several resolutions, computed where each of its parts is cheapest.

As published, features u_s of c_s channels are upsampled to the largest map, concatenated, and go through

    z = W [u_0; ↑u_1; …] + b        a = BatchNorm(z)        y = V relu(a) + c

A 1×1 convolution mixes channels and bilinear upsampling ↑ mixes pixels, so they commute: with W = [W_0 W_1 …],

    z = W_0 u_0 + b + Σ_s ↑(W_s u_s)

where each product runs at its own stage's resolution. Upsampling is linear and separable: two products with small
matrices, along the width and along the height, the latter for all coarse stages at once.

z has many more channels than u and than y: it is what costs memory. So :class:`_PyramidHead` keeps no z for backward
but makes it again from u, a few images at a time. Its normalisation is
folded into W and b. :func:`pyramid_head` chooses it where it applies, and else the same formula with torch's own
modules: under autocast, in half precision, when compiled, and with any other norm (``nn.SyncBatchNorm``).

Shapes: N images, F channels of z, stages as channels-last maps (N, h, w, c_s), the finest first.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tasklora.errors import ConfigError

CHUNK_BYTES = 16 * 2**20
"""Bytes of z that are worked on at once on a CPU, in whole images and at least one: more would cost memory, and less
time, as two cores want products of some size."""


def upsampling_matrix(source: int, target: int, like: Tensor) -> Tensor:
    """Return (target, source): linear interpolation of `source` values to `target`, half-pixel centres."""
    unit = torch.eye(source, dtype=like.dtype, device=like.device)
    return F.interpolate(unit[None], size=target, mode="linear", align_corners=False)[0].T.contiguous()


def resized(maps: Tensor, size: tuple[int, int]) -> Tensor:
    """Return maps (N, C, h, w) bilinearly resized to `size`, as ``F.interpolate(…, mode="bilinear")`` does.

    In float32 and wider by two matrix products, which a CPU runs backward faster than the scattering kernel.
    """
    if torch.is_autocast_enabled(maps.device.type) or maps.device.type != "cpu":
        return F.interpolate(maps, size=size, mode="bilinear", align_corners=False)
    rows, columns = (upsampling_matrix(s, t, maps) for s, t in zip(maps.shape[-2:], size, strict=True))
    return rows @ (maps.contiguous() @ columns.T)


class Pyramid:
    """Upsampling from the sizes of coarse stages to that of the finest, and its transpose.

    Args:
        sizes: (h, w) of the stages, the finest first.
        like: whose dtype and device the matrices get.
    """

    def __init__(self, sizes: Sequence[tuple[int, int]], like: Tensor) -> None:
        (height, width), *coarse = sizes
        self.coarse = coarse
        self.columns = [upsampling_matrix(w, width, like) for _, w in coarse]
        # (H, Σ h_s): the rows of all coarse stages, one below the other, to those of the finest
        self.rows = torch.cat([upsampling_matrix(h, height, like) for h, _ in coarse], dim=1) if coarse else None

    def add_upsampled(self, fine: Tensor, coarse: Sequence[Tensor]) -> Tensor:
        """Return fine + Σ ↑coarse_s (n, H, W, F), written into `fine`."""
        if self.rows is None:
            return fine
        n, height, width, channels = fine.shape
        wide = [
            (columns @ each.reshape(n * h, w, channels)).view(n, h, width * channels)
            for each, columns, (h, w) in zip(coarse, self.columns, self.coarse, strict=True)
        ]
        rows = self.rows.expand(n, -1, -1)
        fine.view(n, height, width * channels).baddbmm_(rows, torch.cat(wide, dim=1))
        return fine

    def transposed(self, g: Tensor) -> list[Tensor]:
        """Return ↑ᵀg (n, h_s, w_s, F) for each coarse stage, from g (n, H, W, F)."""
        if self.rows is None:
            return []
        n, height, width, channels = g.shape
        narrow = self.rows.T @ g.reshape(n, height, width * channels)  # (n, Σ h_s, W·F)
        parts = narrow.split([h for h, _ in self.coarse], dim=1)
        return [
            (columns.T @ part.reshape(n * h, width, channels)).view(n, h, w, channels)
            for part, columns, (h, w) in zip(parts, self.columns, self.coarse, strict=True)
        ]

    def mean(self, stages: Sequence[Tensor]) -> Tensor:
        """Return the mean over images and pixels of [u_0; ↑u_1; …] (Σ c_s), without upsampling."""
        means = [_rows(stages[0]).mean(0)]
        row_weights = [] if self.rows is None else self.rows.mean(0).split([h for h, _ in self.coarse])
        for u, by_row, columns in zip(stages[1:], row_weights, self.columns, strict=True):
            weights = by_row[:, None] * columns.mean(0)  # (h, w)
            means.append(weights.reshape(1, -1).matmul(u.reshape(u.shape[0], -1, u.shape[3])).mean(0)[0])
        return torch.cat(means)


def joined(stages: Sequence[Tensor]) -> list[Tensor]:
    """Return the stages with neighbours of one size concatenated: fewer products, of the same numbers."""
    groups: list[list[Tensor]] = []
    for stage in stages:
        if groups and groups[-1][0].shape[1:3] == stage.shape[1:3]:
            groups[-1].append(stage)
        else:
            groups.append([stage])
    return [group[0] if len(group) == 1 else torch.cat(group, dim=-1) for group in groups]


def pyramid_head(
    stages: Sequence[Tensor], pyramid: Pyramid, fuse: nn.Conv2d, norm: nn.Module, predict: nn.Conv2d
) -> Tensor:
    """Return y (N, out, H, W) at the size of the finest stage.

    Args:
        stages: u_s (N, h_s, w_s, c_s), the finest first, as :func:`joined` returns them.
        pyramid: of their sizes.
        fuse: W and b, a 1×1 convolution from Σ c_s to F channels.
        norm: over F channels of (N, F, H, W).
        predict: V and c, a 1×1 convolution from F channels to the outputs.

    Raises:
        ConfigError: when training a BatchNorm with one value per channel.
    """
    weight, bias = fuse.weight.flatten(1), fuse.bias
    scores, offset = predict.weight.flatten(1), predict.bias
    if not _can_fuse(stages, fuse, norm):
        z: Tensor | None = None
        for u, w in zip(stages, weight.split([u.shape[-1] for u in stages], dim=1), strict=True):
            part = F.linear(u, w, bias if z is None else None).permute(0, 3, 1, 2)  # (N, F, h, w), channels last
            size = stages[0].shape[1:3]
            z = part if z is None else z + F.interpolate(part, size=size, mode="bilinear", align_corners=False)
        assert z is not None
        a = F.relu(norm(z))
        return F.linear(a.permute(0, 2, 3, 1), scores, offset).permute(0, 3, 1, 2)
    assert isinstance(norm, nn.BatchNorm2d)
    running = None if norm.training else (norm.running_mean, norm.running_var)
    count = stages[0].shape[:3].numel()
    if running is None and count < 2:
        raise ConfigError(
            "a decoder's BatchNorm cannot be trained on one value per channel: the batch has one image, whose finest "
            "features are one pixel; give larger images or more of them."
        )
    y, mean, variance = _PyramidHead.apply(
        pyramid, norm.eps, running, weight, bias, norm.weight, norm.bias, scores, offset, *stages
    )
    if running is None:
        _update_running(norm, mean, variance * (count / (count - 1)))
    logits: Tensor = y.permute(0, 3, 1, 2)
    return logits


def _can_fuse(stages: Sequence[Tensor], fuse: nn.Conv2d, norm: nn.Module) -> bool:
    if type(norm) is not nn.BatchNorm2d or norm._forward_hooks or norm._forward_pre_hooks:
        return False
    if torch.compiler.is_compiling() or torch.is_autocast_enabled(stages[0].device.type):
        return False
    dtypes = {stages[0].dtype, fuse.weight.dtype, norm.weight.dtype if norm.affine else None}
    return norm.track_running_stats and dtypes in ({torch.float32}, {torch.float64})


@torch.no_grad()
def _update_running(norm: nn.BatchNorm2d, mean: Tensor, variance: Tensor) -> None:
    """Do with the statistics of a batch what ``nn.BatchNorm2d`` does; the variance is the unbiased one."""
    assert norm.running_mean is not None
    assert norm.running_var is not None
    assert norm.num_batches_tracked is not None
    norm.num_batches_tracked.add_(1)
    share = 1 / float(norm.num_batches_tracked) if norm.momentum is None else norm.momentum
    norm.running_mean.lerp_(mean, share)
    norm.running_var.lerp_(variance, share)


def _rows(maps: Tensor) -> Tensor:
    return maps.reshape(-1, maps.shape[-1])


def _chunks(stages: Sequence[Tensor], channels: int) -> Iterator[tuple[slice, list[Tensor]]]:
    """Yield slices of the images, and the stages of those: all at once but on a CPU."""
    images, height, width, _ = stages[0].shape
    at_once = images
    if stages[0].device.type == "cpu":
        at_once = max(1, CHUNK_BYTES // (height * width * channels * stages[0].element_size()))
    for begin in range(0, images, at_once):
        part = slice(begin, begin + at_once)
        yield part, [u[part] for u in stages]


def _fused(stages: Sequence[Tensor], pyramid: Pyramid, weights: Sequence[Tensor], bias: Tensor) -> Tensor:
    """Return Σ_s ↑(W_s u_s) + bias (n, H, W, F).

    The bias is added to the coarsest map, which is the smallest: upsampled, a constant stays what it is.
    """
    *finer, coarsest = [(_rows(u), w.T) for u, w in zip(stages, weights, strict=True)]
    products = [*(rows @ w for rows, w in finer), torch.addmm(bias, *coarsest)]
    fine, *coarse = [rows.view(*u.shape[:3], -1) for rows, u in zip(products, stages, strict=True)]
    return pyramid.add_upsampled(fine, coarse)


class _PyramidHead(torch.autograd.Function):
    """y with BatchNorm over (N, H, W), and the batch's mean and biased variance of z.

    With x̂ = (z − μ)/σ, a = γ x̂ + β, n values per channel, g_a = [a > 0] Vᵀ g and sums over images and pixels:

        ∂V = Σ g relu(a)ᵀ    ∂β = Σ g_a    ∂γ = Σ g_a x̂    g_z = (γ/σ) (g_a − ∂β/n − x̂ ∂γ/n)

    and g_z = (γ/σ) g_a for given statistics. Upsampling spreads each value with weights, so g_z reaches the stages
    through its transpose. The statistics of a batch remove b, whose gradient is 0.
    """

    @staticmethod
    def forward(
        ctx: Any,
        pyramid: Pyramid,
        eps: float,
        running: tuple[Tensor, Tensor] | None,
        weight: Tensor,
        bias: Tensor,
        gamma: Tensor,
        beta: Tensor,
        scores: Tensor,
        offset: Tensor,
        *stages: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor]:
        sections = [u.shape[-1] for u in stages]
        centred: list[Tensor] = []  # z − μ, which in training is made before its scale is known
        if running is None:
            weighted_mean = weight @ pyramid.mean(stages)
            squares = torch.zeros_like(weighted_mean)
            for _, chunk in _chunks(stages, len(weight)):
                centred.append(_fused(chunk, pyramid, weight.split(sections, dim=1), -weighted_mean))
                z = _rows(centred[-1])
                squares += (z * z).sum(0)  # many times faster than torch's norms and variances along rows
            mean, variance = weighted_mean + bias, squares / stages[0].shape[:3].numel()
        else:
            mean, variance = (statistic.clone() for statistic in running)
        inverse = (variance + eps).rsqrt()
        outputs = []
        for i, (_, chunk) in enumerate(_chunks(stages, len(weight))):
            if running is None:
                a = torch.addcmul(beta, centred[i], gamma * inverse, out=centred[i])
            else:
                scale = gamma * inverse
                a = _fused(
                    chunk, pyramid, (weight * scale[:, None]).split(sections, dim=1), (bias - mean) * scale + beta
                )
            y = torch.addmm(offset, _rows(a.relu_()), scores.T)
            outputs.append(y.view(*a.shape[:3], -1))
        ctx.save_for_backward(weight, bias, gamma, beta, scores, mean, inverse, *stages)
        ctx.pyramid, ctx.training = pyramid, running is None
        ctx.mark_non_differentiable(mean, variance)
        return torch.cat(outputs), mean, variance

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, g: Tensor, *_statistics: Tensor) -> tuple[Tensor | None, ...]:
        weight, bias, gamma, beta, scores, mean, inverse, *stages = ctx.saved_tensors
        pyramid, sections = ctx.pyramid, [u.shape[-1] for u in stages]
        count, channels = stages[0].shape[:3].numel(), len(weight)

        normalising = (weight * inverse[:, None]).split(sections, dim=1)
        shift = (bias - mean) * inverse
        normalised, g_activation = [], []  # x̂ and g_a of each chunk
        d_scores, d_gamma, d_beta = torch.zeros_like(scores), torch.zeros_like(gamma), torch.zeros_like(beta)
        for part, chunk in _chunks(stages, channels):
            x = _rows(_fused(chunk, pyramid, normalising, shift))
            h = torch.addcmul(beta, x, gamma).relu_()
            g_part = _rows(g[part])
            d_scores = d_scores + g_part.T @ h
            g_a = torch.ops.aten.threshold_backward(g_part @ scores, h, 0)
            d_beta = d_beta + g_a.sum(0)
            d_gamma = d_gamma + (g_a * x).sum(0)
            normalised.append(x)
            g_activation.append(g_a)

        scale = gamma * inverse  # goes into the small factors, not over g_z
        scaled = (weight * scale[:, None]).split(sections, dim=1)
        d_weights = [torch.zeros_like(w.T) for w in scaled]  # (c_s, F)
        d_stages: list[list[Tensor]] = [[] for _ in stages]
        for i, (_part, chunk) in enumerate(_chunks(stages, channels)):
            g_z = g_activation[i]
            if ctx.training:
                g_z = g_z + torch.addcmul(d_beta / -count, normalised[i], d_gamma / -count)
            g_z = g_z.view(*chunk[0].shape[:3], channels)
            for s, (g_s, u) in enumerate(zip([g_z, *pyramid.transposed(g_z)], chunk, strict=True)):
                d_weights[s] = d_weights[s] + _rows(u).T @ _rows(g_s)  # short and wide: faster than its transpose
                d_stages[s].append((_rows(g_s) @ scaled[s]).view(u.shape))
        d_bias = torch.zeros_like(bias) if ctx.training else d_beta * scale
        d_weight = (torch.cat(d_weights) * scale).T
        d_inputs = [torch.cat(parts) for parts in d_stages]
        return None, None, None, d_weight, d_bias, d_gamma, d_beta, d_scores, _rows(g).sum(0), *d_inputs
