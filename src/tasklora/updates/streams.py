"""MTLoRA's update of one linear layer: a shared low-rank term, and one of each task's own for its own stream.

Source: Agiza, Neseem, Reda, "MTLoRA: A Low-Rank Adaptation Approach for Efficient Multi-Task Learning" (CVPR 2024),
section 3.2. With the frozen product P = W x + b of the *shared* input x, and x_t the input of task t's stream:

    ==========  ==========================================  =====================================
    mode        shared output                               output of task t
    ==========  ==========================================  =====================================
    matrix      P + s B A x                                 P + s_t B_t A_t x_t
    matrixv2    P + s B A x                                 P + s B A x + s_t B_t A_t x_t
    addition    P + LayerNorm(Σ_t (P + s_t B_t A_t x_t))    P + s_t B_t A_t x_t
    ==========  ==========================================  =====================================

The frozen product is never taken of a task's own input: that enters only through its low-rank term, which is what
keeps T streams cheap. A layer without task modules (attention's q, k, v) has the shared term alone, in every mode.

Dropout is one mask on the shared x. Where the streams fork (x_t = x), the tasks read the same dropped x; later task
inputs have no dropout.

Shapes: R rows (tokens of all images), T tasks, r_t the rank of task t, r the largest of them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from tasklora.errors import ConfigError, did_you_mean
from tasklora.updates.base import UpdateOptions, check_positive, check_positive_integer
from tasklora.updates.lora import LoraCore
from tasklora.updates.ops import Branch, add_branch, compute_dtype, project_down

StreamMode = Literal["matrix", "matrixv2", "addition"]


def check_mode(mode: object) -> None:
    """Raise ConfigError unless `mode` is one of MTLoRA's three."""
    if mode not in get_args(StreamMode):
        raise ConfigError(
            f"unknown mode {mode!r}.{did_you_mean(str(mode), get_args(StreamMode))} "
            f"One of: {', '.join(get_args(StreamMode))}."
        )


class TaskFactors(nn.Module):
    """A bank with a rank of its own for every task: ΔW_t = s_t B_t A_t.

    Parameters: A (Σ r_t, in_features) kaiming-uniform task by task; B (Σ r_t, out_features) zero, B_t transposed, so
    that equal ranks make both a view of one block per task.

    Args:
        in_features: columns of W.
        out_features: rows of W.
        ranks: r_t of each task.
        scales: s_t of each task.
    """

    scale: Tensor
    padded: Tensor

    def __init__(self, in_features: int, out_features: int, ranks: Sequence[int], scales: Sequence[float]) -> None:
        super().__init__()
        for rank, scale in zip(ranks, scales, strict=True):
            check_positive_integer("task_r", rank)
            check_positive("task_scale", scale)
        self.ranks, self.scales = list(ranks), list(scales)
        self.A = nn.Parameter(torch.empty(sum(ranks), in_features))
        self.B = nn.Parameter(torch.zeros(sum(ranks), out_features))
        for factor in self.A.split(self.ranks):
            nn.init.kaiming_uniform_(factor, a=math.sqrt(5))
        rows = [scale for rank, scale in zip(ranks, scales, strict=True) for _ in range(rank)]
        self.register_buffer("scale", torch.tensor(rows, dtype=torch.float64), persistent=False)  # (Σ r_t,)
        # Places of task t's rows, (T, r); the place behind the last one stands for a row of zeros.
        padded = torch.full((len(ranks), max(ranks)), sum(ranks))
        places = torch.arange(sum(ranks)).split(self.ranks)
        for task, own in enumerate(places):
            padded[task, : len(own)] = own
        self.register_buffer("padded", padded, persistent=False)

    @property
    def num_tasks(self) -> int:
        """T."""
        return len(self.ranks)

    def down(self) -> Tensor:
        """Return A_t of all tasks, (T, r, in), padded with zeros where ranks differ."""
        return self._blocks(self.A)

    def up(self) -> Tensor:
        """Return s_t B_tᵀ of all tasks, (T, r, out), padded with zeros where ranks differ."""
        equal = len(set(self.scales)) == 1
        return self._blocks(self.B * (self.scales[0] if equal else self.scale.to(self.B.dtype).unsqueeze(-1)))

    def _blocks(self, factor: Tensor) -> Tensor:
        if len(set(self.ranks)) == 1:
            return factor.view(self.num_tasks, self.ranks[0], -1)
        return torch.cat([factor, factor.new_zeros(1, factor.shape[1])])[self.padded]

    def lora_factors(self, task: int) -> tuple[Tensor, Tensor]:
        """Return A' (r_t, in) and B' (out, r_t) with ΔW_t = B' A', the scale folded in."""
        return self.A.split(self.ranks)[task], (self.B.split(self.ranks)[task] * self.scales[task]).mT

    def task_factors(self) -> list[tuple[Tensor, Tensor]]:
        """Return :meth:`lora_factors` of every task, in their order."""
        return [self.lora_factors(task) for task in range(self.num_tasks)]

    def is_per_task(self, name: str) -> bool:
        """Return True: all of it belongs to single tasks."""
        return True

    def takes_decay(self, name: str) -> bool:
        """Return True, as published."""
        return True

    def extra_repr(self) -> str:
        """Return the sizes, for ``print(model)``."""
        return f"in={self.A.shape[1]}, out={self.B.shape[1]}, ranks={self.ranks}, scales={self.scales}"


class StreamUpdate(nn.Module):
    """MTLoRA's update of one linear layer; see the module for the equations.

    Args:
        in_features: columns of W.
        out_features: rows of W.
        r: rank of the shared term.
        scale: s.
        ranks: r_t of each task; None for a layer without task modules.
        scales: s_t of each task.
        dropout: rate of the one mask on the shared input.
        mode: "matrix", "matrixv2" or "addition".
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        r: int,
        scale: float,
        ranks: Sequence[int] | None = None,
        scales: Sequence[float] | None = None,
        dropout: float = 0.0,
        mode: StreamMode = "matrix",
    ) -> None:
        super().__init__()
        check_mode(mode)
        options = UpdateOptions(r=r, lora_alpha=scale * r, lora_dropout=dropout)
        options.check()
        self.mode = mode if ranks is not None else "matrix"
        self.dropout = dropout
        self.shared = LoraCore(in_features, out_features, 1, options) if self.mode != "addition" else None
        self.tasks = TaskFactors(in_features, out_features, ranks, scales or []) if ranks is not None else None
        self.norm = nn.LayerNorm(out_features) if self.mode == "addition" else None

    def project(
        self, x: Tensor, fork: bool = False, in_place: bool = False
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """Return x (to be given to the frozen layer), A drop(x) and, where streams fork, A_t drop(x) of every task.

        Args:
            x: (…, in), the shared input.
            fork: whether the tasks read x itself.
            in_place: whether the frozen layer's gradient of x may be written to.

        Returns:
            x; (1, R, r) or None; (T, R, r) or None.
        """
        downs: list[Tensor] = [self.shared.A] if self.shared is not None else []
        if fork and self.tasks is not None:
            downs.append(self.tasks.down().flatten(0, 1))  # (T·r, in)
        if not downs:
            return x, None, None
        shape = x.shape
        down = torch.cat(downs).to(compute_dtype(x))
        x, h = project_down(x.reshape(1, -1, shape[-1]), down, None, self.dropout if self.training else 0.0, in_place)
        own, of_tasks = h, None
        if fork and self.tasks is not None:
            count = self.tasks.num_tasks
            split = h.shape[-1] - downs[-1].shape[0]
            own, of_tasks = h[..., :split], h[..., split:].view(h.shape[1], count, -1).transpose(0, 1)
        return x.view(shape), own if self.shared is not None else None, of_tasks

    def down(self, task_x: Tensor) -> Tensor:
        """Return A_t x_t, (T, R, r), of the tasks' own inputs (T, …, in)."""
        assert self.tasks is not None
        return torch.bmm(task_x.flatten(1, -2), self.tasks.down().to(task_x.dtype).mT)

    def shared_output(
        self, frozen: Tensor, own: Tensor | None, of_tasks: Tensor | None = None, in_place: bool = False
    ) -> Tensor:
        """Return the shared output.

        Args:
            frozen: P, (…, out).
            own: A drop(x), (1, R, r); None in mode "addition".
            of_tasks: A_t x_t, (T, R, r), which mode "addition" needs.
            in_place: whether `frozen` may be written to: it is used nowhere else.
        """
        if self.shared is not None and own is not None:
            up = (self.shared.B * self.shared.scaling).to(own.dtype)
            rows = frozen.reshape(1, -1, frozen.shape[-1])
            return add_branch(rows, Branch(own, up, None, None, rows.shape), in_place).view(frozen.shape)
        assert self.tasks is not None
        assert self.norm is not None
        assert of_tasks is not None
        up = self.tasks.up().to(of_tasks.dtype)
        added = of_tasks.transpose(0, 1).flatten(1) @ up.flatten(0, 1)  # Σ_t B_t A_t x_t as one product, (R, out)
        normed: Tensor = self.norm(frozen * self.tasks.num_tasks + added.view(frozen.shape))
        return frozen + normed

    def frozen_of_tasks(self, frozen: Tensor, shared: Tensor) -> Tensor:
        """Return what every task's own term is added to: P, or the shared output in mode "matrixv2"."""
        return shared if self.mode == "matrixv2" else frozen

    def forward(self, frozen: Tensor, x: Tensor, task_x: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        """Return the shared output and those of the tasks, as the equations say.

        Args:
            frozen: P = W x + b, (…, out).
            x: the shared input, (…, in).
            task_x: the tasks' own inputs, (T, …, in); None where the streams fork.

        Returns:
            (…, out) and (T, …, out), or None without task modules.
        """
        _, own, of_tasks = self.project(x, fork=task_x is None)
        if self.tasks is None:
            return self.shared_output(frozen, own), None
        if task_x is not None:
            of_tasks = self.down(task_x)
        assert of_tasks is not None
        shared = self.shared_output(frozen, own, of_tasks)
        base = self.frozen_of_tasks(frozen, shared)
        return shared, add_to_streams(base, None, of_tasks, self.tasks.up())


def add_to_streams(x: Tensor, frozen: Tensor | None, h: Tensor, up: Tensor, keep: Tensor | None = None) -> Tensor:
    """Return x + keep ⊙ (frozen + h_t up_t) of every task, (T, …, out).

    Args:
        x: (…, out), the same for all tasks, or (T, …, out).
        frozen: (…, out), the same for all tasks; None for nothing.
        h: (T, R, r).
        up: (T, r, out).
        keep: (T, images, 1, …), which streams of which images survive DropPath, rescaled; None for all.
    """
    count = h.shape[0]
    if frozen is not None:
        x = x + frozen if keep is None else torch.addcmul(x, frozen, keep)
        shape = frozen.shape
    else:
        shape = x.shape
    if keep is not None:
        images = keep.shape[1]
        h = (h.view(count, images, -1, h.shape[-1]) * keep.view(count, images, 1, 1)).flatten(1, 2)
    rows = x.reshape(-1, h.shape[1], shape[-1]).expand(count, -1, -1)  # (T, R, out)
    if rows.dtype != h.dtype or torch.is_autocast_enabled(x.device.type):
        # The sum stays in the dtype of what is added to: that of the residual stream, wider under autocast.
        return (rows + torch.bmm(h, up.to(h.dtype)).to(rows.dtype)).view(count, *shape)
    return torch.baddbmm(rows, h, up.to(h.dtype)).view(count, *shape)
