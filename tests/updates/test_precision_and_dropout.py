"""Half-precision inputs with float32 parameters, autocast, and dropout as one mask on the update's input."""

from dataclasses import replace

import pytest
import torch

from helpers_updates import (
    IN,
    build,
    close,
    every_case,
    every_exact_case,
    every_routed_case,
    every_task_case,
    factors_at,
    ids,
    randn,
    weights,
)

ASSIGNMENTS = {
    "one_task": ids(1),
    "per_row": ids([0, 2, 2]),
    "per_token": ids([[0, 2, 3, 1, 1]] * 3),
    "mixture": weights([[0.5, 0.3, 0.2, 0.0]] * 3),
    "one_mixture": weights([0.5, 0.3, 0.2, 0.0]),
}
every_assignment = pytest.mark.parametrize("assignment", ASSIGNMENTS.values(), ids=ASSIGNMENTS)


@every_case
@every_assignment
def test_bf16_input_with_fp32_parameters(case, assignment):
    update = build(case, dtype=torch.float32)
    x = randn(3, 5, IN, dtype=torch.bfloat16)
    y = update(x, assignment)
    assert y.dtype == torch.bfloat16
    close(y.float(), update(x.float(), assignment), tolerance=0.04)  # a few of bf16's 2^-8 roundings


@every_case
@every_assignment
def test_autocast(case, assignment):
    update, x = build(case, dtype=torch.float32), randn(3, 5, IN, dtype=torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = update(x, assignment)
    assert y.dtype == torch.bfloat16
    close(y.float(), update(x, assignment), tolerance=0.04)


def test_routing_of_bf16_parameters_is_computed_in_float32():
    from helpers_updates import mtl_lora

    update = build(mtl_lora(3, 2, "full"), dtype=torch.bfloat16)
    assert update.gates(torch.tensor([0, 1])).dtype == torch.float32


def with_dropout(case, rate: float):
    return replace(case, options=replace(case.options, lora_dropout=rate))


@every_case
def test_no_dropout_in_eval_mode(case):
    x = randn(4, 5, IN)
    update = build(with_dropout(case, 0.5)).eval()
    close(update(x, ids([0, 1, 2, 3])), build(case)(x, ids([0, 1, 2, 3])))


@every_exact_case
@every_assignment
def test_dropout_is_one_mask_on_the_input(case, assignment):
    """With the same random state the update equals the one without dropout on the masked input."""
    x = randn(3, 5, IN)
    update, plain = build(with_dropout(case, 0.5)).train(), build(case)
    torch.manual_seed(7)
    y = update(x, assignment)
    torch.manual_seed(7)
    masked = torch.nn.functional.dropout(x, 0.5)
    assert (masked == 0).any()
    close(y, plain(masked, assignment))


@every_routed_case
def test_a_router_reads_x_before_dropout(case):
    x = randn(3, 5, IN)
    update = build(with_dropout(case, 0.5)).train()
    torch.manual_seed(7)
    y = update(x, None)
    torch.manual_seed(7)
    masked = torch.nn.functional.dropout(x, 0.5)
    down, up = factors_at(update, ids(0), x[1, 2])
    close(y[1, 2], up @ (down @ masked[1, 2]))


@every_task_case
def test_dropout_keeps_the_law_in_expectation_only(case):
    """Two calls in train mode draw two masks."""
    x = randn(3, 5, IN)
    update = build(with_dropout(case, 0.5)).train()
    assert not torch.equal(update(x, ids(0)), update(x, ids(0)))
