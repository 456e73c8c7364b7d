"""Routed updates: a gate reads the token itself, ΔW x = U C(x) D x."""

from __future__ import annotations

from abc import abstractmethod

import torch
from torch import Tensor

from tasklora.errors import UnsupportedError
from tasklora.updates.base import LowRankUpdate
from tasklora.updates.context import TaskAssignment
from tasklora.updates.ops import Branch, compute_dtype, project_down, wide_softmax


class RoutedUpdate(LowRankUpdate):
    """ΔW x = scaling · Σ_i softmax(R x)_i · B_i A x: each token mixes the up-projections by what it is.

    The router R reads x before dropout. ΔW depends on the token, so that no plain LoRA and no merged weight equals it.
    """

    kind = "routed"
    uses_task_ids = False

    @abstractmethod
    def down(self) -> Tensor:
        """Return D = A (r, in_features)."""

    @abstractmethod
    def up(self) -> Tensor:
        """Return U = [B_1 … B_n] (out_features, n·r)."""

    @abstractmethod
    def router(self) -> Tensor:
        """Return R (n, in_features)."""

    def reset_table(self, name: str, table: Tensor) -> None:
        """Raise: a routed update has no per-task parameters."""
        raise NotImplementedError(f"{type(self).__name__} has no per-task parameter '{name}'.")

    def branch(self, x: Tensor, tasks: TaskAssignment | None, in_place: bool = False) -> tuple[Tensor, Branch]:
        """Return U (softmax(R x) ⊗ A dropout(x)) as a branch; see :meth:`LowRankUpdate.branch`."""
        dtype, rate = compute_dtype(x), self._dropout_rate()
        down, router = self.down().to(dtype), self.router().to(dtype)
        if rate:
            x, logits = project_down(x, router, None, 0.0, in_place)  # (rows, L, n)
            x, h = project_down(x, down, None, rate, in_place)  # (rows, L, r)
        else:  # both read the same x: one product
            x, both = project_down(x, torch.cat([router, down]), None, 0.0, in_place)
            logits, h = both.split([router.shape[0], down.shape[0]], dim=-1)
        gates = wide_softmax(logits, like=logits).to(h.dtype)
        mixed = (gates.unsqueeze(-1) * h.unsqueeze(-2)).flatten(-2)  # (rows, L, n·r)
        return x, Branch(mixed, (self.up() * self.scaling).to(h.dtype), None, None, self._output_shape(x))

    def task_factors(self) -> list[tuple[Tensor, Tensor]]:
        """Raise; see :meth:`LowRankUpdate.task_factors`.

        Raises:
            UnsupportedError: always.
        """
        raise UnsupportedError(
            f"{type(self).__name__} routes by the token: neither its ΔW nor its gates are constant per task, so tasks "
            "cannot be compared by them."
        )

    def lora_factors(self, tasks: TaskAssignment) -> tuple[Tensor, Tensor]:
        """Raise.

        Raises:
            UnsupportedError: always.
        """
        raise UnsupportedError(
            f"{type(self).__name__} has no plain LoRA and cannot be merged: its gate reads every token, so its ΔW is "
            "not one matrix. Serve it with tasklora, or train a method whose ΔW depends on the task alone."
        )
