"""The number of tasks, with the same batch: what grows with it, and what does not.

$ python benchmarks/task_count.py --size short

Forward and what it keeps for backward are to stay flat. Gradients and the optimiser's state of the parameters that
belong to single tasks cannot: they are reported apart.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from harness import Report, Spread, main, peak_bytes
from models import Contender, Setting, contender

BYTES_LIMIT = 4 * 2**30  # a method stops at the number of tasks whose parameters, gradients and moments exceed this
# Size → (setting, numbers of tasks, rounds).
SIZES = {
    "tiny": (Setting("llama-64", "fp32", 8, 4), (1, 8, 64), 3),
    "short": (Setting("llama-256", "fp32", 16, 32), (1, 8, 512, 4096), 11),
    "full": (Setting("minilm", "fp32", 16, 64), (1, 8, 64, 512, 4096), 7),
    "gpu": (Setting("minilm", "fp32", 64, 128), (1, 8, 64, 512, 4096), 50),
}
METHODS = ("mtl_lora", "per_task_lora")


def spread_ids(rows: int, tasks: int, device: str) -> torch.Tensor:
    """Return tasks for the rows, spread over all there are: a different one for each row if there are enough."""
    return torch.arange(rows, device=device) * tasks // rows


def per_task_parameters(made: Contender) -> list[torch.nn.Parameter]:
    """Return the parameters whose first dimension is the number of tasks."""
    from tasklora.updates import LowRankUpdate

    updates = [module for module in made.model.modules() if isinstance(module, LowRankUpdate)]
    return [getattr(update, name) for update in updates for name in update.per_task_parameters]


def measure(report: Report) -> None:
    """Measure each method with each number of tasks."""
    setting, counts, rounds = SIZES[report.size]
    for method in METHODS:
        _measure_method(report, method, setting, counts, rounds)


def _measure_method(report: Report, method: str, setting: Setting, counts: tuple[int, ...], rounds: int) -> None:
    made: dict[int, Contender] = {}
    for tasks in counts:
        if made and tasks * _bytes_per_task(made[counts[0]]) > BYTES_LIMIT:
            break
        made[tasks] = contender(method, setting.model, setting.dtype, report.device, tasks)
    batches = {
        tasks: (setting.input_ids(report.device), spread_ids(setting.rows, tasks, report.device)) for tasks in made
    }
    optimisers = {tasks: torch.optim.AdamW(each.parameters, lr=1e-4) for tasks, each in made.items()}

    def step_with_optimiser(tasks: int) -> None:
        made[tasks].step(*batches[tasks])
        optimisers[tasks].step()

    def forward(tasks: int) -> torch.Tensor:
        return made[tasks].loss(*batches[tasks])

    kept = {tasks: peak_bytes(partial(forward, tasks), report.device).kept for tasks in made}
    _time(report, f"{method}, {setting}", "forward", forward, list(made), rounds)
    for tasks in made:
        where = f"{method}, {setting}, T = {tasks}"
        report.number(where, "bytes kept for backward: T / T = 1", kept[tasks] / kept[counts[0]])
    _time(report, f"{method}, {setting}", "step", lambda tasks: made[tasks].step(*batches[tasks]), list(made), rounds)
    _time(report, f"{method}, {setting}", "step with AdamW", step_with_optimiser, list(made), rounds)
    for tasks, each in made.items():
        where = f"{method}, {setting}, T = {tasks}"
        parameters = per_task_parameters(each)
        states = [state for p in parameters for state in optimisers[tasks].state[p].values() if state.dim()]
        report.number(where, "per-task parameters", _bytes(parameters), "bytes")
        report.number(where, "their gradients", _bytes([p.grad for p in parameters if p.grad is not None]), "bytes")
        report.number(where, "their optimiser state", _bytes(states), "bytes")


def _time(
    report: Report, setting: str, what: str, run: Callable[[int], object], counts: list[int], rounds: int
) -> None:
    """Time `run` of each number of tasks in turn and add the ratios to that of the first."""
    names = {tasks: f"{what}, T = {tasks}" for tasks in counts}
    times = report.time(setting, {names[tasks]: partial(run, tasks) for tasks in counts}, rounds)
    for tasks in counts[1:]:
        ratio = Spread.of_ratios(times[names[tasks]], times[names[counts[0]]])
        report.number(f"{setting}, T = {tasks}", f"{what}: T / T = 1", ratio)


def _bytes(tensors: list[torch.Tensor]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def _bytes_per_task(one_task: Contender) -> int:
    """Return the bytes of one task's parameters, their gradients and AdamW's two moments."""
    return 4 * _bytes(per_task_parameters(one_task))


if __name__ == "__main__":
    main("task_count", measure, __doc__)
