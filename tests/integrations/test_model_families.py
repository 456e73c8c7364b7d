"""Every method on every base family: the properties that hold whatever the model looks like inside."""

import functools
import itertools

import pytest
import torch
from peft import PeftModel, get_peft_model
from peft.tuners.tuners_utils import BaseTunerLayer

import tasklora
from helpers_families import FAMILIES, base_of, each, inputs_of, outputs_of
from helpers_models import adapt, config_of, layers
from tasklora.errors import TaskIdsError, UnsupportedError
from tasklora.tuner import METHODS

every_method = pytest.mark.parametrize("method", METHODS)
every_family = pytest.mark.parametrize("family", each(FAMILIES))
IDS = torch.tensor([2, 0, 1])


def adapted(family: str, method: str, **options):
    return adapt(base_of(family), config_of(method, **{"target_modules": FAMILIES[family].targets, **options}))


@functools.cache
def unchanged(family: str, method: str):
    """Return an adapted model for tests that leave it as it is."""
    return adapted(family, method)


def expect_rows_alone(model, family: str) -> None:
    """Assert that a mixed batch is its rows, one by one, each under its own task."""
    inputs = inputs_of(family)
    mixed = outputs_of(model, inputs, task_ids=IDS)
    for row, task in enumerate(IDS.tolist()):
        alone = outputs_of(model, {name: x[row : row + 1] for name, x in inputs.items()}, task_ids=task)
        torch.testing.assert_close(mixed[row : row + 1], alone, rtol=1e-4, atol=1e-4)


@every_family
@every_method
def test_a_fresh_adapter_gives_the_bases_output(family, method):
    base, inputs = base_of(family), inputs_of(family)
    expected = outputs_of(base, inputs)
    model = get_peft_model(base, config_of(method, target_modules=FAMILIES[family].targets)).eval()
    assert torch.equal(outputs_of(model, inputs, task_ids=IDS), expected)


@every_family
@every_method
def test_a_mixed_batch_equals_its_rows_one_by_one(family, method):
    model, inputs = unchanged(family, method), inputs_of(family)
    expect_rows_alone(model, family)
    outputs = [outputs_of(model, inputs, task_ids=task) for task in range(3)]
    differ = METHODS[method].update_cls.uses_task_ids
    assert all(((a - b).abs().max() > 1e-3) == differ for a, b in itertools.pairwise(outputs))
    assert (outputs[0] - outputs_of(base_of(family), inputs)).abs().max() > 1e-3


@every_family
@every_method
def test_one_task_merged_equals_the_adapter(family, method):
    model, inputs = adapted(family, method), inputs_of(family)
    expected = outputs_of(model, inputs, task_ids="rte")
    if METHODS[method].update_cls.kind == "routed":
        with pytest.raises(UnsupportedError, match=METHODS[method].update_cls.__name__):
            tasklora.merge_task(model, "rte")
        assert torch.equal(outputs_of(model, inputs, task_ids="rte"), expected)
        return
    merged = tasklora.merge_task(model, "rte")
    assert type(merged) is type(base_of(family))
    assert not any(isinstance(module, BaseTunerLayer) for module in merged.modules())
    torch.testing.assert_close(outputs_of(merged, inputs), expected, rtol=1e-4, atol=1e-4)


@every_family
@every_method
def test_saved_and_loaded(family, method, tmp_path):
    model, inputs = unchanged(family, method), inputs_of(family)
    model.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(base_of(family), tmp_path).eval()
    assert torch.equal(outputs_of(loaded, inputs, task_ids=IDS), outputs_of(model, inputs, task_ids=IDS))


@every_family
@every_method
def test_a_training_step_changes_the_adapter_only(family, method):
    model = adapted(family, method).train()
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    model(**inputs_of(family), task_ids=IDS).logits.square().mean().backward()
    optimizer.step()
    changed = {name for name, p in model.named_parameters() if not torch.equal(p, before[name])}
    assert all(".task_updates." in name for name in changed)
    for layer in layers(model):  # every layer learns, also those of an encoder in front of a decoder
        assert any(name.startswith(f"base_model.model.{layer.place.name}.") for name in changed)


@every_family
@every_method
def test_all_linear(family, method):
    """Where a linear layer sees no rows at all, a mixed batch is refused by the layer's name until it is left out."""
    exclude = FAMILIES[family].exclude
    if exclude and METHODS[method].update_cls.uses_task_ids:
        model = adapted(family, method, target_modules="all-linear")
        with pytest.raises(TaskIdsError, match=rf"({'|'.join(exclude)})'s input has .* rows.*exclude_modules"):
            outputs_of(model, inputs_of(family), task_ids=IDS)
        expected = outputs_of(model, inputs_of(family), task_ids="rte")  # one task for all fits any rows
        merged = outputs_of(tasklora.merge_task(model, "rte"), inputs_of(family))
        torch.testing.assert_close(merged, expected, rtol=1e-4, atol=1e-4)
    model = adapted(family, method, target_modules="all-linear", exclude_modules=exclude or None)
    adapted_types = {layer.place.name.rpartition(".")[2] for layer in layers(model)}
    there = {name.rpartition(".")[2] for name, _ in model.get_base_model().named_modules()}
    wanted = there.intersection(name.rpartition(".")[2] for name in FAMILIES[family].targets)
    assert wanted
    assert adapted_types >= wanted
    expect_rows_alone(model, family)
