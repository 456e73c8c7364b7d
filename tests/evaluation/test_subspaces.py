"""Principal angles and cosines of tasks' updates, from factors alone, against scipy on dense matrices."""

import math

import pytest
import torch
from scipy.linalg import subspace_angles

from helpers_updates import TASKS, build, every_exact_case, ids
from tasklora.evaluation import diagnose, inner_products, own_share, principal_angles
from tasklora.evaluation.subspaces import angle_cosines, cosines_of, pairs_of, update_spaces


def factors(*ranks, rows=9, columns=14, seed=0):
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    return [(normal(rank, columns), normal(rows, rank)) for rank in ranks]


def scipys(one, other):
    dense = [up @ down for down, up in (one, other)]
    return [torch.tensor(subspace_angles(*(side(w).numpy() for w in dense))).sort().values for side in (id_, turned)]


def id_(matrix):
    return matrix


def turned(matrix):
    return matrix.mT


@pytest.mark.parametrize("ranks", [(3, 3), (1, 1), (1, 4), (5, 2), (8, 8)])
def test_angles_are_scipys_on_dense_matrices(ranks):
    one, other = factors(*ranks)
    for mine, theirs in zip(principal_angles(one, other), scipys(one, other), strict=True):
        assert len(mine) == min(ranks)
        torch.testing.assert_close(mine, theirs, rtol=0, atol=1e-7)


@every_exact_case
def test_so_for_every_method(case):
    update = build(case).requires_grad_(False)
    tasks = [update.lora_factors(ids(task)) for task in range(TASKS)]
    spaces = update_spaces(tasks)
    for bases, side in ((spaces.columns, 0), (spaces.rows, 1)):
        for cosines, (one, other) in zip(angle_cosines(bases, spaces.ranks), pairs_of(TASKS), strict=True):
            torch.testing.assert_close(cosines.acos(), scipys(tasks[one], tasks[other])[side], rtol=0, atol=1e-7)
    dense = torch.stack([(up @ down).flatten() for down, up in tasks])
    torch.testing.assert_close(inner_products(tasks), dense @ dense.mT, rtol=1e-10, atol=1e-12)


def test_known_angles():
    eye = torch.eye(4, dtype=torch.float64)
    one = (eye[:1], eye[:, :1])
    half_way = (eye[:1] + eye[1:2], math.cos(0.3) * eye[:, :1] + math.sin(0.3) * eye[:, 2:3])
    columns, rows = principal_angles(one, half_way)
    assert columns.tolist() == pytest.approx([0.3])
    assert rows.tolist() == pytest.approx([math.pi / 4])
    apart = (eye[3:], eye[:, 3:])
    assert [side.tolist() for side in principal_angles(one, apart)] == [[math.pi / 2], [math.pi / 2]]


def test_zero_equal_and_deficient_updates():
    whole, thin = factors(3, 3)
    zero = (whole[0], torch.zeros_like(whole[1]))
    assert [len(side) for side in principal_angles(whole, zero)] == [0, 0]
    for side in principal_angles(whole, (whole[0] * 5, whole[1])):  # a multiple spans the same
        assert side.tolist() == pytest.approx([0, 0, 0], abs=1e-7)
    thin[0][2] = thin[0][0] - thin[0][1]  # A of rank 2 makes ΔW of rank 2, on both sides
    assert update_spaces([whole, thin, zero]).ranks.tolist() == [3, 2, 0]
    for mine, theirs in zip(principal_angles(whole, thin), scipys(whole, thin), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=0, atol=1e-7)
    cosines = cosines_of(inner_products([whole, zero, whole]))
    assert cosines[0, 1].isnan()
    assert float(cosines[0, 2]) == pytest.approx(1)


def test_ranks_may_exceed_a_layers_width_and_differ_by_task():
    one, other = factors(6, 2, rows=4, columns=5)
    assert update_spaces([one, other]).ranks.tolist() == [4, 2]
    for mine, theirs in zip(principal_angles(one, other), scipys(one, other), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=0, atol=1e-7)


def test_the_share_that_tasks_do_not_share():
    tasks = factors(2, 2, 2)
    dense = torch.stack([up @ down for down, up in tasks])
    inner = inner_products(tasks)
    expected = (dense - dense.mean(dim=0)).square().sum() / dense.square().sum()
    assert own_share(cosines_of(inner), inner.diagonal().sqrt()) == pytest.approx(float(expected))
    same, opposite = torch.ones(3, 3), torch.tensor([[1.0, -1.0], [-1.0, 1.0]])
    assert own_share(same, torch.ones(3)) == pytest.approx(0)
    assert own_share(torch.eye(4), torch.ones(4)) == pytest.approx(3 / 4)
    assert own_share(opposite, torch.ones(2)) == pytest.approx(1)
    assert own_share(torch.full((2, 2), torch.nan), torch.zeros(2)) is None


def test_a_bare_update_can_be_diagnosed_and_float32_is_as_good(case_of):
    update = build(case_of("mtl_lora-full-n2")).requires_grad_(False)
    double, single = diagnose(update), diagnose(update.float())
    for name in ("update_cosine", "column_overlap", "row_overlap"):
        ((_, mine),) = single.per_pair[name].items()
        ((_, theirs),) = double.per_pair[name].items()
        assert mine == pytest.approx(theirs, abs=2e-4)
    assert single.per_pair["row_overlap"] == {"": [1.0] * 6}  # MTL-LoRA's tasks share A, so they read the same space


@pytest.fixture
def case_of():
    """Return a case by its id."""
    from helpers_updates import CASES

    return {case.id: case for case in CASES}.__getitem__
