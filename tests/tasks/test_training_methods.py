"""Training methods: each trains exactly what it says, whatever method is added to the table."""

import pytest
import torch
from torch import nn

from helpers_runs import EVERY_METHOD, METHODS, mostly_slow, use_method
from tasklora.errors import ConfigError
from tasklora.tasks import TRAINING_METHODS, training_method
from tasklora.training import prepare


def trained_names(model):
    return {name for name, parameter in model.named_parameters() if parameter.requires_grad}


def expected_names(model, method):
    """Return what a method is to train: heads, and by its kind the adapter, all of the encoder, or nothing of it."""
    kind = TRAINING_METHODS[method].encoder
    return {
        name
        for name, _ in model.named_parameters()
        if name.startswith("heads.")
        or (kind == "full" and ".pooler." not in name)
        or (kind == "adapter" and (".task_updates." in name or ".lora_" in name))
    }


@pytest.mark.parametrize("method", EVERY_METHOD)
def test_what_takes_gradients(project, method):
    model = prepare(project.load(use_method(method))).model
    assert trained_names(model) == expected_names(model, method)
    assert {name.split(".")[1] for name in trained_names(model) if name.startswith("heads.")} == set(model.heads)


@pytest.mark.parametrize("method", mostly_slow(EVERY_METHOD, "mtl_lora", "lora", "full_fine_tuning", "heads_only"))
def test_training_changes_that_and_nothing_else(project, tmp_path, method):
    trainer = project.trainer(tmp_path, use_method(method), "training.max_steps=3", "training.group_by_length=false")
    before = {name: parameter.clone() for name, parameter in trainer.model.named_parameters()}
    trainer.train()
    changed = {name for name, parameter in trainer.model.named_parameters() if not torch.equal(parameter, before[name])}
    assert changed == expected_names(trainer.model, method)


@pytest.mark.parametrize("method", METHODS)
def test_an_adapter_is_on_every_linear_layer_but_the_poolers(project, method):
    base = project.base_model().model
    linear = {name for name, module in base.named_modules() if isinstance(module, nn.Linear)} - {"pooler.dense"}
    encoder = prepare(project.load(use_method(method))).model.encoder
    adapted = {
        name.partition("base_model.model.")[2].removesuffix(".base_layer")
        for name, _ in encoder.named_modules()
        if name.endswith(".base_layer")
    }
    assert adapted == linear


def test_options_of_a_method_that_has_none_are_refused():
    with pytest.raises(ConfigError, match=r"method 'heads_only' has no option 'r'\. It has none\."):
        training_method("heads_only").check({"r": 4})
    with pytest.raises(
        ConfigError, match=r"unknown method 'head_only'\. Did you mean 'heads_only'\? Methods: mtl_lora"
    ):
        training_method("head_only")


@pytest.mark.parametrize("rate", [0, -1e-4, "fast", float("nan"), True])
def test_a_learning_rate_of_the_encoder_that_is_none_is_refused(rate):
    with pytest.raises(ConfigError, match="encoder_learning_rate must be a positive number, got"):
        training_method("full_fine_tuning").check({"encoder_learning_rate": rate})


def test_full_fine_tuning_may_give_the_encoder_a_learning_rate_of_its_own(project, tmp_path):
    method = "method={name: full_fine_tuning, encoder_learning_rate: 1.0e-9}"
    options = (method, "training.max_steps=2", "training.learning_rate=0.1", "training.group_by_length=false")
    trainer = project.trainer(tmp_path, *options)
    before = {name: parameter.clone() for name, parameter in trainer.model.named_parameters()}
    trainer.train()
    moved = {
        name: (parameter - before[name]).abs().max().item()
        for name, parameter in trainer.model.named_parameters()
        if name in expected_names(trainer.model, "full_fine_tuning")
    }
    heads = [change for name, change in moved.items() if name.startswith("heads.")]
    encoder = [change for name, change in moved.items() if not name.startswith("heads.")]
    assert min(heads) > 1e-3  # Adam moves each weight by about its learning rate a step
    assert max(encoder) < 1e-7
    groups = trainer.optimizer.param_groups
    assert sum(len(group["params"]) for group in groups) == len(moved)
    assert {group["initial_lr"] for group in groups} == {1e-9, 0.1}
