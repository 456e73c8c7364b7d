"""predictions.jsonl: what a run said of every row it is scored on, so that runs can be compared row by row.

Of a text task it has the rows with labels and predictions; of a dense task, whose predictions are maps, the statistics
of each image that its metrics are made of.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from tasklora.errors import CheckpointError
from tasklora.evaluation.bootstrap import Counts, resampled_metric
from tasklora.evaluation.dense import ScoredImages
from tasklora.evaluation.runner import Prediction
from tasklora.tasks import METRICS, Answers, TaskRows, TaskSpec, write_text_whole
from tasklora.tasks.ragged import count, fitted, padded, same, unpadded

PREDICTIONS_FILE = "predictions.jsonl"


@dataclass(frozen=True)
class ScoredRows:
    """The rows of one task with what was said of them, in the order of the rows.

    Attributes:
        texts: the texts of each row: its inputs; then its choices or documents; or its words.
        labels: (rows,) class ids, places of choices, values or texts; (rows, V) where a row has several, NaN where
            fewer.
        values: predictions, of the shape of `labels`; NaN also for words that were cut off, and for generated texts
            that name no option.
        confidences: (rows,) probability of what is said (of several things, their mean); NaN where there is none.
        losses: (rows,).
        scores: what metrics on scores read, see :class:`~tasklora.tasks.Answers`; None where it was not kept.
    """

    texts: list[list[str]]
    labels: NDArray[np.float64]
    values: NDArray[np.float64]
    confidences: NDArray[np.float64]
    losses: NDArray[np.float64]
    scores: NDArray[np.float64] | None = None

    def __len__(self) -> int:
        return len(self.labels)

    def same_rows(self, other: Any) -> bool:
        """Return whether another run was scored on the same rows."""
        same_texts = isinstance(other, ScoredRows) and self.texts == other.texts
        return same_texts and same(self.labels, other.labels)

    def drawn_as(self, task: str) -> str:
        """Return a name of what is resampled: every task has rows of its own."""
        return task

    def answers(self, spec: TaskSpec) -> Answers:
        """Return what metrics are computed of."""
        return Answers(self.labels, self.values, self.scores, spec.labels or ())

    def resampled(self, spec: TaskSpec, counts: Counts) -> NDArray[np.float64]:
        """Return the score (higher is better) on each resample of the rows: (resamples,).

        Args:
            spec: the task.
            counts: (resamples, rows), how often each row was drawn.
        """
        sign = 1.0 if METRICS[spec.primary].higher_is_better else -1.0
        return sign * resampled_metric(spec.primary, self.answers(spec), counts)

    def for_average(self, spec: TaskSpec, scores: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return what scores count in an average over tasks: themselves."""
        return scores


Scored: TypeAlias = ScoredRows | ScoredImages
"""What a run said of the rows of one task, of either shape."""


def write_image_statistics(path: Path, images: Mapping[str, ScoredImages]) -> None:
    """Write one line per image and task: task, image, digest of the label, statistics, loss (null if undefined)."""
    lines = []
    for task, scored in images.items():
        for place, name in enumerate(scored.names):
            loss = float(scored.losses[place])
            record = {
                "task": task,
                "image": name,
                "label": scored.digests[place],
                # Most are counts: whole numbers are written as such.
                "statistics": [int(x) if x.is_integer() else x for x in scored.statistics[place].tolist()],
                "loss": None if np.isnan(loss) else round(loss, 6),
            }
            lines.append(json.dumps(record, ensure_ascii=False) + "\n")
    write_text_whole(path, "".join(lines))


def write_predictions(path: Path, rows: Mapping[str, TaskRows], predictions: Mapping[str, Prediction]) -> None:
    """Write one line per row: task, texts, label, prediction, confidence (null where there is none), loss.

    Label and prediction are lists where a row has several, with null for a word that was cut off. Where metrics read
    more than the prediction, `scores` has it: the probability of class 1 of two, or of each of several labels. Where an
    answer was generated, `generated` is its text; a prediction is null where that names no option.
    """
    lines = []
    for task, prediction in predictions.items():
        assert prediction.losses is not None
        answers, kind = prediction.answers(rows[task]), rows[task].kind
        for place, row in enumerate(rows[task]):
            length, probabilities = count(answers.labels[place]), prediction.probabilities
            confidence = math.nan if probabilities is None else kind.confidence(probabilities[place])
            record = {
                "task": task,
                "texts": row["texts"],
                "label": row["label"],
                "prediction": unpadded(answers.predictions[place], length),
                "confidence": None if math.isnan(confidence) else round(confidence, 6),
                "loss": round(float(prediction.losses[place]), 6),
            }
            if answers.scores is not None:
                record["scores"] = np.round(answers.scores[place], 9).tolist()
            if prediction.texts is not None:
                record["generated"] = prediction.texts[place]
            lines.append(json.dumps(record, ensure_ascii=False) + "\n")
    write_text_whole(path, "".join(lines))


def read_predictions(path: Path) -> dict[str, Scored]:
    """Read what :func:`write_predictions` or :func:`write_image_statistics` wrote.

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


def _scored(records: list[dict[str, Any]]) -> Scored:
    def column(name: str) -> NDArray[np.float64]:
        return np.array([record[name] for record in records], dtype=np.float64)  # null becomes NaN

    if "image" in records[0]:
        return ScoredImages(
            [record["image"] for record in records],
            [record["label"] for record in records],
            column("statistics"),
            column("loss"),
        )
    labels = padded([record["label"] for record in records])
    return ScoredRows(
        [record["texts"] for record in records],
        labels,
        fitted(padded([record["prediction"] for record in records]), labels),
        column("confidence"),
        column("loss"),
        padded([record["scores"] for record in records]) if "scores" in records[0] else None,
    )
