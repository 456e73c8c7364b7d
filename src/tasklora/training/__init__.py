"""Training on several tasks at once: recipes, mixing, the trainers, and the run directory."""

from tasklora.errors import InterruptedRun
from tasklora.training.base_trainer import TasksTrainer
from tasklora.training.comparison import compare_methods
from tasklora.training.comparison_directory import ComparisonDirectory
from tasklora.training.dense_recipe import DenseRecipe
from tasklora.training.dense_trainer import DenseTrainer
from tasklora.training.dense_workload import DensePrepared, prepare_dense
from tasklora.training.directory import RunDirectory
from tasklora.training.mixing import MixedRows, MixingPlan, TaskMixingSampler
from tasklora.training.mixing_section import MixingSection
from tasklora.training.preparing import Prepared, prepare
from tasklora.training.recipe import Recipe
from tasklora.training.recipes import load_recipe
from tasklora.training.rows_workload import load_recipe_data
from tasklora.training.run import train_recipe
from tasklora.training.trainer import MultiTaskTrainer
from tasklora.training.workload import Workload
from tasklora.training.workloads import count_recipe_parameters, workload_of

__all__ = [
    "ComparisonDirectory",
    "DensePrepared",
    "DenseRecipe",
    "DenseTrainer",
    "InterruptedRun",
    "MixedRows",
    "MixingPlan",
    "MixingSection",
    "MultiTaskTrainer",
    "Prepared",
    "Recipe",
    "RunDirectory",
    "TaskMixingSampler",
    "TasksTrainer",
    "Workload",
    "compare_methods",
    "count_recipe_parameters",
    "load_recipe",
    "load_recipe_data",
    "prepare",
    "prepare_dense",
    "train_recipe",
    "workload_of",
]
