"""Reading recipes: one YAML file that says everything about a run, of either shape.

``shape: dense`` at the top makes it a :class:`~tasklora.training.dense_recipe.DenseRecipe` (every image has all tasks);
without it, it is a :class:`~tasklora.training.recipe.Recipe` (every row has one task).
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, TypeAlias, TypeVar

import pydantic
import yaml

from tasklora.errors import ConfigError, did_you_mean
from tasklora.tasks import load_yaml, parse, read_yaml, shipped_suites
from tasklora.training.dense_recipe import DenseRecipe
from tasklora.training.recipe import Recipe

SHAPES: dict[str, type[Recipe] | type[DenseRecipe]] = {"text": Recipe, "dense": DenseRecipe}


def _shape_of(data: Any) -> str:
    shape = data.get("shape", "text") if isinstance(data, dict) else data.shape
    return shape if isinstance(shape, str) else ""


AnyRecipe: TypeAlias = Annotated[
    Annotated[Recipe, pydantic.Tag("text")] | Annotated[DenseRecipe, pydantic.Tag("dense")],
    pydantic.Discriminator(_shape_of),
]
"""A recipe of either shape, as a field of a record."""

Kind = TypeVar("Kind", bound=Recipe | DenseRecipe)


def load_recipe(path: str | Path, overrides: list[str] | None = None) -> Recipe | DenseRecipe:
    """Load and check a recipe.

    Args:
        path: the YAML file.
        overrides: ``section.key=value`` pairs, the values in YAML.

    Raises:
        DataError: if there is no such file.
        ConfigError: on an unknown key (with the nearest valid one), one that is given twice, a value of the wrong
            kind, or a suite of the other shape.
    """
    path = Path(path)
    data = read_yaml(path)
    for override in (overrides or []) if isinstance(data, dict) else []:  # what is no mapping is refused below
        _apply(data, override)
    recipe = parse_recipe(data, str(path))
    recipe.task_specs()
    return recipe


def parse_recipe(data: Any, where: str) -> Recipe | DenseRecipe:
    """Return what was read as a recipe of the shape that it says.

    Args:
        data: what was read.
        where: what to call the source in an error message.

    Raises:
        ConfigError: as :func:`load_recipe`.
    """
    if not isinstance(data, dict):
        return parse(Recipe, data, where)  # says that it is no mapping
    shape = data.get("shape", "text")
    if not isinstance(shape, str) or shape not in SHAPES:
        raise ConfigError(
            f"{where}: unknown shape {shape!r}.{did_you_mean(str(shape), SHAPES)} It is 'text' (every row has one "
            "task; what is meant if nothing is said) or 'dense' (every image has all tasks)."
        )
    _check_suite(data, shape, where)
    return parse(SHAPES[shape], data, where)


def changed(recipe: Kind, settings: Mapping[str, Any]) -> Kind:
    """Return the recipe with other values at some keys.

    Args:
        recipe: the recipe; it stays as it is.
        settings: ``section.key`` → value.

    Raises:
        ConfigError: on an unknown key or a value of the wrong kind.
    """
    data = recipe.model_dump(mode="json")
    for key, value in settings.items():
        _put(data, key, value)
    said = ", ".join(f"{key}={value}" for key, value in settings.items())
    return parse(type(recipe), data, f"the recipe with {said}")


def _check_suite(data: dict[str, Any], shape: str, where: str) -> None:
    """Raise ConfigError if a recipe's suite is of the other shape, which explains its unknown keys better."""
    tasks = data.get("tasks")
    reference = tasks.get("suite") if isinstance(tasks, dict) else None
    of_suite = _shape_of_suite(reference) if isinstance(reference, str) else None
    if of_suite == "dense" and shape == "text":
        raise ConfigError(
            f"{where}: suite '{reference}' has dense tasks (maps of images), the recipe is for rows of text. Put "
            "`shape: dense` at the top of the recipe; its sections then are those of docs/recipes.md, 'Dense recipes'."
        )
    if of_suite == "text" and shape == "dense":
        raise ConfigError(
            f"{where}: suite '{reference}' has tasks on rows of text, the recipe says `shape: dense` (maps of images). "
            "Leave `shape` out, or name a dense suite."
        )


def _shape_of_suite(reference: str) -> str | None:
    """Return the shape of a suite; None if there is no such one, which is said where it is loaded."""
    path = Path(reference)
    if path.suffix in (".yaml", ".yml"):
        if not path.is_file():
            return None
        data = read_yaml(path)
        return str(data.get("shape", "text")) if isinstance(data, dict) else None
    name = reference.partition("@")[0]
    if name in shipped_suites():
        return "text"
    dense = resources.files("tasklora.vision") / "suites" / f"{name}.yaml"
    return "dense" if name.replace("_", "").replace("-", "").isalnum() and dense.is_file() else None


def _apply(data: Any, override: str) -> None:
    key, equals, value = override.partition("=")
    if not equals or not key:
        raise ConfigError(f"'{override}' is no override; write section.key=value, e.g. training.epochs=2.")
    try:
        _put(data, key, load_yaml(value, f"'{override}'"))
    except yaml.YAMLError as error:
        raise ConfigError(f"'{override}': the value is not valid YAML ({error}).") from None


def _put(data: Any, key: str, value: Any) -> None:
    *path, last = key.split(".")
    for part in path:
        if not isinstance(data, dict):
            raise ConfigError(f"'{key}' leads into a value that is no section.")
        data = data.setdefault(part, {})
    if not isinstance(data, dict):
        raise ConfigError(f"'{key}' leads into a value that is no section.")
    data[last] = value
