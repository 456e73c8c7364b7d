"""The tasks of an adapter that is there already: add, remove, rename.

Ids are stable: a new task takes the next id, a removed one leaves its id unused (``None`` in the config's list), and a
new name keeps the id of the old one. What belongs to the other tasks does not change by a bit.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from peft.utils.other import ModulesToSaveWrapper
from torch import nn

from tasklora.errors import ConfigError, UnknownTaskError, UnsupportedError, did_you_mean, listing
from tasklora.tuner.configs import TaskLoraConfig, check_task_names
from tasklora.tuner.layer import TaskLoraLayer
from tasklora.tuner.model import context_of
from tasklora.tuner.registry import method_of
from tasklora.updates import LowRankUpdate, TaskNames


def add_tasks(
    model: nn.Module, tasks: Sequence[str], *, like: Mapping[str, str] | None = None, adapter: str | None = None
) -> None:
    """Add tasks to a trained adapter, so that only what is their own is trained from now on.

    Every per-task parameter gets a second table for the new tasks; the first one, all shared parameters and modules
    trained in full with the adapter are frozen, also after saving and loading. Tasks added before are frozen too.

    Args:
        model: a PEFT model with an adapter of this family.
        tasks: names of the new tasks; they take the next ids.
        like: new task → the task it begins as a copy of; others begin as the method's tasks do.
        adapter: the adapter's name, where several are active.

    Raises:
        ConfigError: on a name that is taken or cannot be one.
        UnknownTaskError: if `like` names a task that the adapter does not have.
        UnsupportedError: if the method has nothing of a task's own, or the adapter is merged.

    Example:
        >>> model = PeftModel.from_pretrained(base, "glue-adapter", is_trainable=True)   # doctest: +SKIP
        >>> tasklora.add_tasks(model, ["wnli"], like={"wnli": "rte"})                    # doctest: +SKIP
    """
    name, config, updates = _adapter(model, adapter)
    method = method_of(config)
    if not method.update_cls.uses_task_ids:
        raise UnsupportedError(
            f"{method.title} has nothing of a task's own: its ΔW is the same for every task, so nothing could be "
            "trained for a new one. Train it on all tasks anew, or take a method that uses task ids."
        )
    taken = [task for task in tasks if task in config.tasks]
    if taken or not tasks:
        raise ConfigError(f"no new task to add: {listing(taken) or '(none given)'}. The adapter has: {_names(config)}.")
    extended = check_task_names([*config.tasks, *tasks])
    ids = TaskNames(extended, needs_ids=True)
    copies = [(ids.id_of(task), TaskNames(config.tasks, True).id_of(source)) for task, source in (like or {}).items()]
    if any(target < len(config.tasks) for target, _ in copies):
        raise ConfigError(f"`like` says what new tasks begin as; its keys must be among {listing(tasks)}.")
    for update in updates:
        update.add_tasks(len(tasks))
        for target, source in copies:
            update.copy_task(source, target)
    config.tasks, config.new_tasks, config.inference_mode = extended, len(tasks), False
    context_of(model).tasks[name] = ids
    freeze_all_but_new_tasks(model)


def list_tasks(model: nn.Module, tasks: Sequence[str]) -> None:
    """Append names to the list of an adapter whose method has nothing of a task's own, and freeze it.

    Its ΔW serves them as it serves the others; what a new task has of its own, a head, is the caller's.
    """
    name, config, updates = _adapter(model, None)
    config.tasks = check_task_names([*config.tasks, *tasks])
    context_of(model).tasks[name] = TaskNames(config.tasks, needs_ids=False)
    for update in updates:
        update.requires_grad_(False)


def join_tasks(model: nn.Module, *, adapter: str | None = None) -> None:
    """Make added tasks ordinary ones: one table for all tasks again, bit by bit, and everything is trained again.

    Args:
        model: a PEFT model with an adapter of this family.
        adapter: the adapter's name, where several are active.
    """
    name, config, updates = _adapter(model, adapter)
    config.new_tasks = 0
    for update in updates:
        update.join_tables()
    for module in [*updates, *_saved_modules(model, name)]:
        module.requires_grad_(not config.inference_mode)


def remove_tasks(model: nn.Module, tasks: Sequence[str], *, adapter: str | None = None) -> None:
    """Remove tasks: what belongs to them is overwritten with zeros, their names are gone, and their ids stay unused.

    Args:
        model: a PEFT model with an adapter of this family.
        tasks: names of the tasks.
        adapter: the adapter's name, where several are active.

    Raises:
        UnknownTaskError: if the adapter does not have one of them.
        ConfigError: if none would be left.
    """
    name, config, updates = _adapter(model, adapter)
    ids = [_id_of(config, task) for task in tasks]
    left = [None if position in ids else task for position, task in enumerate(config.tasks)]
    if not any(left):
        raise ConfigError(f"no task would be left of {_names(config)}: delete the adapter instead.")
    for update in updates:
        for task_id in ids:
            update.clear_task(task_id)
    config.tasks = left
    context_of(model).tasks[name] = TaskNames(left, method_of(config).update_cls.uses_task_ids)


def rename_tasks(model: nn.Module, names: Mapping[str, str], *, adapter: str | None = None) -> None:
    """Rename tasks; ids and numbers stay as they are.

    Args:
        model: a PEFT model with an adapter of this family.
        names: old name → new name.
        adapter: the adapter's name, where several are active.

    Raises:
        UnknownTaskError: if the adapter does not have one of the old names.
        ConfigError: if a new name is taken or cannot be one.
    """
    name, config, _ = _adapter(model, adapter)
    for old in names:
        _id_of(config, old)
    renamed = check_task_names([task if task is None else names.get(task, task) for task in config.tasks])
    config.tasks = renamed
    context_of(model).tasks[name] = TaskNames(renamed, method_of(config).update_cls.uses_task_ids)


def freeze_all_but_new_tasks(model: nn.Module) -> None:
    """Freeze what a training of added tasks must not change; nothing where no task was added.

    PEFT makes an adapter trainable as a whole whenever it is activated, so this is done again after each time.
    """
    for module in model.modules():
        if isinstance(module, TaskLoraLayer):
            module.freeze_all_but_new_tasks()
    for adapter, config in getattr(model, "peft_config", {}).items():
        if getattr(config, "new_tasks", 0):
            for saved in _saved_modules(model, adapter):
                saved.requires_grad_(False)


def _saved_modules(model: nn.Module, adapter: str) -> list[nn.Module]:
    """Return the modules that are trained in full with an adapter."""
    wrappers = [module for module in model.modules() if isinstance(module, ModulesToSaveWrapper)]
    return [wrapper.modules_to_save[adapter] for wrapper in wrappers if adapter in wrapper.modules_to_save]


def _adapter(model: nn.Module, adapter: str | None) -> tuple[str, TaskLoraConfig, list[LowRankUpdate]]:
    """Return the name, config and updates of the adapter that is meant.

    Raises:
        UnsupportedError: if that is not one adapter of this family, or it is merged.
    """
    context = context_of(model)
    layers = [module for module in model.modules() if isinstance(module, TaskLoraLayer)]
    active = list(layers[0].active_adapters)
    name = adapter or active[0]
    if adapter is None and len(active) != 1:
        raise UnsupportedError(f"{len(active)} adapters are active ({listing(active)}): say which one, adapter=….")
    updates = [layer.task_updates[name] for layer in layers if name in layer.task_updates]
    config = getattr(model, "peft_config", {}).get(name)
    if not isinstance(config, TaskLoraConfig) or not updates:
        raise UnsupportedError(
            f"there is no tasklora adapter '{name}' in this model; it has: {listing(context.tasks)}."
        )
    if context.merged:
        raise UnsupportedError("the adapter is merged into the base weights; call model.unmerge_adapter() first.")
    return name, config, [update for update in updates if isinstance(update, LowRankUpdate)]


def _id_of(config: TaskLoraConfig, task: str) -> int:
    if task is None or task not in config.tasks:
        raise UnknownTaskError(
            f"unknown task '{task}'.{did_you_mean(task, filter(None, config.tasks))} The adapter has: {_names(config)}."
        )
    return config.tasks.index(task)


def _names(config: TaskLoraConfig) -> str:
    return listing(task for task in config.tasks if task is not None)
