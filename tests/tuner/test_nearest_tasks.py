"""Weights for rows of an unknown task, by the frozen base model's embeddings of rows of the known tasks."""

import pytest
import torch

import tasklora
from helpers_models import BERT_TARGETS, TASKS, TYPED, adapt, config_of, fill, inputs_of, run, tiny_bert
from tasklora.errors import ConfigError, TaskIdsError, UnknownTaskError
from tasklora.tuner import embed_rows


def adapted():
    return adapt(tiny_bert(), config_of(target_modules=BERT_TARGETS))


def words(low, high, rows=8, seed=0):
    """Rows whose tokens lie in a range of their own, so that tasks differ as texts do."""
    return {"input_ids": torch.randint(low, high, (rows, 6), generator=torch.Generator().manual_seed(seed))}


KNOWN = {"cola": words(3, 20), "rte": words(20, 40), "sst2": words(40, 60)}


@pytest.mark.parametrize(("low", "nearest"), [(3, "cola"), (20, "rte"), (40, "sst2")])
def test_rows_like_a_tasks_own_are_nearest_to_it(low, nearest):
    found = tasklora.nearest_tasks(adapted(), words(low, low + 17, seed=5), KNOWN)
    assert next(iter(found.similarities)) == nearest
    assert list(found.similarities.values()) == sorted(found.similarities.values(), reverse=True)
    assert found.weights[nearest] > 0.5
    assert sum(found.weights.values()) == pytest.approx(1)
    assert found.task_weights.tolist() == pytest.approx([found.weights[task] for task in TASKS])


def test_the_formula_on_given_embeddings():
    known = {"sst2": torch.tensor([[1.0, 0.0, 0.0], [1.0, 0.0, 0.0]]), "cola": torch.tensor([[0.0, 1.0, 0.0]])}
    found = tasklora.nearest_tasks(adapted(), torch.tensor([[3.0, 0.0, 0.0]]), known, temperature=0.5)
    assert found.similarities == pytest.approx({"sst2": 1.0, "cola": -1.0})
    share = float(torch.sigmoid(torch.tensor(2 / 0.5)))
    assert found.task_weights.tolist() == pytest.approx([1 - share, 0.0, share], rel=1e-5)


def test_only_the_nearest_are_kept():
    found = tasklora.nearest_tasks(adapted(), words(20, 40, seed=5), KNOWN, top=1)
    assert found.weights == {"rte": 1.0}
    assert found.task_weights.tolist() == [0.0, 1.0, 0.0]
    assert set(found.similarities) == set(KNOWN)


def test_the_adapter_has_no_say_and_is_left_as_it_was():
    model = adapted().train()
    before = tasklora.nearest_tasks(model, words(10, 30), KNOWN)
    expected = run(model.eval(), "rte")
    trainable = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    model.train()
    fill(model, seed=9)
    assert tasklora.nearest_tasks(model, words(10, 30), KNOWN).weights == before.weights
    assert model.training
    assert trainable == [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    fill(model, seed=0)
    assert torch.equal(run(model.eval(), "rte"), expected)


def test_padding_does_not_count():
    model = adapted()
    rows = words(3, 60, rows=2)["input_ids"]
    padded = torch.cat([rows, torch.zeros(2, 3, dtype=torch.long)], dim=1)
    mask = (padded != 0).long()
    torch.testing.assert_close(
        embed_rows(model, {"input_ids": padded, "attention_mask": mask}),
        embed_rows(model, {"input_ids": rows, "attention_mask": torch.ones_like(rows)}),
        rtol=0,
        atol=1e-5,
    )


@pytest.mark.parametrize("task_type", TYPED)
def test_every_kind_of_model_embeds_its_rows(task_type):
    make, targets = TYPED[task_type]
    model = adapt(make(), config_of(task_type=task_type, target_modules=targets))
    embeddings = embed_rows(model, {**inputs_of(model), "labels": torch.zeros(3)})
    assert embeddings.shape == (3, 32)
    assert embeddings.dtype == torch.float32


def test_the_mixture_runs_and_leaves_as_plain_lora_like_a_task(tmp_path):
    model = adapted()
    found = tasklora.nearest_tasks(model, words(20, 40, seed=5), KNOWN)
    mixed = run(model, task_weights=found.task_weights)
    assert not torch.equal(mixed, run(model, "rte"))
    tasklora.export_lora(model, task_weights=found.task_weights, directory=tmp_path / "mixture")
    assert (tmp_path / "mixture" / "adapter_model.safetensors").is_file()


@pytest.mark.parametrize(
    ("known", "options", "error", "says"),
    [
        ({"cola": torch.ones(1, 3)}, {}, ConfigError, "at least two known tasks, got cola"),
        ({**KNOWN, "rtee": words(3, 9)}, {}, UnknownTaskError, "Did you mean 'rte'"),
        (KNOWN, {"temperature": 0.0}, ConfigError, "temperature must be positive"),
        (KNOWN, {"top": 0}, ConfigError, "top at least 1"),
        ({"cola": torch.ones(1, 3), "rte": torch.ones(0, 3)}, {}, ConfigError, "rte: embeddings must have shape"),
        ({"cola": torch.ones(1, 3), "rte": -torch.ones(1, 3)}, {}, ConfigError, "width 32 were given"),
    ],
)
def test_what_cannot_be_weighed(known, options, error, says):
    with pytest.raises(error, match=says):
        tasklora.nearest_tasks(adapted(), words(3, 20), known, **options)


def test_two_active_adapters_have_no_weights_in_common():
    model = adapted()
    model.add_adapter("other", config_of(target_modules=BERT_TARGETS))
    model.base_model.set_adapter(["default", "other"])
    with pytest.raises(TaskIdsError, match="one active adapter, there are 2"):
        tasklora.nearest_tasks(model, words(3, 20), KNOWN)
