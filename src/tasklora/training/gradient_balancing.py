"""Gradient surgery: the gradients of the tasks with respect to the shared parameters, combined into one.

The Jacobian J (tasks, shared parameters) has the gradient of v_t as its row t. With low-rank factors it is small: on
MiniLM, of 22 million weights, MTL-LoRA at rank 8 with three up-projections shares 0.66 million numbers.

Where each row of a batch has one task, v_t depends on the rows of t alone. So each task's rows go through the model by
themselves, forward and backward, and all T gradients together cost the arithmetic of one step, in T smaller pieces.
Where every image has all tasks, there is one forward and one backward per task. Rows of J are added up over
accumulation and processes before anything is combined, so batch 8 equals batch 2 accumulated 4 times.

Parameters of one task get the plain gradient of its v_t.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from tasklora.errors import NonFiniteLossError, first_line
from tasklora.training.balancer import Balancer, Rule, own_draws, shared_parameters

if TYPE_CHECKING:
    from tasklora.training.base_trainer import TasksTrainer


class GradientRule(Rule):
    """An aggregator without memory whose weights follow from the Gramian J Jᵀ: A(J) = wᵀ J."""

    def __init__(self, maker: Any, options: dict[str, Any], num_tasks: int) -> None:
        super().__init__(maker, options, num_tasks)
        self.aggregator = maker(**options)

    def combine(self, jacobian: Tensor, gramian: Tensor, present: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return A(J) (P,) and the weights (m,) of its rows, None where it is no weighted sum of them.

        Args:
            jacobian: J (m, P), the rows of the tasks that the step has.
            gramian: J Jᵀ (m, m).
            present: (m,) the ids of those tasks.
        """
        weights = self.aggregator.gramian_weighting(gramian)
        return weights @ jacobian, weights


class ScaleFreeRule(GradientRule):
    """One whose weights do not depend on the size of J, but which TorchJD stops below an absolute size.

    Its threshold, ‖J‖² < 1e-4, is within what low-rank factors have: CAGrad's update would be zero there, UPGrad's and
    DualProj's the mean. So the Gramian is handed over at trace 1.
    """

    def combine(self, jacobian: Tensor, gramian: Tensor, present: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return A(J) and its weights; see :meth:`GradientRule.combine`."""
        size = gramian.trace()
        return super().combine(jacobian, gramian / torch.where(size > 0, size, 1.0), present)


class MatrixRule(GradientRule):
    """An aggregator without memory that is no weighted sum of the rows."""

    def combine(self, jacobian: Tensor, gramian: Tensor, present: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return A(J) and None; see :meth:`GradientRule.combine`."""
        return self.aggregator(jacobian), None


class GradVacRule(GradientRule):
    """GradVac, with its moving averages of the cosines kept for every pair of tasks, present or not."""

    def __init__(self, maker: Any, options: dict[str, Any], num_tasks: int) -> None:
        super().__init__(maker, options, num_tasks)
        self.cosines = torch.zeros(num_tasks, num_tasks)

    def combine(self, jacobian: Tensor, gramian: Tensor, present: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return A(J) and its weights; see :meth:`GradientRule.combine`."""
        weighting, pairs = self.aggregator.gramian_weighting, (present[:, None].cpu(), present[None, :].cpu())
        # TorchJD begins anew where the number of tasks changes: it gets the part that this step is about.
        weighting._phi_t = self.cosines[pairs].to(gramian.dtype)
        weighting._state_key = (len(present), gramian.dtype)
        found = super().combine(jacobian, gramian, present)
        self.cosines[pairs] = weighting._phi_t.to(self.cosines.dtype)
        return found

    def state(self) -> dict[str, Any]:
        """Return the moving averages."""
        return {"cosines": self.cosines}

    def load(self, state: dict[str, Any]) -> None:
        """Restore them."""
        self.cosines = state["cosines"]


class NashMTLRule(GradientRule):
    """Nash-MTL, with the weights of the last solution kept for every task: the next search begins there."""

    def __init__(self, maker: Any, options: dict[str, Any], num_tasks: int) -> None:
        Rule.__init__(self, maker, options, num_tasks)
        self.every = options.pop("update_weights_every")
        self.maker, self.options = maker, options
        self.alpha = torch.ones(num_tasks, dtype=torch.float64)
        self.steps = 0

    def combine(self, jacobian: Tensor, gramian: Tensor, present: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return A(J) and its weights; see :meth:`GradientRule.combine`."""
        places = present.cpu()
        weighting = self.maker(len(present), **self.options, update_weights_every=2).weighting
        weighting.prvs_alpha = self.alpha[places].numpy()
        weighting.step = self.steps % self.every and 1  # at step 0 it solves, at step 1 it takes the last solution
        weights = weighting(jacobian)
        self.alpha[places] = torch.as_tensor(weighting.prvs_alpha, dtype=torch.float64)
        self.steps += 1
        return weights @ jacobian, weights

    def state(self) -> dict[str, Any]:
        """Return the last solution and the number of steps."""
        return {"alpha": self.alpha, "steps": self.steps}

    def load(self, state: dict[str, Any]) -> None:
        """Restore them."""
        self.alpha, self.steps = state["alpha"], state["steps"]


class GradientBalancer(Balancer):
    """Combines the gradients of the tasks; see the module."""

    balances = "gradients"
    rule: GradientRule

    def __init__(self, trainer: TasksTrainer, rule: Rule) -> None:
        super().__init__(trainer, rule)
        model: Any = trainer.model
        self._shared = list(shared_parameters(model).values())
        known = {id(parameter) for parameter in self._shared}
        self._own = [p for p in model.parameters() if p.requires_grad and id(p) not in known]
        self._forget()

    def _forget(self) -> None:
        self._rows: dict[int, Tensor] = {}  # task id → gradient of its v_t, (P,)
        self._added: Tensor | None = None
        self._touched = [False] * len(self._shared)

    def step(self, model: nn.Module, inputs: dict[str, Any], counts: Any) -> Tensor:
        """Take one batch of a step; see :meth:`Balancer.step`."""
        trainer = self.trainer
        # Not through DDP's forward: it would average gradients over processes that are to be combined first.
        inner = trainer.accelerator.unwrap_model(model)
        loss = torch.zeros((), device=trainer.args.device)
        for batch in trainer.split_by_task(inputs):
            with trainer.compute_loss_context_manager():
                losses = trainer.task_losses(inner, batch, counts)
            for place, (task, value) in enumerate(losses.values.items(), start=1):
                row = self._gradient(value, retain_graph=place < len(losses.values))
                self._rows[task] = self._rows[task] + row if task in self._rows else row
            loss = loss + losses.loss
        with trainer.compute_loss_context_manager():
            added = trainer.added_loss(inner, inputs, counts)
        if added.requires_grad:
            row = self._gradient(added)
            self._added = row if self._added is None else self._added + row
        if trainer.accelerator.sync_gradients:
            self._finish(trainer.present_tasks(counts).nonzero().flatten())
        return loss

    def after_update(self) -> None:
        """Do nothing: all that is to be learned is in the gradients."""

    def _gradient(self, value: Tensor, retain_graph: bool = False) -> Tensor:
        """Return the gradient of `value` by the shared parameters, (P,); add that by the others to their ``.grad``."""
        parameters = [*self._shared, *self._own]
        gradients = torch.autograd.grad(value, parameters, retain_graph=retain_graph, allow_unused=True)
        flat = []
        for place, (parameter, gradient) in enumerate(zip(parameters, gradients, strict=True)):
            if place < len(self._shared):
                self._touched[place] |= gradient is not None
                flat.append((torch.zeros_like(parameter) if gradient is None else gradient).reshape(-1).float())
            elif gradient is not None:
                parameter.grad = gradient if parameter.grad is None else parameter.grad + gradient
        return torch.cat(flat)

    def _finish(self, present: Tensor) -> None:
        """Combine the rows of a step into the gradient of the shared parameters."""
        trainer, device = self.trainer, self.trainer.args.device
        nothing = torch.zeros(sum(parameter.numel() for parameter in self._shared), device=device)
        jacobian = torch.stack([self._rows.get(task, nothing) for task in present.tolist()])  # (m, P)
        added = nothing if self._added is None else self._added
        if trainer.accelerator.num_processes > 1:
            jacobian, added = trainer.accelerator.reduce((jacobian, added), "sum")
            self._reduce_own()
        combined = self._combined(jacobian, present.to(device))
        parts = (combined + added).split([parameter.numel() for parameter in self._shared])
        for parameter, part, touched in zip(self._shared, parts, self._touched, strict=True):
            # As without balancing: what no task reaches gets no gradient, and so takes no weight decay either.
            parameter.grad = part.view_as(parameter).to(parameter.dtype) if touched else None
        self._forget()

    def _combined(self, jacobian: Tensor, present: Tensor) -> Tensor:
        """Return A(J) (P,); the row itself where a step has one task, since there is nothing to combine."""
        if len(present) < 2:
            return jacobian.sum(dim=0)
        gramian = jacobian @ jacobian.T
        try:
            with own_draws(jacobian.device, self.seed):
                combined, weights = self.rule.combine(jacobian, gramian, present)
        except (ValueError, ArithmeticError) as error:  # what TorchJD and the solvers under it raise
            raise NonFiniteLossError(f"{self._at()} found no solution: {first_line(error)}. {_WHAT_TO_DO}") from error
        if not bool(torch.isfinite(combined).all()):
            raise NonFiniteLossError(f"{self._at()} gave NaN or infinity. {_WHAT_TO_DO}")
        self._note(gramian, weights, present)
        return combined

    def _reduce_own(self) -> None:
        """Add up the gradients of the tasks' own parameters over processes; a task may be absent from one of them."""
        flags = [float(touched) for touched in self._touched] + [float(p.grad is not None) for p in self._own]
        device = self.trainer.args.device
        sums = [torch.zeros_like(p) if p.grad is None else p.grad for p in self._own]
        flat = torch.cat([torch.tensor(flags, device=device), *(each.reshape(-1).float() for each in sums)])
        flat = self.trainer.accelerator.reduce(flat, "sum")
        reached = (flat[: len(flags)] > 0).tolist()
        parts = flat[len(flags) :].split([parameter.numel() for parameter in self._own])
        self._touched, own = reached[: len(self._shared)], reached[len(self._shared) :]
        for parameter, part, is_reached in zip(self._own, parts, own, strict=True):
            parameter.grad = part.view_as(parameter).to(parameter.dtype) if is_reached else None

    def _note(self, gramian: Tensor, weights: Tensor | None, present: Tensor) -> None:
        """Keep the weights, and each task's mean cosine with the others, for the log."""
        is_present = torch.zeros(len(self.tasks), dtype=torch.bool, device=gramian.device)
        is_present[present] = True
        everyone = torch.zeros(len(self.tasks), device=gramian.device)
        if weights is not None:
            self.note("weight", everyone.index_copy(0, present, weights.float()), is_present)
        norms = gramian.diagonal().clamp(min=0).sqrt()
        cosines = gramian / torch.outer(norms, norms).clamp(min=torch.finfo(gramian.dtype).tiny)
        mean = (cosines.sum(dim=1) - cosines.diagonal()) / (len(present) - 1)
        self.note("cosine", everyone.index_copy(0, present, mean), is_present)

    def _at(self) -> str:
        return f"balancing the tasks' gradients at step {self.trainer.state.global_step + 1}"


_WHAT_TO_DO = (
    "The model is as it was before the step; earlier checkpoints are kept. Try another balancing method or a lower "
    "learning rate."
)
