"""The law of the family: update(x, t) == x @ (B' A').T with (A', B') = lora_factors(t), for tasks and for mixtures.
Routed updates have such factors for each token only, and refuse by name to give them for a task.

Also what follows from it: the weight that merging adds, the rank of the exported LoRA, ΔW = 0 at the start, and the
number of parameters by closed formulas.
"""

import pytest
import torch

from helpers_updates import (
    CASES,
    IN,
    OUT,
    TASKS,
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
from tasklora.errors import UnsupportedError


@every_exact_case
@pytest.mark.parametrize("task", range(TASKS))
def test_forward_equals_the_plain_lora_of_the_task(case, task):
    update, x = build(case), randn(3, 5, IN)
    down, up = update.lora_factors(ids(task))
    assert down.shape[1] == IN
    assert up.shape[0] == OUT
    close(update(x, ids(task)), x @ (up @ down).T)
    close(update(x, ids([task] * 3)), x @ (up @ down).T)


@every_task_case
@pytest.mark.parametrize("mixture", [(0.25, 0.25, 0.25, 0.25), (0.7, 0.0, -0.2, 0.0), (0.0, 0.0, 0.0, 0.0)])
def test_forward_equals_the_plain_lora_of_the_mixture(case, mixture):
    update, x = build(case), randn(3, 5, IN)
    down, up = update.lora_factors(weights(mixture))
    close(update(x, weights(mixture)), x @ (up @ down).T)


@every_routed_case
def test_a_routed_update_has_the_factors_of_each_token(case):
    update, x = build(case), randn(3, 5, IN)
    y = update(x, None)
    for row in range(3):
        for place in range(5):
            down, up = factors_at(update, ids(0), x[row, place])
            close(y[row, place], up @ (down @ x[row, place]))


@every_routed_case
def test_a_routed_update_refuses_what_needs_one_matrix(case):
    update = build(case)
    for refused in (update.lora_factors, update.delta_weight):
        with pytest.raises(UnsupportedError, match=f"{case.update_cls.__name__} has no plain LoRA"):
            refused(ids(0))


@every_exact_case
def test_delta_weight_is_the_product_of_the_factors(case):
    update = build(case)
    down, up = update.lora_factors(ids(1))
    close(update.delta_weight(ids(1)), up @ down)
    close(update.delta_weight(ids(1)), update(torch.eye(IN, dtype=torch.float64), ids(1)).T)


@every_task_case
def test_tasks_differ(case):
    update = build(case)
    assert (update.delta_weight(ids(0)) - update.delta_weight(ids(1))).abs().max() > 1e-3


@every_exact_case
def test_exported_rank(case):
    update = build(case)
    down, up = update.lora_factors(ids(0))
    assert down.shape == (case.rank, IN)
    assert up.shape == (OUT, case.rank)
    if update.kind == "core":
        assert case.rank == min(update.up().shape[1], update.down().shape[0])


@pytest.mark.parametrize("case", [case for case in CASES if case.id == "per_task_lora"], ids=lambda case: case.id)
def test_a_bank_mixture_has_the_rank_of_its_tasks(case):
    down, up = build(case).lora_factors(weights([0.5, 0.0, 0.5, 0.0]))
    assert down.shape == (2 * case.options.r, IN)
    assert up.shape == (OUT, 2 * case.options.r)


@every_case
def test_a_fresh_update_is_exactly_zero(case):
    update, x = build(case, random=False), randn(4, 5, IN)
    for task in range(TASKS if case.rank is not None else 0):
        assert update.delta_weight(ids(task)).eq(0).all()
    assert update(x, ids([0, 1, 2, 3])).eq(0).all()
    assert torch.equal(x @ torch.ones(IN, OUT).double() + update(x, ids(0)), x @ torch.ones(IN, OUT).double())


@every_case
def test_a_fresh_update_can_learn(case):
    """Zero ΔW must not mean zero gradients: what is zero learns at the first step."""
    update = build(case, random=False)
    update(randn(4, 5, IN), ids([0, 1, 2, 3])).sum().backward()
    zeros = [parameter for parameter in update.parameters() if parameter.eq(0).all()]
    assert zeros
    for parameter in zeros:
        assert parameter.grad.abs().max() > 0


@every_case
def test_zero_up_projection_gives_exactly_zero(case):
    update = build(case)
    with torch.no_grad():
        update.B.zero_()
    x = randn(4, 5, IN)
    for assignment in (ids(2), ids([0, 1, 2, 3]), ids([[0, 1, 2, 3, 0]] * 4), weights([0.1, 0.2, 0.3, 0.4])):
        assert update(x, assignment).eq(0).all()


@every_case
@pytest.mark.parametrize("tasks", [1, 5])
@pytest.mark.parametrize(("in_features", "out_features"), [(7, 11), (32, 8)])
def test_parameter_counts(case, in_features, out_features, tasks):
    update = build(case, in_features, out_features, tasks)
    shared, per_task = case.parameters(in_features, out_features, tasks)
    assert update.parameter_groups() == {"shared": shared, "per_task": per_task}
    assert sum(p.numel() for p in update.parameters()) == shared + per_task


@every_case
def test_declared_parameter_names_exist(case):
    update = build(case)
    parameters = dict(update.named_parameters())
    for name in update.per_task_parameters:
        assert parameters[name].shape[0] == TASKS
    assert set(update.no_decay_parameters) <= set(parameters)
    assert update.uses_task_ids == bool(update.per_task_parameters)
