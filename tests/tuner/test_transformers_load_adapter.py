"""Adapters put on a model by transformers itself: `model.load_adapter` and `model.add_adapter` with `use_tasks`."""

import pytest
import torch

import tasklora
from helpers_models import BERT_TARGETS, TASKS, adapt, config_of, fill, layers, run, tiny_bert
from tasklora.errors import TaskIdsError, UnknownTaskError
from tasklora.tuner import METHODS


@pytest.fixture
def saved(tmp_path):
    model = adapt(tiny_bert(), config_of(target_modules=BERT_TARGETS))
    model.save_pretrained(tmp_path)
    return tmp_path, run(model, torch.tensor([2, 0, 1]))


def test_load_adapter(saved):
    folder, expected = saved
    model = tiny_bert()
    model.load_adapter(str(folder))
    with tasklora.use_tasks(model, ["sst2", "cola", "rte"]):
        assert torch.equal(run(model), expected)
    with pytest.raises(TaskIdsError, match="was run without task ids"):
        run(model)
    with pytest.raises(UnknownTaskError), tasklora.use_tasks(model, "mnli"):
        pass


def test_add_adapter():
    model = tiny_bert()
    model.add_adapter(config_of(target_modules=["query"]))
    fill(model)
    with tasklora.use_tasks(model, "rte"):
        assert not torch.equal(run(model), run(tiny_bert()))


def test_a_name_used_again_has_the_new_tasks():
    model = tiny_bert()
    model.add_adapter(config_of(target_modules=["query"]), "mine")
    model.delete_adapter("mine")
    assert not any(layer.task_updates for layer in layers(model))
    model.add_adapter(config_of(tasks=["sst2", "wnli"], target_modules=["query"]), "mine")
    fill(model)
    assert tasklora.context_of(model).tasks["mine"].names == ("sst2", "wnli")
    with tasklora.use_tasks(model, "wnli"):
        run(model)


# Life with adapters that transformers put on the model.


def said(model, task_ids):
    with tasklora.use_tasks(model, task_ids):
        return run(model)


@pytest.fixture
def two(tmp_path):
    """A model with `first` (cola, rte, sst2) and `second` (rte, mnli, cola) and what each says of its tasks alone."""
    expected = {}
    for seed, (name, tasks) in enumerate({"first": TASKS, "second": ["rte", "mnli", "cola"]}.items()):
        adapted = adapt(tiny_bert(), config_of(tasks=tasks, target_modules=["query", "value"]), seed)
        adapted.save_pretrained(tmp_path / name)
        expected[name] = {task: run(adapted, task) for task in tasks}
    model = tiny_bert()
    for name in expected:
        model.load_adapter(str(tmp_path / name), adapter_name=name)
    return model, expected


@pytest.mark.parametrize("method", list(METHODS))
def test_every_method_loads(method, tmp_path):
    adapted = adapt(tiny_bert(), config_of(method, target_modules=BERT_TARGETS))
    adapted.save_pretrained(tmp_path)
    model = tiny_bert()
    model.load_adapter(str(tmp_path))
    ids = torch.tensor([2, 0, 1])
    assert torch.equal(said(model, ids), run(adapted, ids))


def test_switching(two):
    model, expected = two
    assert model.active_adapters() == ["second"]  # transformers activates the one loaded last
    for name in ("first", "second", "first"):
        model.set_adapter(name)
        assert model.active_adapters() == [name]
        for task, output in expected[name].items():
            assert torch.equal(said(model, task), output)
    with pytest.raises(UnknownTaskError, match=r"unknown task 'mnli'.*cola, rte, sst2"):
        said(model, "mnli")
    with pytest.raises(ValueError, match="not found"):
        model.set_adapter("third")
    assert torch.equal(said(model, "rte"), expected["first"]["rte"])


def test_disabling_and_enabling(two):
    model, expected = two
    model.set_adapter("first")
    model.disable_adapters()
    assert torch.equal(run(model), run(tiny_bert()))  # nothing asks for ids
    model.enable_adapters()
    assert torch.equal(said(model, "sst2"), expected["first"]["sst2"])


def test_both_active(two):
    model, _ = two
    model.set_adapter(["first", "second"])
    assert said(model, "cola").isfinite().all()
    with pytest.raises(TaskIdsError, match=r"'first': cola, rte, sst2; 'second': rte, mnli, cola.*Pass task names"):
        said(model, torch.tensor([0, 1, 2]))
    with pytest.raises(UnknownTaskError, match="active adapter 'second': unknown task 'sst2'"):
        said(model, "sst2")


def test_deleting(two):
    model, expected = two
    model.set_adapter("first")
    model.delete_adapter("second")
    assert torch.equal(said(model, "rte"), expected["first"]["rte"])
    assert not any("second" in name for name, _ in model.named_parameters())
    model.delete_adapter("first")
    assert torch.equal(run(model), run(tiny_bert()))
    assert not layers(model) or not any(layer.task_updates for layer in layers(model))


def test_two_methods_on_one_model(tmp_path):
    """PEFT's wrapper takes one method; transformers takes several, and their updates add up."""
    model = tiny_bert()
    outputs = {}
    for seed, method in enumerate(("mtl_lora", "per_task_lora")):
        adapted = adapt(tiny_bert(), config_of(method, target_modules=["query"]), seed)
        adapted.save_pretrained(tmp_path / method)
        outputs[method] = run(adapted, "rte")
        model.load_adapter(str(tmp_path / method), adapter_name=method)
    for method, expected in outputs.items():
        model.set_adapter(method)
        assert torch.equal(said(model, "rte"), expected)
    model.set_adapter(list(outputs))
    layer, x = layers(model)[0], torch.randn(2, 5, 32)
    tasks = tasklora.context_of(model).tasks
    with tasklora.use_tasks(model, "rte"):
        total = sum(layer.task_updates[name](x, tasks[name].assign("rte")) for name in outputs)
        torch.testing.assert_close(layer(x), layer.base_layer(x) + total)


def test_saving_and_loading_again(two, tmp_path):
    model, expected = two
    model.set_adapter("first")
    model.save_pretrained(tmp_path / "again")
    again = tiny_bert()
    again.load_adapter(str(tmp_path / "again"))
    assert torch.equal(said(again, "sst2"), expected["first"]["sst2"])


def test_loading_under_a_name_that_is_taken(two, tmp_path):
    model, expected = two
    with pytest.raises(ValueError, match="Adapter with name first already exists"):
        model.load_adapter(str(tmp_path / "second"), adapter_name="first")
    with pytest.raises(ValueError, match="Hotswapping is currently only supported for LoRA"):
        model.load_adapter(str(tmp_path / "second"), adapter_name="first", hotswap=True)
    model.set_adapter("first")
    assert torch.equal(said(model, "rte"), expected["first"]["rte"])


def test_an_adapter_of_another_base(saved, tmp_path):
    """transformers refuses it but leaves a part behind; deleting that makes the model what it was."""
    folder, _ = saved
    model = tiny_bert(hidden=48)
    with pytest.raises(RuntimeError, match="ignore_mismatched_sizes"):
        model.load_adapter(str(folder))
    model.delete_adapter("default")
    assert torch.equal(run(model), run(tiny_bert(hidden=48)))
