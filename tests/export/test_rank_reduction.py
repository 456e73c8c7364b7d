"""Rank-reduced export: the best approximation that exists, its error told as it is, and only where it was asked for."""

import json

import pytest
import torch
from safetensors.torch import load_file

import tasklora
from helpers_exports import EXACT_CASES, cases, exact_rank, in_stock_peft
from helpers_models import LLAMA_TARGETS, adapt, config_of, run, tiny_llama
from tasklora.errors import BrokenAdapterError, ConfigError
from tasklora.export import read_manifest, truncate


def factors(size_in=9, size_out=7, rank=5, seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    return (
        torch.randn(rank, size_in, generator=generator, dtype=torch.float64).to(dtype),
        torch.randn(size_out, rank, generator=generator, dtype=torch.float64).to(dtype),
    )


def adapted(case="mtl_lora", **options):
    return adapt(tiny_llama(), config_of(case, task_type="CAUSAL_LM", target_modules=LLAMA_TARGETS, **options))


@pytest.mark.parametrize("rank", [1, 2, 4, 5, 8])
@pytest.mark.parametrize("shape", [(9, 7, 5), (7, 9, 5), (4, 20, 6), (20, 3, 6), (5, 5, 5)])
def test_it_is_the_truncated_svd_of_the_whole_matrix(shape, rank):
    down, up = factors(*shape)
    whole = up @ down
    left, values, right = torch.linalg.svd(whole, full_matrices=False)
    best = (left[:, :rank] * values[:rank]) @ right[:rank]
    new_down, new_up, lost, size = truncate(down, up, rank)
    assert new_down.shape[0] == new_up.shape[1] == min(rank, shape[2], shape[0], shape[1])
    torch.testing.assert_close(new_up @ new_down, best, rtol=0, atol=1e-12)
    assert lost == pytest.approx(float((whole - best).square().sum()), abs=1e-10)
    assert size == pytest.approx(float(whole.square().sum()), rel=1e-12)


def test_no_other_matrix_of_that_rank_is_nearer():
    """Eckart and Young: the error is a lower bound; gradient descent from the optimum cannot improve on it either."""
    down, up = factors()
    whole = up @ down
    new_down, new_up, lost, _ = truncate(down, up, 2)
    generator = torch.Generator().manual_seed(1)
    for scale in (1e-3, 1e-1, 1.0):
        for _ in range(20):
            other_down = new_down + scale * torch.randn(new_down.shape, generator=generator, dtype=torch.float64)
            other_up = new_up + scale * torch.randn(new_up.shape, generator=generator, dtype=torch.float64)
            assert float((whole - other_up @ other_down).square().sum()) > lost
    a, b = new_down.clone().requires_grad_(), new_up.clone().requires_grad_()
    (whole - b @ a).square().sum().backward()
    assert max(a.grad.abs().max(), b.grad.abs().max()) < 1e-12


def test_zero_updates_have_no_error():
    new_down, new_up, lost, size = truncate(torch.randn(4, 6), torch.zeros(5, 4), 2)
    assert (lost, size) == (0.0, 0.0)
    assert not (new_up @ new_down).any()


@cases([case for case in EXACT_CASES if case.rank > 1])
def test_the_export_is_reduced_and_says_what_it_lost(tmp_path, case):
    model = adapted(case)
    exact = load_file(tasklora.export_lora(model, "rte", tmp_path / "exact") / "adapter_model.safetensors")
    kept = exact_rank(model) - 1
    out = tasklora.export_lora(model, "rte", tmp_path / "reduced", rank=kept)
    reduced = load_file(out / "adapter_model.safetensors")
    config = json.loads((out / "adapter_config.json").read_text())
    assert (config["r"], config["lora_alpha"]) == (kept, kept)
    manifest = read_manifest(out)
    assert (manifest["rank"], manifest["reduction"]["exact_rank"]) == (kept, kept + 1)
    lost = total = 0.0
    for name in exact:
        if name.endswith("lora_A.weight"):
            up = name.replace("lora_A", "lora_B")
            whole, near = exact[up].double() @ exact[name].double(), reduced[up].double() @ reduced[name].double()
            values = torch.linalg.svdvals(whole)
            path = name.removeprefix("base_model.model.").removesuffix(".lora_A.weight")
            error = float((whole - near).norm() / whole.norm())
            assert error == pytest.approx(float(values[kept:].norm() / values.norm()), rel=1e-4, abs=1e-6)
            assert manifest["reduction"]["layers"][path] == pytest.approx(error, rel=1e-4, abs=1e-6)
            lost, total = lost + float((whole - near).square().sum()), total + float(whole.square().sum())
    assert manifest["reduction"]["relative_error"] == pytest.approx((lost / total) ** 0.5, rel=1e-4, abs=1e-6)
    in_stock_peft(tiny_llama(), out)


def test_layers_that_are_small_enough_stay_exact(tmp_path):
    model = adapted("mtl_lora", r=2, rank_pattern={"q_proj": 6})
    out = tasklora.export_lora(model, "rte", tmp_path / "out", rank=3)
    layers = read_manifest(out)["reduction"]["layers"]
    assert {path.rpartition(".")[2] for path, error in layers.items() if error == 0.0} == {"v_proj", "down_proj"}
    assert all(error > 0 for path, error in layers.items() if path.endswith("q_proj"))


def test_a_mixture_of_a_bank_can_be_reduced(tmp_path):
    model = adapted("per_task_lora")
    weights = torch.tensor([0.2, 0.3, 0.5])
    out = tasklora.export_lora(model, directory=tmp_path / "out", task_weights=weights, rank=4)
    manifest = read_manifest(out)
    assert (manifest["rank"], manifest["reduction"]["exact_rank"]) == (4, 9)
    assert 0 < manifest["reduction"]["relative_error"] < 1
    exact = run(model, task_weights=weights)
    near = run(in_stock_peft(tiny_llama(), out))
    assert 0 < (near - exact).abs().max() < (run(tiny_llama()) - exact).abs().max()


@pytest.mark.parametrize(
    ("rank", "says"),
    [
        (3, "rank 3 reduces nothing: the exact plain LoRA has rank 3"),
        (64, "rank 64 reduces nothing"),
        (0, "rank must be a positive integer, got 0"),
        (-1, "rank must be a positive integer"),
        (True, "rank must be a positive integer"),
        (1.5, "rank must be a positive integer"),
    ],
)
def test_ranks_that_make_no_sense(tmp_path, rank, says):
    with pytest.raises(ConfigError, match=says):
        tasklora.export_lora(adapted(), "rte", tmp_path / "out", rank=rank)
    assert not list(tmp_path.iterdir())


def test_a_broken_adapter_is_refused_here_too(tmp_path):
    model = adapted()
    with torch.no_grad():
        model.base_model.model.model.layers[0].self_attn.q_proj.task_updates["default"].A[0, 0] = float("nan")
    with pytest.raises(BrokenAdapterError, match="NaN or infinity in 1 of"):
        tasklora.export_lora(model, "rte", tmp_path / "out", rank=1)
    assert not list(tmp_path.iterdir())
