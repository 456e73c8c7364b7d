"""A recipe made ready to train: a fresh adapter on its base, or a trained model that gets new tasks."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from transformers import set_seed

from tasklora.errors import ConfigError, listing
from tasklora.tasks import (
    BaseModel,
    SavedModel,
    TaskModel,
    TextToText,
    load_base,
    load_model,
    load_skeleton,
    training_method,
)
from tasklora.training.directory import RunDirectory
from tasklora.training.recipe import Recipe
from tasklora.tuner import add_tasks, find_context, list_tasks, method_of


@dataclass(frozen=True)
class Prepared:
    """A recipe made ready: model, base and what they are."""

    model: TaskModel
    about: SavedModel
    base: BaseModel


def prepare(recipe: Recipe, base: BaseModel | None = None) -> Prepared:
    """Build the adapted model of a recipe, seeded.

    Args:
        recipe: the recipe.
        base: a base that is loaded already (it is taken over); None loads the recipe's.

    Raises:
        CheckpointError: if the base cannot be loaded.
        ConfigError: if the method or its options cannot be used on it.
    """
    method = training_method(recipe.method.name)
    if method.encoder == "full" and recipe.training.selection == "per_task":
        raise ConfigError(
            f"training.selection: per_task keeps a model for every step that some task chose, and '{method.name}' "
            "trains the whole encoder, which each of them would hold. Take selection: average, or train an adapter."
        )
    if method.encoder == "frozen" and not recipe.view().trains_heads:
        raise ConfigError(
            f"method '{method.name}' trains heads alone, and model.view: {recipe.model.view} has none: nothing would "
            "be trained. Take an adapter."
        )
    if recipe.extends is not None:
        return extend(recipe)
    specs = recipe.task_specs()
    method.check(recipe.method.options)
    section = recipe.model
    view = recipe.view()
    config_model = base or load_base(
        section.name, section.revision, section.dtype, section.trust_remote_code, view.architecture
    )
    about = SavedModel(
        encoder=method.encoder,
        base=section.name,
        revision=section.revision,
        dtype=section.dtype,
        trust_remote_code=section.trust_remote_code,
        fingerprint=config_model.fingerprint,
        hidden_size=config_model.hidden_size,
        pooling=section.pooling,
        max_length=section.max_length,
        head_dropout=section.head_dropout,
        tasks=specs,
        pair_encodings=recipe.pair_encodings(),
        view=section.view,
        text_to_text=recipe.text_to_text(),
    )
    set_seed(recipe.training.seed)
    encoder = method.adapt(config_model.model, list(specs), recipe.method.options, view.task_type)
    return Prepared(about.model_around(encoder), about, config_model)


def skeleton(recipe: Recipe) -> TaskModel:
    """Return a recipe's model without weights, but those of a run that it extends."""
    if recipe.extends is not None:
        return extend(recipe).model
    section = recipe.model
    base = load_skeleton(section.name, section.revision, section.trust_remote_code, recipe.view().architecture)
    with torch.device("meta"):
        return prepare(recipe, base).model


def extend(recipe: Recipe) -> Prepared:
    """Add a recipe's tasks to the trained model of the run that it extends; only what is their own is trained.

    That is what the method has per task (:func:`tasklora.add_tasks`) and the new heads; where a method has nothing per
    task, the new heads alone. Everything else is frozen, so the run's own tasks keep their numbers bit by bit.

    Raises:
        CheckpointError: if there is no such run, or it is damaged.
        ConfigError: if a task is there already, or the recipe's model or method are not the run's.
    """
    assert recipe.extends is not None
    run = RunDirectory(recipe.extends)
    trained = run.recipe()
    if not isinstance(trained, Recipe):
        raise ConfigError(
            f"{run.path} is a run on images, which cannot be extended by tasks: train all its tasks in one run."
        )
    specs = recipe.task_specs()
    _check_same_make(recipe, trained)
    model, about, base = load_model(run.best, trust_remote_code=recipe.model.trust_remote_code)
    taken = [name for name in specs if name in about.tasks]
    if taken:
        raise ConfigError(
            f"{run.path} has the tasks {listing(taken)} already. Name the new ones alone, in tasks.include; trained "
            "tasks stay as they are."
        )
    set_seed(recipe.training.seed)
    encoder = model.encoder
    if find_context(encoder) is not None:
        has_own = method_of(encoder.active_peft_config).update_cls.uses_task_ids
        (add_tasks if has_own else list_tasks)(encoder, list(specs))
    else:
        encoder.requires_grad_(False)
    both = about.model_copy(
        update={
            "tasks": {**about.tasks, **specs},
            "pair_encodings": {**about.pair_encodings, **recipe.pair_encodings()},
            "text_to_text": _both(about.text_to_text, recipe.text_to_text()),
        }
    )
    extended = both.model_around(encoder)
    for name in model.heads:
        extended.heads[name].load_state_dict(model.heads[name].state_dict())
        extended.heads[name].requires_grad_(False)
    return Prepared(extended, both, base)


def _both(trained: TextToText | None, added: TextToText | None) -> TextToText | None:
    """Return how the tasks of a run and those added to it are written."""
    if trained is None or added is None:
        return added
    return added.model_copy(update={"templates": {**trained.templates, **added.templates}})


def _check_same_make(recipe: Recipe, trained: Recipe) -> None:
    """Raise ConfigError if a recipe's model or method are not those of the run that it extends."""
    given, there = recipe.model.model_dump(), trained.model.model_dump()
    kept = set(given) - {"pair_encoding", "trust_remote_code"}  # these are a task's own, and the user's
    changed = [
        f"model.{key}: {given[key]!r}, the run's is {there[key]!r}" for key in sorted(kept) if given[key] != there[key]
    ]
    given, there = recipe.method.model_dump(), trained.method.model_dump()
    changed += [
        f"method.{key}: {value!r}, the run's is {there.get(key, 'its default')!r}"
        for key, value in given.items()
        if there.get(key) != value
    ]
    if changed:
        raise ConfigError(
            f"{recipe.extends} cannot be extended by this recipe: {'; '.join(changed)}. Its model and method are "
            "trained already: give the same ones."
        )
