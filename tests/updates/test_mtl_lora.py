"""MTL-LoRA is what its paper says, written out term by term; and its start is the published one."""

import pytest
import torch

from helpers_updates import IN, OUT, build, close, ids, mtl_lora, randn, randomize


def test_equation_of_the_paper():
    for case in (mtl_lora(3, 2, "full"), mtl_lora(3, 2, "diagonal", temperature=0.1)):
        update, x = build(case), randn(5, IN)
        A, B, w = update.A, update.B, update.w
        for task in range(4):
            task_matrix = update.Lambda[task] if update.Lambda.dim() == 3 else torch.diag(update.Lambda[task])
            routing = torch.exp(w[task] / case.options.temperature)
            routing = routing / routing.sum()
            expected = sum(routing[i] * (B[:, i] @ task_matrix @ A) for i in range(2)) * 6 / 3
            close(update.delta_weight(ids(task)), expected)
            close(update(x, ids(task)), x @ expected.T)


def test_initialisation():
    update = build(mtl_lora(3, 2, "full"), random=False)
    assert torch.equal(update.Lambda, torch.eye(3, dtype=torch.float64).expand(4, 3, 3))
    assert update.B.eq(0).all()
    assert update.B.shape == (OUT, 2, 3)
    assert update.w.unique().numel() == update.w.numel()  # equal weights would keep the B_i identical for ever
    diagonal = build(mtl_lora(3, 2, "diagonal"), random=False)
    assert diagonal.Lambda.eq(1).all()


def test_a_low_temperature_chooses_one_projection():
    update = build(mtl_lora(3, 2, "full", temperature=1e-6))
    gates = update.gates(torch.arange(4))
    assert torch.equal(gates.sort(dim=-1).values, torch.tensor([[0.0, 1.0]] * 4, dtype=torch.float64))
    assert torch.isfinite(gates).all()


@pytest.mark.parametrize("task_matrix", ["full", "diagonal"])
def test_diagnostics(task_matrix):
    """The weights of the up-projections, and the change of Λ_t relative to √r, the length of the identity."""
    update = build(mtl_lora(3, 2, task_matrix, temperature=0.2), random=False)
    assert update.diagnostics()["task_matrix_change"].tolist() == [0.0] * 4
    randomize(update)
    found = update.diagnostics()
    routing = torch.exp(update.w / 0.2)
    close(found["up_projection_weights"], routing / routing.sum(dim=1, keepdim=True))
    close(found["up_projection_weights"].sum(dim=1), torch.ones(4, dtype=torch.float64))
    matrices = update.Lambda if task_matrix == "full" else torch.diag_embed(update.Lambda)
    change = torch.stack([torch.linalg.norm(matrix - torch.eye(3)) for matrix in matrices]) / 3**0.5
    close(found["task_matrix_change"], change)
    apart = torch.stack([torch.linalg.norm(one - other) / 3**0.5 for one in matrices for other in matrices])
    close(update.pair_diagnostics()["task_matrix_distance"], apart.view(4, 4))
