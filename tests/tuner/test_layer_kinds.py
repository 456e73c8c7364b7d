"""Every method on every kind of base layer: Linear, GPT-2's Conv1D, 1×1 Conv2d and Embedding.

All of them are held to what a dense layer would give: each input is turned into features (rows, …, in) in the plainest
way there is (an id into its one-hot vector), and the update is the plain LoRA of the task.
"""

import pytest
import torch
from peft import PeftModel

import tasklora
from helpers_layers import (
    FIRST,
    KINDS,
    MAIN,
    MAIN_KINDS,
    ROWS,
    SEQUENCES,
    Net,
    adapted,
    every_method,
    every_pair,
    expected,
    kind_named,
    pairs,
    routed,
    task_methods,
)
from helpers_models import ADAPTERS, TASKS, layers
from helpers_updates import close
from tasklora.errors import TaskIdsError, UnsupportedError


@pairs(ADAPTERS, MAIN_KINDS)
def test_the_output_is_the_base_and_the_plain_lora_of_the_task(case, kind):
    model, x = adapted(case, kind), kind.x()
    for task in TASKS:
        close(model(x, task_ids=task), expected(model, kind, x, task))


@every_pair
def test_a_mixed_batch_equals_its_rows_one_by_one(case, kind):
    model, x = adapted(case, kind), kind.x()
    mixed = model(x, task_ids=torch.tensor(ROWS))
    assert mixed.is_contiguous()
    for row, task in enumerate(ROWS):
        close(mixed[row : row + 1], expected(model, kind, x[row : row + 1], task))
    assert model(x[:0], task_ids=torch.tensor(ROWS)[:0]).shape == (0, *mixed.shape[1:])


@pairs(task_methods, SEQUENCES)
def test_ids_per_token(case, kind):
    model, x = adapted(case, kind), kind.x()
    ids = torch.randint(0, 3, (4, 5))
    result = model(x, task_ids=ids)
    for task in range(3):
        close(result[ids == task], expected(model, kind, x, task)[ids == task])


@pytest.mark.parametrize("kind", [k for k in KINDS if k not in SEQUENCES], ids=lambda kind: kind.id)
def test_ids_per_token_are_refused_where_there_are_no_tokens(kind):
    model, x = adapted(FIRST["mtl_lora"], kind), kind.x()
    places = kind.features(x).shape[1:2]  # of an image's rows of pixels, too: they are no tokens
    with pytest.raises(TaskIdsError, match=r"per-token task_ids|takes one task id per row"):
        model(x, task_ids=torch.zeros(4, *places, dtype=torch.long))


@pairs(task_methods, MAIN_KINDS)
def test_mixtures(case, kind):
    model, x = adapted(case, kind), kind.x()
    weights = torch.tensor([[0.5, 0.5, 0.0], [0.0, 1.0, 0.0], [0.2, -0.3, 2.0], [0.0, 0.0, 0.0]], dtype=torch.float64)
    per_row = model(x, task_weights=weights)
    base = kind.layer()(x)
    tasks = torch.stack([expected(model, kind, x, task) - base for task in TASKS], dim=1)  # (rows, T, …)
    close(per_row, base + (weights.view(4, 3, *[1] * (base.dim() - 1)) * tasks).sum(1))
    shared = weights[2]
    close(model(x, task_weights=shared), base + (shared.view(1, 3, *[1] * (base.dim() - 1)) * tasks).sum(1))


@every_method
def test_a_fresh_adapter_gives_the_base_bit_by_bit(case, kind):
    model, x = adapted(case, kind, random=False), kind.x()
    for task in TASKS:
        assert torch.equal(model(x, task_ids=task), kind.layer()(x))


@every_pair
def test_merge_and_unmerge(case, kind):
    model, x = adapted(case, kind), kind.x()
    before = layers(model)[0].base_layer.weight.detach().clone()
    result = model(x, task_ids="rte")
    if routed(case):
        with pytest.raises(UnsupportedError, match="HydraLora"):
            tasklora.merge_task(model, "rte")
        assert torch.equal(model(x, task_ids="rte"), result)
        return
    with tasklora.use_tasks(model, "rte"):
        model.merge_adapter()
    close(model(x), result)
    model.unmerge_adapter()
    assert torch.equal(layers(model)[0].base_layer.weight, before)
    assert torch.equal(model(x, task_ids="rte"), result)
    merged = tasklora.merge_task(model, "rte")
    assert type(merged.target) is type(kind.layer())
    close(merged(x), result)


@every_method
def test_save_and_load(case, kind, tmp_path):
    model, x = adapted(case, kind), kind.x()
    model.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(Net(kind.layer()), tmp_path).double().eval()
    # The file keeps float64, but PEFT puts an adapter into the base's dtype when it makes it: the same here.
    assert torch.equal(loaded(x, task_ids=torch.tensor(ROWS)), model(x, task_ids=torch.tensor(ROWS)))


@every_pair
def test_gradients_are_those_of_differences(case, kind):
    """⟨∇L, v⟩ = (L(θ + εv) − L(θ − εv)) / 2ε, for the update's parameters and the input."""
    model, x = adapted(case, kind), kind.x()
    task_ids = torch.randint(0, 3, (4, 5)) if kind in SEQUENCES else torch.tensor(ROWS)
    weight = torch.randn_like(model(x, task_ids=task_ids))
    if x.is_floating_point():
        x.requires_grad_()
    inputs = [p for name, p in model.named_parameters() if "task_updates" in name] + [x] * x.is_floating_point()

    def loss():
        return (model(x, task_ids=task_ids) * weight).sum()

    grads = torch.autograd.grad(loss(), inputs)
    padding = getattr(layers(model)[0].base_layer, "padding_idx", None)
    directions = [torch.randn_like(p) for p in inputs]
    names = [name.rsplit(".", 1)[1] for name, _ in model.named_parameters() if "task_updates" in name]
    if padding is not None:  # its column takes no gradient, though the output depends on it
        directions[names.index("A")][..., padding] = 0
        assert grads[names.index("A")][..., padding].eq(0).all()
    slope = sum((g * v).sum() for g, v in zip(grads, directions, strict=True))
    at = []
    with torch.no_grad():
        for step in (1e-6, -2e-6):
            for p, v in zip(inputs, directions, strict=True):
                p.add_(v, alpha=step)
            at.append(loss())
    torch.testing.assert_close(slope, (at[0] - at[1]) / 2e-6, rtol=1e-6, atol=1e-6)
    assert all(p.grad is None for p in model.get_base_model().target.base_layer.parameters())


@every_method
def test_autocast(case, kind):
    model = adapted(case, kind).float()
    x = kind.x() if kind.reads == "embedding" else kind.x().float()
    exact = model(x, task_ids=torch.tensor(ROWS))
    with torch.autocast("cpu", torch.bfloat16):
        result = model(x, task_ids=torch.tensor(ROWS))
        assert result.dtype == layers(model)[0].base_layer(x).dtype  # an embedding's stays float32
        result.float().square().sum().backward()
    torch.testing.assert_close(result.float(), exact, rtol=0.05, atol=0.05 * float(exact.detach().abs().max()))
    for parameter_name, parameter in model.named_parameters():
        if "task_updates" in parameter_name:
            assert parameter.dtype == torch.float32
            assert parameter.grad.isfinite().all()


@every_method
def test_a_bf16_base_keeps_its_dtype_under_a_float32_adapter(case, kind):
    model = adapted(case, kind)
    exact = model(kind.x(), task_ids=torch.tensor(ROWS))
    model.float()
    layers(model)[0].base_layer.bfloat16()
    x = kind.x() if kind.reads == "embedding" else kind.x().bfloat16()
    result = model(x, task_ids=torch.tensor(ROWS))
    assert result.dtype == torch.bfloat16
    torch.testing.assert_close(result.double(), exact, rtol=0.05, atol=0.05 * float(exact.detach().abs().max()))


@pytest.mark.parametrize("name", [pytest.param(n, marks=[] if n in MAIN[1::2] else pytest.mark.slow) for n in MAIN])
def test_compiled_graphs_take_changing_ids(name):
    kind = kind_named(name)
    model, x = adapted(FIRST["mtl_lora"], kind), kind.x()
    context = tasklora.context_of(model)
    compiled = torch.compile(model.get_base_model(), backend="eager", fullgraph=True)
    for ids in ([2, 0, 1, 2], [1, 1, 0, 2]):
        with context.use({"default": context.tasks["default"].assign(torch.tensor(ids))}):
            close(compiled(x), model.get_base_model()(x))
