"""Several processes that make one run (torchrun, accelerate launch): which one writes, and how they keep together."""

from __future__ import annotations

import os
from collections.abc import Callable
from datetime import timedelta

import torch
import torch.distributed as dist

from tasklora.errors import ConfigError, TaskLoraError, UnsupportedError

WAIT = timedelta(days=1)
"""How long a process waits for the others, e.g. while the main one scores: torchrun ends all as soon as one fails."""


class Processes:
    """The processes of a run; the group is joined here.

    Attributes:
        count: how many.
        is_main: whether this is the one that writes and prints.
    """

    def __init__(self) -> None:
        self.count = process_count()
        self.is_main = is_main_process()
        if self.count > 1 and not dist.is_initialized():
            from accelerate import PartialState

            PartialState(cpu=not torch.accelerator.is_available(), timeout=WAIT)

    def wait(self) -> None:
        """Wait until all processes are here."""
        if self.count > 1:
            dist.barrier()

    def on_main(self, action: Callable[[], None]) -> None:
        """Do something on the main process, while the others wait.

        Raises:
            TaskLoraError: in every process, what was raised in the main one.
        """
        failed: list[TaskLoraError | None] = [None]
        if self.is_main:
            try:
                action()
            except TaskLoraError as error:
                failed = [error]
        if self.count > 1:
            dist.broadcast_object_list(failed)
        if failed[0] is not None:
            raise failed[0]

    def main_first(self, action: Callable[[], None]) -> None:
        """Do something in every process, in the main one first: the others find what it has fetched and kept."""
        self.on_main(action)
        if not self.is_main:
            action()

    def any(self, value: bool, device: torch.device) -> bool:
        """Return whether a value is true in any process."""
        if self.count == 1:
            return value
        found = torch.tensor(float(value), device=device)
        dist.all_reduce(found, dist.ReduceOp.MAX)
        return bool(found)


def process_count() -> int:
    """Return how many processes the launcher has started."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def is_main_process() -> bool:
    """Return whether this is the one that writes and prints."""
    return int(os.environ.get("RANK", "0")) == 0


def is_on(name: str, default: str = "false") -> bool:
    """Return what a variable of the launcher says.

    Raises:
        ConfigError: if it is neither true nor false.
    """
    value = os.environ.get(name, default).lower()
    if value not in ("true", "false", "1", "0"):
        raise ConfigError(f"the launcher set {name}={os.environ[name]}: give true or false.")
    return value in ("true", "1")


def check_launcher(precision: str) -> None:
    """Refuse what a launcher asks for, but a recipe does not or a run cannot do: its libraries would do it unsaid.

    Args:
        precision: the recipe's.

    Raises:
        UnsupportedError: if something else than DDP or FSDP is to share the work out.
        ConfigError: if the precision is to be another one.
    """
    for name in ("ACCELERATE_USE_DEEPSPEED", "ACCELERATE_USE_MEGATRON_LM"):
        if is_on(name):
            raise UnsupportedError(
                f"the launcher set {name}={os.environ[name]}, but runs share their work out with plain processes (DDP) "
                "or FSDP2. Start it without."
            )
    asked = os.environ.get("ACCELERATE_MIXED_PRECISION", "no").lower()
    if asked not in ("no", {"float32": "no", "bfloat16": "bf16"}[precision]):
        raise ConfigError(
            f"the launcher set ACCELERATE_MIXED_PRECISION={asked}, the recipe says training.precision: {precision}, "
            "and the recipe decides (float32 or bfloat16): change it there, and leave --mixed_precision out."
        )


def check_alone(what: str) -> None:
    """Raise UnsupportedError in a group of processes.

    Args:
        what: what is made by one process only, for the error.
    """
    if process_count() > 1:
        raise UnsupportedError(
            f"{what} is made by one process, but the launcher started {process_count()}: start it without torchrun or "
            "accelerate."
        )
