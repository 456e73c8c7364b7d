"""predictions.jsonl: what a run said of every row it is scored on, so that runs can be compared row by row."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tasklora.errors import CheckpointError
from tasklora.evaluation.results import write_text_whole
from tasklora.evaluation.runner import Prediction
from tasklora.tasks import TaskRows

PREDICTIONS_FILE = "predictions.jsonl"


@dataclass(frozen=True)
class ScoredRows:
    """The rows of one task with what was said of them, in the order of the rows.

    Attributes:
        texts: the inputs of each row.
        labels: (rows,) class ids or values.
        values: (rows,) predictions, of the same kind.
        confidences: (rows,) probability of the predicted class; NaN for regression.
        losses: (rows,).
    """

    texts: list[list[str]]
    labels: NDArray[np.float64]
    values: NDArray[np.float64]
    confidences: NDArray[np.float64]
    losses: NDArray[np.float64]


def write_predictions(path: Path, rows: Mapping[str, TaskRows], predictions: Mapping[str, Prediction]) -> None:
    """Write one line per row: task, texts, label, prediction, confidence (null for regression), loss."""
    lines = []
    for task, prediction in predictions.items():
        assert prediction.losses is not None
        for place, row in enumerate(rows[task]):
            probabilities = prediction.probabilities
            record = {
                "task": task,
                "texts": row["texts"],
                "label": row["label"],
                "prediction": float(prediction.values[place]),
                "confidence": None if probabilities is None else round(float(probabilities[place].max()), 6),
                "loss": round(float(prediction.losses[place]), 6),
            }
            lines.append(json.dumps(record, ensure_ascii=False) + "\n")
    write_text_whole(path, "".join(lines))


def read_predictions(path: Path) -> dict[str, ScoredRows]:
    """Read what :func:`write_predictions` wrote.

    Returns:
        Task name → its rows.

    Raises:
        CheckpointError: if the file is missing or damaged.
    """
    records: dict[str, list[dict[str, Any]]] = {}
    try:
        # Not splitlines(), which ends a line at U+2028 and the like too: JSON leaves them in texts as they are.
        for line in filter(None, path.read_text(encoding="utf-8").split("\n")):
            record = json.loads(line)
            records.setdefault(record["task"], []).append(record)
        return {task: _scored(of_task) for task, of_task in records.items()}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"cannot read {path}: {error}. Run that run again.") from None


def _scored(records: list[dict[str, Any]]) -> ScoredRows:
    def column(name: str) -> NDArray[np.float64]:
        return np.array([record[name] for record in records], dtype=np.float64)  # null becomes NaN

    return ScoredRows(
        [record["texts"] for record in records],
        column("label"),
        column("prediction"),
        column("confidence"),
        column("loss"),
    )
