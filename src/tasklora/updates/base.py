"""The three kinds of low-rank update.

A frozen linear layer y = W x + b gains an update that depends on the row's task t:

    y = W x + b + ΔW_t x

===========  ================  ================================================================================
kind         ΔW_t              factors
===========  ================  ================================================================================
core         U · C_t · D       D (k_d × in) and U (out × k_u) shared by all tasks, C_t (k_u × k_d) tiny
bank         B_t · A_t         a pair of factors per task
routed       U · C(x) · D      the gate reads the token itself; there is no plain LoRA per task
===========  ================  ================================================================================

The law of the family, with dropout off and (A', B') = ``update.lora_factors(t)``:

    update(x, t) == x @ (B' A').T

A new core method only says what D, U and C_t are; forward, mixed batches, per-token ids, mixtures, merging, export,
added tasks and parameter counts follow from here.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import ClassVar, cast

import torch
from torch import Tensor, nn

from tasklora.errors import CheckpointError, ConfigError, UnsupportedError
from tasklora.updates.block_order import BlockOrder, block_order
from tasklora.updates.context import TaskAssignment
from tasklora.updates.lookup import OneHot
from tasklora.updates.ops import Branch, branch_output, compute_dtype, may_be_sharded, project_down
from tasklora.updates.task_tables import TaskTables


def is_number(value: object) -> bool:
    """Return whether `value` is a finite int or float (and not a bool, which Python counts as an int)."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def check_positive_integer(name: str, value: object) -> None:
    """Raise ConfigError unless the option `name` is an integer of at least 1."""
    if not is_number(value) or not isinstance(value, int) or value < 1:
        raise ConfigError(f"{name} must be a positive integer, got {value!r}.")


def check_positive(name: str, value: float) -> None:
    """Raise ConfigError unless the option `name` is a positive finite number."""
    if not is_number(value) or value <= 0:
        raise ConfigError(f"{name} must be positive, got {value!r}.")


@dataclass
class UpdateOptions:
    """What every method of the family has in common; the names are PEFT's."""

    r: int = field(default=8, metadata={"help": "Rank of the update."})
    lora_alpha: float = field(default=16, metadata={"help": "The update is scaled by lora_alpha / r."})
    lora_dropout: float = field(default=0.0, metadata={"help": "Dropout on the update's input, one mask per call."})

    def check(self) -> None:
        """Raise ConfigError if a value cannot be used."""
        check_positive_integer("r", self.r)
        check_positive("lora_alpha", self.lora_alpha)
        if not is_number(self.lora_dropout) or not 0.0 <= self.lora_dropout < 1.0:
            raise ConfigError(f"lora_dropout must lie in [0, 1), got {self.lora_dropout!r}.")


class LowRankUpdate(TaskTables, ABC):
    """ΔW_t of one linear layer.

    Args:
        in_features: columns of W.
        out_features: rows of W.
        num_tasks: T, at least 1.
        options: the method's options.

    Attributes:
        kind: "core", "bank" or "routed".
        uses_task_ids: whether ΔW depends on the task.
        one_hot: set where x is one-hot and given as ids (embeddings).
    """

    kind: ClassVar[str]
    uses_task_ids: ClassVar[bool] = True
    one_hot: OneHot | None = None

    A: nn.Parameter
    """D, or the tasks' own ones; the last dimension is in_features."""

    def __init__(self, in_features: int, out_features: int, num_tasks: int, options: UpdateOptions) -> None:
        super().__init__()
        self.in_features = in_features
        self.out_features = out_features
        self.num_tasks = num_tasks
        self.r = options.r
        self.scaling = options.lora_alpha / options.r
        self.dropout = options.lora_dropout

    @abstractmethod
    def reset_parameters(self) -> None:
        """Initialise so that ΔW_t = 0 for every task."""

    @abstractmethod
    def branch(self, x: Tensor, tasks: TaskAssignment | None, in_place: bool = False) -> tuple[Tensor, Branch]:
        """Return what the base layer is to be given, and what :func:`add_branch` adds to its output.

        Args:
            x: (rows, …, in_features).
            tasks: which task each row or token belongs to; None for methods without task ids.
            in_place: whether the base layer's gradient of x may be written to.

        Returns:
            x, and the branch.
        """

    def read_ids(self, one_hot: OneHot) -> None:
        """Become the update of an embedding, which takes ids: D begins anew (see :mod:`tasklora.updates.lookup`)."""
        self.one_hot = one_hot
        one_hot.begin(self.A)

    def branch_of_ids(self, ids: Tensor, tasks: TaskAssignment | None) -> Branch:
        """Return the branch for one-hot inputs, given as ids (rows, …); see :meth:`branch`. Not of routed updates."""
        raise NotImplementedError

    def forward(self, x: Tensor, tasks: TaskAssignment | None) -> Tensor:
        """Return ΔW_t x for each row.

        Args:
            x: (rows, …, in_features).
            tasks: which task each row or token belongs to; None for methods without task ids.

        Returns:
            (rows, …, out_features), in the dtype of `x` (or of autocast).
        """
        _, branch = self.branch(x, tasks)
        out = branch_output(branch)
        return out if torch.is_autocast_enabled(x.device.type) else out.to(x.dtype)

    def _dropout_rate(self) -> float:
        return self.dropout if self.training else 0.0

    def _output_shape(self, x: Tensor) -> tuple[int, ...]:
        return (*x.shape[:-1], self.out_features)

    def _order(self, tasks: TaskAssignment) -> BlockOrder | None:
        """Return the order of the tokens of per-token ids, made once per forward; None where rows have their tasks."""
        if not tasks.per_token:
            return None
        ids = tasks.tensor.reshape(-1)
        occurring = self.num_tasks if tasks.occurring is None else tasks.occurring
        order = tasks.cached(("blocks", occurring), lambda: block_order(ids, occurring))
        assert isinstance(order, BlockOrder)
        return order

    @abstractmethod
    def lora_factors(self, tasks: TaskAssignment) -> tuple[Tensor, Tensor]:
        """Return the exact plain LoRA of one task or one mixture, scaling folded in.

        Args:
            tasks: an assignment for all rows: ids of shape () or weights of shape (T,).

        Returns:
            A' (k, in_features) and B' (out_features, k) with ΔW_t = B' A'.

        Raises:
            UnsupportedError: for routed updates, whose ΔW depends on the token.
        """

    def delta_weight(self, tasks: TaskAssignment) -> Tensor:
        """Return ΔW_t (out_features, in_features); the only place where it is formed is merging."""
        down, up = self.lora_factors(tasks)
        return up @ down

    def begin_as(self, down: Tensor, up: Tensor, task: int | None) -> None:
        """Become a plain LoRA, exactly: scaling · ΔW_t = up · down of one task, or of all where they share the factors.

        Args:
            down: (k, in_features).
            up: (out_features, k).
            task: which task's factors, for a bank; None for a method that shares them.

        Raises:
            CheckpointError: if k is larger than there is room for.
            UnsupportedError: if the method has no such start.
        """
        raise UnsupportedError(f"{type(self).__name__} has no exact start from a plain LoRA.")

    def _fill(self, a: Tensor, b: Tensor, down: Tensor, up: Tensor) -> None:
        """Set a (r, in) and b (out, r) so that scaling · b a = up · down. What a has more stays, to be trained."""
        rank = down.shape[0]
        if rank > a.shape[0]:
            raise CheckpointError(
                f"the LoRA has rank {rank}, the adapter has room for {a.shape[0]} here. Make an adapter with room for "
                f"{rank} (r, or rank_pattern), or reduce the LoRA's rank."
            )
        a[:rank] = down.to(a)
        b.zero_()
        b[:, :rank] = (up / self.scaling).to(b)

    def parameter_groups(self) -> dict[str, int]:
        """Return the number of parameters shared by all tasks and of those that belong to single tasks."""
        groups = {"shared": 0, "per_task": 0}
        for name, parameter in self.named_parameters():
            groups["per_task" if self.is_per_task(name) else "shared"] += parameter.numel()
        return groups

    def auxiliary_loss(self) -> Tensor | None:
        """Return what the method adds to the loss of a step (a scalar), None if nothing."""
        return None

    def diagnostics(self) -> dict[str, Tensor]:
        """Return what can be seen of the tasks in the trained parameters: name → tensor (T, …). By default nothing.

        An entry that is undefined (a share of nothing) is NaN.
        """
        return {}

    def pair_diagnostics(self) -> dict[str, Tensor]:
        """Return what can be seen of pairs of tasks: name → symmetric tensor (T, T). By default nothing."""
        return {}

    def task_factors(self) -> list[tuple[Tensor, Tensor]]:
        """Return :meth:`lora_factors` of every task, in the order of their ids.

        Raises:
            UnsupportedError: if ΔW is not one matrix per task.
        """
        if not self.uses_task_ids:
            raise UnsupportedError(
                f"{type(self).__name__} knows no tasks: its ΔW is the same for all, so there is nothing to compare."
            )
        return [self.lora_factors(TaskAssignment(ids=torch.tensor(task))) for task in range(self.num_tasks)]

    def extra_repr(self) -> str:
        """Return the sizes, for ``print(model)``."""
        return f"in={self.in_features}, out={self.out_features}, r={self.r}, tasks={self.num_tasks}"


class CoreUpdate(LowRankUpdate):
    """ΔW_t = U · C_t · D with U and D shared by all tasks."""

    kind = "core"
    identity_core: ClassVar[bool] = False
    """Whether C_t is scaling · I: then it is not multiplied with."""

    def reset_table(self, name: str, table: Tensor) -> None:
        """Initialise per-task parameters; a method that has some says how."""
        raise NotImplementedError(f"{type(self).__name__} does not say how '{name}' begins.")

    @abstractmethod
    def down(self) -> Tensor:
        """Return D (k_d, in_features)."""

    @abstractmethod
    def up(self) -> Tensor:
        """Return U (out_features, k_u)."""

    def core(self, ids: Tensor) -> Tensor:
        """Return C_t, scaling folded in, for each entry of `ids`: shape (*ids.shape, k_u, k_d).

        Only the parameters of the rows asked for are gathered; no table of all T cores is made. Default: the identity.
        """
        assert self.identity_core, f"{type(self).__name__} does not say what its core is"
        down = self.down()
        rank = down.shape[0]
        eye = torch.eye(rank, dtype=down.dtype, device=down.device) * self.scaling
        return eye.expand(*ids.shape, rank, rank)

    def core_of(self, tasks: TaskAssignment | None) -> Tensor:
        """Return the cores of an assignment: of its ids, or Σ_t α_t C_t for its weights."""
        device = next(self.parameters()).device
        if tasks is not None and tasks.ids is not None and self.uses_task_ids:
            return self.core(tasks.ids.to(device))
        if tasks is None or not self.uses_task_ids:
            return self.core(torch.zeros((), dtype=torch.long, device=device))
        table = self.core(torch.arange(self.num_tasks, device=device))  # (T, k_u, k_d); a mixture may need them all
        return torch.einsum("...t,tud->...ud", tasks.tensor.to(table), table)

    def branch(self, x: Tensor, tasks: TaskAssignment | None, in_place: bool = False) -> tuple[Tensor, Branch]:
        """Return U C_t D dropout(x) as a branch; see :meth:`LowRankUpdate.branch`."""
        down = self.down().to(compute_dtype(x))
        x, h = project_down(x, down, None, self._dropout_rate(), in_place)  # h (rows, L, k_d)
        return x, self._branch_of(h, tasks, self._output_shape(x))

    def branch_of_ids(self, ids: Tensor, tasks: TaskAssignment | None) -> Branch:
        """Return U C_t D[:, ids] as a branch; see :meth:`LowRankUpdate.branch_of_ids`."""
        assert self.one_hot is not None
        h = self.one_hot.columns(self.down(), ids, self._dropout_rate())
        return self._branch_of(h, tasks, (*ids.shape, self.out_features))

    def _branch_of(self, h: Tensor, tasks: TaskAssignment | None, shape: tuple[int, ...]) -> Branch:
        if self.identity_core:
            return Branch(h, (self.up() * self.scaling).to(h.dtype), None, None, shape)
        order = None if tasks is None else self._order(tasks)
        ids = tasks if order is None else TaskAssignment(ids=order.task)
        core = self._cores(tasks, h.dtype, lambda: self.core_of(ids).to(h.dtype))
        return Branch(h, self.up().to(h.dtype), core, order, shape)

    def _cores(self, tasks: TaskAssignment | None, dtype: torch.dtype, make: Callable[[], Tensor]) -> Tensor:
        """Return ``make()``; where nothing is trained, once for all forwards with the same assignment.

        Each step of a generation runs with the same ids, and there the cores would cost as much as their use.
        """
        if tasks is None or torch.is_grad_enabled() or torch.compiler.is_compiling() or may_be_sharded():
            return make()
        try:
            own = cast("dict[str, nn.Parameter]", self._parameters)  # not parameters(), whose walk takes longer
            state = tuple((parameter.data_ptr(), parameter._version) for parameter in own.values())
        except RuntimeError:  # made in inference mode: such tensors do not count their changes
            return make()
        core = tasks.cached((self, state, dtype), make)
        assert isinstance(core, Tensor)
        return core

    def lora_factors(self, tasks: TaskAssignment) -> tuple[Tensor, Tensor]:
        """Return (D, U C_t) or (C_t D, U), whichever has the smaller rank; see :meth:`LowRankUpdate.lora_factors`."""
        down, up, core = self.down(), self.up(), self.core_of(tasks)
        core = core.to(down.dtype)
        if down.shape[0] <= up.shape[1]:
            return down, up @ core
        return core @ down, up
