"""Mixed batches: a row's result depends on that row and its task alone, however the ids are given.

Ids per row, per token, one for all rows and mixtures agree where they say the same; inputs may have 2, 3 or 4
dimensions, and no rows at all.
"""

import pytest
import torch

from helpers_updates import IN, OUT, TASKS, build, close, every_case, every_task_case, ids, randn, weights

ROWS = [2, 0, 3, 3, 1, 0]


@every_task_case
@pytest.mark.parametrize("shape", [(6, IN), (6, 5, IN), (6, 2, 3, IN)], ids=["2d", "3d", "4d"])
def test_a_mixed_batch_equals_its_rows_one_by_one(case, shape):
    update, x = build(case), randn(*shape)
    mixed = update(x, ids(ROWS))
    assert mixed.shape == (*shape[:-1], OUT)
    for row, task in enumerate(ROWS):
        close(mixed[row : row + 1], update(x[row : row + 1], ids(task)))


@every_case
def test_permuting_rows_permutes_outputs(case):
    update, x = build(case), randn(6, 5, IN)
    order = torch.tensor([3, 1, 5, 0, 2, 4])
    close(update(x[order], ids(torch.tensor(ROWS)[order])), update(x, ids(ROWS))[order])


@every_case
def test_row_ids_equal_the_token_ids_that_repeat_them(case):
    update, x = build(case), randn(6, 5, IN)
    per_token = torch.tensor(ROWS)[:, None].expand(6, 5)
    close(update(x, ids(per_token)), update(x, ids(ROWS)))


@every_task_case
@pytest.mark.parametrize("length", [5, 40])
def test_token_ids_equal_a_token_by_token_computation(case, length):
    update, x = build(case), randn(3, length, IN)
    per_token = torch.randint(TASKS, (3, length))
    result = update(x, ids(per_token))
    for row in range(3):
        for place in range(length):
            token = x[row, place][None]
            close(result[row, place][None], update(token, ids(int(per_token[row, place]))))


@every_task_case
@pytest.mark.parametrize("shape", [(3, IN), (3, 5, IN), (3, 2, 4, IN)], ids=["2d", "3d", "4d"])
def test_a_one_hot_mixture_is_its_task(case, shape):
    update, x = build(case), randn(*shape)
    one_hot = torch.eye(TASKS)
    close(update(x, weights(one_hot[2])), update(x, ids(2)))
    close(update(x, weights(one_hot[[3, 0, 1]])), update(x, ids([3, 0, 1])))


@every_task_case
def test_a_mixture_is_linear_in_its_weights(case):
    update, x = build(case), randn(3, 5, IN)
    mixtures = randn(3, TASKS)
    expected = sum(mixtures[:, task, None, None] * update(x, ids(task)) for task in range(TASKS))
    close(update(x, weights(mixtures)), expected)
    shared = mixtures[0]
    close(update(x, weights(shared)), sum(shared[task] * update(x, ids(task)) for task in range(TASKS)))


@every_case
@pytest.mark.parametrize("shape", [(0, IN), (0, 5, IN), (2, 0, IN), (0, 2, 3, IN)])
def test_batches_without_tokens(case, shape):
    update, x = build(case), randn(*shape).requires_grad_()
    rows = shape[0]
    assignments = [ids(1), ids(torch.zeros(rows)), weights(torch.ones(rows, TASKS))]
    if len(shape) == 3:
        assignments.append(ids(torch.zeros(shape[:2])))
    for assignment in assignments:
        y = update(x, assignment)
        assert y.shape == (*shape[:-1], OUT)
        y.sum().backward()


@every_task_case
@pytest.mark.parametrize("per_token", [False, True], ids=["per_row", "per_token"])
def test_absent_tasks_get_exactly_zero_gradient(case, per_token):
    update, x = build(case), randn(4, 5, IN)
    present = torch.tensor([2, 0, 0, 2])
    (update(x, ids(present[:, None].expand(4, 5) if per_token else present)) ** 2).sum().backward()
    for name in update.per_task_parameters:
        grad = update.get_parameter(name).grad
        assert grad[[1, 3]].eq(0).all(), name
        if grad[0].abs().max() == 0:  # one projection only: softmax over one number has no gradient
            assert name == "w"
            assert update.n == 1


@every_task_case
@pytest.mark.parametrize("per_token", [False, True], ids=["per_row", "per_token"])
def test_kept_activations_do_not_depend_on_the_number_of_tasks(case, per_token):
    def kept_numbers(tasks: int) -> int:
        update, x = build(case, tasks=tasks), randn(4, 40, IN).requires_grad_()
        parameters = {parameter.data_ptr() for parameter in update.parameters()}
        kept = 0

        def count(tensor: torch.Tensor) -> torch.Tensor:
            nonlocal kept
            kept += tensor.numel() if tensor.data_ptr() not in parameters else 0
            return tensor

        rows = torch.tensor([0, 1, 1, 0])
        # Blocks of per-token ids are bounded by min(T, tokens): the bound is reached with as many tasks as tokens.
        assignment = ids(rows[:, None].expand(4, 40)) if per_token else ids(rows)
        with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
            update(x, assignment)
        return kept

    assert kept_numbers(200) == kept_numbers(2000)
    if not per_token:
        assert kept_numbers(2) == kept_numbers(2000)
