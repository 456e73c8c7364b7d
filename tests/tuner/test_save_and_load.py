"""Saving and loading: the same numbers come back, and files that are damaged or foreign are refused.

Covers `save_pretrained`, `PeftModel.from_pretrained`, `AutoPeftModel…`, adapters on memory-saving loads, trained
extra modules, and the content of the saved file.
"""

import json
import shutil

import pytest
import torch
from peft import (
    AutoPeftModel,
    AutoPeftModelForCausalLM,
    AutoPeftModelForSequenceClassification,
    LoraConfig,
    PeftConfig,
    PeftModel,
    get_peft_model,
)
from safetensors.torch import load_file, save_file

from helpers_models import (
    ADAPTERS,
    BERT_TARGETS,
    TYPED,
    adapt,
    adapter_state,
    config_of,
    run,
    tiny_bert,
    tiny_llama,
)
from tasklora.errors import CheckpointError, ConfigError
from tasklora.tuner import FORMAT_VERSION, MTLLoraConfig

every_adapter = pytest.mark.parametrize("case", ADAPTERS, ids=lambda case: case.id)
WEIGHTS = "adapter_model.safetensors"
IDS = torch.tensor([2, 0, 1])


@every_adapter
@pytest.mark.parametrize("task_type", [None, "SEQ_CLS"])
def test_same_numbers_after_loading(case, task_type, tmp_path):
    model = adapt(tiny_bert(), config_of(case, task_type=task_type, target_modules=BERT_TARGETS))
    expected = run(model, IDS)
    model.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(tiny_bert(), tmp_path)
    assert type(loaded).__name__ == type(model).__name__
    assert torch.equal(run(loaded, IDS), expected)
    assert not any(p.requires_grad for p in loaded.parameters())


@pytest.mark.parametrize("low_cpu_mem_usage", [False, True])
def test_loading_to_train_on(low_cpu_mem_usage, tmp_path):
    model = adapt(tiny_bert(), config_of(task_type="SEQ_CLS", target_modules=["query"]))
    model.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(
        tiny_bert(), tmp_path, is_trainable=True, low_cpu_mem_usage=low_cpu_mem_usage
    ).eval()
    assert torch.equal(run(loaded, IDS), run(model, IDS))
    trainable = {name for name, p in loaded.named_parameters() if p.requires_grad}
    assert trainable >= set(adapter_state(loaded))


def test_auto_classes(tmp_path):
    tiny_bert().save_pretrained(tmp_path / "bert")
    tiny_llama().save_pretrained(tmp_path / "llama")
    for base, task_type, auto in (
        ("bert", "SEQ_CLS", AutoPeftModelForSequenceClassification),
        ("llama", "CAUSAL_LM", AutoPeftModelForCausalLM),
    ):
        plain = TYPED[task_type][0]()
        plain.config._name_or_path = plain.name_or_path = str(tmp_path / base)
        model = adapt(plain, config_of(task_type=task_type, target_modules=TYPED[task_type][1]))
        model.save_pretrained(tmp_path / "adapter")
        loaded = auto.from_pretrained(tmp_path / "adapter").eval()
        torch.testing.assert_close(run(loaded, IDS), run(model, IDS))


def test_auto_model_without_task_type(tmp_path):
    tiny_bert().save_pretrained(tmp_path / "bert")
    plain = tiny_bert()
    plain.config._name_or_path = plain.name_or_path = str(tmp_path / "bert")
    model = adapt(plain, config_of(target_modules=BERT_TARGETS))
    model.save_pretrained(tmp_path / "adapter")
    loaded = AutoPeftModel.from_pretrained(tmp_path / "adapter").eval()
    torch.testing.assert_close(run(loaded, IDS), run(model, IDS))


def test_the_file_holds_the_updates_and_nothing_else(tmp_path):
    model = adapt(tiny_bert(), config_of(target_modules=["query"]))
    model.save_pretrained(tmp_path)
    names = set(load_file(tmp_path / WEIGHTS))
    layers = [f"base_model.model.bert.encoder.layer.{i}.attention.self.query" for i in range(2)]
    assert names == {f"{layer}.task_updates.{p}" for layer in layers for p in ("A", "B", "Lambda", "w")}
    assert not any("lora_" in name for name in names)  # PEFT takes that prefix for LoRA's own


def test_modules_to_save_are_trained_saved_and_loaded(tmp_path):
    config = config_of(task_type="SEQ_CLS", target_modules=["query"], modules_to_save=["classifier"])
    model = adapt(tiny_bert(), config)
    head = model.base_model.model.classifier.modules_to_save["default"]
    assert head.weight.requires_grad
    with torch.no_grad():
        head.weight.normal_()
    expected = run(model, IDS)
    model.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(tiny_bert(), tmp_path)
    assert torch.equal(run(loaded, IDS), expected)
    with loaded.disable_adapter():
        assert torch.equal(run(loaded), run(tiny_bert()))


def test_the_head_of_a_typed_model_is_saved_too(tmp_path):
    """PEFT's SEQ_CLS wrapper trains the classifier; an adapter without it would be useless."""
    model = adapt(tiny_bert(), config_of(task_type="SEQ_CLS", target_modules=["query"]))
    with torch.no_grad():
        model.base_model.model.classifier.modules_to_save["default"].weight.normal_()
    model.save_pretrained(tmp_path)
    assert torch.equal(run(PeftModel.from_pretrained(tiny_bert(), tmp_path), IDS), run(model, IDS))


# The config file.


@every_adapter
def test_config_round_trip(case, tmp_path):
    config = config_of(
        case,
        task_type="SEQ_CLS",
        target_modules=["query", "value"],
        exclude_modules=["dense"],
        modules_to_save=["classifier"],
        rank_pattern={"query": 2},
        alpha_pattern={"query": 3.0},
    )
    config.save_pretrained(tmp_path)
    assert PeftConfig.from_pretrained(tmp_path).to_dict() == config.to_dict()
    assert type(PeftConfig.from_pretrained(tmp_path)) is type(config)
    saved = json.loads((tmp_path / "adapter_config.json").read_text())
    assert saved["peft_type"] == case.method.upper()
    assert saved["tasks"] == config.tasks
    assert saved["target_modules"] == ["query", "value"]
    assert saved["version"] == FORMAT_VERSION


def test_config_without_task_type_says_none(tmp_path):
    config_of().save_pretrained(tmp_path)
    assert json.loads((tmp_path / "adapter_config.json").read_text())["task_type"] is None


@pytest.fixture
def saved(tmp_path):
    """A saved adapter of tiny BERT."""
    adapt(tiny_bert(), config_of(target_modules=["query", "value"])).save_pretrained(tmp_path)
    return tmp_path


def edit_config(folder, **changes):
    path = folder / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def refused(folder, error, message, base=None):
    with pytest.raises(error, match=message) as raised:
        PeftModel.from_pretrained(base or tiny_bert(), folder)
    assert type(raised.value) is error


def test_newer_format_is_refused(saved):
    edit_config(saved, version=FORMAT_VERSION + 1)
    refused(saved, CheckpointError, f"format version {FORMAT_VERSION + 1}.*reads up to {FORMAT_VERSION}. Upgrade")


def test_unknown_key_names_the_nearest(saved):
    edit_config(saved, up_projection=3)
    refused(saved, ConfigError, "has no option 'up_projection'. Did you mean 'up_projections'?")


# The weights file.


@pytest.mark.parametrize("keep", [0.0, 0.1, 0.5, 0.99])
def test_truncated_file(saved, keep):
    content = (saved / WEIGHTS).read_bytes()
    (saved / WEIGHTS).write_bytes(content[: int(len(content) * keep)])
    refused(saved, CheckpointError, "cannot be read.*damaged or was cut off")


def test_file_of_another_base_size(saved):
    refused(saved, CheckpointError, r"tensors of another shape.*\(3, 32\) in the file", tiny_bert(hidden=48))


def test_file_of_another_architecture(saved):
    with pytest.raises(ValueError, match=r"Target modules .* not found in the base model"):  # PEFT's own words
        PeftModel.from_pretrained(tiny_llama(), saved)


def test_file_of_a_deeper_base(saved):
    refused(saved, CheckpointError, "4 tensors missing from the file|8 tensors missing", tiny_bert(num_hidden_layers=3))


def test_file_with_another_number_of_tasks(saved):
    edit_config(saved, tasks=["a", "b", "c", "d"])
    refused(saved, CheckpointError, r"tensors of another shape.*Lambda: \(3, 3, 3\) in the file, \(4, 3, 3\)")


def test_file_of_another_method(saved, tmp_path):
    other = tmp_path / "other"
    adapt(tiny_bert(), config_of("per_task_lora", target_modules=["query", "value"])).save_pretrained(other)
    shutil.copy(other / WEIGHTS, saved / WEIGHTS)
    refused(saved, CheckpointError, "tensors missing from the file")


def test_weights_of_plain_lora_in_our_directory(saved, tmp_path):
    lora = get_peft_model(tiny_bert(), LoraConfig(r=3, target_modules=["query", "value"]))
    lora.save_pretrained(tmp_path / "lora")
    shutil.copy(tmp_path / "lora" / WEIGHTS, saved / WEIGHTS)
    refused(saved, CheckpointError, "16 tensors missing from the file")


def test_one_tensor_missing_or_too_many(saved):
    tensors = load_file(saved / WEIGHTS)
    name, tensor = sorted(tensors.items())[0]
    save_file({k: v for k, v in tensors.items() if k != name}, saved / WEIGHTS)
    refused(saved, CheckpointError, "1 tensors missing from the file")
    save_file({**tensors, name.replace("layer.0", "layer.7"): tensor.clone()}, saved / WEIGHTS)
    refused(saved, CheckpointError, "1 tensors that the model has no place for.*layer.7")


def test_a_loaded_config_is_a_fresh_one(saved):
    config = PeftConfig.from_pretrained(saved)
    assert isinstance(config, MTLLoraConfig)
    assert config.target_modules == {"query", "value"}
