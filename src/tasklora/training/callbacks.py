"""What happens around training: progress on the terminal, log.jsonl, and a stop that loses nothing."""

from __future__ import annotations

import contextlib
import json
import math
import signal
import statistics
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments


def progress_display(console: Console) -> Progress:
    """Return a display of bars with what they count, a note and the time that remains."""
    return Progress(
        TextColumn("[bold]{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[note]}"),
        TimeRemainingColumn(),
        console=console,
        transient=True,
    )


class ProgressBar(TrainerCallback):
    """One bar for the steps, and one line per evaluation.

    Args:
        console: where to write.
        progress: a display that goes on over several runs and gets the bar; it prints no lines. A new one by default.
    """

    def __init__(self, console: Console, progress: Progress | None = None) -> None:
        self.shared = progress is not None
        self.progress = progress or progress_display(console)
        self.bar: TaskID | None = None

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Start the bar, at the step a resumed run is at."""
        self.bar = self.progress.add_task("training", total=state.max_steps, completed=state.global_step, note="")
        self.progress.start()

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Move the bar."""
        assert self.bar is not None
        self.progress.update(self.bar, completed=state.global_step)

    def on_log(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, logs: Any = None, **_: Any
    ) -> None:
        """Show the loss; print a line for an evaluation."""
        logs = logs or {}
        if "loss" in logs and self.bar is not None:
            self.progress.update(self.bar, note=f"loss {logs['loss']:.3f}")
        if "eval_average" in logs and not self.shared:
            self.progress.console.print(
                f"step {state.global_step:>5}  average on tune [bold]{logs['eval_average']:.4f}[/bold]", highlight=False
            )

    def on_train_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Remove the bar."""
        self.stop()

    def stop(self) -> None:
        """Remove the bar, also after an error."""
        if not self.shared:
            self.progress.stop()
        elif self.bar is not None:
            self.progress.remove_task(self.bar)
        self.bar = None


class StepClock(TrainerCallback):
    """Takes the time of every optimiser step: forward, backward and update; not of loading, scoring or saving.

    On an accelerator the clock does not wait for it; over many steps the median is still that of a step, since no more
    than a few can be queued.
    """

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self._began = 0.0

    def on_step_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Start the clock."""
        self._began = time.perf_counter()

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Note the time."""
        self.seconds.append(time.perf_counter() - self._began)

    def median(self) -> float | None:
        """Return the median; the first steps, which warm up, move it hardly. None without any step."""
        return statistics.median(self.seconds) if self.seconds else None


class JsonLog(TrainerCallback):
    """Appends every log record to a JSONL file.

    Args:
        path: the file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def on_log(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, logs: Any = None, **_: Any
    ) -> None:
        """Append the record."""
        if state.is_world_process_zero:
            record = {key: _plain(value) for key, value in (logs or {}).items()}
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps({"step": state.global_step, **record}) + "\n")


def _plain(value: Any) -> Any:
    """Return None for NaN and infinity, which JSON does not have."""
    return None if isinstance(value, float) and not math.isfinite(value) else value


class StopOnInterrupt(TrainerCallback):
    """On Ctrl-C, ends training after the running step with a checkpoint; a second Ctrl-C interrupts at once.

    Attributes:
        interrupted: whether training was stopped.
    """

    def __init__(self) -> None:
        self.interrupted = False

    @contextlib.contextmanager
    def listening(self) -> Iterator[None]:
        """Handle SIGINT inside the ``with`` block (in the main thread; elsewhere Python forbids it)."""

        def note(signum: int, frame: Any) -> None:
            if self.interrupted:
                raise KeyboardInterrupt
            self.interrupted = True

        try:
            previous = signal.signal(signal.SIGINT, note)
        except ValueError:
            yield
            return
        try:
            yield
        finally:
            signal.signal(signal.SIGINT, previous)

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> TrainerControl:
        """Save and stop."""
        if self.interrupted:
            control.should_save = True
            control.should_training_stop = True
        return control

    def on_epoch_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> TrainerControl:
        """Do not evaluate or save again on the way out, unless the epoch is complete: its evaluation is due then."""
        if self.interrupted and not float(state.epoch or 0).is_integer():
            control.should_save = False
            control.should_evaluate = False
        return control
