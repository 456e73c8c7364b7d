"""Steps of a trainer with and without balancing."""

import torch

from tasklora.training.balancing import BalancingSection

# What a method cannot do without, in a recipe.
NEEDED = {"cagrad": {"c": 0.4}, "fairgrad": {"alpha": 1.0}, "stch": {"mu": 0.5}, "dwa": {"period": 1}}
CLOSE = {"rtol": 1e-5, "atol": 2e-6}


def balanced(trainer, name, **options):
    """Return the trainer with a fresh balancer."""
    section = BalancingSection(method=name, **{**NEEDED.get(name, {}), **options})
    trainer.balancer = section.balancer(trainer)
    return trainer


def plain(trainer):
    trainer.balancer = None
    return trainer


def step(trainer, batches):
    """Take a step that is cut into batches, and return the gradients."""
    trainer.model.zero_grad()
    batches, counts = trainer.get_batch_samples(iter(batches), len(batches), trainer.args.device)
    for place, batch in enumerate(batches, start=1):
        trainer.accelerator.gradient_state._set_sync_gradients(place == len(batches))
        trainer.training_step(trainer.model, batch, counts)
    return {name: p.grad.clone() for name, p in trainer.model.named_parameters() if p.grad is not None}


def expect_same(given, expected):
    assert given.keys() == expected.keys()
    for name, gradient in expected.items():
        torch.testing.assert_close(given[name], gradient, **CLOSE, msg=lambda m, n=name: f"{n}: {m}")
