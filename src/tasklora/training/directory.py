"""The directory of a run.

RUN/  recipe.resolved.yaml  manifest.json  checkpoints/  best/  final/  results.json  log.jsonl
      predictions.jsonl  shown_images.npz (of dense runs)  diagnostics.json  gradient_cosines.jsonl (if asked for)
      best_per_task/ (with selection: per_task)  tensorboard/ (with report_to: [tensorboard])
"""

from __future__ import annotations

import json
import pickle
import shutil
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch
from transformers.trainer_pt_utils import safe_globals

from tasklora.errors import CheckpointError, OutputError, listing
from tasklora.evaluation import (
    DIAGNOSTICS_FILE,
    GRADIENT_COSINES_FILE,
    PREDICTIONS_FILE,
    machine_description,
    package_versions,
    source_commit,
    write_text_whole,
)
from tasklora.evaluation.results import COMPARISON_FILE, LOG_FILE, RECIPE_FILE, RESULTS_FILE
from tasklora.tasks import read_safetensors, read_yaml
from tasklora.tasks.saved_model import MODEL_FILE
from tasklora.tasks.whole_files import PARTIAL, tidy
from tasklora.training.balancer import STATE_FILE
from tasklora.training.checkpoints import LOG_STATE_FILE, checkpoints_in
from tasklora.training.dense_recipe import DenseRecipe
from tasklora.training.processes import process_count
from tasklora.training.recipe import Recipe
from tasklora.training.recipes import parse_recipe
from tasklora.training.selection import read_choices, step_folder
from tasklora.training.workload import RowDigests

MANIFEST_FILE = "manifest.json"
RUN_FORMAT = "tasklora/run"
_UNWRITTEN = [f".{name}{PARTIAL}" for name in (MANIFEST_FILE, RECIPE_FILE)]  # what a kill at the very first leaves


class RunDirectory:
    """The directory of one run.

    Args:
        path: where it is.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.checkpoints = self.path / "checkpoints"
        self.best = self.path / "best"
        self.best_per_task = self.path / "best_per_task"
        self.final = self.path / "final"
        self.tensorboard = self.path / "tensorboard"
        self.recipe_file = self.path / RECIPE_FILE
        self.results = self.path / RESULTS_FILE
        self.log = self.path / LOG_FILE
        self.predictions = self.path / PREDICTIONS_FILE
        self.diagnostics = self.path / DIAGNOSTICS_FILE
        self.gradient_cosines = self.path / GRADIENT_COSINES_FILE

    @property
    def is_run(self) -> bool:
        """Whether the directory holds a run. Other programs write a manifest.json too, so the format counts."""
        try:
            manifest = json.loads((self.path / MANIFEST_FILE).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return False
        return isinstance(manifest, dict) and manifest.get("format") == RUN_FORMAT

    @property
    def has_begun(self) -> bool:
        """Whether there is anything of the run but its manifest, which is written first."""
        return self._holds({MANIFEST_FILE, *_UNWRITTEN})

    def _holds(self, but: set[str]) -> bool:
        return any(path.name not in but for path in self.path.iterdir())

    def check_free(self, overwrite: bool) -> None:
        """Raise OutputError if the directory holds something that `overwrite` does not allow to replace.

        Only a run of tasklora is ever replaced.
        """
        if not self.path.exists() or (self.path.is_dir() and not self._holds({_UNWRITTEN[0]})):
            return
        if not self.is_run:
            raise OutputError(
                f"the output directory {self.path} is not empty and holds no tasklora run, so it is not replaced. "
                "Choose another (--output)."
            )
        if not overwrite and self.has_begun:
            raise OutputError(
                f"the output directory {self.path} holds a run already. Choose another (--output), go on with it "
                "(--resume), or replace it with --overwrite."
            )

    def manifest(self) -> dict[str, Any]:
        """Return what was noted when the run was made.

        Raises:
            CheckpointError: if this is no run.
        """
        if not self.is_run:
            raise CheckpointError(f"{self.path} is no run directory (no {MANIFEST_FILE} of a run).")
        manifest: dict[str, Any] = json.loads((self.path / MANIFEST_FILE).read_text(encoding="utf-8"))
        return manifest

    def check_resumable(self, recipe: Recipe | DenseRecipe, rows: RowDigests) -> None:
        """Check that the run can go on as it was begun: on the same rows, as many of them a step.

        Args:
            recipe: the run's.
            rows: digests of the rows that there are now.

        Raises:
            CheckpointError: naming split and tasks whose rows are others, or the numbers of rows a step.
        """
        manifest = self.manifest()
        begun_with, now = manifest.get("rows_per_step"), rows_per_step(recipe)
        if begun_with not in (None, now):
            raise CheckpointError(
                f"{self.path} was begun with {begun_with} rows a step, but {process_count()} processes of "
                f"training.batch_size: {recipe.training.batch_size} make {now}. Start as many processes as then, or "
                f"change batch_size in {self.recipe_file} so that the product stays the same."
            )
        # Runs of older versions noted the training rows alone.
        begun: RowDigests = {"train": manifest["training_rows"], **manifest.get("scored_rows", {})}
        for split, digests in rows.items():
            before = begun.get(split, digests)
            others = [name for name in digests | before if digests.get(name) != before.get(name)]
            if others:
                raise CheckpointError(
                    f"the {split} rows of {listing(others)} are no longer those that {self.path} was begun with. "
                    "Restore them, or start a new run."
                )

    def create(self, recipe: Recipe | DenseRecipe, command: str, rows: RowDigests, overwrite: bool) -> None:
        """Make the directory and write what is known before training.

        Args:
            recipe: the recipe.
            command: the command line.
            rows: digests of the rows that it trains on and is scored on.
            overwrite: replace a run that is there.

        Raises:
            OutputError: if it cannot be written, or holds something; see :meth:`check_free`.
        """
        self.check_free(overwrite)
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            # The manifest says whose directory it is, so it goes last of an old run and comes first of a new one.
            for path in self.path.iterdir() if self.is_run else ():
                if path.is_dir() and not path.is_symlink():
                    shutil.rmtree(path)
                elif path.name != MANIFEST_FILE:
                    path.unlink()
            write_text_whole(self.path / MANIFEST_FILE, json.dumps(_manifest(recipe, command, rows), indent=2) + "\n")
            write_text_whole(self.path / RECIPE_FILE, recipe.to_yaml())
        except OSError as error:
            raise OutputError(
                f"cannot write to {self.path}: {error.strerror or error}. Choose another --output."
            ) from None

    def recipe(self) -> Recipe | DenseRecipe:
        """Return the recipe of the run.

        Raises:
            CheckpointError: if this is no run.
        """
        path = self.path / RECIPE_FILE
        if not path.is_file():
            never = " It was stopped before it began: start it again as you did." if self.is_run else ""
            raise CheckpointError(f"{self.path} is no run directory (no {RECIPE_FILE}).{never}")
        return parse_recipe(read_yaml(path), str(path))

    def latest_checkpoint(self) -> Path | None:
        """Return the newest checkpoint of which every file can be read; None if there is none."""
        return next((folder for folder in checkpoints_in(self.checkpoints) if _is_whole(folder)), None)

    def tidy(self) -> None:
        """Remove what writes that were cut off have left."""
        for folder in (self.path, self.checkpoints, self.best_per_task):
            tidy(folder)

    def model(self, task: str | None = None) -> Path:
        """Return the directory of the model that the run kept.

        Args:
            task: with it, of a run with ``selection: per_task``, the model of the task's own best step; the one that
                the average chose for a task that has none, and for other runs.

        Raises:
            CheckpointError: if the run has not finished.
        """
        if (self.path / COMPARISON_FILE).is_file():
            runs = sorted(path.parent.relative_to(self.path).as_posix() for path in self.path.glob("*/*/best"))
            raise CheckpointError(
                f"{self.path} is a comparison, not one run. Name one of its runs: {listing(runs, 4) or 'none yet'}."
            )
        if not self.is_run:
            raise CheckpointError(f"{self.path} is neither a run directory nor a saved model.")
        if not (self.best / "tasklora.json").is_file():
            raise CheckpointError(
                f"{self.path} has no finished model (no {self.best.name}/). Finish it with `tasklora train --resume`."
            )
        choice = read_choices(self.best_per_task).get(task or "")
        return step_folder(self.best_per_task, choice.step) if choice else self.best


def _is_whole(checkpoint: Path) -> bool:
    """Return whether everything of a checkpoint is there and can be read."""
    needed = (MODEL_FILE, "optimizer.pt", "scheduler.pt")
    if not all((checkpoint / name).is_file() for name in needed) or not any(checkpoint.glob("*.safetensors")):
        return False
    try:
        json.loads((checkpoint / "trainer_state.json").read_text(encoding="utf-8"))
        for file in checkpoint.glob("*.safetensors"):
            read_safetensors(file)
        with safe_globals():  # the state of numpy's random numbers
            for file in {
                checkpoint / "optimizer.pt",
                checkpoint / "scheduler.pt",
                *checkpoint.glob("rng_state*.pth"),
                *checkpoint.glob(STATE_FILE),
                *checkpoint.glob(LOG_STATE_FILE),
            }:
                torch.load(file, weights_only=True, map_location="cpu")
    except (CheckpointError, OSError, ValueError, RuntimeError, EOFError, pickle.UnpicklingError):
        return False
    return True


def rows_per_step(recipe: Recipe | DenseRecipe) -> int:
    """Return the rows of an optimiser step, over accumulation and processes."""
    return recipe.training.batch_size * recipe.training.gradient_accumulation_steps * process_count()


def _manifest(recipe: Recipe | DenseRecipe, command: str, rows: RowDigests) -> dict[str, Any]:
    return {
        "format": RUN_FORMAT,
        "version": 1,
        "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "command": command,
        "commit": source_commit(),
        "seed": recipe.training.seed,
        "rows_per_step": rows_per_step(recipe),
        "training_rows": rows["train"],
        "scored_rows": {split: digests for split, digests in rows.items() if split != "train"},
        "versions": package_versions(),
        "machine": machine_description(),
    }
