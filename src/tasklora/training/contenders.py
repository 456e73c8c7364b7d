"""The methods of a comparison: a recipe's own one, and the others under the same recipe."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import yaml

from tasklora.errors import ConfigError, did_you_mean
from tasklora.evaluation import SINGLE
from tasklora.tasks import TRAINING_METHODS, training_method
from tasklora.training.dense_recipe import DenseRecipe
from tasklora.training.recipe import Recipe
from tasklora.training.recipes import changed, parse_recipe
from tasklora.training.workloads import count_recipe_parameters
from tasklora.vision.methods import DENSE_METHODS

MATCHED_LORA = "lora_matched"
VARIANT = re.compile(r"([^\[\]]+)\[([^\[\]]*)\]")
"""``METHOD[option=value,option=value]``"""
BALANCING = "balancing."
"""What options of a variant begin with that are those of the recipe's ``training.balancing``."""

METHODS_OF: dict[str, Mapping[str, Any]] = {"text": TRAINING_METHODS, "dense": DENSE_METHODS}
"""Shape of a recipe → its methods."""


def known_contenders(shape: str = "text") -> list[str]:
    """Return the names that can be compared under recipes of a shape."""
    return [*METHODS_OF[shape], *([MATCHED_LORA] if shape == "text" else [])]


def method_of(contender: str) -> str:
    """Return the method of a contender: of ``mtlora[task_r=8]`` it is ``mtlora``."""
    return contender.removesuffix(SINGLE).partition("[")[0].strip()


def variant_of(contender: str) -> dict[str, str]:
    """Return the options that a contender's brackets give its method, as they are written.

    Raises:
        ConfigError: if they cannot be read.
    """
    contender = contender.removesuffix(SINGLE)
    if "[" not in contender and "]" not in contender:
        return {}
    found = VARIANT.fullmatch(contender)
    parts = [part.partition("=") for part in found[2].split(",")] if found else []
    options = {key.strip(): value.strip() for key, _, value in parts}
    if not parts or len(options) < len(parts) or not all(key and value for key, value in options.items()):
        raise ConfigError(
            f"'{contender}' is no variant of a method; write METHOD[OPTION=VALUE,…], e.g. "
            "mtlora[task_r=8,mode=addition], or mtl_lora[balancing.method=pcgrad]."
        )
    return options


def fixed_keys(contender: str) -> set[str]:
    """Return the recipe's keys that a contender's brackets set."""
    return {f"training.{key}" if key.startswith(BALANCING) else f"method.{key}" for key in variant_of(contender)}


def title_of(method: str, shape: str = "text") -> str:
    """Return a contender's name as in tables."""
    if method.endswith(SINGLE):
        return f"{title_of(method.removesuffix(SINGLE), shape)}, one run per task"
    options = variant_of(method)
    if options:
        short = {key: key.removeprefix(BALANCING) for key in options} | {f"{BALANCING}method": "balancing"}
        said = ", ".join(f"{short[key]} {value}" for key, value in options.items())
        return f"{title_of(method_of(method), shape)}, {said}"
    return "LoRA, parameters matched" if method == MATCHED_LORA else str(METHODS_OF[shape][method].title)


def contender(recipe: Recipe | DenseRecipe, method: str) -> Recipe | DenseRecipe:
    """Return the recipe with another method in place of its own.

    The options that both methods have (rank, α, dropout, which layers) are kept: LoRA is rank-matched to the main
    method. ``lora_matched`` is LoRA at the rank with the nearest number of trained parameters, at the same α/r.
    ``METHOD[OPTION=VALUE,…]`` is a method with some options of its own: what an ablation compares. There
    ``balancing.method`` and the options of that balancing stand for ``training.balancing``.
    ``METHOD@single`` has the recipe of its method; see :mod:`tasklora.training.single_tasks` for what is made of it.

    Raises:
        ConfigError: on an unknown method or option, or if there is no rank to match.
    """
    if method.endswith(SINGLE):
        if not isinstance(recipe, Recipe):
            raise ConfigError(
                f"'{method}': runs of single tasks are for recipes on text; on images, compare 'single_task'."
            )
        return contender(recipe, method.removesuffix(SINGLE))
    options = variant_of(method)
    if options:
        if method_of(method) == MATCHED_LORA:
            raise ConfigError(f"'{MATCHED_LORA}' takes its options from the recipe; it has no variants.")
        settings = {f"method.{k}": yaml.safe_load(v) for k, v in options.items() if not k.startswith(BALANCING)}
        balancing = {
            k.removeprefix(BALANCING): yaml.safe_load(v) for k, v in options.items() if k.startswith(BALANCING)
        }
        if balancing:
            own = recipe.training.balancing  # another balancing method has other options
            kept = own.model_dump() if own is not None and "method" not in balancing else {}
            settings["training.balancing"] = {**kept, **balancing}
        return changed(contender(recipe, method_of(method)), settings)
    names = known_contenders(recipe.shape)
    if method == MATCHED_LORA and method not in names:
        raise ConfigError(
            f"'{MATCHED_LORA}' is for recipes on text. On images the methods train norms, tables and patch embeddings "
            "besides their low-rank parameters, so no rank of a LoRA has the same parameters. Compare 'lora' at ranks "
            "of its own with --search lora:r=…"
        )
    if method not in names:
        raise ConfigError(f"unknown method '{method}'.{did_you_mean(method, names)} Methods: {', '.join(names)}.")
    if method == recipe.method.name:
        return _measurable(recipe)
    other = METHODS_OF[recipe.shape]["lora" if method == MATCHED_LORA else method]
    given = _options(recipe)
    if "scale" in given and "lora_alpha" in other.options:
        if isinstance(given["r"], list) or isinstance(given["scale"], list):
            raise ConfigError(
                f"'{method}' has one rank and α for all stages, the recipe gives '{recipe.method.name}' one for each "
                "stage. Compare it in a recipe with one number for each."
            )
        given["lora_alpha"] = given["scale"] * given["r"]  # MTLoRA's scale is used as it is, LoRA's is α/r
    options = {key: value for key, value in given.items() if key in other.options}
    data = recipe.model_dump(mode="json")
    data["method"] = {"name": other.name, **options}
    made = parse_recipe(data, f"the recipe with {method}")
    return _measurable(_matched(recipe, made) if method == MATCHED_LORA else made)


def _measurable(recipe: Recipe | DenseRecipe) -> Recipe | DenseRecipe:
    """Return the recipe without measuring gradients where tasks share no low-rank parameters, as `heads_only`."""
    if (
        isinstance(recipe, Recipe)
        and recipe.training.gradient_cosines
        and not count_recipe_parameters(recipe).groups["shared"]
    ):
        return changed(recipe, {"training.gradient_cosines": None})
    return recipe


def _options(recipe: Recipe | DenseRecipe) -> dict[str, Any]:
    """Return a recipe's options of the method with the rank and scale that hold where it names none."""
    scale = getattr(METHODS_OF[recipe.shape].get(recipe.method.name), "scale", {})
    return {**scale, **recipe.method.options}


def _matched(recipe: Recipe | DenseRecipe, lora: Recipe | DenseRecipe) -> Recipe | DenseRecipe:
    """Return `lora` at the rank whose number of low-rank parameters is nearest to that of `recipe`."""
    options = _options(recipe)
    if training_method(recipe.method.name).encoder != "adapter" or "rank_pattern" in options:
        raise ConfigError(
            f"'{MATCHED_LORA}' matches the parameters of the recipe's method, which must be an adapter of one rank; "
            f"'{recipe.method.name}' with {options} is not."
        )
    wanted = _low_rank(recipe)
    per_rank = _low_rank(changed(lora, {"method.r": 1}))
    rank = max(1, round(wanted / per_rank))
    scale = options["lora_alpha"] / options["r"]
    return changed(lora, {"method.r": rank, "method.lora_alpha": scale * rank})


def _low_rank(recipe: Recipe | DenseRecipe) -> int:
    groups = count_recipe_parameters(recipe).groups
    return groups["shared"] + groups["per_task"]
