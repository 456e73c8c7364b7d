"""Merged export: a plain transformers model with the task's outputs, its head and a manifest beside it."""

import json

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModel, AutoTokenizer, BertModel

import tasklora
from helpers_exports import EXACT, ROUTED
from helpers_runs import TASKS, randomise, use_method
from tasklora.errors import OutputError, UnknownTaskError, UnsupportedError
from tasklora.export import export_task, export_task_merged
from tasklora.tasks import load_model, save_model, sha256_of

TEXTS = ["good cake", "it was a very dull and awful day", "a lamp"]


@torch.no_grad()
def hidden(model, tokenizer):
    return model(**tokenizer(TEXTS, padding=True, return_tensors="pt")).last_hidden_state


def export(prepared, task, directory, **options):
    return export_task_merged(prepared.model, prepared.about, task, directory, prepared.base.tokenizer, **options)


@pytest.mark.parametrize(
    ("method", "task"), [(m, "answer") for m in EXACT] + [("mtl_lora", "mood"), ("mtl_lora", "heat")]
)
def test_a_merged_model_is_a_plain_model_with_the_tasks_outputs(project, tmp_path, method, task):
    prepared = project.prepare(use_method(method))
    randomise(prepared.model, scale=0.1)
    if method == "lora":
        expected = hidden(prepared.model.encoder, prepared.base.tokenizer)
    else:
        with tasklora.use_tasks(prepared.model.encoder, task):
            expected = hidden(prepared.model.encoder, prepared.base.tokenizer)
    export(prepared, task, tmp_path / "out")
    model, loading = AutoModel.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert type(model) is BertModel
    assert not any(loading[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    base = AutoModel.from_pretrained(project.base)
    assert [name for name, _ in model.named_parameters()] == [name for name, _ in base.named_parameters()]
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    torch.testing.assert_close(hidden(model.eval(), tokenizer), expected, rtol=1e-5, atol=1e-5)
    assert (hidden(base.eval(), tokenizer) - expected).abs().max() > 0.01


@pytest.mark.parametrize("method", ["full_fine_tuning", "heads_only"])
def test_an_encoder_without_an_adapter_is_exported_as_it_is(project, tmp_path, method):
    prepared = project.prepare(use_method(method))
    randomise(prepared.model, scale=0.1)
    expected = hidden(prepared.model.encoder, prepared.base.tokenizer)
    save_model(prepared.model, prepared.about, tmp_path / "saved")
    model, about, base = load_model(tmp_path / "saved")
    export_task_merged(model, about, "answer", tmp_path / "out", base.tokenizer)
    plain, loading = AutoModel.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert type(plain) is BertModel
    assert not any(loading[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert torch.equal(hidden(plain.eval(), AutoTokenizer.from_pretrained(tmp_path / "out")), expected)
    untrained = hidden(project.base_model().model, prepared.base.tokenizer)
    assert torch.equal(untrained, expected) is (method == "heads_only")


def test_what_is_in_the_directory(project, tmp_path):
    prepared = project.prepare()
    head = prepared.model.heads["answer"].linear.weight.detach().clone()
    export(prepared, "answer", tmp_path / "out")
    files = {path.name for path in (tmp_path / "out").iterdir()}
    assert {"config.json", "model.safetensors", "head.safetensors", "manifest.json", "tokenizer.json"} <= files
    assert not any(name.endswith((".bin", ".pt", ".pkl")) or name.startswith("adapter") for name in files)
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert (manifest["kind"], manifest["task"]) == ("merged", "answer")
    assert manifest["files"] == {name: sha256_of(tmp_path / "out" / name) for name in files - {"manifest.json"}}
    assert (manifest["method"], manifest["tasks"], manifest["dtype"]) == ("mtl_lora", TASKS, "float32")
    assert torch.equal(load_file(tmp_path / "out" / "head.safetensors")["linear.weight"], head)


def test_modules_trained_in_full_are_merged_too(project, tmp_path):
    prepared = project.prepare("method.modules_to_save=[LayerNorm]")
    with tasklora.use_tasks(prepared.model.encoder, "mood"):
        expected = hidden(prepared.model.encoder, prepared.base.tokenizer)
    export(prepared, "mood", tmp_path / "out")
    model = AutoModel.from_pretrained(tmp_path / "out").eval()
    torch.testing.assert_close(hidden(model, prepared.base.tokenizer), expected, rtol=1e-5, atol=1e-5)


def test_a_merged_model_replaces_a_lora_and_the_other_way_round(project, tmp_path):
    """Files of the other kind must not stay: transformers would apply an adapter that lies beside a merged model."""
    export_task(*_of(project.prepare()), "mood", tmp_path / "out")
    lora = {path.name for path in (tmp_path / "out").iterdir()}
    export(project.prepare(), "mood", tmp_path / "out", overwrite=True)
    merged = {path.name for path in (tmp_path / "out").iterdir()}
    assert "adapter_model.safetensors" not in merged
    export_task(*_of(project.prepare()), "mood", tmp_path / "out", overwrite=True)
    assert {path.name for path in (tmp_path / "out").iterdir()} == lora


def _of(prepared):
    return prepared.model, prepared.about


def test_refusals_leave_the_model_unmerged(project, tmp_path):
    prepared = project.prepare()
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine").write_text("mine")
    with tasklora.use_tasks(prepared.model.encoder, "mood"):
        before = hidden(prepared.model.encoder, prepared.base.tokenizer)
    with pytest.raises(UnknownTaskError, match=r"unknown task 'moot'. Did you mean 'mood'\?"):
        export(prepared, "moot", tmp_path / "out")
    with pytest.raises(OutputError, match="is not empty"):
        export(prepared, "mood", tmp_path / "full")
    with tasklora.use_tasks(prepared.model.encoder, "mood"):
        assert torch.equal(hidden(prepared.model.encoder, prepared.base.tokenizer), before)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("method", ROUTED)
def test_a_routed_method_is_refused_by_name(project, tmp_path, method):
    prepared = project.prepare(use_method(method))
    before = hidden(prepared.model.encoder, prepared.base.tokenizer)
    with pytest.raises(UnsupportedError, match=rf"\({method}\) has no plain LoRA and cannot be merged"):
        export(prepared, "mood", tmp_path / "out")
    assert not list(tmp_path.iterdir())
    assert torch.equal(hidden(prepared.model.encoder, prepared.base.tokenizer), before)


@pytest.mark.parametrize("method", ["lora", "mtl_lora"])
def test_a_merged_model_is_not_merged_again(project, tmp_path, method):
    prepared = project.prepare(use_method(method))
    export(prepared, "mood", tmp_path / "out")
    with pytest.raises(UnsupportedError, match="no adapter left: it was merged before"):
        export(prepared, "answer", tmp_path / "again")
    assert not (tmp_path / "again").exists()
