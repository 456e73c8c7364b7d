"""Every gradient is the derivative: torch's gradcheck in float64 for rows, tokens and mixtures, and for the weights
of a mixture themselves.
"""

import pytest
import torch

from helpers_updates import build, every_case, every_task_case, ids, randn
from tasklora.updates import TaskAssignment

ASSIGNMENTS = {
    "one_task": ids(1),
    "per_row": ids([0, 2, 2]),
    "per_token": ids([[0, 2], [1, 1], [2, 0]]),
    "mixture": TaskAssignment(weights=torch.tensor([[0.5, 0.3, 0.2], [0.0, 1.0, 0.0], [-0.4, 0.9, 0.1]]).double()),
    "one_mixture": TaskAssignment(weights=torch.tensor([0.5, 0.3, 0.2]).double()),
}


@every_case
@pytest.mark.parametrize("assignment", ASSIGNMENTS.values(), ids=ASSIGNMENTS)
def test_gradcheck(case, assignment):
    update = build(case, in_features=4, out_features=3, tasks=3)
    names, parameters = zip(*update.named_parameters(), strict=True)

    def function(x, *values):
        return torch.func.functional_call(update, dict(zip(names, values, strict=True)), (x, assignment))

    inputs = (randn(3, 2, 4).requires_grad_(), *(p.detach().clone().requires_grad_() for p in parameters))
    assert torch.autograd.gradcheck(function, inputs)


@every_task_case
def test_gradcheck_of_mixture_weights(case):
    update, x = build(case, in_features=4, out_features=3, tasks=3), randn(3, 2, 4)
    assert torch.autograd.gradcheck(lambda w: update(x, TaskAssignment(weights=w)), (randn(3, 3).requires_grad_(),))
