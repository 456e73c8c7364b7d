"""Scalarisations: one weight per task, found from the losses alone. One backward, as without balancing.

For a scalarisation S the gradient of a step is Σ_t w_t ∇v_t with w_t = ∂S/∂v_t. So a step needs no more than the
weights before its backward passes:

- most scalarisations are linear in v: their weights are known before the step;
- the others (geometric mean, FAMO, STCH) need v itself. Where the step is one batch in one process, its forward has it;
  where it is cut, one more forward of all its batches without gradients, with the same dropout, is made first.

So batch 8 equals batch 2 accumulated 4 times here too. Tasks that are absent from a step get no weight, and what the
method has learned about them stays as it is.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn
from transformers import TrainerState

from tasklora.errors import ConfigError, NonFiniteLossError
from tasklora.training.balancer import Balancer, Rule, forked_draws, own_draws, random_state

FAR = 1e30
"""Stands for the loss of an absent task where TorchJD divides by losses: it weighs nothing."""
EPSILON = 1e-8
"""What FAMO adds to losses."""


class LossRule(Rule):
    """A scalarisation without memory, of the losses of the tasks that a step has.

    Attributes:
        needs_values: whether the weights depend on v.
        looks_back: whether it wants to see the losses of the same batches after the update.
    """

    needs_values = False
    looks_back = False

    def __init__(self, maker: Any, options: dict[str, Any], num_tasks: int) -> None:
        super().__init__(maker, options, num_tasks)
        self.scalariser = maker(**options)

    def scalarise(self, values: Tensor, present: Tensor) -> Tensor:
        """Return S(v).

        Args:
            values: v (T,); of absent tasks it does not matter.
            present: (T,) bool, which tasks the step has.
        """
        scalar: Tensor = self.scalariser(values[present])
        return scalar

    def weights(self, values: Tensor, present: Tensor) -> Tensor:
        """Return ∂S/∂v (T,), 0 for absent tasks."""
        with torch.enable_grad():
            values = values.detach().clone().requires_grad_()
            (weights,) = torch.autograd.grad(self.scalarise(values, present), values)
        return weights.masked_fill(~present, 0)

    def learn(self, values: Tensor, present: Tensor) -> None:
        """See the losses of a whole step, before its update."""

    def look_back(self, values: Tensor, present: Tensor) -> None:
        """See the losses of the same batches after the update."""

    def to(self, device: torch.device) -> None:
        """Move what must be where the losses are."""
        self.scalariser.to(device)


class ValueRule(LossRule):
    """A scalarisation without memory that is not linear in v."""

    needs_values = True


class LearnedRule(LossRule):
    """A scalarisation with a learned number per task (UW, IMTL-L).

    The optimiser learns it beside the model, without weight decay, at the rate of the run unless `lr` says otherwise;
    it is not among what ``max_grad_norm`` clips.
    """

    def __init__(self, maker: Any, options: dict[str, Any], num_tasks: int) -> None:
        self._learning_rate: float | None = options.pop("lr", None)
        super().__init__(maker, {"shape": num_tasks, **options}, num_tasks)

    @property
    def learning_rate(self) -> float | None:
        """Peak learning rate; None for that of the run."""
        return self._learning_rate

    def parameters(self) -> list[nn.Parameter]:
        """Return the number per task."""
        return list(self.scalariser.parameters())

    def scalarise(self, values: Tensor, present: Tensor) -> Tensor:
        """Return S(v) with 0 for absent tasks."""
        scalar: Tensor = self.scalariser(values.masked_fill(~present, 0))
        return scalar

    def learn(self, values: Tensor, present: Tensor) -> None:
        """Set the gradients of the numbers, 0 for absent tasks."""
        parameters = self.parameters()
        with torch.enable_grad():
            gradients = torch.autograd.grad(self.scalarise(values.detach(), present), parameters)
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter.grad = gradient.masked_fill(~present, 0)

    def state(self) -> dict[str, Any]:
        """Return the numbers."""
        return dict(self.scalariser.state_dict())

    def load(self, state: dict[str, Any]) -> None:
        """Restore the numbers."""
        self.scalariser.load_state_dict(state)


class DWARule(LossRule):
    """Dynamic weight average: by how fast each loss fell from the period before last to the last one.

    A period is an epoch, or `period` steps. A task's average is over the steps of the period that had it; a task that
    none had keeps its last average.
    """

    def __init__(self, maker: Any, options: dict[str, Any], num_tasks: int) -> None:
        self.period: int | None = options.pop("period")
        super().__init__(maker, options, num_tasks)
        self.averages: list[Tensor] = []
        self._sums, self._counts = torch.zeros(num_tasks), torch.zeros(num_tasks)

    def begin_run(self, state: TrainerState, steps_per_epoch: int) -> None:
        """Refuse a run of two periods: its weights would be equal from the first step to the last."""
        if state.max_steps <= 2 * (self.period or steps_per_epoch):
            what = f"{self.period} steps" if self.period else f"an epoch ({steps_per_epoch} steps)"
            raise ConfigError(
                f"training.balancing: dwa weighs by the losses of the two periods before, each {what}, and this run "
                f"ends within them, at step {state.max_steps}: nothing would be balanced. Set balancing.period to "
                f"fewer steps, e.g. {max(1, state.max_steps // 10)}, or train longer."
            )

    def scalarise(self, values: Tensor, present: Tensor) -> Tensor:
        """Return S(v); the scalariser's own sums are not used, since tasks may be absent."""
        scalar: Tensor = copy.deepcopy(self.scalariser)(values.masked_fill(~present, 0))
        return scalar

    def learn(self, values: Tensor, present: Tensor) -> None:
        """Add the losses of a step to the period's."""
        self._sums = self._sums.to(values.device) + values.detach().masked_fill(~present, 0)
        self._counts = self._counts.to(values.device) + present

    def end_step(self, state: TrainerState) -> None:
        """At the end of a period, take its averages."""
        done = state.global_step % self.period == 0 if self.period else float(state.epoch or 0).is_integer()
        if not done:
            return
        average = self._sums / self._counts  # NaN for a task that no step had
        last = self.averages[-1] if self.averages else torch.ones_like(average)
        self._remember(torch.where(self._counts > 0, average, last.to(average)))
        self._sums, self._counts = torch.zeros_like(self._sums), torch.zeros_like(self._counts)

    def _remember(self, average: Tensor) -> None:
        self.averages = [*self.averages, average][-2:]
        self.scalariser(average)
        self.scalariser.step()

    def state(self) -> dict[str, Any]:
        """Return the averages of the last periods and the sums of this one."""
        return {"averages": self.averages, "sums": self._sums, "counts": self._counts}

    def load(self, state: dict[str, Any]) -> None:
        """Restore them."""
        self._sums, self._counts = state["sums"], state["counts"]
        for average in state["averages"]:
            self._remember(average)

    def to(self, device: torch.device) -> None:
        """Move the averages."""
        super().to(device)
        averages, self.averages = self.averages, []
        self.scalariser.reset()
        for average in averages:
            self._remember(average.to(device))


class FAMORule(LossRule):
    """FAMO: weights that make all losses fall at the same rate.

    It must see the losses of a step's batches again after the update: one more forward per step, without gradients and
    with the same dropout. An absent task is taken to have fallen as the others did on average, and its own logit stays.
    """

    needs_values = True
    looks_back = True

    def __init__(self, maker: Any, options: dict[str, Any], num_tasks: int) -> None:
        super().__init__(maker, {"shape": num_tasks, **options}, num_tasks)

    def scalarise(self, values: Tensor, present: Tensor) -> Tensor:
        """Return S(v); absent tasks weigh nothing."""
        scalar: Tensor = self.scalariser(values.masked_fill(~present, FAR))
        return scalar

    def learn(self, values: Tensor, present: Tensor) -> None:
        """Keep the losses before the update."""
        self._before, self._present = values.detach(), present
        self.scalarise(self._before, present)

    def look_back(self, values: Tensor, present: Tensor) -> None:
        """Learn from what the update did."""
        shares = torch.softmax(self.scalariser.state_dict()["_w"], dim=0).masked_fill(~present, 0)
        fallen = ((self._before + EPSILON).log() - (values + EPSILON).log()).masked_fill(~present, 0)
        mean = (shares * fallen).sum() / shares.sum()
        logits = self.scalariser.state_dict()["_w"]
        kept = logits[~present].clone()
        self.scalariser.update(values.masked_fill(~present, FAR) * torch.where(present, 1.0, torch.exp(-mean)))
        logits[~present] = kept  # Adam makes a step of the rounding error that is left of an absent task's gradient

    def state(self) -> dict[str, Any]:
        """Return the logits of the weights and the state of the Adam that learns them."""
        optimizer = self.scalariser._optimizer
        return {"weights": self.scalariser.state_dict(), "adam": optimizer and optimizer.state_dict()}

    def load(self, state: dict[str, Any]) -> None:
        """Restore them."""
        famo = self.scalariser
        famo.load_state_dict(state["weights"])
        if state["adam"] is not None:
            famo._optimizer = torch.optim.Adam([famo._w], lr=famo.lr, weight_decay=famo.weight_decay)
            famo._optimizer.load_state_dict(state["adam"])


class LossBalancer(Balancer):
    """Weighs the losses of a step; see the module."""

    balances = "losses"
    rule: LossRule

    _begun = False
    _present: Tensor
    _values: Tensor
    _known: Tensor | None

    def step(self, model: nn.Module, inputs: dict[str, Any], counts: Any) -> Tensor:
        """Take one batch of a step; see :meth:`Balancer.step`."""
        trainer, device = self.trainer, self.trainer.args.device
        if not self._begun:
            self._begin(counts)
        with trainer.compute_loss_context_manager():
            losses = trainer.task_losses(model, inputs, counts)
            added = trainer.added_loss(model, inputs, counts)
        parts = self._vector({task: value.detach() for task, value in losses.values.items()})
        self._values = self._values + parts
        with own_draws(device, self.seed):
            weights = self.rule.weights(parts if self._known is None else self._known, self._present)
        self._check(weights)
        loss = sum((weights[task] * value for task, value in losses.values.items()), start=added)
        # Gradients are averaged over processes afterwards, but the losses are parts of those of all of them.
        trainer.accelerator.backward(loss * trainer.accelerator.num_processes)
        if trainer.accelerator.sync_gradients:
            self._values = trainer.accelerator.reduce(self._values, "sum")
            self.rule.learn(self._values, self._present)
            self.note("weight", weights, self._present)
            self._begun = False
        return losses.loss

    def _begin(self, counts: Any) -> None:
        """Begin a step: see which tasks it has, and what their losses are if the weights depend on it."""
        trainer, device = self.trainer, self.trainer.args.device
        self._begun, self._counts = True, counts
        self._batches = trainer.step_batches
        self._present = trainer.present_tasks(counts).to(device)
        self._values, self._known = self._vector({}), None
        self._draws = random_state(device)
        if self.rule.needs_values and (len(self._batches) > 1 or trainer.accelerator.num_processes > 1):
            self._known = self._values_now()

    def _values_now(self) -> Tensor:
        """Return v (T,) of the whole step as the model is now, with the dropout that the step has."""
        trainer = self.trainer
        model = trainer.accelerator.unwrap_model(trainer.model)
        statistics = {
            buffer: buffer.clone()
            for module in model.modules()
            if isinstance(module, nn.modules.batchnorm._BatchNorm)
            for buffer in module.buffers()
        }
        values = self._vector({})
        with torch.no_grad(), forked_draws(trainer.args.device, self._draws):
            for batch in self._batches:
                inputs = trainer._prepare_inputs(batch)
                with trainer.compute_loss_context_manager():
                    values = values + self._vector(trainer.task_losses(model, inputs, self._counts, note=False).values)
            for buffer, before in statistics.items():
                buffer.copy_(before)
        reduced: Tensor = trainer.accelerator.reduce(values, "sum")
        return reduced

    def _vector(self, values: dict[int, Tensor]) -> Tensor:
        """Return values as (T,), 0 where there are none."""
        vector = torch.zeros(len(self.tasks), device=self.trainer.args.device)
        for task, value in values.items():
            vector[task] = value.float()
        return vector

    def _check(self, weights: Tensor) -> None:
        if not bool(torch.isfinite(weights).all()):
            raise NonFiniteLossError(
                f"the weights of the balanced losses became NaN or infinite at step "
                f"{self.trainer.state.global_step + 1}. A loss of 0 does that where a method divides by it; train "
                "with another balancing method, or a lower learning rate."
            )

    def after_update(self) -> None:
        """Let a rule see what the update did to the losses of the step."""
        if self.rule.looks_back:
            self.rule.look_back(self._values_now(), self._present)
