"""TA-LoRA, MultiLoRA, MoELoRA and HydraLoRA are what their papers say, written out term by term; and how they begin."""

import pytest
import torch

from helpers_updates import CASES, IN, OUT, TASKS, build, close, ids, randn, weights
from tasklora.errors import ConfigError
from tasklora.updates import (
    HydraLoraOptions,
    MoELora,
    MoELoraOptions,
    MultiLoraOptions,
    TALora,
    TALoraOptions,
)

CASE = {case.id: case for case in CASES}


def test_equation_of_ta_lora():
    update = build(CASE["ta_lora"])  # r 3, two shared directions, τ 0.7, α/r = 2
    for task in range(TASKS):
        gates = 1 / (1 + torch.exp(-(update.G @ update.e[task]) / 0.7))
        shared = update.B[:, :2] @ update.A[:2]
        own = update.B[:, 2:] @ torch.diag(gates) @ update.A[2:]
        close(update.delta_weight(ids(task)), 2 * (shared + own))


def test_the_auxiliary_loss_of_ta_lora():
    update = build(CASE["ta_lora"])
    shared_down, own_down = update.A[:2], update.A[2:]
    shared_up, own_up = update.B[:, :2], update.B[:, 2:]
    down = (shared_down @ own_down.T).norm() ** 2 / (shared_down.norm() ** 2 * own_down.norm() ** 2)
    up = (shared_up.T @ own_up).norm() ** 2 / (shared_up.norm() ** 2 * own_up.norm() ** 2)
    close(update.auxiliary_loss(), 0.1 * (down + up))
    with torch.no_grad():  # the same directions in both: as large as it gets for one direction each
        update.A[2:] = update.A[0]
        update.A[:2] = update.A[0]
        update.B[:] = update.B[:, :1]
    close(update.auxiliary_loss(), torch.tensor(0.1 * 2, dtype=torch.float64))
    with torch.no_grad():  # orthogonal ones
        update.A.zero_()[:, :5] = torch.eye(5)
        update.B.zero_()[:5] = torch.eye(5)
    assert update.auxiliary_loss() == 0


def test_the_auxiliary_loss_of_a_fresh_update_has_gradients_that_are_numbers():
    update = build(CASE["ta_lora"], random=False, dtype=torch.float32)
    update.auxiliary_loss().backward()
    assert torch.isfinite(update.B.grad).all()  # ‖B‖ = 0 stands in a denominator
    assert update.A.grad.abs().max() > 0


def test_descent_on_the_auxiliary_loss_parts_the_directions():
    update = build(CASE["ta_lora"])
    before = update.auxiliary_loss().item()
    optimiser = torch.optim.Adam([update.A, update.B], lr=0.05)
    for _ in range(200):
        optimiser.zero_grad()
        update.auxiliary_loss().backward()
        optimiser.step()
    assert update.auxiliary_loss().item() < 0.1 * before


def test_no_auxiliary_loss_without_its_weight():
    update = TALora(IN, OUT, TASKS, TALoraOptions(orthogonality=0))
    assert update.auxiliary_loss() is None
    assert build(CASE["moe_lora"]).auxiliary_loss() is None


def test_equation_of_multi_lora():
    update = build(CASE["multi_lora"])  # three modules of rank 2, α/r = 3
    expected = sum(torch.diag(update.s[i]) @ update.B[:, i] @ update.A[2 * i : 2 * i + 2] for i in range(3))
    for task in range(TASKS):
        close(update.delta_weight(ids(task)), 3 * expected)


def test_equation_of_moe_lora():
    update = build(CASE["moe_lora"])  # two experts of rank 2, α/r = 1.5
    for task in range(TASKS):
        gates = torch.exp(update.G @ update.e[task])
        gates = gates / gates.sum()
        experts = [update.B[:, 2 * i : 2 * i + 2] @ update.A[2 * i : 2 * i + 2] for i in range(2)]
        close(update.delta_weight(ids(task)), 1.5 * (gates[0] * experts[0] + gates[1] * experts[1]))


def test_equation_of_hydra_lora():
    update, x = build(CASE["hydra_lora"]), randn(7, IN)  # two B_i, α/r = 2
    gates = torch.exp(x @ update.R.T)
    gates = gates / gates.sum(dim=1, keepdim=True)
    expected = 2 * sum(gates[:, i : i + 1] * (x @ (update.B[:, i] @ update.A).T) for i in range(2))
    close(update(x, None), expected)


def test_how_they_begin():
    torch.manual_seed(0)
    ta = build(CASE["ta_lora"], 400, 300, random=False)
    assert ta.B.eq(0).all()
    assert ta.A.abs().max() <= 400**-0.5
    assert float(ta.A.detach().std()) == pytest.approx(400**-0.5 / 3**0.5, rel=0.1)
    multi = build(CASE["multi_lora"], 400, 300, random=False)
    assert multi.s.eq(0).all()
    assert float(multi.B.detach().std()) == pytest.approx(2**-0.5 / 3**0.5, rel=0.1)  # the fan-in of B_i is r = 2
    assert float(multi.A.detach().std()) == pytest.approx(400**-0.5 / 3**0.5, rel=0.1)
    moe = build(CASE["moe_lora"], 400, 300, tasks=500, random=False)
    assert moe.B.eq(0).all()
    assert float(moe.A.detach().std()) == pytest.approx(0.01, rel=0.1)
    assert float(moe.e.detach().std()) == pytest.approx(1, rel=0.1)
    hydra = build(CASE["hydra_lora"], 400, 300, random=False)
    assert hydra.B.eq(0).all()
    assert float(hydra.R.detach().std()) == pytest.approx(400**-0.5 / 3**0.5, rel=0.1)


def test_what_they_say_of_their_tasks():
    ta, moe = build(CASE["ta_lora"]), build(CASE["moe_lora"])
    close(ta.diagnostics()["task_gates"], torch.sigmoid(ta.e @ ta.G.T / 0.7))
    close(moe.diagnostics()["expert_weights"], torch.softmax(moe.e @ moe.G.T, dim=1))
    assert build(CASE["hydra_lora"]).diagnostics() == {}


@pytest.mark.parametrize("case", ["multi_lora", "hydra_lora"])
def test_methods_without_task_ids_take_any_task_for_the_same(case):
    update, x = build(CASE[case]), randn(3, 5, IN)
    expected = update(x, None)
    for assignment in (ids(2), ids([0, 1, 3]), ids([[0, 1, 2, 3, 0]] * 3), weights([0.7, 0.1, 0.1, 0.0])):
        assert torch.equal(update(x, assignment), expected)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (TALoraOptions(r_shared=0), "r_shared must be a positive integer, got 0"),
        (TALoraOptions(task_embedding=0), "task_embedding must be a positive integer, got 0"),
        (TALoraOptions(temperature=0), "temperature must be positive, got 0"),
        (TALoraOptions(orthogonality=-0.1), "orthogonality must be zero or positive, got -0.1"),
        (TALoraOptions(orthogonality="much"), "orthogonality must be zero or positive, got 'much'"),
        (MultiLoraOptions(parallel_modules=0), "parallel_modules must be a positive integer, got 0"),
        (MoELoraOptions(experts=0), "experts must be a positive integer, got 0"),
        (MoELoraOptions(experts=3), r"must be a multiple of experts \(3\), got 8"),
        (MoELoraOptions(task_embedding=1.5), "task_embedding must be a positive integer, got 1.5"),
        (HydraLoraOptions(up_projections=0), "up_projections must be a positive integer, got 0"),
    ],
    ids=str,
)
def test_refused_options(options, message):
    with pytest.raises(ConfigError, match=message):
        options.check()


def test_experts_must_share_the_rank_of_a_single_layer_too():
    with pytest.raises(ConfigError, match=r"must be a multiple of experts \(4\), got 6"):
        MoELora(IN, OUT, TASKS, MoELoraOptions(r=6))


def test_shared_directions_are_as_many_as_own_ones_by_default():
    assert TALora(IN, OUT, TASKS, TALoraOptions(r=3)).A.shape == (6, IN)
