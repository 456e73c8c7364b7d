"""Measuring the cosines of the tasks' gradients while training goes on, without changing it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from tasklora.evaluation import append_gradient_cosines, keep_gradient_cosines, measure_gradients
from tasklora.tasks import TaskModel, TaskRows
from tasklora.tasks.views import Collator


class GradientCosinesCallback(TrainerCallback):
    """Measures before training and after every so many optimiser steps; see :mod:`tasklora.evaluation.gradients`.

    Which rows are drawn depends on seed and step alone, and no random state of training is used: the run ends bit for
    bit as one that is not measured. A resumed run drops what was measured after its checkpoint, and measures it again.

    Args:
        path: the JSONL file that measurements are appended to.
        rows: task name → training rows.
        collator: makes the batches.
        every: optimiser steps from one measurement to the next.
        rows_per_task: training rows of each task in a measurement.
    """

    def __init__(
        self,
        path: Path,
        rows: Mapping[str, TaskRows],
        collator: Collator,
        every: int,
        rows_per_task: int,
    ) -> None:
        self.path = path
        self.rows = rows
        self.collator = collator
        self.every = every
        self.rows_per_task = rows_per_task

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, model: Any = None, **_: Any
    ) -> None:
        """Drop what was measured after the checkpoint that training goes on from; measure where there is none."""
        if state.global_step:
            if state.is_world_process_zero:
                keep_gradient_cosines(self.path, state.global_step)
            return
        if state.is_world_process_zero:
            self.path.unlink(missing_ok=True)
        self._measure(args, state, model)

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, model: Any = None, **_: Any
    ) -> None:
        """Measure if it is time."""
        if state.global_step % self.every == 0:
            self._measure(args, state, model)

    def _measure(self, args: TrainingArguments, state: TrainerState, model: TaskModel) -> None:
        if not state.is_world_process_zero:
            return
        measured = measure_gradients(
            model,
            self.rows,
            self.collator,
            step=state.global_step,
            rows_per_task=self.rows_per_task,
            batch_size=args.train_batch_size,
            seed=args.seed,
        )
        append_gradient_cosines(self.path, measured)
