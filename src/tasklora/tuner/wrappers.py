"""PEFT's model wrappers, taught to pass ``task_ids`` on.

PEFT's typed wrappers name ``task_ids`` in ``forward`` and drop it for every method but Poly; its untyped one hands it
to the base model. The subclasses here put the ids into the model's task context for the length of the call instead.
They stand in ``MODEL_TYPE_TO_PEFT_MODEL_MAPPING`` under PEFT's own task types, and build PEFT's own class for every
other method.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields
from typing import Any, ClassVar

from peft import MODEL_TYPE_TO_PEFT_MODEL_MAPPING, PeftConfig, PeftModel
from safetensors import SafetensorError
from torch import Tensor, nn

from tasklora.errors import CheckpointError, TaskIdsError, TaskLoraError, UnknownTaskError, UnsupportedError, listing
from tasklora.tuner.card import CardScores, read_tags, update_card
from tasklora.tuner.checkpointing import recompute_under_tasks
from tasklora.tuner.configs import TaskLoraConfig
from tasklora.tuner.layer import TaskLoraLayer
from tasklora.tuner.model import context_of
from tasklora.tuner.row_factors import generation_factors
from tasklora.tuner.sharding import check_not_sharded
from tasklora.tuner.task_lists import freeze_all_but_new_tasks
from tasklora.updates import TaskAssignment, with_row_factors

_PROMPTS = ("inputs", "input_ids", "inputs_embeds", "input_features")

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
        TaskIdsError: on a wrong dtype, shape or range; on numbers for several active adapters with different tasks.
        UnknownTaskError: on an unknown task name.

    Example:
        >>> with tasklora.use_tasks(model, "rte"):          # doctest: +SKIP
        ...     logits = model(**batch).logits
    """
    context = context_of(model)
    with context.use(_assign(model, task_ids, task_weights)):
        yield


def _assign(model: nn.Module, task_ids: TaskIds | None, task_weights: Tensor | None) -> dict[str, TaskAssignment]:
    """Return what the user gave as an assignment for each active adapter, each by its own list of tasks."""
    context, adapters = context_of(model), active_adapters(model)
    if len(adapters) < 2:
        return context.assign(adapters, task_ids, task_weights)
    lists = {name: context.tasks[name].names for name in adapters if context.tasks[name].needs_ids}
    by_name = isinstance(task_ids, str) or (
        isinstance(task_ids, Sequence) and all(isinstance(task, str) for task in task_ids)
    )
    if len(set(lists.values())) > 1 and not by_name:
        details = "; ".join(f"'{name}': {listing(filter(None, tasks))}" for name, tasks in lists.items())
        raise TaskIdsError(
            f"the active adapters have different tasks ({details}), so numbers mean other tasks to each of them. Pass "
            "task names, or make one adapter active (set_adapter)."
        )
    assignments: dict[str, TaskAssignment] = {}
    for name in adapters:
        try:
            assignments |= context.assign([name], task_ids, task_weights)
        except UnknownTaskError as error:
            raise UnknownTaskError(f"active adapter '{name}': {error}") from None
    return assignments


class TakesTaskIds:
    """Mixin of the wrappers: ``task_ids=`` and ``task_weights=`` in ``forward`` and ``generate``.

    Attributes:
        peft_class: PEFT's own class, which is built instead for configs of other methods.
        task_scores: what the model card says of scores; see :func:`note_scores`.
    """

    peft_class: ClassVar[type[PeftModel]]
    task_scores: CardScores | None = None

    def __new__(cls, *args: Any, **kwargs: Any) -> Any:
        """Return an empty object of this class, or for a config that is not ours a model of PEFT's own class."""
        config = args[1] if len(args) > 1 else kwargs.get("peft_config")
        if config is not None and not isinstance(config, TaskLoraConfig):  # None: copy.deepcopy asks without one
            return cls.peft_class(*args, **kwargs)
        return super().__new__(cls)

    def add_adapter(self, adapter_name: str, *args: Any, **kwargs: Any) -> None:
        """Add an adapter as PEFT does; one that cannot be added leaves nothing behind."""
        with self._nothing_left_of(adapter_name):
            super().add_adapter(adapter_name, *args, **kwargs)  # type: ignore[misc]

    def load_adapter(self, model_id: Any, adapter_name: str, *args: Any, **kwargs: Any) -> Any:
        """Load an adapter as PEFT does; one that cannot be loaded leaves nothing behind.

        Under the name of an adapter that is there, its numbers are replaced in place (compiled code stays valid), if
        the two are of one make: method, tasks and their order, options.

        Raises:
            CheckpointError: if the file is damaged or does not fit this model, or the name is taken by an adapter of
                another make.
            UnsupportedError: if the adapter of that name is merged into the base weights.
        """
        if adapter_name in self.peft_config:  # type: ignore[attr-defined]
            self._check_same_make(model_id, adapter_name, kwargs)
        with self._nothing_left_of(adapter_name):
            try:
                loaded = super().load_adapter(model_id, adapter_name, *args, **kwargs)  # type: ignore[misc]
            except SafetensorError as error:
                raise CheckpointError(
                    f"the adapter weights in '{model_id}' cannot be read ({error}): the file is damaged or was cut "
                    "off. Copy or download it again."
                ) from error
        freeze_all_but_new_tasks(self)  # type: ignore[arg-type]
        return loaded

    def set_adapter(self, *args: Any, **kwargs: Any) -> None:
        """Activate an adapter as PEFT does; where tasks were added, only what is their own becomes trainable."""
        super().set_adapter(*args, **kwargs)  # type: ignore[misc]
        freeze_all_but_new_tasks(self)  # type: ignore[arg-type]

    def save_pretrained(self, save_directory: str, *args: Any, **kwargs: Any) -> None:
        """Save the adapter as PEFT does.

        Raises:
            UnsupportedError: if the parameters are sharded and no gathered `state_dict` is given.
        """
        if kwargs.get("state_dict") is None:
            check_not_sharded(self, "saving")  # type: ignore[arg-type]
        super().save_pretrained(save_directory, *args, **kwargs)  # type: ignore[misc]

    @contextlib.contextmanager
    def _nothing_left_of(self, adapter: str) -> Iterator[None]:
        """Remove an adapter that was not there before if the ``with`` block fails."""
        configs: dict[str, PeftConfig] = self.peft_config  # type: ignore[attr-defined]
        known = adapter in configs
        try:
            yield
        except Exception:
            if not known:
                configs.setdefault(adapter, self.active_peft_config)  # type: ignore[attr-defined]  # delete asks for one
                self.base_model.delete_adapter(adapter)  # type: ignore[attr-defined]
            raise

    def _check_same_make(self, model_id: Any, adapter: str, kwargs: dict[str, Any]) -> None:
        """Raise if the adapter in `model_id` cannot replace the one of that name: PEFT would keep the old config."""
        if adapter in context_of(self).merged:  # type: ignore[arg-type]
            raise UnsupportedError(
                f"adapter '{adapter}' is merged into the base weights, which would keep its old numbers: call "
                "`model.unmerge_adapter()` before loading into it."
            )
        try:
            given = PeftConfig.from_pretrained(model_id, **self._split_kwargs(dict(kwargs))[0])  # type: ignore[attr-defined]
        except TaskLoraError:
            raise
        except (ValueError, OSError):  # weights without a config: their shapes are all there is to check
            return
        have = self.peft_config[adapter]  # type: ignore[attr-defined]
        differences = _differences(have, given)
        if differences:
            raise CheckpointError(
                f"the adapter in '{model_id}' is not of the make of adapter '{adapter}', which is there already: "
                f"{listing(differences, 4)}. Load it under another name, or delete_adapter('{adapter}') first."
            )

    def add_weighted_adapter(self, *_: Any, **__: Any) -> None:
        """Refuse PEFT's way to mix LoRA adapters.

        Raises:
            UnsupportedError: always.
        """
        raise UnsupportedError(
            "add_weighted_adapter mixes PEFT's LoRA adapters; here tasks of one adapter are mixed: pass "
            "`task_weights=` to the model, or tasklora.export_lora(model, task_weights=…, directory=…) for a plain "
            "LoRA of the mixture."
        )

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
            assignments = _assign(self, task_ids, task_weights)  # type: ignore[arg-type]
        if any(assignment.per_token for assignment in assignments.values()):
            raise UnsupportedError("generate needs one task per row: per-token task_ids do not cover new tokens.")
        prompts = next((x for x in (*args[:1], *map(kwargs.get, _PROMPTS)) if isinstance(x, Tensor)), None)
        for assignment in assignments.values():
            if prompts is not None and assignment.rows not in (None, prompts.shape[0]):
                raise TaskIdsError(
                    f"generate got {prompts.shape[0]} prompts but task_ids describe {assignment.rows} rows. Give one "
                    "task per prompt; they are repeated for beams and return sequences here."
                )
        with context.use(with_row_factors(assignments, self._row_factors(kwargs))):
            return super().generate(*args, **kwargs)  # type: ignore[misc]

    def activation_checkpointing_enable(
        self, activation_checkpointing_kwargs: dict[str, Any] | None = None, **options: Any
    ) -> None:
        """Checkpoint activations as transformers does, each recomputation under the ids of its own forward.

        Its ``Trainer`` and TRL's trainers call this for ``gradient_checkpointing=True``. Both kinds work; without
        ``use_reentrant`` it is the one without re-entrance.
        """
        self._checkpoint("activation_checkpointing_enable", activation_checkpointing_kwargs, options)

    def gradient_checkpointing_enable(
        self, gradient_checkpointing_kwargs: dict[str, Any] | None = None, **options: Any
    ) -> None:
        """Do what :meth:`activation_checkpointing_enable` does; transformers' older name for it."""
        self._checkpoint("gradient_checkpointing_enable", gradient_checkpointing_kwargs, options)

    def _checkpoint(self, enable: str, kwargs: dict[str, Any] | None, options: dict[str, Any]) -> None:
        base = self.get_base_model()  # type: ignore[attr-defined]
        kwargs = {"use_reentrant": False, **(kwargs or {})}
        # Older releases of transformers have the older name alone.
        getattr(base, enable if hasattr(base, enable) else "gradient_checkpointing_enable")(kwargs, **options)
        recompute_under_tasks(base, context_of(self))  # type: ignore[arg-type]

    def _row_factors(self, kwargs: dict[str, Any]) -> tuple[int, ...]:
        """Return how often ``generate`` may repeat a prompt's row in a layer."""
        # As transformers does: an option, else the config passed, else the model's own for what that leaves open.
        configs = (kwargs.get("generation_config"), getattr(self, "generation_config", None))

        def setting(name: str) -> int:
            values = (kwargs.get(name), *(getattr(config, name, None) for config in configs))
            return next((int(value) for value in values if value is not None), 1)

        base = self.get_base_model()  # type: ignore[attr-defined]
        return generation_factors(base, setting("num_beams"), setting("num_return_sequences"))

    def create_or_update_model_card(self, output_dir: str) -> None:
        """Write PEFT's model card, and into it what a reader must know: tasks, scores, what to install, how to load."""
        tags = read_tags(output_dir)  # PEFT writes its own in place of those that are there
        super().create_or_update_model_card(output_dir)  # type: ignore[misc]
        update_card(output_dir, self.active_peft_config, tags, self.task_scores)  # type: ignore[attr-defined]

    def _upload_modified_files(self, working_dir: Any, *args: Any, **kwargs: Any) -> Any:
        """Upload as transformers' ``push_to_hub`` does, which has put a general card in place of the adapter's."""
        self.create_or_update_model_card(str(working_dir))
        return super()._upload_modified_files(working_dir, *args, **kwargs)  # type: ignore[misc]


def note_scores(model: Any, scores: Mapping[str, Mapping[str, float | None]], split: str) -> None:
    """Note the scores of an adapter's tasks; its model card shows them from the next save or push on.

    Args:
        model: a PEFT model of this family.
        scores: task → metric → value, None where it is undefined.
        split: what was scored, e.g. "validation".

    Raises:
        UnsupportedError: if the model is none of this family.
        UnknownTaskError: if the active adapter has no such task.

    Example:
        >>> note_scores(model, {"rte": {"accuracy": 0.71}}, "validation")        # doctest: +SKIP
        >>> model.push_to_hub("me/my-adapter")                                   # doctest: +SKIP
    """
    if not isinstance(model, TakesTaskIds):
        raise UnsupportedError(f"scores are noted on a PEFT model of tasklora, not on {type(model).__name__}.")
    noted = CardScores(split, {task: dict(metrics) for task, metrics in scores.items()})
    noted.check(model.active_peft_config.task_names)  # type: ignore[attr-defined]
    model.task_scores = noted


# What two adapters of one make may differ in: what is adapted shows in the names of the tensors, dropout in no number.
_MAY_DIFFER = {"target_modules", "exclude_modules", "modules_to_save", "lora_dropout", "version"}


def _differences(have: PeftConfig, given: PeftConfig) -> list[str]:
    """Return in what two adapters differ apart from their numbers, as 'name: the one there, the one given'."""
    if type(have) is not type(given):
        return [f"method: {have.peft_type.value} there, {given.peft_type.value} given"]
    shared = {field.name for field in fields(PeftConfig)} | _MAY_DIFFER
    names = [field.name for field in fields(have) if field.name not in shared]
    return [
        f"{name}: {getattr(have, name)} there, {getattr(given, name)} given"
        for name in names
        if getattr(have, name) != getattr(given, name)
    ]


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
