"""Bank updates: a pair of factors per task, ΔW_t = B_t A_t."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from tasklora.updates.base import LowRankUpdate
from tasklora.updates.context import TaskAssignment
from tasklora.updates.ops import Branch, compute_dtype, project_down


class BankUpdate(LowRankUpdate):
    """ΔW_t = scaling · B_t A_t with a pair of factors per task.

    Parameters: A (T, r, in_features), B (T, out_features, r).
    """

    kind = "bank"
    per_task_parameters = ("A", "B")

    B: nn.Parameter

    def reset_table(self, name: str, table: Tensor) -> None:
        """Initialise as LoRA does: every task's A kaiming-uniform, B zero."""
        if name == "B":
            nn.init.zeros_(table)
            return
        if self.one_hot is not None:
            self.one_hot.begin(table)
            return
        for factor in table:
            nn.init.kaiming_uniform_(factor, a=math.sqrt(5))

    def branch(self, x: Tensor, tasks: TaskAssignment | None, in_place: bool = False) -> tuple[Tensor, Branch]:
        """Return scaling · B_t A_t dropout(x) as a branch; see :meth:`LowRankUpdate.branch`."""
        assert tasks is not None  # the layer's context has raised before
        rate, shape, dtype = self._dropout_rate(), self._output_shape(x), compute_dtype(x)
        if tasks.ids is None:
            x, h = project_down(x, self.table("A").to(dtype).flatten(0, 1), None, rate, in_place)  # D (T·r, in)
            return x, self._mixture(h, tasks.tensor, shape)
        order = self._order(tasks)
        # Gathered first, so the cost does not grow with T.
        ids = tasks.ids if order is None else order.task
        x, h = project_down(x, self.rows("A", ids).to(dtype), order, rate, in_place)
        return x, Branch(h, (self.rows("B", ids) * self.scaling).to(h.dtype), None, order, shape)

    def branch_of_ids(self, ids: Tensor, tasks: TaskAssignment | None) -> Branch:
        """Return scaling · B_t A_t[:, ids] as a branch; see :meth:`LowRankUpdate.branch_of_ids`."""
        assert tasks is not None and self.one_hot is not None  # noqa: PT018
        rate, shape = self._dropout_rate(), (*ids.shape, self.out_features)
        if tasks.ids is None:
            h = self.one_hot.columns(self.table("A").flatten(0, 1), ids, rate)  # (rows, L, T·r)
            return self._mixture(h, tasks.tensor, shape)
        order = self._order(tasks)
        h = self.one_hot.columns_of_tasks(self.table("A"), tasks.ids, ids, rate)
        if order is not None:
            h = order.gather(h) * order.filled
        up = self.rows("B", tasks.ids if order is None else order.task)
        return Branch(h, (up * self.scaling).to(h.dtype), None, order, shape)

    def _mixture(self, h: Tensor, weights: Tensor, shape: tuple[int, ...]) -> Branch:
        """Return the branch of a mixture, which has rank T·r: h (rows, L, T·r), each task's part times its weight."""
        up = (self.table("B") * self.scaling).to(h.dtype).transpose(0, 1).flatten(1)  # [B_1 … B_T] (out, T·r)
        per_rank = weights.to(h.dtype).repeat_interleave(self.r, dim=-1)  # (T·r,) or (rows, T·r)
        return Branch(h * (per_rank if per_rank.dim() == 1 else per_rank.unsqueeze(1)), up, None, None, shape)

    @torch.no_grad()
    def begin_as(self, down: Tensor, up: Tensor, task: int | None) -> None:
        """Become a plain LoRA for one task; see :meth:`LowRankUpdate.begin_as`."""
        assert task is not None
        self._fill(self.row("A", task), self.row("B", task), down, up)

    def lora_factors(self, tasks: TaskAssignment) -> tuple[Tensor, Tensor]:
        """Return (A_t, scaling · B_t), or the stack over the tasks of a mixture, rank (number of tasks) · r."""
        if tasks.ids is not None:
            ids = tasks.ids.to(self.A.device)
            return self.rows("A", ids), self.rows("B", ids) * self.scaling
        weights = tasks.tensor.to(self.A)
        chosen = weights.nonzero().flatten()
        up = self.rows("B", chosen) * (self.scaling * weights[chosen])[:, None, None]  # (chosen, out, r)
        return self.rows("A", chosen).flatten(0, 1), up.transpose(0, 1).flatten(1)
