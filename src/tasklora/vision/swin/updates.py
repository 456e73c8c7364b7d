"""The updates of one stage: which of its linear layers gets a shared term, and which one of each task's own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from tasklora.updates.streams import StreamMode, StreamUpdate


@dataclass(frozen=True)
class StageOptions:
    """Ranks and scales of one stage.

    Attributes:
        r: rank of the shared terms.
        scale: their scale s; it multiplies B A x as it is, it is no α to be divided by r.
        task_r: rank of each task's own terms.
        task_scale: their scales.
        dropout: rate of the one mask on each update's shared input.
        mode: how the shared and the tasks' terms are put together; see :mod:`tasklora.updates.streams`.
        plus: MTLoRA+: a shared update on the patch merging's reduction, which is not trained in full then.
        all_blocks: task modules in every block; else in the last one.
    """

    r: int
    scale: float
    task_r: Sequence[int]
    task_scale: Sequence[float]
    dropout: float
    mode: StreamMode
    plus: bool
    all_blocks: bool

    def update(self, layers: Sequence[nn.Linear], has_tasks: bool = False) -> StreamUpdate:
        """Return the update of a linear layer, or of several that read the same input, fused to one."""
        return StreamUpdate(
            layers[0].in_features,
            sum(layer.out_features for layer in layers),
            self.r,
            self.scale,
            self.task_r if has_tasks else None,
            self.task_scale if has_tasks else None,
            self.dropout,
            self.mode,
        )


class BlockUpdates(nn.Module):
    """The updates of one block.

    Attributes:
        qkv: of queries, keys and values as one layer d → 3d: one A for the three. Shared only.
        proj: of attention's output projection.
        fc1: of the MLP's first layer.
        fc2: of its second.
    """

    def __init__(self, block: Any, options: StageOptions, has_tasks: bool) -> None:
        super().__init__()
        attention, mlp = block.attention, block.mlp
        self.qkv = options.update([attention.q_proj, attention.k_proj, attention.v_proj])
        self.proj = options.update([attention.o_proj], has_tasks)
        self.fc1 = options.update([mlp.fc1], has_tasks)
        self.fc2 = options.update([mlp.fc2], has_tasks)


class StageUpdates(nn.Module):
    """The updates of one stage.

    Args:
        stage: transformers' ``SwinStage``.
        options: ranks and scales.
    """

    def __init__(self, stage: Any, options: StageOptions) -> None:
        super().__init__()
        last = len(stage.blocks) - 1
        self.blocks = nn.ModuleList(
            BlockUpdates(block, options, has_tasks=bool(options.task_r) and (options.all_blocks or place == last))
            for place, block in enumerate(stage.blocks)
        )
        self.reduction = (
            options.update([stage.downsample.reduction]) if options.plus and stage.downsample is not None else None
        )

    def block(self, place: int) -> BlockUpdates:
        """Return the updates of a block by its place in the stage."""
        block = self.blocks[place]
        assert isinstance(block, BlockUpdates)
        return block
