"""The fused forward and backward against the formula, written out row by row with autograd's own gradients.

z = base(x) + ΔW_t dropout(x)
"""

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from helpers_updates import CASES, build, every_case, factors_at, ids, randn, weights
from tasklora.updates import add_branch, mixtures, ops
from tasklora.updates.ops import branch_output

TOLERANCE = {torch.float64: 1e-11, torch.float32: 2e-4, torch.bfloat16: 0.06}
TASKS = 4


def fused(update, base, x, tasks, in_place=True):
    """What the adapted layer does."""
    x, branch = update.branch(x, tasks, in_place)
    return add_branch(base(x), branch, in_place)


def written_out(update, base, x, tasks):
    """Return the same by the exact plain LoRA of each row or token, in the widest arithmetic at hand."""
    if update._dropout_rate():
        keep = torch.empty_like(x, dtype=torch.bool).bernoulli_(1 - update.dropout)
        dropped = x * keep / (1 - update.dropout)
    else:
        dropped = x
    flat = dropped.unsqueeze(1) if x.dim() == 2 else dropped.flatten(1, -2)  # (rows, tokens, in)
    flat = flat.to(next(update.parameters()).dtype)
    undropped = x.reshape(flat.shape).to(flat.dtype)  # what a router reads
    tensor, of_one = tasks.tensor, int(tasks.weights is not None)
    out = []
    for row in range(x.shape[0]):
        tokens = []
        for token in range(flat.shape[1]):
            one = tensor if tensor.dim() == of_one else tensor[row]
            one = one if one.dim() == of_one else one[token]
            of_token = replace(tasks, **{"weights" if of_one else "ids": one}, _cache={})
            down, up = factors_at(update, of_token, undropped[row, token])
            tokens.append(up @ (down @ flat[row, token]))
        out.append(torch.stack(tokens) if tokens else flat.new_zeros(0, base.out_features))
    nothing = 0 * sum(parameter.sum() for parameter in update.parameters())  # ties them to a batch without rows too
    added = (torch.stack(out) if out else flat.new_zeros(0, flat.shape[1], base.out_features)) + nothing
    y = base(x)
    return y + added.reshape(y.shape).to(y.dtype)


def gradients(output, inputs, seed=3):
    """Return the gradients of a random functional of `output`."""
    direction = torch.randn(output.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return torch.autograd.grad((output.double() * direction).sum(), inputs, allow_unused=True)


def assert_close(one, other, tolerance, what=""):
    if one is None or other is None:
        for given_ in (one, other):
            assert given_ is None or not given_.abs().max() > 0, what
        return
    scale = max(1.0, other.double().abs().max().item()) if other.numel() else 1.0
    difference = (one.double() - other.double()).abs().max().item() if one.numel() else 0.0
    assert difference <= tolerance * scale, f"{what}: {difference} of {scale}"


def check(case, shape, tasks, dtype=torch.float64, bias=True, frozen_x=False, dropout=0.0, in_place=True):
    case = replace(case, options=replace(case.options, lora_dropout=dropout))
    parameters = dtype if dtype == torch.float64 else torch.float32
    update = build(case, in_features=shape[-1], out_features=7, tasks=TASKS, dtype=parameters).train()
    base = nn.Linear(shape[-1], 7, bias=bias).to(dtype).requires_grad_(False)
    # A layer before it, so that what passes through is no leaf.
    before = randn(*shape, dtype=dtype).requires_grad_(not frozen_x)
    inputs = [*([] if frozen_x else [before]), *update.parameters()]
    found = []
    for run in (lambda *a: fused(*a, in_place=in_place), written_out):
        torch.manual_seed(11)
        output = run(update, base, before * 1.0, tasks)
        found.append((output, gradients(output, inputs)))
    (one, one_gradients), (other, other_gradients) = found
    assert one.dtype == other.dtype
    assert_close(one, other, TOLERANCE[dtype], "output")
    names = [*([] if frozen_x else ["x"]), *(name for name, _ in update.named_parameters())]
    for name, a, b in zip(names, one_gradients, other_gradients, strict=True):
        assert_close(a, b, TOLERANCE[dtype], f"gradient of {name}")


def assignments(shape, seed):
    generator = torch.Generator().manual_seed(seed)
    rows = shape[0]
    every = {
        "one task": ids(seed % TASKS),
        "per row": ids(torch.randint(TASKS, (rows,), generator=generator)),
        "one mixture": weights(torch.rand(TASKS, generator=generator, dtype=torch.float64)),
        "mixtures": weights(torch.rand(rows, TASKS, generator=generator, dtype=torch.float64)),
    }
    if len(shape) == 3:
        every["per token"] = ids(torch.randint(TASKS, shape[:2], generator=generator))
    return every


@given(
    case=st.sampled_from(CASES),
    shape=st.one_of(
        st.tuples(st.integers(0, 5), st.integers(1, 9)),
        st.tuples(st.integers(0, 4), st.integers(0, 6), st.integers(1, 9)),
        st.tuples(st.integers(1, 3), st.integers(1, 3), st.integers(1, 3), st.integers(1, 9)),
    ),
    seed=st.integers(0, 1000),
    data=st.data(),
)
@settings(deadline=None, max_examples=120)
def test_random_shapes(case, shape, seed, data):
    every = assignments(shape, seed)
    tasks = every[data.draw(st.sampled_from(sorted(every)), label="assignment")]
    check(
        case,
        shape,
        tasks,
        dtype=data.draw(st.sampled_from([torch.float64, torch.float32]), label="dtype"),
        bias=data.draw(st.booleans(), label="bias"),
        frozen_x=data.draw(st.booleans(), label="frozen x"),
        dropout=data.draw(st.sampled_from([0.0, 0.4]), label="dropout"),
        in_place=data.draw(st.booleans(), label="in place"),
    )


@every_case
@pytest.mark.parametrize("assignment", ["one task", "per row", "per token", "one mixture", "mixtures"])
@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_bf16_base_with_fp32_factors(case, assignment, dropout):
    shape = (3, 60, 16)
    check(case, shape, assignments(shape, 5)[assignment], dtype=torch.bfloat16, dropout=dropout)


@every_case
@pytest.mark.parametrize("assignment", ["per row", "per token", pytest.param("mixtures", marks=pytest.mark.slow)])
def test_gradcheck_to_the_second_order(case, assignment):
    """The backward is differentiable too, and does not write into gradients that are still needed then."""
    update = build(case, in_features=4, out_features=3, tasks=TASKS)
    base = nn.Linear(4, 3).double().requires_grad_(False)
    x = randn(2, 3, 4).requires_grad_()
    tasks = assignments(x.shape, 2)[assignment]
    names = [name for name, _ in update.named_parameters()]

    def function(x, *parameters):
        call = torch.func.functional_call
        return call(
            _Layer(update, base), {f"update.{n}": p for n, p in zip(names, parameters, strict=True)}, (x, tasks)
        )

    inputs = (x, *(p.detach().clone().requires_grad_() for p in update.parameters()))
    assert torch.autograd.gradcheck(function, inputs)
    assert torch.autograd.gradgradcheck(function, inputs)


class _Layer(nn.Module):
    def __init__(self, update, base):
        super().__init__()
        self.update, self.base = update, base

    def forward(self, x, tasks):
        return fused(self.update, self.base, x * 1.0, tasks)


@every_case
@pytest.mark.parametrize("assignment", ["per row", "per token", "mixtures"])
def test_many_backwards_at_once(case, assignment):
    """Jacobians by batched backward (as gradient surgery computes them) equal one backward after the other."""
    update = build(case, in_features=4, out_features=3, tasks=TASKS)
    base = nn.Linear(4, 3).double().requires_grad_(False)
    x = randn(2, 3, 4).requires_grad_()
    output = fused(update, base, x * 1.0, assignments(x.shape, 2)[assignment])
    inputs, directions = [x, *update.parameters()], randn(5, *output.shape)
    together = torch.autograd.grad(
        output, inputs, directions, is_grads_batched=True, retain_graph=True, allow_unused=True
    )
    for place, direction in enumerate(directions):
        apart = torch.autograd.grad(output, inputs, direction, retain_graph=True, allow_unused=True)
        for a, b in zip(together, apart, strict=True):
            assert_close(None if a is None else a[place], b, 1e-12)


@every_case
def test_autocast(case):
    update = build(case, in_features=16, out_features=7, tasks=TASKS, dtype=torch.float32)
    base, x = nn.Linear(16, 7).requires_grad_(False), randn(3, 5, 16, dtype=torch.float32).requires_grad_()
    tasks = assignments(x.shape, 1)["per row"]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        one = fused(update, base, x * 1.0, tasks)
    other = written_out(update, base, x * 1.0, tasks)
    assert one.dtype == torch.bfloat16
    assert_close(one, other, TOLERANCE[torch.bfloat16])
    inputs = [x, *update.parameters()]
    for a, b in zip(gradients(one, inputs), gradients(other, inputs), strict=True):
        assert_close(a, b, TOLERANCE[torch.bfloat16])


@every_case
@pytest.mark.parametrize("in_place", [True, False])
def test_what_is_written_into(case, in_place):
    """In place the base layer's output is used up; otherwise it stays as it was."""
    update = build(case)
    base = nn.Linear(update.in_features, update.out_features).double().requires_grad_(False)
    x = randn(3, 5, update.in_features).requires_grad_()
    x, branch = update.branch(x, ids([0, 1, 2]), in_place)
    y = base(x)
    before = y.detach().clone()
    output = add_branch(y, branch, in_place)
    assert torch.equal(output, y) == in_place
    assert torch.equal(y, before) != in_place
    assert_close(output, before + branch_output(branch), 1e-12)


@every_case
@pytest.mark.parametrize("inference", [torch.no_grad, torch.inference_mode])
def test_without_gradients_every_change_of_a_parameter_is_seen(case, inference):
    """Cores are kept for one assignment, but not beyond a step of the optimiser, a load, or a new tensor."""
    update, tasks = build(case), ids([0, 1, 2])
    base = nn.Linear(update.in_features, update.out_features).double().requires_grad_(False)
    x = randn(3, 5, update.in_features)

    def check_now():
        with inference():
            assert_close(fused(update, base, x, tasks), written_out(update, base, x, ids([0, 1, 2])), 1e-12)

    check_now()
    check_now()
    optimiser = torch.optim.SGD(update.parameters(), lr=0.5)
    sum(parameter.square().sum() for parameter in update.parameters()).backward()
    optimiser.step()
    check_now()
    update.load_state_dict(build(case, random=False).state_dict())
    check_now()
    for parameter in update.parameters():
        parameter.data = torch.randn_like(parameter)
    check_now()
    update.float()
    assert fused(update, base.float(), x.float(), tasks).dtype == torch.float32


@pytest.mark.parametrize("diagonal", [False, True])
@pytest.mark.parametrize("shape", [(), (5,), (2, 3), (0,)])
def test_cores_in_one_node_equal_their_plain_form(diagonal, shape):
    logits, matrix = randn(TASKS, 3), randn(TASKS, 2, 2).diagonal(dim1=1, dim2=2) if diagonal else randn(TASKS, 2, 2)
    parameters = [logits.clone().requires_grad_(), matrix.clone().requires_grad_()]
    tasks = torch.randint(TASKS, shape, generator=torch.Generator().manual_seed(4))
    one = mixtures.mixture_cores(*parameters, tasks, 0.3, 1.7)
    other = mixtures.cores_of_rows(*(ops.rows_of(table, tasks) for table in parameters), 0.3, 1.7)
    assert torch.equal(one, other)
    for a, b in zip(gradients(one, parameters), gradients(other, parameters), strict=True):
        assert_close(a, b, 1e-12)


def test_long_rows_take_the_folded_product():
    """The rule that chooses between U (C h) and (U C) h: both sides of it are among the shapes tested above."""
    core = torch.zeros(2, 24, 8)
    assert ops._folding_pays(torch.zeros(2, 60, 8), core)
    assert not ops._folding_pays(torch.zeros(2, 6, 8), core)
    assert not ops._folding_pays(torch.zeros(2, 1000, 8), torch.zeros(2, 8, 8))  # nothing to be saved: k_u = k_d
