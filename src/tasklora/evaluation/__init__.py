"""Scores, typed and versioned."""

from tasklora.evaluation.results import (
    ParameterCounts,
    RunResults,
    SplitScores,
    TaskScore,
    TrainingSummary,
    machine_description,
    package_versions,
    peak_memory,
    source_commit,
    write_text_whole,
)
from tasklora.evaluation.runner import Prediction, count_parameters, predict_rows, score_tasks

__all__ = [
    "ParameterCounts",
    "Prediction",
    "RunResults",
    "SplitScores",
    "TaskScore",
    "TrainingSummary",
    "count_parameters",
    "machine_description",
    "package_versions",
    "peak_memory",
    "predict_rows",
    "score_tasks",
    "source_commit",
    "write_text_whole",
]
