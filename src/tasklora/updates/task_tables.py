"""Per-task parameters as tables: row t of a table belongs to task t.

A table is one parameter, and one parameter cannot be trained in part. So tasks that are added to a trained adapter get
a second, new table beside the first: the first is frozen with everything that is shared, and only the new one learns.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import ClassVar

import torch
from torch import Tensor, nn

from tasklora.updates.ops import rows_of

NEW = "_new"
"""What the name of a table of added tasks ends in."""


class TaskTables(nn.Module):
    """A module with parameters whose first dimension is the task.

    Attributes:
        per_task_parameters: names of the parameters whose first dimension is T.
        no_decay_parameters: names of the parameters that take no weight decay.
        num_tasks: T.
        new_tasks: how many of them, the last ones, have their rows in the new tables.
    """

    per_task_parameters: ClassVar[tuple[str, ...]] = ()
    no_decay_parameters: ClassVar[tuple[str, ...]] = ()

    num_tasks: int
    new_tasks: int = 0

    @abstractmethod
    def reset_table(self, name: str, table: Tensor) -> None:
        """Initialise a table, or some of its rows, of the per-task parameter `name` in place."""

    def table(self, name: str) -> Tensor:
        """Return all T rows of a per-task parameter."""
        table: Tensor = getattr(self, name)
        return torch.cat([table, getattr(self, name + NEW)]) if self.new_tasks else table

    def rows(self, name: str, ids: Tensor) -> Tensor:
        """Return the rows of a per-task parameter for each entry of `ids`: (*ids.shape, …). The cost is free of T."""
        table: Tensor = getattr(self, name)
        if not self.new_tasks:
            return rows_of(table, ids)
        first_new = self.num_tasks - self.new_tasks
        old = rows_of(table, ids.clamp(max=first_new - 1))
        new = rows_of(getattr(self, name + NEW), (ids - first_new).clamp(min=0))
        is_new = (ids >= first_new).view(*ids.shape, *[1] * (old.dim() - ids.dim()))
        return torch.where(is_new, new, old)

    def is_per_task(self, name: str) -> bool:
        """Return whether the parameter `name` is a table."""
        return name.removesuffix(NEW) in self.per_task_parameters

    def takes_decay(self, name: str) -> bool:
        """Return whether the parameter `name` takes weight decay."""
        return name.removesuffix(NEW) not in self.no_decay_parameters

    def add_tasks(self, count: int) -> None:
        """Append `count` tasks in new tables; tables of tasks that were added before are joined to the first ones."""
        self.join_tables()
        for name in self.per_task_parameters:
            table = self.get_parameter(name)
            new = nn.Parameter(torch.empty(count, *table.shape[1:], dtype=table.dtype, device=table.device))
            self.register_parameter(name + NEW, new)
            self.reset_table(name, new)
        self.num_tasks += count
        self.new_tasks = count

    def join_tables(self) -> None:
        """Make the new tables part of the first ones, bit by bit; everything can be trained again afterwards."""
        if not self.new_tasks:
            return
        for name in self.per_task_parameters:
            joined = nn.Parameter(self.table(name).detach(), requires_grad=self.get_parameter(name).requires_grad)
            del self._parameters[name + NEW]
            self.register_parameter(name, joined)
        self.new_tasks = 0

    def freeze_all_but_new(self) -> None:
        """Let only the tables of added tasks take gradients; nothing changes where no task was added."""
        if self.new_tasks:
            for name, parameter in self.named_parameters():
                if not (name.endswith(NEW) and self.is_per_task(name)):
                    parameter.requires_grad_(False)

    @torch.no_grad()
    def copy_task(self, source: int, target: int) -> None:
        """Copy what belongs to task `source` to task `target`."""
        for name in self.per_task_parameters:
            self._row(name, target).copy_(self._row(name, source))

    @torch.no_grad()
    def clear_task(self, task: int) -> None:
        """Overwrite what belongs to a task with zeros."""
        for name in self.per_task_parameters:
            self._row(name, task).zero_()

    def _row(self, name: str, task: int) -> Tensor:
        first_new = self.num_tasks - self.new_tasks
        if task < first_new:
            return self.get_parameter(name)[task]
        return self.get_parameter(name + NEW)[task - first_new]
