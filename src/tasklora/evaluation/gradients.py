"""Cosines between the tasks' gradients of the parameters that they share, per layer.

For task t with mean loss L_t over a sample of its rows and the shared trained parameters θ_l of layer l (low-rank ones:
of MTL-LoRA A and the B_i, not Λ_t and w_t)

    g_t,l = ∂L_t / ∂θ_l        cos_ts,l = ⟨g_t,l, g_s,l⟩ / (‖g_t,l‖ ‖g_s,l‖)

A step that follows one of two gradients with a negative cosine raises the other's loss, to first order (the conflict
of Yu et al., "Gradient Surgery for Multi-Task Learning", arXiv 2001.06782, section 2.2). A sample's gradient is noisy,
which draws cosines towards 0; so each task's sample is measured in two halves, and the cosine h of a task's two halves
says how much of its gradient is more than noise: whole samples of two tasks with the same gradient have 2h / (1 + h)
(Spearman and Brown's formula, which holds where noise is equal and independent).

Dropout is off, λ_t and what a method adds to the loss are left out. Memory: the gradients of all tasks are kept in main
memory while a measurement is made, 2 T × (shared parameters) × 4 bytes; on the accelerator are those of one batch.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from tasklora.errors import CheckpointError, ConfigError
from tasklora.evaluation.diagnostics import DIGITS, MAX_COMPARED_TASKS, layer_name, plain_numbers
from tasklora.evaluation.runner import parameter_group
from tasklora.evaluation.subspaces import cosines_of, pairs_of
from tasklora.tasks import Strict, TaskModel, TaskRows, parse, write_text_whole

GRADIENT_COSINES_FILE = "gradient_cosines.jsonl"

Batch = Mapping[str, Any]


class LayerCosines(Strict):
    """Gradients of one layer's shared parameters, or of all layers'. None stands for undefined: a gradient of zero.

    Attributes:
        cosines: per pair of tasks (0, 1), (0, 2), …
        halves: per task, the cosine of the gradients of the two halves of its sample.
        norms: per task, the norm of the gradient of the mean loss.
    """

    cosines: list[float | None]
    halves: list[float | None]
    norms: list[float]


class GradientCosines(Strict):
    """One line of gradient_cosines.jsonl: one measurement.

    Attributes:
        step: optimiser steps done before it; 0 is before training.
        tasks: names, in the order of the entries.
        rows: rows of each task that were measured.
        overall: over the shared parameters of all layers.
        layers: layer, by its path in the base model → its own.
    """

    step: int
    tasks: list[str]
    rows: list[int]
    overall: LayerCosines
    layers: dict[str, LayerCosines]


def shared_parameters(model: nn.Module) -> dict[str, list[nn.Parameter]]:
    """Return the low-rank parameters that are trained and shared by tasks, by layer.

    Args:
        model: a model with an adapter, of the family or PEFT's LoRA.
    """
    found: dict[str, list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad and parameter_group(model, name) == "shared":
            owner = name.rpartition(".")[0]
            layer = layer_name(owner).partition(".lora_")[0]  # PEFT's LoRA names its factors, not the adapter first
            found.setdefault(layer, []).append(parameter)
    return found


def check_measurable(model: nn.Module, tasks: Sequence[str]) -> None:
    """Raise ConfigError if there are no gradients of several tasks to compare, or those of too many."""
    if not 2 <= len(tasks) <= MAX_COMPARED_TASKS:
        raise ConfigError(
            f"training.gradient_cosines compares the gradients of 2 to {MAX_COMPARED_TASKS} tasks, the recipe has "
            f"{len(tasks)}. Leave it out, or name other tasks in tasks.include."
        )
    if not shared_parameters(model):
        raise ConfigError(
            "training.gradient_cosines compares gradients of low-rank parameters that tasks share, and this method "
            "trains none. Leave it out, or choose a method that shares some (lora, mtl_lora, ta_lora, …)."
        )


def measure_gradients(
    model: TaskModel,
    rows: Mapping[str, TaskRows],
    collator: Callable[[list[dict[str, Any]]], Batch],
    *,
    step: int = 0,
    rows_per_task: int = 32,
    batch_size: int = 32,
    seed: int = 0,
) -> GradientCosines:
    """Measure the cosines of the tasks' gradients; the model and its gradients stay as they are.

    Args:
        model: the model, which is put into evaluation mode and back.
        rows: task name → its rows, of which a sample is drawn by `seed` and `step`.
        collator: makes the batches.
        step: optimiser steps done.
        rows_per_task: size of the sample of each task; fewer where it has fewer.
        batch_size: rows per forward, at most.
        seed: of the draw.
    """
    layers = shared_parameters(model)
    parameters = [parameter for of_layer in layers.values() for parameter in of_layer]
    generator = np.random.default_rng([seed, step])
    device = next(model.parameters()).device
    halves: list[list[Tensor]] = [[], []]
    counts = []
    with _undisturbed(model):
        for name, of_task in rows.items():
            chosen = generator.permutation(len(of_task))[:rows_per_task]
            counts.append(len(chosen))
            for place, half in enumerate(np.array_split(chosen, 2)):
                total = torch.zeros(sum(parameter.numel() for parameter in parameters))
                for start in range(0, len(half), batch_size):
                    batch = collator([{**of_task[int(i)], "task": name} for i in half[start : start + batch_size]])
                    output = model(**{key: value.to(device) for key, value in batch.items()})
                    total += _gradient(output.losses.sum(), parameters)
                halves[place].append(total / max(1, len(chosen)))
    one, other = (torch.stack(side) for side in halves)  # (T, P)
    sizes = [sum(parameter.numel() for parameter in of_layer) for of_layer in layers.values()]
    parts = zip(layers, one.split(sizes, dim=1), other.split(sizes, dim=1), strict=True)
    return GradientCosines(
        step=step,
        tasks=list(rows),
        rows=counts,
        overall=_cosines(one, other),
        layers={layer: _cosines(first, second) for layer, first, second in parts},
    )


def _gradient(loss: Tensor, parameters: list[nn.Parameter]) -> Tensor:
    """Return the gradient as one vector (P,) in main memory; ``.grad`` is not touched."""
    grads = torch.autograd.grad(loss, parameters, allow_unused=True)
    flat = [
        (torch.zeros_like(parameter) if grad is None else grad).detach().float().flatten()
        for grad, parameter in zip(grads, parameters, strict=True)
    ]
    return torch.cat(flat).cpu()


def _cosines(one: Tensor, other: Tensor) -> LayerCosines:
    """Return the record of the tasks' gradients (T, P), which are the sums of those of two halves."""
    whole = (one + other).double()
    norms = whole.norm(dim=1)
    between = cosines_of(whole @ whole.mT)
    within = (one.double() * other.double()).sum(dim=1) / (one.double().norm(dim=1) * other.double().norm(dim=1))
    return LayerCosines(
        cosines=plain_numbers([float(between[pair]) for pair in pairs_of(len(whole))], DIGITS),
        halves=plain_numbers(within.tolist(), DIGITS),
        norms=[float(f"{norm:.4g}") for norm in norms.tolist()],
    )


@contextmanager
def _undisturbed(model: nn.Module) -> Iterator[None]:
    """Put the model into evaluation mode; put every module's mode and all random states back."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        with torch.random.fork_rng(devices=[]), torch.enable_grad():
            yield
    finally:
        for module, mode in modes.items():
            module.training = mode


def append_gradient_cosines(path: Path, measured: GradientCosines) -> None:
    """Append a line, in one piece."""
    with path.open("a", encoding="utf-8") as file:
        file.write(measured.model_dump_json() + "\n")


def keep_gradient_cosines(path: Path, last_step: int) -> None:
    """Leave the lines up to a step: those after it are measured again, and a torn last one is none."""
    if path.is_file():
        kept = [measured for measured in read_gradient_cosines(path) if measured.step <= last_step]
        write_text_whole(path, "".join(measured.model_dump_json() + "\n" for measured in kept))


def read_gradient_cosines(path: Path) -> list[GradientCosines]:
    """Read the measurements, by step; none where there is no file. A line that a crash has torn is left out.

    Raises:
        CheckpointError: if a whole line is no measurement.
    """
    if not path.is_file():
        return []
    found = {}
    try:
        for line in path.read_text(encoding="utf-8").splitlines():
            try:
                data = json.loads(line)
            except ValueError:
                continue
            measured = parse(GradientCosines, data, str(path))
            found[measured.step] = measured
    except (OSError, ConfigError, UnicodeDecodeError) as error:
        raise CheckpointError(f"cannot read {path}: {error}. Remove it, or run that run again.") from None
    return [found[step] for step in sorted(found)]
