"""What a machine does to a run: full disks, memory that runs out, workers that die; said so that one can go on."""

from __future__ import annotations

import contextlib
import errno
from collections.abc import Iterator

import torch
from safetensors import SafetensorError

from tasklora.errors import MemoryRanOutError, OutputError, TaskLoraError, WorkerDiedError, first_line
from tasklora.tasks.whole_files import is_of_disk, reason
from tasklora.training.dense_recipe import DenseRecipe, DenseTrainingSection
from tasklora.training.directory import RunDirectory
from tasklora.training.recipe import Recipe

_NO_MEMORY = ("can't allocate memory", "out of memory", "CUBLAS_STATUS_ALLOC_FAILED")


@contextlib.contextmanager
def explained(run: RunDirectory, recipe: Recipe | DenseRecipe) -> Iterator[None]:
    """Say of an error of the machine inside the block what is kept of a run, and how to go on.

    Raises:
        OutputError: if something could not be written.
        MemoryRanOutError: if memory ran out; it says what to lower.
        WorkerDiedError: if a process that loads rows died.
    """
    try:
        yield
    except (OSError, EOFError, MemoryError, RuntimeError, SafetensorError) as error:
        if isinstance(error, OutputError):
            raise OutputError(f"{error} {_make_room(run)}") from error
        if isinstance(error, TaskLoraError):
            raise
        if _is_of_memory(error):
            raise MemoryRanOutError(
                f"memory ran out: {first_line(error)} {_lower(run, recipe)} {_go_on(run)}"
            ) from error
        workers = recipe.training.workers if isinstance(recipe.training, DenseTrainingSection) else 0
        # A worker that dies while it hands over a batch breaks the connection before PyTorch notices its death.
        if "DataLoader worker" in str(error) or (workers and isinstance(error, (ConnectionError, EOFError))):
            raise WorkerDiedError(
                f"a process that loads images died: {first_line(error)} Most often memory or /dev/shm ran out: lower "
                f"training.workers (it is {workers}; 0 loads in the main process) in {run.recipe_file}; that changes "
                f"nothing of what is learnt. {_go_on(run)}"
            ) from error
        if is_of_disk(error):
            where = getattr(error, "filename", None) or run.path
            raise OutputError(f"cannot write to {where}: {reason(error)}. {_make_room(run)}") from error
        raise


def _is_of_memory(error: BaseException) -> bool:
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    return any(part in str(error) for part in _NO_MEMORY)


def _go_on(run: RunDirectory) -> str:
    checkpoint = run.latest_checkpoint()
    kept = f"{checkpoint.name} is kept." if checkpoint else "There was no checkpoint yet: the run will begin anew."
    return f"{kept} Go on with: tasklora train --resume {run.path}"


def _make_room(run: RunDirectory) -> str:
    return f"See to it that there is room and leave to write. {_go_on(run)}"


def _lower(run: RunDirectory, recipe: Recipe | DenseRecipe) -> str:
    section = recipe.training
    advice = [
        f"training.batch_size (it is {section.batch_size}; half of it with twice the gradient_accumulation_steps, "
        f"which are {section.gradient_accumulation_steps}, makes the same steps)",
        f"training.eval_batch_size (it is {section.eval_batch_size})",
    ]
    turn_on = "" if section.gradient_checkpointing else ", or turn training.gradient_checkpointing on"
    size = (
        f"model.max_length (it is {recipe.model.max_length})"
        if isinstance(recipe, Recipe)
        else f"model.image_size (it is {recipe.model.image_size})"
    )
    return (
        f"Lower {' or '.join(advice)}{turn_on}, in {run.recipe_file}: none of these changes what is learnt. In a new "
        f"run, {size} helps most."
    )
