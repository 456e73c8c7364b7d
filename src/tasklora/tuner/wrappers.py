"""PEFT's model wrappers, taught to pass ``task_ids`` on.

PEFT's typed wrappers name ``task_ids`` in ``forward`` and drop it for every method but Poly; its untyped one hands it
to the base model. The subclasses here put the ids into the model's task context for the length of the call instead.
They stand in ``MODEL_TYPE_TO_PEFT_MODEL_MAPPING`` under PEFT's own task types, and build PEFT's own class for every
other method.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar

from peft import MODEL_TYPE_TO_PEFT_MODEL_MAPPING, PeftModel
from safetensors import SafetensorError
from torch import Tensor, nn

from tasklora.errors import CheckpointError, TaskIdsError, UnsupportedError
from tasklora.tuner.configs import TaskLoraConfig
from tasklora.tuner.layer import TaskLoraLayer
from tasklora.tuner.model import context_of
from tasklora.updates import with_row_factor

CARD_HEADING = "## Loading this adapter"
_PROMPTS = ("inputs", "input_ids", "inputs_embeds")

TaskIds = Tensor | str | int | Sequence[str] | Sequence[int]


def active_adapters(model: nn.Module) -> list[str]:
    """Return the names of the active tasklora adapters of a model, in order."""
    for module in model.modules():
        if isinstance(module, TaskLoraLayer):
            return list(module.active_adapters)
    return []


@contextlib.contextmanager
def use_tasks(
    model: nn.Module, task_ids: TaskIds | None = None, *, task_weights: Tensor | None = None
) -> Iterator[None]:
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
    """Mixin of the wrappers: ``task_ids=`` and ``task_weights=`` in ``forward`` and ``generate``.

    Attributes:
        peft_class: PEFT's own class, which is built instead for configs of other methods.
    """

    peft_class: ClassVar[type[PeftModel]]

    def __new__(cls, *args: Any, **kwargs: Any) -> Any:
        """Return an empty object of this class, or for a config that is not ours a model of PEFT's own class."""
        config = args[1] if len(args) > 1 else kwargs.get("peft_config")
        if config is not None and not isinstance(config, TaskLoraConfig):  # None: copy.deepcopy asks without one
            return cls.peft_class(*args, **kwargs)
        return super().__new__(cls)

    def load_adapter(self, model_id: Any, *args: Any, **kwargs: Any) -> Any:
        """Load an adapter as PEFT does.

        Raises:
            CheckpointError: if the file is damaged or does not fit this model.
        """
        try:
            return super().load_adapter(model_id, *args, **kwargs)  # type: ignore[misc]
        except SafetensorError as error:
            raise CheckpointError(
                f"the adapter weights in '{model_id}' cannot be read ({error}): the file is damaged or was cut off. "
                "Copy or download it again."
            ) from error

    def forward(
        self, *args: Any, task_ids: TaskIds | None = None, task_weights: Tensor | None = None, **kwargs: Any
    ) -> Any:
        """Run the model with the given tasks, or with those of an enclosing ``use_tasks``.

        Raises:
            TaskIdsError: if the ids cannot be used; see ``use_tasks``.
            UnsupportedError: for PEFT's ``adapter_names``; rows are told apart by tasks here.
        """
        _refuse_adapter_names(kwargs)
        if task_ids is None and task_weights is None:
            return super().forward(*args, **kwargs)  # type: ignore[misc]
        with use_tasks(self, task_ids, task_weights=task_weights):  # type: ignore[arg-type]
            return super().forward(*args, **kwargs)  # type: ignore[misc]

    def generate(
        self, *args: Any, task_ids: TaskIds | None = None, task_weights: Tensor | None = None, **kwargs: Any
    ) -> Any:
        """Generate with the given tasks; ids are repeated for beams and return sequences as the rows are.

        Raises:
            UnsupportedError: for per-token ids, which have no meaning for tokens not yet generated; and for PEFT's
                ``adapter_names``.
            TaskIdsError: if the ids do not describe the prompts, one each (also when they would fit the beams' rows).
        """
        _refuse_adapter_names(kwargs)
        context = context_of(self)  # type: ignore[arg-type]
        if task_ids is None and task_weights is None:
            assignments = dict(context.current)
        else:
            assignments = context.assign(active_adapters(self), task_ids, task_weights)  # type: ignore[arg-type]
        if any(assignment.per_token for assignment in assignments.values()):
            raise UnsupportedError("generate needs one task per row: per-token task_ids do not cover new tokens.")
        prompts = next((x for x in (*args[:1], *map(kwargs.get, _PROMPTS)) if isinstance(x, Tensor)), None)
        for assignment in assignments.values():
            if prompts is not None and assignment.rows not in (None, prompts.shape[0]):
                raise TaskIdsError(
                    f"generate got {prompts.shape[0]} prompts but task_ids describe {assignment.rows} rows. Give one "
                    "task per prompt; they are repeated for beams and return sequences here."
                )
        with context.use(with_row_factor(assignments, self._rows_per_prompt(kwargs))):
            return super().generate(*args, **kwargs)  # type: ignore[misc]

    def _rows_per_prompt(self, kwargs: dict[str, Any]) -> int:
        """Return how often ``generate`` repeats each row: beams, or else return sequences."""
        # As transformers does: an option, else the config passed, else the model's own for what that leaves open.
        configs = (kwargs.get("generation_config"), getattr(self, "generation_config", None))

        def setting(name: str) -> int:
            values = (kwargs.get(name), *(getattr(config, name, None) for config in configs))
            return next((int(value) for value in values if value is not None), 1)

        return max(setting("num_beams"), setting("num_return_sequences"))

    def create_or_update_model_card(self, output_dir: str) -> None:
        """Write PEFT's model card, and into it what a reader must know: tasks, what to install, how to load."""
        super().create_or_update_model_card(output_dir)  # type: ignore[misc]
        path = Path(output_dir) / "README.md"
        text = path.read_text(encoding="utf-8")
        if CARD_HEADING not in text:
            config = self.active_peft_config  # type: ignore[attr-defined]
            path.write_text(f"{text.rstrip()}\n\n{_card_section(config)}", encoding="utf-8")


def _card_section(config: TaskLoraConfig) -> str:
    base, tasks = config.base_model_name_or_path or "BASE", config.tasks
    task_ids = f", task_ids={tasks[:2]!r}" if tasks else ""
    return f"""{CARD_HEADING}

A {config.peft_type.value} adapter of tasklora, a PEFT extension for multi-task low-rank adaptation, for the tasks
{", ".join(f"`{name}`" for name in tasks) or "(none)"}. PEFT knows the method once tasklora is installed and imported:

```python
import tasklora
from peft import PeftModel

model = PeftModel.from_pretrained(base_model, "THIS_DIRECTORY")    # base_model: {base}
output = model(**batch{task_ids})                                  # one task for each row
```
"""


def _refuse_adapter_names(kwargs: dict[str, Any]) -> None:
    if kwargs.get("adapter_names") is not None:
        raise UnsupportedError(
            "adapter_names is for PEFT's LoRA; rows of several tasks go through one adapter here: pass task_ids."
        )


class TaskPeftModel(TakesTaskIds, PeftModel):
    """PEFT's untyped model with task ids; what ``get_peft_model`` returns for a config without a task type."""

    peft_class = PeftModel


def _with_task_ids(wrapper: type[PeftModel]) -> type[PeftModel]:
    """Return a subclass of a typed PEFT wrapper that takes task ids; PEFT's Auto classes expect the same name."""
    namespace = {"peft_class": wrapper, "__module__": __name__, "__doc__": wrapper.__doc__}
    return type(wrapper.__name__, (TakesTaskIds, wrapper), namespace)


def register_wrappers() -> None:
    """Put the wrappers that take task ids into PEFT's table of task types; None is that of a config without one."""
    for task_type, wrapper in list(MODEL_TYPE_TO_PEFT_MODEL_MAPPING.items()):
        MODEL_TYPE_TO_PEFT_MODEL_MAPPING[task_type] = _with_task_ids(wrapper)
    MODEL_TYPE_TO_PEFT_MODEL_MAPPING[None] = TaskPeftModel
