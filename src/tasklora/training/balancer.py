"""What all balancing of tasks has in common: where it enters a training step, what is shared, what is logged and kept.

With the loss of task t over the rows (or valid pixels) that it has in the whole optimiser step,

    v_t = λ_t · mean ℓ          over accumulation and processes; tasks that are absent from the step have none

a balancing method puts another direction in place of the gradient of the family's own weighted sum:

===========  =====================================  ==================================================================
balances     shared parameters                      parameters of one task (task matrices, heads, decoders)
===========  =====================================  ==================================================================
losses       ∇ S(v), S a scalarisation              ∇ S(v)
gradients    A(J), J (tasks, shared) the Jacobian   ∇ v_t: there is nothing to balance
===========  =====================================  ==================================================================

What a method of the family adds to the loss (:func:`tasklora.auxiliary_loss`) belongs to no task; its gradient is added
as it is. The loss that is logged stays the family's own, so that curves can be compared whatever is balanced.
"""

from __future__ import annotations

import contextlib
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from tasklora.errors import CheckpointError, ConfigError
from tasklora.evaluation import parameter_group
from tasklora.vision.separate import SeparateEncoders

if TYPE_CHECKING:
    from tasklora.training.base_trainer import TasksTrainer

STATE_FILE = "balancing.pt"


@dataclass(frozen=True)
class TaskLosses:
    """What a batch contributes to a step.

    Attributes:
        values: task id → its part of v_t, with gradients; of the tasks that the batch has.
        loss: its part of the family's loss, without gradients.
    """

    values: dict[int, Tensor]
    loss: Tensor


def shared_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """Return the trained parameters that more than one task moves: the gradients of tasks can only conflict there.

    Those are the encoder's but for what belongs to single tasks; heads and decoders are each task's own.
    """
    if isinstance(model.encoder, SeparateEncoders):
        return {}
    return {
        name: parameter
        for name, parameter in model.named_parameters()
        if parameter.requires_grad and parameter_group(model, name) in ("shared", "other")
    }


def check_can_balance(method: str, model: nn.Module, tasks: Iterable[str]) -> None:
    """Raise ConfigError unless there are several tasks, and parameters that they share.

    Args:
        method: the balancing method, for the error.
        model: the model to train, with an ``encoder``; its weights do not matter.
        tasks: the names of its tasks.
    """
    tasks = list(tasks)
    if len(tasks) < 2:
        raise ConfigError(
            f"training.balancing: {method} weighs tasks against each other, but '{tasks[0]}' is the only one. Leave "
            "balancing out, or train more tasks."
        )
    if not shared_parameters(model):
        raise ConfigError(
            f"training.balancing: {method} has nothing to balance: no trained parameter is shared by the tasks (heads "
            "only, one LoRA per task, a backbone per task, and runs that extend another are like that). Leave "
            "balancing out, or take a method that shares its factors, e.g. mtl_lora or lora."
        )


class Balancer(ABC):
    """Takes the place of the gradient of the family's loss in a trainer's steps.

    Args:
        trainer: the trainer that it works for.
        rule: what weighs the tasks, with its state.

    Attributes:
        balances: "losses" or "gradients".
        means: key → sums and counts of what is noted for the next log, (T,) each.
    """

    balances: str

    def __init__(self, trainer: TasksTrainer, rule: Rule) -> None:
        self.trainer = trainer
        self.rule = rule
        rule.to(trainer.args.device)
        self.means: dict[str, tuple[Tensor, Tensor]] = {}

    @abstractmethod
    def step(self, model: nn.Module, inputs: dict[str, Any], counts: Any) -> Tensor:
        """Take one batch of a step; with the last one the gradients of the whole step stand in ``.grad``.

        Args:
            model: the model as the trainer wraps it.
            inputs: the batch, on the model's device.
            counts: what the whole step has, as ``get_batch_samples`` says.

        Returns:
            The batch's part of the family's loss, for the log.

        Raises:
            NonFiniteLossError: if a loss, or what the rule makes of them, is NaN or infinite.
        """

    @abstractmethod
    def after_update(self) -> None:
        """Note that the optimiser has made its step."""

    @property
    def tasks(self) -> list[str]:
        """Task names in the order of their ids."""
        return self.trainer.about_tasks

    @property
    def seed(self) -> int:
        """What a rule's random draws of this step begin with: the same in every process and after a resumption."""
        return int(self.trainer.args.seed) * 1_000_003 + int(self.trainer.state.global_step)

    def note(self, key: str, values: Tensor, present: Tensor) -> None:
        """Keep values (T,) for the next log, which shows ``KEY/TASK``, the mean over the steps that had the task."""
        sums, counts = self.means.get(key, (torch.zeros_like(values), torch.zeros_like(values)))
        self.means[key] = sums + values.masked_fill(~present, 0), counts + present

    def take_logs(self) -> dict[str, float]:
        """Return what was kept since the last log."""
        logs = {
            f"{key}/{task}": total / count
            for key, (sums, counts) in self.means.items()
            for task, total, count in zip(self.tasks, sums.tolist(), counts.tolist(), strict=True)
            if count
        }
        self.means = {}
        return logs

    def save(self, directory: Path) -> None:
        """Write the rule's state into a checkpoint."""
        torch.save(self.rule.state(), directory / STATE_FILE)

    def load(self, directory: Path) -> None:
        """Restore what :meth:`save` wrote.

        Raises:
            CheckpointError: if it is not there.
        """
        path = directory / STATE_FILE
        if not path.is_file():
            raise CheckpointError(
                f"{directory} has no {STATE_FILE}, the state of the run's balancing: it was written without. Go on "
                "from another checkpoint, or start a new run."
            )
        self.rule.load(torch.load(path, weights_only=True, map_location="cpu"))
        self.rule.to(self.trainer.args.device)


class Rule:
    """How tasks are weighed: an object of TorchJD with what it remembers.

    Args:
        maker: TorchJD's class.
        options: its options.
        num_tasks: T.
    """

    def __init__(self, maker: Any, options: dict[str, Any], num_tasks: int) -> None:
        self.num_tasks = num_tasks

    def begin_run(self, state: TrainerState, steps_per_epoch: int) -> None:
        """Raise ConfigError if the run is too short for the rule to do anything."""

    def end_step(self, state: TrainerState) -> None:
        """Note that a step is over."""

    def to(self, device: torch.device) -> None:
        """Move what must be where the losses are."""

    def parameters(self) -> list[nn.Parameter]:
        """Return what the optimiser is to learn beside the model."""
        return []

    @property
    def learning_rate(self) -> float | None:
        """Peak learning rate of :meth:`parameters`; None for that of the run."""
        return None

    def state(self) -> dict[str, Any]:
        """Return what a checkpoint must hold: tensors and plain values."""
        return {}

    def load(self, state: dict[str, Any]) -> None:
        """Restore what :meth:`state` returned."""


class BalancingCallback(TrainerCallback):
    """Tells a balancer when an update, a step and a run begin and end."""

    def __init__(self, balancer: Balancer) -> None:
        self.balancer = balancer

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Check that the run is long enough."""
        steps_per_epoch = -(-state.max_steps // max(1, state.num_train_epochs))
        self.balancer.rule.begin_run(state, steps_per_epoch)

    def on_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """Let the balancer see what the update did."""
        self.balancer.after_update()

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Count the step, before a checkpoint is written."""
        self.balancer.rule.end_step(state)


@contextlib.contextmanager
def own_draws(device: torch.device, seed: int) -> Iterator[None]:
    """Draw random numbers from a seed inside the block, and leave the training's own draws as they were."""
    with forked_draws(device):
        torch.manual_seed(seed)
        yield


@contextlib.contextmanager
def forked_draws(device: torch.device, begin: list[Tensor] | None = None) -> Iterator[None]:
    """Restore the random state after the block, which may begin at one that :func:`random_state` returned."""
    before = random_state(device)
    if begin is not None:
        _set_random_state(device, begin)
    try:
        yield
    finally:
        _set_random_state(device, before)


def random_state(device: torch.device) -> list[Tensor]:
    """Return the state of the CPU's random numbers, and of the device's."""
    own = [] if device.type == "cpu" else [torch.get_device_module(device).get_rng_state()]
    return [torch.get_rng_state(), *own]


def _set_random_state(device: torch.device, state: list[Tensor]) -> None:
    torch.set_rng_state(state[0])
    if device.type != "cpu":
        torch.get_device_module(device).set_rng_state(state[1])
