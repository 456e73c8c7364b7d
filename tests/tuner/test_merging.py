"""Merging: one task's update goes into the base weights and comes out again bit by bit; never a task nobody named."""

import copy

import pytest
import torch
from peft import PeftModel
from peft.tuners.tuners_utils import BaseTunerLayer
from transformers import BertForSequenceClassification

import tasklora
from helpers_models import (
    ADAPTERS,
    BERT_TARGETS,
    TYPED,
    adapt,
    config_of,
    fill,
    layers,
    run,
    tiny_bert,
)
from tasklora.errors import TaskIdsError, UnknownTaskError, UnsupportedError

every_exact_adapter = pytest.mark.parametrize(
    "case", [case for case in ADAPTERS if case.rank is not None], ids=lambda case: case.id
)
every_routed_adapter = pytest.mark.parametrize(
    "case", [case for case in ADAPTERS if case.rank is None], ids=lambda case: case.id
)


def base_state(model):
    return {name: p.detach().clone() for name, p in model.named_parameters() if "task_updates" not in name}


def adapted(case="mtl_lora"):
    return adapt(tiny_bert(), config_of(case, task_type="SEQ_CLS", target_modules=BERT_TARGETS))


@every_exact_adapter
def test_merge_and_unmerge_restore_every_bit(case):
    model = adapted(case)
    expected, before = run(model, "rte"), base_state(model)
    with tasklora.use_tasks(model, "rte"):
        model.merge_adapter()
    torch.testing.assert_close(run(model), expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(run(model, "rte"), expected, rtol=1e-5, atol=1e-5)
    model.unmerge_adapter()
    after = base_state(model)
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert torch.equal(run(model, "rte"), expected)
    differs = (run(model, "cola") - expected).abs().max() > 1e-4
    assert differs == case.uses_task_ids


@every_routed_adapter
def test_a_routed_adapter_refuses_to_merge_and_stays_as_it_was(case):
    model = adapted(case)
    expected, before = run(model, "rte"), base_state(model)
    for merge in (model.merge_adapter, model.merge_and_unload, lambda: tasklora.merge_task(model, "rte")):
        with pytest.raises(
            UnsupportedError, match=f"{case.update_cls.__name__} has no plain LoRA and cannot be merged"
        ):
            merge()
        assert all(torch.equal(value, base_state(model)[name]) for name, value in before.items())
    assert torch.equal(run(model, "rte"), expected)


def test_bf16_weights_are_restored_too():
    model = adapted().to(torch.bfloat16)
    before = base_state(model)
    with tasklora.use_tasks(model, "rte"):
        model.merge_adapter()
    model.unmerge_adapter()
    assert all(torch.equal(value, base_state(model)[name]) for name, value in before.items())


@every_exact_adapter
@pytest.mark.parametrize("task", ["cola", 2])
def test_merge_task_gives_a_plain_model(case, task):
    model = adapted(case)
    expected = run(model, task)
    merged = tasklora.merge_task(model, task)
    assert type(merged) is BertForSequenceClassification
    assert not any(isinstance(module, BaseTunerLayer) for module in merged.modules())
    assert {name for name, _ in merged.named_parameters()} == {name for name, _ in tiny_bert().named_parameters()}
    torch.testing.assert_close(run(merged), expected, rtol=1e-5, atol=1e-5)


@every_exact_adapter
def test_merging_a_mixture(case):
    model, mixture = adapted(case), torch.tensor([0.2, 0.5, 0.3])
    expected = run(model, task_weights=mixture)
    torch.testing.assert_close(run(tasklora.merge_task(model, task_weights=mixture)), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("task_type", TYPED)
def test_merge_task_for_every_task_type(task_type):
    make, targets = TYPED[task_type]
    model = adapt(make(), config_of(task_type=task_type, target_modules=targets))
    expected = run(model, "sst2")
    torch.testing.assert_close(run(tasklora.merge_task(model, "sst2")), expected, rtol=1e-4, atol=1e-5)


def test_a_merged_model_saves_as_a_plain_one(tmp_path):
    model = adapted()
    expected = run(model, "rte")
    tasklora.merge_task(model, "rte").save_pretrained(tmp_path)
    loaded = BertForSequenceClassification.from_pretrained(tmp_path).eval()
    torch.testing.assert_close(run(loaded), expected, rtol=1e-5, atol=1e-5)


def test_the_trained_head_is_merged_along():
    model = adapted()
    with torch.no_grad():
        model.base_model.model.classifier.modules_to_save["default"].weight.normal_()
    expected = run(model, "rte")
    torch.testing.assert_close(run(tasklora.merge_task(model, "rte")), expected, rtol=1e-5, atol=1e-5)


def test_merging_without_a_task():
    model = adapted()
    before = base_state(model)
    for merge in (model.merge_adapter, model.merge_and_unload, lambda: tasklora.merge_task(model)):
        with pytest.raises(TaskIdsError, match=r"merge_task|task_ids"):
            merge()
    with pytest.raises(TaskIdsError, match="needs one task"), tasklora.use_tasks(model, ["rte", "rte", "rte"]):
        model.merge_adapter()
    with pytest.raises(UnknownTaskError, match="unknown task 'mnli'"):
        tasklora.merge_task(model, "mnli")
    assert all(torch.equal(value, base_state(model)[name]) for name, value in before.items())


def test_another_task_on_a_merged_model():
    model = adapted()
    with tasklora.use_tasks(model, "rte"):
        model.merge_adapter()
    for other in ("cola", torch.tensor([1, 1, 0]), ["rte", "cola", "rte"]):
        with pytest.raises(TaskIdsError, match=r"merged.*for one task, but other tasks.*unmerge_adapter"):
            run(model, other)
    with pytest.raises(TaskIdsError, match="merged"):
        run(model, task_weights=torch.tensor([0.0, 1.0, 0.0]))
    run(model, torch.tensor([1, 1, 1]))
    model.unmerge_adapter()
    run(model, "cola")


def test_merging_twice_adds_once():
    model = adapted()
    expected = run(model, "rte")
    with tasklora.use_tasks(model, "rte"):
        model.merge_adapter()
        with pytest.warns(UserWarning, match="already merged|no-op"):
            model.merge_adapter()
    torch.testing.assert_close(run(model), expected, rtol=1e-5, atol=1e-5)


def test_a_merged_model_disabled_is_the_base_model():
    model = adapted()
    with tasklora.use_tasks(model, "rte"):
        model.merge_adapter()
    with model.disable_adapter():
        assert torch.equal(run(model), run(tiny_bert()))


def test_two_adapters_merge_one_after_the_other():
    model = adapt(tiny_bert(), config_of(target_modules=["query", "value"]))
    model.add_adapter("other", config_of(tasks=["mnli", "cola"], target_modules=["value", "key"]))
    fill(model, seed=3, adapter="other")
    model.base_model.set_adapter(["default", "other"])
    expected, before = run(model, "cola"), base_state(model)
    with tasklora.use_tasks(model, "cola"):
        model.merge_adapter()
    torch.testing.assert_close(run(model), expected, rtol=1e-5, atol=1e-5)
    model.unmerge_adapter()
    assert all(torch.equal(value, base_state(model)[name]) for name, value in before.items())


def test_broken_numbers_are_refused_before_any_layer_is_merged():
    model = adapted()
    before = base_state(model)
    with torch.no_grad():
        layers(model)[-1].task_updates["default"].B[0, 0, 0] = float("nan")
    with pytest.raises(ValueError, match="NaN or infinity in the update"):
        tasklora.merge_task(model, "rte")
    assert not any(layer.merged for layer in layers(model))
    assert all(torch.equal(value, base_state(model)[name]) for name, value in before.items())


def test_merging_leaves_other_copies_alone(tmp_path):
    model = adapted()
    model.save_pretrained(tmp_path)
    base = tiny_bert()
    twin = copy.deepcopy(base)
    tasklora.merge_task(PeftModel.from_pretrained(base, tmp_path), "rte")
    assert torch.equal(run(twin), run(tiny_bert()))
    assert not torch.equal(run(base), run(twin))


def test_one_task_merges_without_naming_it():
    model = adapt(tiny_bert(), config_of(tasks=["only"], target_modules=BERT_TARGETS))
    expected = run(model)
    torch.testing.assert_close(run(model.merge_and_unload()), expected, rtol=1e-5, atol=1e-5)
