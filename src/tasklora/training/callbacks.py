"""What happens around training: progress on the terminal, log.jsonl, other logs, and a stop that loses nothing."""

from __future__ import annotations

import contextlib
import json
import math
import signal
import statistics
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from rich.console import Console, RenderableType
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.table import Column
from rich.text import Text
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from tasklora.errors import ConfigError, did_you_mean, first_line
from tasklora.tasks import write_text_whole
from tasklora.tasks.whole_files import writing
from tasklora.training.processes import Processes

LOSS = "loss/"
"""What the keys of the tasks' losses in a log begin with."""

NARROW = 48
"""Fewer characters than this have no room for a bar and the time that remains: the numbers come first."""


class ProgressDisplay(Progress):
    """Bars with what they count, a note and the time that remains; below them the tasks' losses, in one line.

    Attributes:
        losses: task → its mean training loss since the log before.
    """

    def __init__(self, console: Console) -> None:
        self.losses: dict[str, float] = {}
        wide = console.width >= NARROW
        super().__init__(
            TextColumn("[bold]{task.description}"),
            *([BarColumn(bar_width=None, table_column=Column(ratio=1, max_width=40))] if wide else []),
            MofNCompleteColumn(),
            TextColumn("{task.fields[note]}"),
            *([TimeRemainingColumn()] if wide else []),
            console=console,
            transient=True,
            expand=True,
        )

    def get_renderables(self) -> Iterator[RenderableType]:
        """Yield the bars and the losses."""
        yield from super().get_renderables()
        if self.losses:
            yield Text(losses_line(self.losses, self.console.width), style="dim", no_wrap=True, overflow="ellipsis")


def losses_line(losses: Mapping[str, float], width: int) -> str:
    """Return the tasks' losses as one line of at most `width` characters.

    In the order of the tasks, if there is room for all; else the highest ones, and how many there are besides.
    """
    parts = {name: f"{name} {loss:.3f}" for name, loss in losses.items()}
    line = "  ".join(parts.values())
    if len(line) <= width:
        return line
    shown: list[str] = []
    for place, name in enumerate(sorted(parts, key=lambda name: -losses[name])):
        longer = "  ".join([*shown, parts[name], f"… {len(parts) - place - 1} lower"])
        if len(longer) > width:
            break
        shown.append(parts[name])
    return "  ".join([*shown, f"… {len(parts) - len(shown)} {'lower' if shown else 'tasks'}"])


class ProgressBar(TrainerCallback):
    """One bar for the steps with the tasks' losses below it, and one line per evaluation.

    Where the console is no terminal there is no bar, but a line per log.

    Args:
        console: where to write.
        progress: a display that goes on over several runs and gets the bar; it prints no lines. A new one by default.
    """

    def __init__(self, console: Console, progress: ProgressDisplay | None = None) -> None:
        self.shared = progress is not None
        self.progress = progress or ProgressDisplay(console)
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
        """Show the losses; print a line for an evaluation."""
        logs = logs or {}
        if "loss" in logs and self.bar is not None:
            losses = {key.removeprefix(LOSS): value for key, value in logs.items() if key.startswith(LOSS)}
            # A task of which nothing was drawn since the last log keeps its older loss.
            self.progress.losses = {**self.progress.losses, **losses}
            self.progress.update(self.bar, note=f"loss {logs['loss']:.3f}")
            if not (self.shared or self.progress.console.is_terminal):
                self._print_losses(state, logs["loss"], losses)
        if "eval_average" in logs and not self.shared:
            self.progress.console.print(
                f"step {state.global_step:>5}  average on tune [bold]{logs['eval_average']:.4f}[/bold]", highlight=False
            )

    def _print_losses(self, state: TrainerState, loss: float, losses: Mapping[str, float]) -> None:
        head = f"step {state.global_step:>5} of {state.max_steps}  loss {loss:.3f}"
        tasks = losses_line(losses, max(self.progress.console.width - len(head) - 2, 0)) if losses else ""
        self.progress.console.print(f"{head}  {tasks}", markup=False, highlight=False, soft_wrap=True)

    def on_train_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Remove the bar."""
        self.stop()

    def stop(self) -> None:
        """Remove the bar, also after an error."""
        if not self.shared:
            self.progress.stop()
        elif self.bar is not None:
            self.progress.remove_task(self.bar)
        self.progress.losses = {}
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


class LastStepLog(TrainerCallback):
    """Logs the last step too, however many there have been since the last log: short runs show losses as well."""

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> TrainerControl:
        """Ask for a log."""
        control.should_log = control.should_log or state.global_step >= state.max_steps
        return control


class JsonLog(TrainerCallback):
    """Appends every log record to a JSONL file.

    A resumed run begins with the records that its checkpoint has behind it: what came after it comes again.

    Args:
        path: the file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Bring the file to where the run is."""
        if state.is_world_process_zero and (self.path.exists() or state.log_history):
            write_text_whole(self.path, "".join(self._line(record["step"], record) for record in state.log_history))

    def on_log(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, logs: Any = None, **_: Any
    ) -> None:
        """Append the record."""
        if state.is_world_process_zero:
            with writing("the log", self.path), self.path.open("a", encoding="utf-8") as file:
                file.write(self._line(state.global_step, logs or {}))

    @staticmethod
    def _line(step: int, logs: Mapping[str, Any]) -> str:
        record = {key: _plain(value) for key, value in logs.items() if key != "step"}
        return json.dumps({"step": step, **record}) + "\n"


def check_reporters(names: Iterable[str]) -> None:
    """Check what a recipe's `report_to` names, before anything is run.

    Raises:
        ConfigError: naming what transformers does not know (with the nearest that it does), or what is not installed.
    """
    from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK

    for name in names:
        if name not in INTEGRATION_TO_CALLBACK:
            known = ", ".join(INTEGRATION_TO_CALLBACK)
            raise ConfigError(
                f"training.report_to names '{name}', which transformers does not report to."
                f"{did_you_mean(name, INTEGRATION_TO_CALLBACK)} It knows: {known}."
            )
        try:
            INTEGRATION_TO_CALLBACK[name]()
        except (ImportError, RuntimeError) as error:
            raise ConfigError(
                f"training.report_to names '{name}', which cannot be used here: {first_line(error)} Install its "
                f"package (pip install {name}), or leave it out; log.jsonl is written anyway."
            ) from None


def _plain(value: Any) -> Any:
    """Return None for NaN and infinity, which JSON does not have."""
    return None if isinstance(value, float) and not math.isfinite(value) else value


class StopOnInterrupt(TrainerCallback):
    """On Ctrl-C, ends training after the running step with a checkpoint; a second Ctrl-C interrupts at once.

    Args:
        processes: those of the run, which stop at the same step.

    Attributes:
        interrupted: whether training was stopped.
    """

    def __init__(self, processes: Processes | None = None) -> None:
        self.interrupted = False
        self._processes = processes or Processes()
        self._since = 0.0

    @contextlib.contextmanager
    def listening(self) -> Iterator[None]:
        """Handle SIGINT inside the ``with`` block (in the main thread; elsewhere Python forbids it)."""

        def note(signum: int, frame: Any) -> None:
            now = time.monotonic()
            # Launchers pass on a Ctrl-C that the terminal has sent to every process already.
            if self.interrupted and (self._processes.count == 1 or now - self._since > 1.0):
                raise KeyboardInterrupt
            self.interrupted, self._since = True, now

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
        """Save and stop; at the end of an epoch its evaluation comes first."""
        self.interrupted = self._processes.any(self.interrupted, args.device)
        if self.interrupted:
            control.should_save = args.save_strategy != "epoch" or not _ends_epoch(state)
            control.should_training_stop = True
        return control

    def on_epoch_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> TrainerControl:
        """Do not evaluate or save again on the way out, unless the epoch is complete: its evaluation is due then."""
        if self.interrupted and not _ends_epoch(state):
            control.should_save = False
            control.should_evaluate = False
        return control


def _ends_epoch(state: TrainerState) -> bool:
    """Return whether the step is the last one of an epoch, or of the run."""
    return float(state.epoch or 0).is_integer() or state.global_step >= state.max_steps
