"""torch.compile: the graph is whole, other ids need no other one, outputs and gradients are those of eager."""

import pytest
import torch
from torch._dynamo.testing import CompileCounter, CompileCounterWithBackend

import helpers_families as families
import tasklora
from helpers_models import adapt, config_of, layers
from tasklora.tuner import METHODS

every_method = pytest.mark.parametrize("method", METHODS)
IDS = [torch.tensor(ids) for ids in ([0, 2, 1], [1, 1, 0], [2, 2, 2])]


@pytest.fixture(autouse=True)
def _fresh():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


class TwoLayers(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = torch.nn.Linear(8, 8), torch.nn.Linear(8, 8)

    def forward(self, x):
        return self.second(torch.tanh(self.first(x)))


def two_layers(method: str):
    torch.manual_seed(0)
    return adapt(TwoLayers(), config_of(method, target_modules=["first", "second"]))


def gradients(model, y) -> dict[str, torch.Tensor]:
    model.zero_grad()
    y.square().sum().backward()
    return {name: p.grad for name, p in model.named_parameters() if p.requires_grad}


def close(actual, expected):
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-4 * max(float(expected.detach().abs().max()), 1))


@every_method
def test_one_compilation_for_all_ids(method):
    """The layers read no value of the ids; outputs and gradients equal eager's."""
    model, backend = two_layers(method), CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(model, backend=backend, fullgraph=True)
    x = torch.randn(3, 5, 8)
    for ids in IDS:
        y, expected = compiled(x, task_ids=ids), model(x, task_ids=ids)
        close(y, expected)
        grads, wanted = gradients(model, y), gradients(model, expected)
        assert grads.keys() == wanted.keys()
        for name, grad in grads.items():
            close(grad, wanted[name])
    assert backend.frame_count == 1


@every_method
def test_one_compilation_under_use_tasks(method):
    """Ids that are current around the call are no part of the graph."""
    model, backend = two_layers(method), CompileCounter()
    compiled = torch.compile(model, backend=backend, fullgraph=True)
    x = torch.randn(3, 5, 8)
    for ids in IDS:
        with tasklora.use_tasks(model, ids), torch.no_grad():
            close(compiled(x), model(x))
    assert backend.frame_count == 1


@pytest.mark.parametrize("method", ["mtl_lora", "per_task_lora"])
def test_other_numbers_of_rows_and_tokens_with_dynamic_shapes(method):
    model, backend = two_layers(method), CompileCounter()
    compiled = torch.compile(model, backend=backend, fullgraph=True, dynamic=True)
    with torch.no_grad():
        for rows, length in ((3, 5), (4, 7), (6, 2)):
            x, ids = torch.randn(rows, length, 8), torch.arange(rows) % 3
            close(compiled(x, task_ids=ids), model(x, task_ids=ids))
    assert backend.frame_count == 1


def test_mixtures():
    model, backend = two_layers("mtl_lora"), CompileCounter()
    compiled = torch.compile(model, backend=backend, fullgraph=True)
    x = torch.randn(3, 5, 8)
    for seed in range(3):
        weights = torch.rand(3, 3, generator=torch.Generator().manual_seed(seed))
        close(compiled(x, task_weights=weights), model(x, task_weights=weights))
    assert backend.frame_count == 1


@pytest.mark.parametrize(
    "family", ["llama", *(pytest.param(name, marks=pytest.mark.slow) for name in ("bert", "swin"))]
)
def test_transformers(family):
    config = config_of(target_modules=families.FAMILIES[family].targets)
    model, backend = adapt(families.base_of(family), config), CompileCounter()
    compiled = torch.compile(model, backend=backend, fullgraph=True)
    inputs = families.inputs_of(family)
    for ids in IDS:
        close(families.outputs_of(compiled, inputs, task_ids=ids), families.outputs_of(model, inputs, task_ids=ids))
    assert backend.frame_count == 1
    assert len(layers(model)) > 1


@pytest.mark.slow
def test_with_activation_checkpointing():
    """Both at once, as large models are trained."""
    model = adapt(families.base_of("llama"), config_of(target_modules=families.FAMILIES["llama"].targets)).train()
    inputs = {**families.inputs_of("llama"), "use_cache": False}
    expected = torch.stack([model(**inputs, task_ids=ids).logits for ids in IDS])
    wanted = {name: grad.clone() for name, grad in gradients(model, expected).items()}
    model.gradient_checkpointing_enable()
    model.get_base_model().disable_input_require_grads()  # transformers' hook on the embedding; it breaks the graph
    backend = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(model, backend=backend, fullgraph=True)
    outputs = torch.stack([compiled(**inputs, task_ids=ids).logits for ids in IDS])
    close(outputs, expected)
    for name, grad in gradients(model, outputs).items():
        close(grad, wanted[name])
    assert backend.frame_count == 1


@pytest.mark.parametrize("method", ["mtl_lora", "per_task_lora"])
def test_ids_repeated_for_beams(method):
    """Within a forward the repeated ids are kept for the next layers; a graph keeps nothing."""
    model, backend = two_layers(method), CompileCounter()
    compiled = torch.compile(model, backend=backend, fullgraph=True)
    context, x = tasklora.context_of(model), torch.randn(6, 5, 8)
    for ids in IDS:
        assignments = {"default": context.tasks["default"].assign(ids, row_factors=(1, 2))}
        with context.use(assignments), torch.no_grad():
            close(compiled(x), model(x, task_ids=ids.repeat_interleave(2)))
    assert backend.frame_count == 1


@pytest.mark.slow
@every_method
def test_inductor(method):
    """The default backend, with generated C++."""
    model = two_layers(method)
    compiled = torch.compile(model, fullgraph=True)
    x = torch.randn(3, 5, 8)
    for ids in IDS:
        y, expected = compiled(x, task_ids=ids), model(x, task_ids=ids)
        close(y, expected)
        grads, wanted = gradients(model, y), gradients(model, expected)
        for name, grad in grads.items():
            close(grad, wanted[name])
