"""Nothing is dropped, guessed or half done: refusals by name, model cards, moved and reused models."""

import json

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file

import tasklora
from helpers_models import BERT_TARGETS, adapt, config_of, run, tiny_bert, tokens
from tasklora.errors import BrokenAdapterError, CheckpointError, TaskIdsError, UnsupportedError
from tasklora.tuner import FORMAT_VERSION


def adapted(case="mtl_lora", **options):
    return adapt(tiny_bert(), config_of(case, task_type="SEQ_CLS", target_modules=BERT_TARGETS, **options))


def test_pefts_adapter_names_are_refused_not_dropped():
    model = adapted()
    with pytest.raises(UnsupportedError, match="pass task_ids"):
        model(input_ids=tokens(3), adapter_names=["default", "__base__", "default"], task_ids="rte")


def test_unmerging_after_a_cast_gives_the_new_dtype():
    model = adapted()
    with tasklora.use_tasks(model, "rte"):
        model.merge_adapter()
    model.to(torch.bfloat16)
    model.unmerge_adapter()
    assert run(model, "rte").dtype == torch.bfloat16


def test_per_token_ids_serve_inference_and_then_training():
    model = adapted("per_task_lora", exclude_modules=["pooler.dense"])
    ids = torch.randint(0, 3, (3, 6))
    with tasklora.use_tasks(model, ids):
        with torch.inference_mode():
            model(input_ids=tokens(3))
        model(input_ids=tokens(3)).logits.sum().backward()
    assert any(p.grad is not None for name, p in model.named_parameters() if "task_updates" in name)


@pytest.mark.parametrize("changed", [{"version": FORMAT_VERSION + 1, "new_key": 1}, {"version": "two"}])
def test_a_newer_format_is_refused_by_its_version_whatever_keys_it_has(tmp_path, changed):
    adapted().save_pretrained(tmp_path)
    path = tmp_path / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changed}))
    with pytest.raises(CheckpointError, match="Upgrade tasklora"):
        PeftModel.from_pretrained(tiny_bert(), tmp_path)


def test_the_model_card_says_what_to_install_and_which_tasks_there_are(tmp_path):
    model = adapted()
    for _ in range(2):  # saving again does not repeat the section
        model.save_pretrained(tmp_path)
    card = (tmp_path / "README.md").read_text()
    assert card.count("import tasklora") == 1
    assert all(f"`{task}`" in card for task in ("cola", "rte", "sst2"))


def test_an_export_is_of_one_task(tmp_path):
    model = adapted()
    with pytest.raises(TaskIdsError, match="one task"):
        tasklora.export_lora(model, ["rte", "cola"], tmp_path / "out")
    with pytest.raises(TaskIdsError, match="one task"):
        tasklora.export_lora(model, directory=tmp_path / "out", task_weights=torch.ones(2, 3))
    tasklora.export_lora(adapted(tasks=["only"]), directory=tmp_path / "one")
    assert (tmp_path / "one" / "adapter_model.safetensors").is_file()


@pytest.mark.parametrize(("value", "dtype"), [(float("nan"), torch.float32), (1e6, torch.float16)])
def test_factors_that_are_no_numbers_are_not_written(tmp_path, value, dtype):
    model = adapted()
    with torch.no_grad():
        next(p for name, p in model.named_parameters() if name.endswith("task_updates.default.A"))[0, 0] = value
    with pytest.raises(BrokenAdapterError, match="nothing is written"):
        tasklora.export_lora(model, "rte", tmp_path / "out", dtype=dtype)
    assert not list((tmp_path / "out").glob("*"))


def test_a_trained_classifier_is_written_beside_the_lora_not_into_it(tmp_path):
    model = adapted()
    tasklora.export_lora(model, "rte", tmp_path / "out")
    head = load_file(tmp_path / "out" / "head.safetensors")
    assert torch.equal(head["classifier.weight"], model.get_base_model().classifier.modules_to_save["default"].weight)
    assert all("lora_" in key for key in load_file(tmp_path / "out" / "adapter_model.safetensors"))
    base = tiny_bert()
    base.classifier.load_state_dict({key.removeprefix("classifier."): value for key, value in head.items()})
    torch.testing.assert_close(run(PeftModel.from_pretrained(base, tmp_path / "out")), run(model, "rte"))


def test_a_layer_of_the_backbone_trained_in_full_is_refused(tmp_path):
    with pytest.raises(UnsupportedError, match=r"'bert.*LayerNorm' was trained in full"):
        tasklora.export_lora(adapted(modules_to_save=["LayerNorm"]), "rte", tmp_path / "out")
    assert not (tmp_path / "out").exists()
