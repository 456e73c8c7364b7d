"""Searches over a recipe's settings: the same number of trials for every method."""

from __future__ import annotations

import itertools
import math
from collections.abc import Container, Sequence
from dataclasses import dataclass
from typing import Any

import yaml

from tasklora.errors import ConfigError, did_you_mean
from tasklora.training.dense_recipe import DenseRecipe
from tasklora.training.recipe import Recipe

SHORT_NAMES = {
    "lr": "training.learning_rate",
    "weight_decay": "training.weight_decay",
    "warmup": "training.warmup_ratio",
    "epochs": "training.epochs",
    "batch_size": "training.batch_size",
    "head_dropout": "model.head_dropout",
    "r": "method.r",
    "alpha": "method.lora_alpha",
    "dropout": "method.lora_dropout",
}
"""Short names of keys that are often searched; any key of training, model or method can be given in full."""

_METHOD_KEYS = {full.partition(".")[2] for full in SHORT_NAMES.values() if full.startswith("method.")}

# A search over these would compare runs that are not comparable, or change what is compared.
_FIXED = {
    "training.seed",
    "training.report_to",
    "training.workers",
    "model.name",
    "model.view",
    "model.evaluation",
    "model.max_new_tokens",
    "model.revision",
    "model.trust_remote_code",
    "method.name",
}

Settings = dict[str, Any]
"""Recipe key → value."""


@dataclass(frozen=True)
class Grid:
    """The values of one key, for every method or for one.

    Attributes:
        key: the recipe's key, in full.
        values: what is tried.
        method: the method that the grid is for; None for all.
    """

    key: str
    values: tuple[Any, ...]
    method: str | None = None


def parse_grid(text: str, methods: Sequence[str], recipe: type[Recipe] | type[DenseRecipe] = Recipe) -> Grid:
    """Return the grid of ``KEY=VALUE,VALUE,…`` or ``METHOD:KEY=VALUE,…``.

    Args:
        text: what the user wrote.
        methods: the methods that are compared.
        recipe: the recipes' class, whose sections have the keys.

    Raises:
        ConfigError: naming an unknown key or method, or a grid without values.
    """
    method = next((name for name in methods if text.startswith(f"{name}:")), None)  # a variant's name has a "=" in it
    head, equals, tail = (text.removeprefix(f"{method}:") if method else text).partition("=")
    unknown, colon, key = head.rpartition(":")
    parts = tail.split(",")
    if not equals or not all(part.strip() for part in parts):
        raise ConfigError(f"'{text}' is no search; write KEY=VALUE,VALUE,…, e.g. lr=3e-4,1e-3,3e-3.")
    values = tuple(_value(part) for part in parts)
    if colon:
        raise ConfigError(
            f"the search '{text}' is for '{unknown}', which is not compared.{did_you_mean(unknown, methods)} "
            f"Compared: {', '.join(methods)}."
        )
    if len(set(values)) < len(values):
        raise ConfigError(f"the search '{text}' names a value twice.")
    return Grid(_full_key(key, text, recipe), values, method)


def trials_of(method: str, grids: Sequence[Grid]) -> list[Settings]:
    """Return the settings that are tried for a method: the product of its grids; one trial without any.

    A grid for the method itself stands in place of the one for all methods over the same key.

    Raises:
        ConfigError: if two grids of the same scope are over one key.
    """
    for scope in (None, method):
        keys = [grid.key for grid in grids if grid.method == scope]
        for key in keys:
            if keys.count(key) > 1:
                raise ConfigError(f"{key} is searched twice; give all its values in one search.")
    chosen = {grid.key: grid for grid in grids if grid.method is None}
    chosen.update({grid.key: grid for grid in grids if grid.method == method})
    return [
        dict(zip(chosen, values, strict=True)) for values in itertools.product(*(g.values for g in chosen.values()))
    ]


def check_same_effort(trials: dict[str, list[Settings]]) -> None:
    """Raise ConfigError unless every method is tried with the same number of settings."""
    counts = {method: len(settings) for method, settings in trials.items()}
    if len(set(counts.values())) > 1:
        said = ", ".join(f"{method} {count}" for method, count in counts.items())
        raise ConfigError(
            f"every method must be searched with the same effort, but the numbers of trials differ: {said}. "
            "Give each method's own grid as many values as the others have."
        )


def _value(text: str) -> Any:
    """Return a value as YAML reads it; 3e-4 is a number here, which YAML 1.1 takes for a text."""
    try:
        number = float(text)
    except ValueError:
        try:
            value = yaml.safe_load(text)
        except yaml.YAMLError:
            value = [text]  # part of a list, whose commas separate values here
        if isinstance(value, (list, dict)):
            raise ConfigError(f"a search cannot try the value {text!r}: it takes numbers and words.") from None
        return value
    if not math.isfinite(number):
        raise ConfigError(f"a search cannot try the value {text!r}.")
    return int(number) if number.is_integer() and text.strip().lstrip("+-").isdigit() else number


def _full_key(key: str, text: str, recipe: type[Recipe] | type[DenseRecipe]) -> str:
    full = SHORT_NAMES.get(key, key)
    section, _, name = full.partition(".")
    known: dict[str, Container[str]] = {
        "training": _keys(recipe, "training"),
        "model": _keys(recipe, "model"),
        "method": {name, *_METHOD_KEYS},  # the method itself says which options it has
    }
    if section not in known or name not in known[section] or full in _FIXED:
        short = {name: of for name, of in SHORT_NAMES.items() if of.partition(".")[2] in known[of.partition(".")[0]]}
        valid = [*short, *(f"training.{n}" for n in _keys(recipe, "training")), *short.values()]
        raise ConfigError(
            f"the search '{text}' is over '{key}', which cannot be searched.{did_you_mean(key, valid)} "
            f"Short names: {', '.join(short)}; or any key of the recipe's sections training, model and method."
        )
    return full


def _keys(recipe: type[Recipe] | type[DenseRecipe], section: str) -> list[str]:
    record: Any = recipe.model_fields[section].annotation
    return list(record.model_fields)
