"""Machinery around a forward: activation checkpointing, mixed precision, compilation.

Checkpointing must recompute with the ids of *its* forward, whatever ran since: the gradients differ by exactly 0.
"""

import pytest
import torch
from peft import get_peft_model
from torch import nn
from torch.utils.checkpoint import checkpoint

import tasklora
from helpers_models import (
    ADAPTERS,
    BERT_TARGETS,
    LLAMA_TARGETS,
    adapt,
    adapter_state,
    config_of,
    inputs_of,
    layers,
    run,
    tiny_bert,
    tiny_llama,
    tokens,
)

every_adapter = pytest.mark.parametrize("case", ADAPTERS, ids=lambda case: case.id)
FIRST, SECOND = torch.tensor([0, 2, 1]), torch.tensor([1, 1, 0])


class TwoLayers(nn.Module):
    """Two linear layers, the first of them under activation checkpointing when asked."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(8, 8), nn.Linear(8, 8)
        self.context_fn = None

    def forward(self, x):
        def block(x):
            return torch.tanh(self.first(x))

        if self.context_fn is not None:
            x = checkpoint(block, x, use_reentrant=False, context_fn=self.context_fn)
        else:
            x = block(x)
        return self.second(x)


def gradients(case, checkpointed: bool, backward) -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    model = adapt(TwoLayers(), config_of(case, target_modules=["first", "second"]))
    if checkpointed:
        model.get_base_model().context_fn = tasklora.context_of(model).checkpoint_contexts
    backward(model, torch.randn(3, 5, 8, requires_grad=True))
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def one_forward(model, x):
    model(x, task_ids=FIRST).square().sum().backward()


def two_forwards_one_backward(model, x):
    (model(x, task_ids=FIRST).square().sum() + model(x * 2, task_ids=SECOND).square().sum()).backward()


def two_backwards_of_one_forward(model, x):
    y = model(x, task_ids=FIRST).square()
    y[0].sum().backward(retain_graph=True)
    y[1:].sum().backward()


def another_task_before_backward(model, x):
    y = model(x, task_ids=FIRST).square().sum()
    with tasklora.use_tasks(model, SECOND):
        y.backward()


@every_adapter
@pytest.mark.parametrize(
    "backward",
    [one_forward, two_forwards_one_backward, two_backwards_of_one_forward, another_task_before_backward],
    ids=lambda f: f.__name__,
)
def test_checkpointing_changes_no_gradient(case, backward):
    plain, checkpointed = gradients(case, False, backward), gradients(case, True, backward)
    assert plain.keys() == checkpointed.keys()
    assert plain
    for name, grad in plain.items():
        assert torch.equal(grad, checkpointed[name]), name


def test_checkpointing_of_a_transformer():
    """transformers passes `context_fn` on from its gradient_checkpointing_kwargs."""

    def grads(checkpointed: bool):
        model = adapt(tiny_llama(), config_of(task_type="CAUSAL_LM", target_modules=LLAMA_TARGETS)).train()
        if checkpointed:
            context_fn = tasklora.context_of(model).checkpoint_contexts
            model.gradient_checkpointing_enable({"use_reentrant": False, "context_fn": context_fn})
            model.enable_input_require_grads()
        losses = [
            model(input_ids=tokens(), labels=tokens(), task_ids=ids, use_cache=False).loss for ids in (FIRST, SECOND)
        ]
        sum(losses).backward()
        return {name: p.grad for name, p in model.named_parameters() if p.requires_grad}

    plain, checkpointed = grads(False), grads(True)
    assert all(torch.equal(grad, checkpointed[name]) for name, grad in plain.items())


# Precision.


@every_adapter
def test_bf16_base_with_fp32_adapter(case):
    """PEFT keeps the adapter in float32 on a half-precision base; the output has the base's dtype."""
    base = tiny_bert().to(torch.bfloat16)
    model = adapt(base, config_of(case, target_modules=BERT_TARGETS))
    assert {value.dtype for value in adapter_state(model).values()} == {torch.float32}
    y = run(model, FIRST)
    assert y.dtype == torch.bfloat16
    reference = adapt(tiny_bert(), config_of(case, target_modules=BERT_TARGETS))
    torch.testing.assert_close(y.float(), run(reference, FIRST), rtol=0.1, atol=0.1)
    model(**inputs_of(model), labels=FIRST, task_ids=FIRST).loss.backward()
    grads = [p.grad for p in model.parameters() if p.requires_grad]
    assert all(grad.dtype == torch.float32 and grad.isfinite().all() for grad in grads)


def test_bf16_adapter_when_asked_for():
    config = config_of(target_modules=["query"])
    model = get_peft_model(tiny_bert().to(torch.bfloat16), config, autocast_adapter_dtype=False)
    assert {value.dtype for value in adapter_state(model).values()} == {torch.bfloat16}
    assert run(model, FIRST).dtype == torch.bfloat16


@every_adapter
def test_autocast_of_a_model(case):
    model = adapt(tiny_bert(), config_of(case, target_modules=BERT_TARGETS))
    expected = run(model, FIRST)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        model(**inputs_of(model), labels=FIRST, task_ids=FIRST).loss.backward()
        torch.testing.assert_close(run(model, FIRST).float(), expected, rtol=0.1, atol=0.1)
    assert all(p.grad.dtype == torch.float32 for p in model.parameters() if p.requires_grad)


def test_float64_base():
    model = adapt(tiny_bert().double(), config_of(target_modules=["query"]))
    assert run(model, FIRST).dtype == torch.float64


# Compilation.


@every_adapter
def test_one_compilation_for_all_ids(case):
    """The layers read no value of the ids, so the graph is whole and other ids need no other one."""
    compilations = 0

    def count(graph, _):
        nonlocal compilations
        compilations += 1
        return graph.forward

    model = adapt(TwoLayers(), config_of(case, target_modules=["first", "second"]))
    compiled = torch.compile(model, backend=count, fullgraph=True)
    x = torch.randn(3, 5, 8)
    for ids in (FIRST, SECOND, torch.tensor([2, 2, 2])):
        torch.testing.assert_close(compiled(x, task_ids=ids), model(x, task_ids=ids))
    assert compilations == 1
    torch._dynamo.reset()


def test_layers_share_one_context():
    model = adapt(tiny_bert(), config_of(target_modules=BERT_TARGETS))
    assert {id(layer.context) for layer in layers(model)} == {id(tasklora.context_of(model))}
