"""Task ids on their way from the model's boundary to its layers.

One :class:`TaskContext` belongs to one model; every adapted layer holds a reference to it. At the boundary (a forward
call with ``task_ids=``, or ``with use_tasks(model, …)``) what the user gave is validated once and stored as a
:class:`TaskAssignment` per adapter; the layers only look it up. Outside a forward the context is empty, so a layer
that is run without ids fails instead of guessing.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import torch
from torch import Tensor

from tasklora.errors import TaskIdsError, UnknownTaskError, did_you_mean, listing

HOW_TO_PASS_IDS = (
    "pass `task_ids=` to the model (a LongTensor of shape (rows,), or task names), "
    "or wrap the call in `with tasklora.use_tasks(model, task_ids):`"
)


@dataclass(frozen=True)
class LayerPlace:
    """What is known of the rows that a layer sees, from where it stands in its model.

    Attributes:
        name: the layer's path in the model, for errors.
        rows: "kept": the rows of the batch, or those rows repeated by a declared factor; "windowed": each row cut into
            windows, which follow one another, so rows repeated by any whole factor; "mixed": tokens of all rows
            regrouped, so that no row can be told.
    """

    name: str = ""
    rows: Literal["kept", "windowed", "mixed"] = "kept"

    @property
    def label(self) -> str:
        """The layer as an error calls it."""
        return self.name or "this layer"


_ANYWHERE = LayerPlace()
_WINDOWS = {"windowed": ", windows of rows", "mixed": ", tokens of all rows, regrouped"}


@dataclass(frozen=True)
class TaskAssignment:
    """Which task each row (or token) of a batch belongs to, for one adapter.

    Exactly one of `ids` and `weights` is set.

    Attributes:
        ids: LongTensor. Shape ``()``: one task for all rows; ``(rows,)``: a task per row; ``(rows, seq)``: a task per
            token.
        weights: float tensor. Shape ``(T,)``: one mixture of tasks for all rows; ``(rows, T)``: a mixture per row.
        row_factors: how often a row may have been repeated inside the model (beam search); declared by whoever
            repeats rows, never guessed from shapes.
        occurring: how many different tasks per-token ids name, counted where they are validated; None if unknown.
    """

    ids: Tensor | None = None
    weights: Tensor | None = None
    row_factors: tuple[int, ...] = (1,)
    occurring: int | None = None
    _cache: dict[object, object] = field(default_factory=dict, repr=False, compare=False)

    @property
    def tensor(self) -> Tensor:
        """The tensor that is set: ids or weights."""
        return self.ids if self.ids is not None else self.weights  # type: ignore[return-value]

    @property
    def rows(self) -> int | None:
        """Number of rows this assignment describes; None when it holds for any number."""
        per_row_dim = 1 if self.ids is not None else 2
        return self.tensor.shape[0] if self.tensor.dim() >= per_row_dim else None

    @property
    def per_token(self) -> bool:
        """Whether every token has its own task."""
        return self.ids is not None and self.ids.dim() == 2

    def cached(self, key: object, make: Callable[[], object]) -> object:
        """Return ``make()``, computed once per forward for `key` (an order of rows, a copy on another device)."""
        if torch.compiler.is_compiling():
            return make()  # a graph keeps nothing from one run to the next; the compiler finds what is computed twice
        key = (key, torch.is_inference_mode_enabled())  # what was made in inference mode cannot serve training
        if key not in self._cache:
            self._cache[key] = make()
        return self._cache[key]

    def for_input(self, x: Tensor, place: LayerPlace = _ANYWHERE) -> TaskAssignment:
        """Return this assignment on the device of `x`, repeated by the declared factor that fits its rows.

        Args:
            x: (rows, …, in_features), the input of a layer.
            place: where that layer stands.

        Raises:
            TaskIdsError: if the rows (or, for per-token ids, the first two dimensions) of `x` do not fit.
        """
        rows = self.rows
        factor = 1 if rows is None else self._row_factor(rows, x, place)
        if self.per_token and (place.rows != "kept" or x.dim() != 3 or x.shape[1] != self.tensor.shape[1]):
            raise TaskIdsError(
                f"per-token task_ids of shape {tuple(self.tensor.shape)} need a layer input of the same first two "
                f"dimensions, but {place.label} got {tuple(x.shape)}{_WINDOWS.get(place.rows, '')}. Leave modules that "
                "see pooled or flattened rows out of target_modules (exclude_modules), or give one id per row."
            )
        if factor == 1 and self.tensor.device == x.device:
            return self
        return self.cached((factor, x.device), lambda: self._moved(factor, x.device))  # type: ignore[return-value]

    def _row_factor(self, rows: int, x: Tensor, place: LayerPlace) -> int:
        """Return how often the rows of this assignment are repeated in `x`."""
        if place.rows == "windowed" and rows and x.shape[0] and x.shape[0] % rows == 0:
            return x.shape[0] // rows
        if place.rows != "mixed":
            for factor in self.row_factors:
                if rows * factor == x.shape[0]:
                    return factor
        raise TaskIdsError(
            f"{place.label}'s input has {x.shape[0]} rows (shape {tuple(x.shape)}{_WINDOWS.get(place.rows, '')}) "
            f"but task_ids describe {rows}. Give one task id per row of the batch; a module that repeats or flattens "
            "rows inside the model cannot be adapted per task (leave it out of target_modules, or name it in "
            "exclude_modules), but takes one task for the whole batch."
        )

    def _moved(self, factor: int, device: torch.device) -> TaskAssignment:
        def move(tensor: Tensor | None) -> Tensor | None:
            if tensor is None:
                return None
            tensor = tensor.to(device)
            return tensor if factor == 1 else tensor.repeat_interleave(factor, dim=0)

        return TaskAssignment(ids=move(self.ids), weights=move(self.weights), occurring=self.occurring)


class TaskNames:
    """The tasks of one adapter: name → id, in both directions.

    Args:
        names: task names; the position of a name is its id. None is the id of a task that was removed.
        needs_ids: whether the adapter's method uses task ids at all.
    """

    def __init__(self, names: Sequence[str | None], needs_ids: bool) -> None:
        self._ids = {name: index for index, name in enumerate(names) if name is not None}
        self.names = tuple(self._ids)
        self.needs_ids = needs_ids
        self._count = len(names)
        self._removed = [index for index, name in enumerate(names) if name is None]

    def __len__(self) -> int:
        return self._count

    def id_of(self, task: str | int) -> int:
        """Return the id of a task given by name or id.

        Raises:
            UnknownTaskError: if there is no such task.
        """
        if isinstance(task, str):
            if task not in self._ids:
                raise UnknownTaskError(
                    f"unknown task '{task}'.{did_you_mean(task, self.names)} This adapter has: {listing(self.names)}."
                )
            return self._ids[task]
        if isinstance(task, bool) or not isinstance(task, int):
            raise TaskIdsError(f"a task is a name or an integer id, got {task!r} ({type(task).__name__}).")
        if not 0 <= task < len(self):
            raise UnknownTaskError(
                f"task id {task} is out of range: this adapter has {len(self)} tasks (0 … {len(self) - 1})."
            )
        if task in self._removed:
            raise UnknownTaskError(f"task id {task} was removed; this adapter has: {listing(self.names)}.")
        return task

    def assign(
        self,
        task_ids: Tensor | str | int | Sequence[str] | Sequence[int] | None = None,
        task_weights: Tensor | None = None,
        row_factors: tuple[int, ...] = (1,),
    ) -> TaskAssignment:
        """Validate what the user gave and return it as an assignment.

        Args:
            task_ids: a task name or id (all rows), a list of names or ids (one per row), or an integer tensor of
                shape (), (rows,) or (rows, seq).
            task_weights: float tensor of shape (T,) or (rows, T): ΔW = Σ_t α_t ΔW_t.
            row_factors: see :class:`TaskAssignment`.

        Raises:
            TaskIdsError: on a wrong dtype, shape or range, or when both or none of the two are given.
            UnknownTaskError: on a name that the adapter does not have.
        """
        if (task_ids is None) == (task_weights is None):
            raise TaskIdsError("give either task_ids or task_weights, not both and not none of them.")
        if task_weights is not None:
            return TaskAssignment(weights=self._check_weights(task_weights), row_factors=row_factors)
        if isinstance(task_ids, Tensor):
            checked = self._check_ids(task_ids)
            return TaskAssignment(ids=checked, row_factors=row_factors, occurring=_occurring(checked))
        if isinstance(task_ids, (str, int)):
            return TaskAssignment(ids=torch.tensor(self.id_of(task_ids)), row_factors=row_factors)
        if isinstance(task_ids, Sequence):
            ids = [self.id_of(task) for task in task_ids]
            return TaskAssignment(ids=torch.tensor(ids, dtype=torch.long), row_factors=row_factors)
        raise TaskIdsError(
            f"task_ids must be a LongTensor, a task name or a list of names, got {type(task_ids).__name__}."
        )

    def _check_ids(self, ids: Tensor) -> Tensor:
        if ids.dtype not in (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8):
            raise TaskIdsError(f"task_ids must be an integer tensor, got dtype {ids.dtype}. Use `task_ids.long()`.")
        if ids.dim() > 2:
            raise TaskIdsError(
                f"task_ids must have shape (rows,) or (rows, sequence), got {tuple(ids.shape)}: {ids.dim()} dimensions."
            )
        ids = ids.long()
        # Compiled graphs cannot raise on tensor values; there the range is the caller's responsibility.
        if ids.numel() and ids.device.type != "meta" and not torch.compiler.is_compiling():
            low, high = (int(v) for v in torch.aminmax(ids))
            if low < 0 or high >= len(self):
                raise TaskIdsError(
                    f"task_ids must lie in 0 … {len(self) - 1} ({len(self)} tasks: {listing(self.names)}), "
                    f"got values from {low} to {high}."
                )
            if self._removed and bool(torch.isin(ids.cpu(), torch.tensor(self._removed)).any()):
                raise TaskIdsError(
                    f"the tasks with ids {listing(map(str, self._removed))} were removed; this adapter has: "
                    f"{listing(self.names)}."
                )
        return ids

    def _check_weights(self, weights: Tensor) -> Tensor:
        if not isinstance(weights, Tensor) or not weights.is_floating_point():
            raise TaskIdsError("task_weights must be a float tensor of shape (T,) or (rows, T).")
        if weights.dim() not in (1, 2) or weights.shape[-1] != len(self):
            raise TaskIdsError(
                f"task_weights must have shape ({len(self)},) or (rows, {len(self)}), got {tuple(weights.shape)}."
            )
        if self._removed and not torch.compiler.is_compiling() and bool(weights[..., self._removed].any()):
            raise TaskIdsError(
                f"task_weights must be 0 at ids {listing(map(str, self._removed))}, whose tasks were removed."
            )
        return weights


def _occurring(ids: Tensor) -> int | None:
    """Return how many tasks per-token ids name; None where values are not to be read, or are not needed."""
    if ids.dim() < 2 or ids.device.type == "meta" or torch.compiler.is_compiling():
        return None
    return len(torch.unique(ids))


class _Current(contextlib.AbstractContextManager[None]):
    """Makes assignments current while it is entered; unlike a generator's context it may be entered again."""

    def __init__(self, context: TaskContext, assignments: Mapping[str, TaskAssignment]) -> None:
        self._context = context
        self._assignments = assignments
        self._previous: list[Mapping[str, TaskAssignment]] = []

    def __enter__(self) -> None:
        self._previous.append(self._context.current)
        self._context.current = self._assignments

    def __exit__(self, *_: object) -> None:
        self._context.current = self._previous.pop()


class TaskContext:
    """The current task assignment of a model, shared by all its adapted layers.

    It is one object with one current assignment: threads that share a model must take turns.

    Attributes:
        tasks: adapter name → its :class:`TaskNames`.
        current: adapter name → the assignment of the running forward; empty outside one.
        merged: adapter name → the task whose update is merged into the base weights.
    """

    def __init__(self) -> None:
        self.tasks: dict[str, TaskNames] = {}
        self.current: Mapping[str, TaskAssignment] = {}
        self.merged: dict[str, TaskAssignment] = {}

    def use(self, assignments: Mapping[str, TaskAssignment]) -> contextlib.AbstractContextManager[None]:
        """Make `assignments` current inside the ``with`` block and restore what was there before."""
        return _Current(self, assignments)

    def assign(
        self,
        adapters: Sequence[str],
        task_ids: Tensor | str | int | Sequence[str] | Sequence[int] | None = None,
        task_weights: Tensor | None = None,
        row_factors: tuple[int, ...] = (1,),
    ) -> dict[str, TaskAssignment]:
        """Resolve what the user gave for each adapter of `adapters` by that adapter's own list of tasks."""
        assignments = {}
        for adapter in adapters:
            names = self.tasks[adapter]
            if not names.needs_ids and len(names) == 0:
                continue
            assignments[adapter] = names.assign(task_ids, task_weights, row_factors)
            self._check_merged(adapter, assignments[adapter])
        return assignments

    def _check_merged(self, adapter: str, asked: TaskAssignment) -> None:
        merged = self.merged.get(adapter)
        if merged is None or torch.compiler.is_compiling():
            return
        same_kind = (merged.ids is None) == (asked.ids is None)
        if not same_kind or not bool((asked.tensor.cpu() == merged.tensor.cpu()).all()):
            raise TaskIdsError(
                f"adapter '{adapter}' is merged into the base weights for one task, but other tasks were asked for. "
                "Call `model.unmerge_adapter()` first."
            )

    def lookup(self, adapter: str, x: Tensor, place: LayerPlace = _ANYWHERE) -> TaskAssignment | None:
        """Return the assignment of `adapter` for the input `x` of the layer at `place`; None where none is needed.

        Raises:
            TaskIdsError: if ids are needed and none are current.
        """
        names = self.tasks[adapter]
        assignment = self.current.get(adapter)
        if not names.needs_ids:
            return None
        if assignment is None:
            if len(names) == 1:
                return TaskAssignment(ids=torch.zeros((), dtype=torch.long, device=x.device))
            raise TaskIdsError(
                f"adapter '{adapter}' has {len(names)} tasks ({listing(names.names)}) and was run without task ids: "
                f"{HOW_TO_PASS_IDS}. (In the backward of a checkpointed forward: enable checkpointing on the PEFT "
                "model itself, or give torch.utils.checkpoint use_reentrant=False and the `context_fn` "
                "tasklora.context_of(model).checkpoint_contexts.)"
            )
        return assignment.for_input(x, place)

    def one_task(self, adapter: str) -> TaskAssignment:
        """Return the single task (or single mixture) that is current for all rows, as merging needs it.

        Raises:
            TaskIdsError: if none is current or the current one differs between rows.
        """
        names = self.tasks[adapter]
        assignment = self.current.get(adapter)
        if assignment is None and (len(names) == 1 or not names.needs_ids):
            return TaskAssignment(ids=torch.zeros((), dtype=torch.long))
        if assignment is None or assignment.rows is not None:
            raise TaskIdsError(
                f"merging adapter '{adapter}' needs one task: use `tasklora.merge_task(model, 'name')`, or "
                f"`with tasklora.use_tasks(model, 'name'): model.merge_adapter()`. Its tasks: {listing(names.names)}."
            )
        return assignment

    def checkpoint_contexts(
        self,
    ) -> tuple[contextlib.AbstractContextManager[None], contextlib.AbstractContextManager[None]]:
        """Return the pair of contexts that `torch.utils.checkpoint` wants from its ``context_fn``.

        On recomputation the layers must see the ids of *their* forward, also when two forwards ran before one
        backward, so the second context restores the assignment that is current now. Each backward pass through the
        same graph (``retain_graph=True``) recomputes anew and enters it again.
        """
        return contextlib.nullcontext(), self.use(self.current)


def with_row_factors(assignments: Mapping[str, TaskAssignment], factors: tuple[int, ...]) -> dict[str, TaskAssignment]:
    """Return `assignments` that accept rows repeated as often as one of `factors` says (beams, return sequences)."""
    return {name: replace(assignment, row_factors=factors, _cache={}) for name, assignment in assignments.items()}
