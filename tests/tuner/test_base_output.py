"""The base layer's output is written into only where nobody else can have it."""

import pytest
import torch

from helpers_models import BERT_TARGETS, adapt, config_of, inputs_of, tiny_bert
from helpers_updates import CASES
from tasklora.tuner.layer import TaskLoraLayer

IDS = torch.tensor([2, 0, 1])
CASE = next(case for case in CASES if case.method == "mtl_lora")


def adapted():
    model = adapt(tiny_bert(), config_of(CASE, target_modules=BERT_TARGETS))
    return model, [module for module in model.modules() if isinstance(module, TaskLoraLayer)]


@pytest.mark.parametrize("register", ["forward", "backward"])
def test_what_hooks_of_the_base_layer_have_seen_stays_as_it_was(register):
    model, layers = adapted()
    seen = []
    for layer in layers:
        if register == "forward":
            layer.base_layer.register_forward_hook(lambda _, __, y: seen.append((y, y.detach().clone())))
        else:
            layer.base_layer.register_full_backward_hook(lambda _, g, __: seen.append((g[0], g[0].clone())))
    model(**inputs_of(model), task_ids=IDS)[0].square().sum().backward()
    assert len(seen) > len(layers) / 2
    assert all(torch.equal(kept, before) for kept, before in seen)


class Counting(torch.nn.Linear):
    """A subclass: what it keeps of its output is not known."""

    def forward(self, x):
        self.kept = super().forward(x)
        return self.kept


def test_the_output_of_a_subclass_stays_as_it_was():
    model, layers = adapted()
    with torch.no_grad():
        expected = model(**inputs_of(model), task_ids=IDS)[0]
        for layer in layers:
            layer.base_layer.__class__ = Counting
        assert torch.equal(model(**inputs_of(model), task_ids=IDS)[0], expected)
        x = torch.randn(3, 4, layers[0].base_layer.in_features)
        plain = torch.nn.functional.linear(x, layers[0].base_layer.weight, layers[0].base_layer.bias)
        with layers[0].context.use({"default": layers[0].context.tasks["default"].assign(IDS)}):
            layers[0](x)
        assert torch.equal(layers[0].base_layer.kept, plain)
