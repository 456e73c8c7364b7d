"""Several active adapters: names mean the same task to each by its own list; numbers only where the lists are equal."""

import pytest
import torch

import tasklora
from helpers_models import adapt, config_of, fill, layers, run, tiny_bert, tiny_llama
from tasklora.errors import TaskIdsError, UnknownTaskError

IDS = ["sst2", "cola", "rte"]
TARGETS = ["query", "value"]


@pytest.fixture
def two_active():
    """`default` knows cola, rte, sst2; `other` knows rte, mnli, cola: the same number is another task."""
    model = adapt(tiny_bert(), config_of(target_modules=TARGETS))
    model.add_adapter("other", config_of(tasks=["rte", "mnli", "cola"], target_modules=["value", "key"]))
    fill(model, seed=5, adapter="other")
    model.base_model.set_adapter(["default", "other"])
    return model.eval()


def test_names_mean_the_same_task_to_both(two_active):
    mixed = run(two_active, ["cola", "rte", "cola"])
    for row, task in enumerate(["cola", "rte", "cola"]):
        torch.testing.assert_close(mixed[row], run(two_active, task)[row])
    layer = next(layer for layer in layers(two_active) if len(layer.task_updates) == 2)
    x, tasks = torch.randn(2, 5, 32), tasklora.context_of(two_active).tasks
    deltas = [layer.task_updates[name](x, tasks[name].assign(i)) for name, i in (("default", 0), ("other", 2))]
    with tasklora.use_tasks(two_active, "cola"):
        torch.testing.assert_close(layer(x), layer.base_layer(x) + sum(deltas))


@pytest.mark.parametrize(
    "task_ids",
    [torch.tensor([0, 1, 2]), torch.zeros(3, 6, dtype=torch.long), 0, [0, 1, 2], ["cola", 1, "rte"]],
    ids=str,
)
def test_numbers_that_mean_different_tasks(two_active, task_ids):
    with pytest.raises(TaskIdsError, match=r"'default': cola, rte, sst2; 'other': rte, mnli, cola.*Pass task names"):
        run(two_active, task_ids)
    two_active.set_adapter("default")
    if not (isinstance(task_ids, list) and "cola" in task_ids):
        assert run(two_active, 0 if isinstance(task_ids, list) else task_ids).isfinite().all()


def test_mixtures_that_mean_different_tasks(two_active):
    with pytest.raises(TaskIdsError, match="different tasks"):
        run(two_active, task_weights=torch.ones(3))


def test_a_task_of_only_one_of_them(two_active):
    with pytest.raises(UnknownTaskError, match=r"active adapter 'other': unknown task 'sst2'.*rte, mnli, cola"):
        run(two_active, "sst2")
    assert tasklora.context_of(two_active).current == {}


def test_numbers_for_adapters_with_the_same_tasks():
    model = adapt(tiny_bert(), config_of(target_modules=TARGETS))
    model.add_adapter("other", config_of(target_modules=["key"]))
    fill(model, seed=5, adapter="other")
    model.base_model.set_adapter(["default", "other"])
    torch.testing.assert_close(run(model, torch.tensor([2, 0, 1])), run(model, IDS))


def test_generate_with_two_active_adapters():
    model = adapt(tiny_llama(), config_of(task_type="CAUSAL_LM", target_modules=["q_proj"]))
    model.add_adapter("other", config_of(task_type="CAUSAL_LM", tasks=["rte", "cola"], target_modules=["v_proj"]))
    fill(model, seed=5, adapter="other")
    model.base_model.set_adapter(["default", "other"])
    prompts = torch.full((2, 3), 5)
    with pytest.raises(TaskIdsError, match="different tasks"):
        model.generate(input_ids=prompts, task_ids=torch.tensor([0, 1]), max_new_tokens=2)
    assert model.generate(input_ids=prompts, task_ids=["rte", "cola"], max_new_tokens=2).shape[0] == 2
