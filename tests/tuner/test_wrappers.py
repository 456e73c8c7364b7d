"""PEFT's wrappers pass task ids on: for every task type, by every way of giving them, and only for our methods.

Without ids a model with several tasks raises; PEFT's own LoRA still gets PEFT's own classes.
"""

import copy

import peft
import pytest
import torch
from peft import LoraConfig, PeftModel, PromptTuningConfig, get_peft_model
from torch import nn

import tasklora
from helpers_models import ADAPTERS, TASKS, TYPED, adapt, config_of, inputs_of, run, tiny_bert
from tasklora.errors import TaskIdsError, UnknownTaskError, UnsupportedError
from tasklora.tuner import TaskPeftModel

every_type = pytest.mark.parametrize("task_type", [None, *TYPED])


def model_of(task_type, case="mtl_lora"):
    make, targets = TYPED[task_type or "SEQ_CLS"]
    return adapt(make(), config_of(case, task_type=task_type, target_modules=targets))


@every_type
def test_task_ids_reach_the_layers(task_type):
    model = model_of(task_type)
    outputs = [run(model, task) for task in range(3)]
    assert (outputs[0] - outputs[1]).abs().max() > 1e-4
    mixed = run(model, torch.tensor([2, 0, 1]))
    for row, task in enumerate([2, 0, 1]):
        torch.testing.assert_close(mixed[row], outputs[task][row], rtol=1e-5, atol=1e-5)


@every_type
def test_missing_ids_raise(task_type):
    with pytest.raises(TaskIdsError, match=r"3 tasks \(cola, rte, sst2\).*pass `task_ids=` to the model"):
        run(model_of(task_type))


@every_type
def test_wrapper_class(task_type):
    model = model_of(task_type)
    if task_type is None:
        assert type(model) is TaskPeftModel
        return
    theirs = {
        "SEQ_CLS": peft.PeftModelForSequenceClassification,
        "TOKEN_CLS": peft.PeftModelForTokenClassification,
        "QUESTION_ANS": peft.PeftModelForQuestionAnswering,
        "FEATURE_EXTRACTION": peft.PeftModelForFeatureExtraction,
        "CAUSAL_LM": peft.PeftModelForCausalLM,
        "SEQ_2_SEQ_LM": peft.PeftModelForSeq2SeqLM,
    }[task_type]
    assert isinstance(model, theirs)
    assert type(model).__name__ == theirs.__name__


@every_type
def test_plain_lora_keeps_the_classes_of_peft(task_type):
    make, targets = TYPED[task_type or "SEQ_CLS"]
    model = get_peft_model(make(), LoraConfig(task_type=task_type, target_modules=targets))
    assert type(model).__module__ == "peft.peft_model"
    assert run(model).isfinite().all()


def test_plain_lora_round_trip(tmp_path):
    model = get_peft_model(tiny_bert(), LoraConfig(task_type="SEQ_CLS", target_modules=["query"]))
    model.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(tiny_bert(), tmp_path)
    assert type(loaded) is peft.PeftModelForSequenceClassification


def test_prompt_tuning_keeps_the_classes_of_peft():
    make, _ = TYPED["CAUSAL_LM"]
    model = get_peft_model(make(), PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2))
    assert type(model) is peft.PeftModelForCausalLM


@pytest.mark.parametrize("case", ADAPTERS, ids=lambda case: case.id)
def test_every_way_to_give_ids(case):
    model = adapt(tiny_bert(), config_of(case, task_type="SEQ_CLS", target_modules=["query", "value"]))
    expected = run(model, torch.tensor([2, 0, 1]))
    assert torch.equal(run(model, ["sst2", "cola", "rte"]), expected)
    assert torch.equal(run(model, torch.tensor([2, 0, 1], dtype=torch.int32)), expected)
    with tasklora.use_tasks(model, ["sst2", "cola", "rte"]):
        assert torch.equal(run(model), expected)
        assert torch.equal(run(model, "rte"), run(model, 1))  # the nearer one holds
        assert torch.equal(run(model), expected)
    torch.testing.assert_close(run(model, task_weights=torch.eye(3)[[2, 0, 1]]), expected)
    per_token = torch.tensor([2, 0, 1])[:, None].expand(3, 6)
    torch.testing.assert_close(run(model, per_token), expected)


def test_use_tasks_around_any_call():
    """A user's own module around the model, and the bare base model inside it."""
    model = model_of("SEQ_CLS")
    expected = run(model, "rte")
    inside = nn.ModuleDict({"inner": model})
    with tasklora.use_tasks(inside, "rte"), torch.no_grad():
        assert torch.equal(model.get_base_model()(**inputs_of(model)).logits, expected)


@pytest.mark.parametrize(
    ("task_ids", "error", "message"),
    [
        (torch.tensor([0, 1]), TaskIdsError, "input has 3 rows .*but task_ids describe 2"),
        (torch.tensor([0, 1, 3]), TaskIdsError, "got values from 0 to 3"),
        (torch.tensor([0, 1, -1]), TaskIdsError, "got values from -1 to 1"),
        (torch.tensor([0.0, 1.0, 2.0]), TaskIdsError, "integer tensor, got dtype torch.float32"),
        (torch.zeros(3, 6, 1, dtype=torch.long), TaskIdsError, "3 dimensions"),
        (torch.zeros(3, 7, dtype=torch.long), TaskIdsError, r"per-token task_ids of shape \(3, 7\)"),
        (torch.zeros(2, 6, dtype=torch.long), TaskIdsError, "input has 3 rows"),
        (["cola", "rte"], TaskIdsError, "input has 3 rows .*but task_ids describe 2"),
        ("rtte", UnknownTaskError, r"Did you mean 'rte'\?"),
        (["cola", "rte", "mnli"], UnknownTaskError, "unknown task 'mnli'"),
        (3, UnknownTaskError, "out of range"),
    ],
    ids=str,
)
def test_bad_ids(task_ids, error, message):
    with pytest.raises(error, match=message) as raised:
        run(model_of("SEQ_CLS"), task_ids)
    assert type(raised.value) is error


def test_bad_weights():
    model = model_of("SEQ_CLS")
    with pytest.raises(TaskIdsError, match="not both"):
        run(model, "rte", task_weights=torch.ones(3))
    with pytest.raises(TaskIdsError, match=r"shape \(3,\) or \(rows, 3\), got \(3, 2\)"):
        run(model, task_weights=torch.ones(3, 2))
    with pytest.raises(TaskIdsError, match="input has 3 rows"):
        run(model, task_weights=torch.ones(2, 3))


def test_pooled_rows_refuse_token_ids_by_name():
    """BERT's pooler sees one vector per row, so per-token ids have no meaning there."""
    model = adapt(tiny_bert(), config_of(target_modules=["query", "dense"]))
    with pytest.raises(TaskIdsError, match=r"pooled or flattened rows.*exclude_modules"):
        run(model, torch.zeros(3, 6, dtype=torch.long))


def test_ids_are_gone_after_a_call_and_after_an_error():
    model = model_of("SEQ_CLS")
    run(model, "rte")
    assert tasklora.context_of(model).current == {}
    with pytest.raises(TaskIdsError):
        run(model, torch.tensor([0, 1]))
    assert tasklora.context_of(model).current == {}


def test_one_task_needs_no_ids():
    model = adapt(tiny_bert(), config_of(tasks=["only"], task_type="SEQ_CLS", target_modules=["query"]))
    assert torch.equal(run(model), run(model, "only"))


def test_use_tasks_on_a_plain_model():
    message = "BertForSequenceClassification has no tasklora adapter: wrap it first"
    with pytest.raises(UnsupportedError, match=message), tasklora.use_tasks(tiny_bert(), "rte"):
        pass


@every_type
def test_deepcopy_has_a_context_of_its_own(task_type):
    model = model_of(task_type)
    twin = copy.deepcopy(model)
    assert type(twin) is type(model)
    assert tasklora.context_of(twin) is not tasklora.context_of(model)
    with tasklora.use_tasks(model, "rte"):
        with pytest.raises(TaskIdsError):
            run(twin)
        assert torch.equal(run(twin, "cola"), run(model, "cola"))


@pytest.mark.parametrize("task", TASKS)
def test_single_rows(task):
    model = model_of("SEQ_CLS")
    with torch.no_grad():
        alone = model(input_ids=inputs_of(model)["input_ids"][:1], task_ids=[task]).logits
    torch.testing.assert_close(alone, run(model, task)[:1])
