"""Checkpoints: folders that appear whole and go whole, and what a resumed run needs to log as if it had never stopped.

transformers' Trainer writes into the folder that it resumes from. Here it writes into ``.partial``, which is flushed to
the disk and gets its name last; older ones are removed only then. So the newest checkpoint is always a whole one.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from tasklora.tasks.whole_files import remove_folder

if TYPE_CHECKING:
    from tasklora.training.base_trainer import TasksTrainer

LOG_STATE_FILE = "log_state.pt"


def checkpoint_folder(folder: Path, step: int) -> Path:
    """Return where the checkpoint of a step is."""
    return folder / f"{PREFIX_CHECKPOINT_DIR}-{step}"


def step_of(checkpoint: Path) -> int:
    """Return the step that a checkpoint's name says; -1 if it says none."""
    step = checkpoint.name.rpartition("-")[2]
    return int(step) if step.isdigit() else -1


def checkpoints_in(folder: Path) -> list[Path]:
    """Return the checkpoints of a folder, the newest first."""
    return sorted(folder.glob(f"{PREFIX_CHECKPOINT_DIR}-*"), key=step_of, reverse=True)


def remove_older(folder: Path, kept: set[Path], limit: int) -> None:
    """Remove the oldest checkpoints until `limit` are left; those of `kept` stay."""
    there = checkpoints_in(folder)
    for checkpoint in reversed(there):
        if len(there) <= limit:
            break
        if checkpoint not in kept:
            remove_folder(checkpoint)
            there.remove(checkpoint)


class LogState(TrainerCallback):
    """What was summed up since the last log, kept in checkpoints.

    Logs show means over the steps since the one before, whatever steps checkpoints are written at. A resumed run goes
    on with these sums, so its log is that of a run that was never stopped.

    Args:
        trainer: whose logs.
    """

    def __init__(self, trainer: TasksTrainer) -> None:
        self.trainer = trainer
        self.resumed: dict[str, Any] | None = None

    def gather(self) -> None:
        """Give all sums to the main process, which writes them; called by all."""
        trainer = self.trainer
        if trainer.accelerator.num_processes == 1:
            return
        for name in ("_loss_sums", "_loss_counts"):
            total = trainer.accelerator.reduce(getattr(trainer, name).to(trainer.args.device), "sum")
            setattr(trainer, name, total if trainer.is_world_process_zero() else torch.zeros_like(total))
        # The log shows the mean over the processes.
        trainer._tr_loss = trainer.accelerator.reduce(trainer._tr_loss, "mean")

    def save(self, directory: Path) -> None:
        """Write the sums into a checkpoint."""
        trainer = self.trainer
        state = {
            "loss_sums": trainer._loss_sums,
            "loss_counts": trainer._loss_counts,
            "loss": trainer._tr_loss,
            "loss_before": trainer._total_loss_scalar,
            "logged_at": trainer._globalstep_last_logged,
            "balancing": trainer.balancer.means if trainer.balancer is not None else {},
        }
        torch.save(state, directory / LOG_STATE_FILE)

    def load(self, directory: Path) -> None:
        """Read what :meth:`save` wrote; the checkpoint of an earlier version has none, and its next log is shorter."""
        path = directory / LOG_STATE_FILE
        self.resumed = torch.load(path, weights_only=True, map_location="cpu") if path.is_file() else None

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Go on with the sums of the checkpoint."""
        trainer, kept, self.resumed = self.trainer, self.resumed, None
        if kept is None:
            return
        if trainer.is_world_process_zero():
            trainer._loss_sums, trainer._loss_counts = kept["loss_sums"], kept["loss_counts"]
        trainer._tr_loss = kept["loss"].to(args.device)
        trainer._total_loss_scalar = kept["loss_before"]
        trainer._globalstep_last_logged = kept["logged_at"]
        if trainer.balancer is not None:
            trainer.balancer.means = {
                key: (sums.to(args.device), counts.to(args.device)) for key, (sums, counts) in kept["balancing"].items()
            }
