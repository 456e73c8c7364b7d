"""The one table of cases that the property tests run over, and how to build an update from a row of it.

A new method adds its rows here; `test_cases.py` fails until it has.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn

from tasklora.updates import (
    HydraLora,
    HydraLoraOptions,
    LoraCore,
    LowRankUpdate,
    MoELora,
    MoELoraOptions,
    MTLLora,
    MTLLoraOptions,
    MultiLora,
    MultiLoraOptions,
    PerTaskLora,
    PerTaskLoraOptions,
    RoutedUpdate,
    TALora,
    TALoraOptions,
    TaskAssignment,
    UpdateOptions,
)

IN, OUT, TASKS = 12, 10, 4


@dataclass(frozen=True)
class Case:
    """One method with one set of options, and the closed formulas that hold for it.

    Attributes:
        id: name of the case in the test's id.
        method: name in the registry; None for what is internal.
        update_cls: the update under test.
        options: its options.
        parameters: (in, out, T) → number of shared and of per-task parameters.
        rank: rank of the exact plain LoRA of one task; None where there is none (routed).
    """

    id: str
    method: str | None
    update_cls: type[LowRankUpdate]
    options: UpdateOptions
    parameters: Callable[[int, int, int], tuple[int, int]]
    rank: int | None

    @property
    def uses_task_ids(self) -> bool:
        return self.update_cls.uses_task_ids


def mtl_lora(r: int, n: int, task_matrix: str, temperature: float = 0.5) -> Case:
    task_numbers = r * r if task_matrix == "full" else r
    return Case(
        id=f"mtl_lora-{task_matrix}-n{n}",
        method="mtl_lora",
        update_cls=MTLLora,
        options=MTLLoraOptions(r=r, lora_alpha=6, up_projections=n, temperature=temperature, task_matrix=task_matrix),
        parameters=lambda i, o, t: (r * i + n * o * r, t * (task_numbers + n)),
        rank=r,
    )


CASES: list[Case] = [
    Case("lora", None, LoraCore, UpdateOptions(r=3, lora_alpha=6), lambda i, o, t: (3 * (i + o), 0), rank=3),
    mtl_lora(3, 2, "full"),
    mtl_lora(3, 2, "diagonal"),
    mtl_lora(3, 1, "full"),
    mtl_lora(2, 4, "full", temperature=0.1),
    mtl_lora(2, 4, "diagonal", temperature=5.0),
    Case(
        "per_task_lora",
        "per_task_lora",
        PerTaskLora,
        PerTaskLoraOptions(r=3, lora_alpha=6),
        lambda i, o, t: (0, t * 3 * (i + o)),
        rank=3,
    ),
    Case(
        "ta_lora",
        "ta_lora",
        TALora,
        TALoraOptions(r=3, r_shared=2, lora_alpha=6, task_embedding=4, temperature=0.7),
        lambda i, o, t: (5 * (i + o) + 3 * 4, 4 * t),
        rank=5,
    ),
    Case(
        "multi_lora",
        "multi_lora",
        MultiLora,
        MultiLoraOptions(r=2, lora_alpha=6, parallel_modules=3),
        lambda i, o, t: (6 * (i + o) + 3 * o, 0),
        rank=6,
    ),
    Case(
        "moe_lora",
        "moe_lora",
        MoELora,
        MoELoraOptions(r=4, lora_alpha=6, experts=2, task_embedding=5),
        lambda i, o, t: (4 * (i + o) + 2 * 5, 5 * t),
        rank=4,
    ),
    Case(
        "hydra_lora",
        "hydra_lora",
        HydraLora,
        HydraLoraOptions(r=3, lora_alpha=6, up_projections=2),
        lambda i, o, t: (3 * (i + 2 * o) + 2 * i, 0),
        rank=None,
    ),
]

every_case = pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
every_exact_case = pytest.mark.parametrize(
    "case", [case for case in CASES if case.rank is not None], ids=lambda case: case.id
)
every_routed_case = pytest.mark.parametrize(
    "case", [case for case in CASES if case.rank is None], ids=lambda case: case.id
)
every_task_case = pytest.mark.parametrize(
    "case", [case for case in CASES if case.uses_task_ids], ids=lambda case: case.id
)


def randomize(module: nn.Module, seed: int = 0, scale: float = 0.5) -> None:
    """Fill all parameters with normal numbers: a fresh update is zero and would prove nothing."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * scale)


def build(
    case: Case,
    in_features: int = IN,
    out_features: int = OUT,
    tasks: int = TASKS,
    dtype: torch.dtype = torch.float64,
    random: bool = True,
) -> LowRankUpdate:
    """Return the update of a case, with random parameters unless told otherwise."""
    update = case.update_cls(in_features, out_features, tasks, case.options).to(dtype)
    if random:
        randomize(update)
    return update


def factors_at(update: LowRankUpdate, tasks: TaskAssignment, token: Tensor) -> tuple[Tensor, Tensor]:
    """Return A' and B' with ΔW = B' A' for one token x (in_features,); only routed updates look at it."""
    if not isinstance(update, RoutedUpdate):
        return update.lora_factors(tasks)
    gates = torch.softmax(update.router() @ token, dim=0)
    blocks = update.up().unflatten(1, (len(gates), -1))  # (out, n, r)
    return update.down(), torch.einsum("n,onr->or", gates, blocks) * update.scaling


def ids(values: int | Sequence[int] | Sequence[Sequence[int]] | Tensor) -> TaskAssignment:
    """Return an assignment of task ids."""
    return TaskAssignment(ids=torch.as_tensor(values, dtype=torch.long))


def weights(values: Sequence[float] | Tensor) -> TaskAssignment:
    """Return an assignment of mixtures."""
    return TaskAssignment(weights=torch.as_tensor(values, dtype=torch.float64))


def randn(*shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64).to(dtype)


def close(actual: Tensor, expected: Tensor, tolerance: float = 1e-12) -> None:
    """Assert equality up to rounding, relative to the largest expected number."""
    assert actual.shape == expected.shape
    assert torch.isfinite(actual).all()
    scale = max(float(expected.detach().abs().max()), 1.0) if expected.numel() else 1.0
    torch.testing.assert_close(actual, expected, rtol=0, atol=tolerance * scale)
