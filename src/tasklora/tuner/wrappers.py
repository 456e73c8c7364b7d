"""PEFT's model wrappers, taught to pass ``task_ids`` on.

PEFT's typed wrappers name ``task_ids`` in ``forward`` and drop it for every method but Poly; its untyped one hands it to
the base model. The subclasses here put the ids into the model's task context for the length of the call instead. They
stand in ``MODEL_TYPE_TO_PEFT_MODEL_MAPPING`` under PEFT's own task types, and build PEFT's own class for every
other method.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

from peft import MODEL_TYPE_TO_PEFT_MODEL_MAPPING, PeftModel
from torch import Tensor, nn

from tasklora.errors import UnsupportedError
from tasklora.tuner.configs import TaskLoraConfig
from tasklora.tuner.layer import TaskLoraLayer
from tasklora.tuner.model import context_of
from tasklora.tuner.peft_types import UNTYPED
from tasklora.updates import with_row_factor

TaskIds = Tensor | str | int | Sequence[str] | Sequence[int]


def active_adapters(model: nn.Module) -> list[str]:
    """Return the names of the active tasklora adapters of a model, in order."""
    for module in model.modules():
        if isinstance(module, TaskLoraLayer):
            return list(module.active_adapters)
    return []


@contextlib.contextmanager
def use_tasks(model: nn.Module, task_ids: TaskIds | None = None, *, task_weights: Tensor | None = None) -> Iterator[None]:
    """Run everything inside the ``with`` block under the given tasks; works for any call on any wrapper.

    Args:
        model: a model adapted by tasklora, wrapped in anything.
        task_ids: a task name or id for all rows, a list of names (one per row), or a LongTensor of shape (rows,) or
            (rows, sequence) for packed rows.
        task_weights: instead of ids, mixtures of tasks: a float tensor (T,) or (rows, T); ΔW = Σ_t α_t ΔW_t.

    Raises:
        TaskIdsError: on a wrong dtype, shape or range.
        UnknownTaskError: on an unknown task name.

    Example:
        >>> with tasklora.use_tasks(model, "rte"):          # doctest: +SKIP
        ...     logits = model(**batch).logits
    """
    context = context_of(model)
    with context.use(context.assign(active_adapters(model), task_ids, task_weights)):
        yield


class TakesTaskIds:
    """Mixin of the wrappers: ``task_ids=`` and ``task_weights=`` in ``forward`` and ``generate``."""

    def forward(
        self, *args: Any, task_ids: TaskIds | None = None, task_weights: Tensor | None = None, **kwargs: Any
    ) -> Any:
        """Run the model with the given tasks, or with those of an enclosing ``use_tasks``."""
        if task_ids is None and task_weights is None:
            return super().forward(*args, **kwargs)  # type: ignore[misc]
        with use_tasks(self, task_ids, task_weights=task_weights):  # type: ignore[arg-type]
            return super().forward(*args, **kwargs)  # type: ignore[misc]

    def generate(
        self, *args: Any, task_ids: TaskIds | None = None, task_weights: Tensor | None = None, **kwargs: Any
    ) -> Any:
        """Generate with the given tasks; ids are repeated for beams and return sequences as the rows are.

        Raises:
            UnsupportedError: for per-token ids, which have no meaning for tokens not yet generated.
        """
        context = context_of(self)  # type: ignore[arg-type]
        if task_ids is None and task_weights is None:
            assignments = dict(context.current)
        else:
            assignments = context.assign(active_adapters(self), task_ids, task_weights)  # type: ignore[arg-type]
        if any(assignment.per_token for assignment in assignments.values()):
            raise UnsupportedError("generate needs one task per row: per-token task_ids do not cover new tokens.")
        with context.use(with_row_factor(assignments, self._rows_per_prompt(kwargs))):
            return super().generate(*args, **kwargs)  # type: ignore[misc]

    def _rows_per_prompt(self, kwargs: dict[str, Any]) -> int:
        """Return how often ``generate`` repeats each row: beams, or else return sequences."""
        config = kwargs.get("generation_config") or getattr(self, "generation_config", None)

        def setting(name: str) -> int:
            return int(kwargs.get(name) or getattr(config, name, None) or 1)

        return max(setting("num_beams"), setting("num_return_sequences"))


class TaskPeftModel(TakesTaskIds, PeftModel):
    """PEFT's untyped model with task ids; what ``get_peft_model`` returns for a config without a task type."""


def _with_task_ids(wrapper: type[PeftModel]) -> type[PeftModel]:
    """Return a subclass of a typed PEFT wrapper that takes task ids for our methods and is `wrapper` for others."""

    def __new__(cls: type, model: nn.Module, peft_config: Any, *args: Any, **kwargs: Any) -> Any:
        if cls is task_wrapper and not isinstance(peft_config, TaskLoraConfig):
            return wrapper(model, peft_config, *args, **kwargs)
        return object.__new__(cls)

    # PEFT's Auto classes compare the wrappers by name, so the subclass keeps it.
    task_wrapper = type(
        wrapper.__name__, (TakesTaskIds, wrapper), {"__new__": __new__, "__module__": __name__, "__doc__": wrapper.__doc__}
    )
    return task_wrapper


def register_wrappers() -> None:
    """Put the wrappers that take task ids into PEFT's table of task types."""
    for task_type, wrapper in list(MODEL_TYPE_TO_PEFT_MODEL_MAPPING.items()):
        MODEL_TYPE_TO_PEFT_MODEL_MAPPING[task_type] = _with_task_ids(wrapper)
    MODEL_TYPE_TO_PEFT_MODEL_MAPPING[UNTYPED] = TaskPeftModel
