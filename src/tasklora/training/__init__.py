"""Training on several tasks at once: recipes, mixing, the trainer, and the run directory."""

from tasklora.errors import InterruptedRun
from tasklora.training.comparison import compare_methods
from tasklora.training.comparison_directory import ComparisonDirectory
from tasklora.training.directory import RunDirectory
from tasklora.training.mixing import MixedRows, TaskMixingSampler, rows_per_epoch
from tasklora.training.preparing import Prepared, count_recipe_parameters, prepare
from tasklora.training.recipe import Recipe, load_recipe
from tasklora.training.run import load_recipe_data, train_recipe
from tasklora.training.trainer import MultiTaskTrainer

__all__ = [
    "ComparisonDirectory",
    "InterruptedRun",
    "MixedRows",
    "MultiTaskTrainer",
    "Prepared",
    "Recipe",
    "RunDirectory",
    "TaskMixingSampler",
    "compare_methods",
    "count_recipe_parameters",
    "load_recipe",
    "load_recipe_data",
    "prepare",
    "rows_per_epoch",
    "train_recipe",
]
