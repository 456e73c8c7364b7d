"""The methods of a comparison: a recipe's own one, and the others under the same recipe."""

from __future__ import annotations

from typing import Any

from tasklora.errors import ConfigError, did_you_mean
from tasklora.tasks import TRAINING_METHODS, parse, training_method
from tasklora.training.preparing import count_recipe_parameters
from tasklora.training.recipe import Recipe, changed

MATCHED_LORA = "lora_matched"


def known_contenders() -> list[str]:
    """Return the names that can be compared."""
    return [*TRAINING_METHODS, MATCHED_LORA]


def title_of(method: str) -> str:
    """Return a contender's name as in tables."""
    return "LoRA, parameters matched" if method == MATCHED_LORA else training_method(method).title


def contender(recipe: Recipe, method: str) -> Recipe:
    """Return the recipe with another method in place of its own.

    The options that both methods have (rank, α, dropout, which layers) are kept: LoRA is rank-matched to the main
    method. ``lora_matched`` is LoRA at the rank with the nearest number of trained parameters, at the same α/r.

    Raises:
        ConfigError: on an unknown method, or if there is no rank to match.
    """
    if method not in known_contenders():
        names = known_contenders()
        raise ConfigError(f"unknown method '{method}'.{did_you_mean(method, names)} Methods: {', '.join(names)}.")
    if method == recipe.method.name:
        return recipe
    other = training_method("lora" if method == MATCHED_LORA else method)
    options = {key: value for key, value in _options(recipe).items() if key in other.options}
    data = recipe.model_dump(mode="json")
    data["method"] = {"name": other.name, **options}
    made = parse(Recipe, data, f"the recipe with {method}")
    return _matched(recipe, made) if method == MATCHED_LORA else made


def _options(recipe: Recipe) -> dict[str, Any]:
    """Return a recipe's options of the method with the rank and scale that hold where it names none."""
    return {**training_method(recipe.method.name).scale, **recipe.method.options}


def _matched(recipe: Recipe, lora: Recipe) -> Recipe:
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


def _low_rank(recipe: Recipe) -> int:
    groups = count_recipe_parameters(recipe).groups
    return groups["shared"] + groups["per_task"]
