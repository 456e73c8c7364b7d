"""Adapters put on a model by transformers itself: `model.load_adapter` and `model.add_adapter` with `use_tasks`."""

import pytest
import torch

import tasklora
from helpers_models import BERT_TARGETS, adapt, config_of, fill, layers, run, tiny_bert
from tasklora.errors import TaskIdsError, UnknownTaskError


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
