"""`tasklora.auxiliary_loss`: the mean over adapted layers of what the active adapters' methods add to the loss."""

import torch

import tasklora
from helpers_models import BERT_TARGETS, adapt, config_of, layers, tiny_bert


def adapted(method="ta_lora", **options):
    return adapt(tiny_bert(), config_of(method, target_modules=BERT_TARGETS, **options))


def test_it_is_the_mean_over_layers_and_has_gradients():
    model = adapted()
    losses = [layer.task_updates["default"].auxiliary_loss() for layer in layers(model)]
    loss = tasklora.auxiliary_loss(model)
    torch.testing.assert_close(loss, torch.stack(losses).mean())
    loss.backward()
    for layer in layers(model):
        assert layer.task_updates["default"].A.grad.abs().max() > 0


def test_only_active_adapters_count():
    model = adapted()
    alone = tasklora.auxiliary_loss(model)
    model.add_adapter("other", config_of("ta_lora", target_modules=BERT_TARGETS, orthogonality=50.0))
    assert torch.equal(tasklora.auxiliary_loss(model), alone)
    model.set_adapter("other")
    assert tasklora.auxiliary_loss(model) > alone
    with model.disable_adapter():
        assert tasklora.auxiliary_loss(model) == 0


def test_methods_that_add_nothing_and_models_without_an_adapter():
    for model in (adapted("mtl_lora"), adapted(orthogonality=0.0), tiny_bert()):
        assert tasklora.auxiliary_loss(model) == 0
