"""Which workload a recipe is."""

from __future__ import annotations

from tasklora.evaluation import ParameterCounts
from tasklora.training.dense_recipe import DenseRecipe
from tasklora.training.dense_workload import DenseWorkload
from tasklora.training.recipe import Recipe
from tasklora.training.rows_workload import RowsWorkload
from tasklora.training.workload import Workload

_WORKLOADS: dict[str, type[Workload]] = {"text": RowsWorkload, "dense": DenseWorkload}


def workload_of(recipe: Recipe | DenseRecipe) -> Workload:
    """Return the workload of a recipe, nothing of it loaded yet.

    Raises:
        ConfigError: on an unknown or repeated task.
    """
    return _WORKLOADS[recipe.shape](recipe)


def check_recipe(recipe: Recipe | DenseRecipe) -> None:
    """Raise ConfigError if a recipe's method or balancing cannot be used on its base; no weights are loaded."""
    model = workload_of(recipe).skeleton()
    if recipe.training.balancing is not None:
        recipe.training.balancing.check(model, list(recipe.task_specs()))


def count_recipe_parameters(recipe: Recipe | DenseRecipe) -> ParameterCounts:
    """Return the parameter counts of a recipe's model; no weights are loaded but those of a run that it extends."""
    return workload_of(recipe).count_parameters()
