"""Merged checkpoints of any PEFT model: plain transformers files with the task's logits; the model is unharmed."""

import pytest
import torch
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    AutoModelForSequenceClassification,
    GPT2LMHeadModel,
)

import tasklora
from helpers_exports import EXACT_CASES, KINDS, adapted, cases, one_of_each
from helpers_models import LLAMA_TARGETS, adapt, config_of, layers, run, tiny_llama
from helpers_runs import tiny_tokenizer
from tasklora.errors import BrokenAdapterError, OutputError, TaskIdsError, UnknownTaskError, UnsupportedError
from tasklora.export import export_merged, read_manifest
from tasklora.tasks import sha256_of

AUTO = {
    "bert": AutoModelForSequenceClassification,
    "llama": AutoModelForCausalLM,
    "t5": AutoModelForSeq2SeqLM,
    "gpt2": GPT2LMHeadModel,
}


def state(model):
    return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}


def assert_unharmed(model, before):
    after = model.state_dict()
    assert after.keys() == before.keys()
    assert [name for name in before if not torch.equal(before[name], after[name])] == []
    assert not tasklora.context_of(model).merged


def load(kind, directory):
    model, loading = AUTO[kind].from_pretrained(directory, output_loading_info=True)
    assert not any(loading[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    return model.eval()


@cases(one_of_each(EXACT_CASES))
@pytest.mark.parametrize("kind", ["llama", "bert"])
def test_the_files_have_the_tasks_logits(tmp_path, kind, case):
    model = adapted(kind, case)
    if kind == "bert":
        with torch.no_grad():
            model.get_base_model().classifier.modules_to_save["default"].weight.add_(1.0)
    expected, before = run(model, "rte") if case.uses_task_ids else run(model), state(model)
    out = export_merged(model, "rte", tmp_path / "out")
    assert_unharmed(model, before)
    merged = load(kind, out)
    torch.testing.assert_close(run(merged), expected, rtol=1e-5, atol=1e-5)
    assert [name for name, _ in merged.named_parameters()] == [name for name, _ in KINDS[kind][0]().named_parameters()]


@pytest.mark.parametrize("kind", ["t5", "gpt2"])
def test_tied_and_transposed_weights(tmp_path, kind):
    model = adapted(kind)
    expected, before = run(model, "sst2"), state(model)
    out = export_merged(model, "sst2", tmp_path / "out")
    assert_unharmed(model, before)
    torch.testing.assert_close(run(load(kind, out)), expected, rtol=1e-5, atol=1e-5)


def test_it_equals_merge_task_bit_by_bit(tmp_path):
    model = adapted("llama")
    out = export_merged(model, "rte", tmp_path / "out")
    merged = tasklora.merge_task(model, "rte")
    theirs = load("llama", out).state_dict()
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in merged.state_dict().items())


def test_the_dtype_is_kept(tmp_path):
    model = adapted("llama").to(torch.bfloat16)
    out = export_merged(model, "rte", tmp_path / "out")
    merged = AutoModelForCausalLM.from_pretrained(out, dtype="auto")
    assert {parameter.dtype for parameter in merged.parameters()} == {torch.bfloat16}
    assert read_manifest(out)["dtype"] == "bfloat16"


def test_a_mixture_the_tokenizer_and_the_manifest(tmp_path):
    model = adapted("llama")
    weights = torch.tensor([0.5, 0.5, 0.0])
    expected = run(model, task_weights=weights)
    out = export_merged(model, directory=tmp_path / "out", task_weights=weights, tokenizer=tiny_tokenizer())
    torch.testing.assert_close(run(load("llama", out)), expected, rtol=1e-5, atol=1e-5)
    manifest = read_manifest(out)
    names = {path.name for path in out.iterdir()}
    assert {"config.json", "generation_config.json", "model.safetensors", "tokenizer.json"} <= names
    assert manifest["files"] == {name: sha256_of(out / name) for name in names - {"manifest.json"}}
    assert (manifest["kind"], manifest["method"], manifest["task"]) == ("merged", "mtl_lora", None)
    assert manifest["task_weights"] == {"cola": 0.5, "rte": 0.5, "sst2": 0.0}


def test_every_task_from_one_model(tmp_path):
    model = adapted("llama")
    for task in ("sst2", "cola"):
        expected = run(model, task)
        torch.testing.assert_close(
            run(load("llama", export_merged(model, task, tmp_path / task))), expected, rtol=1e-5, atol=1e-5
        )


def test_refusals_change_nothing(tmp_path):
    model = adapted("llama")
    before = state(model)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine").write_text("mine")
    for error, says, arguments in (
        (UnknownTaskError, r"unknown task 'rta'. Did you mean 'rte'\?", ("rta", tmp_path / "out")),
        (UnknownTaskError, "task id 3 is out of range", (3, tmp_path / "out")),
        (TaskIdsError, "either task_ids or task_weights", (None, tmp_path / "out")),
        (OutputError, "is not empty", ("rte", tmp_path / "full")),
        (OutputError, "is a file", ("rte", tmp_path / "full" / "mine")),
        (OutputError, "no output directory", ("rte",)),
    ):
        with pytest.raises(error, match=says):
            export_merged(model, *arguments)
    assert [path.name for path in tmp_path.iterdir()] == ["full"]
    assert_unharmed(model, before)


def test_nan_in_the_last_layer_leaves_the_first_unmerged(tmp_path):
    model = adapted("llama")
    with torch.no_grad():
        layers(model)[-1].task_updates["default"].A[0, 0] = float("nan")
    weight = layers(model)[0].base_layer.weight.detach().clone()
    with pytest.raises(BrokenAdapterError, match="NaN or infinity in the update"):
        export_merged(model, "rte", tmp_path / "out")
    assert torch.equal(layers(model)[0].base_layer.weight, weight)
    assert not list(tmp_path.iterdir())


def test_a_full_disk_leaves_the_model_unmerged(tmp_path, monkeypatch):
    model = adapted("llama")
    before = state(model)

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(model.get_base_model(), "save_pretrained", full)
    with pytest.raises(OSError, match="No space left"):
        export_merged(model, "rte", tmp_path / "out")
    assert_unharmed(model, before)
    assert not list(tmp_path.iterdir())


def test_merging_twice(tmp_path):
    model = adapted("llama")
    with tasklora.use_tasks(model, "rte"):
        model.merge_adapter()
    for attempt in (
        lambda: export_merged(model, "rte", tmp_path / "a"),
        lambda: export_merged(model, 0, tmp_path / "a"),
    ):
        with pytest.raises(
            UnsupportedError, match=r"merged into the base weights; call model.unmerge_adapter\(\) first"
        ):
            attempt()
    model.unmerge_adapter()
    plain = tasklora.merge_task(model, "rte")
    for gone in (model, plain):
        with pytest.raises(UnsupportedError, match="has no tasklora adapter"):
            export_merged(gone, "rte", tmp_path / "a")
    assert not list(tmp_path.iterdir())


def test_a_quantised_base_is_refused(tmp_path):
    model = adapted("llama")
    base = layers(model)[-1].base_layer
    base.weight = nn.Parameter(base.weight.detach().to(torch.int8), requires_grad=False)
    first = layers(model)[0].base_layer.weight.detach().clone()
    with pytest.raises(UnsupportedError, match="cannot merge into a quantised base layer"):
        export_merged(model, "rte", tmp_path / "out")
    assert torch.equal(layers(model)[0].base_layer.weight, first)
    assert not list(tmp_path.iterdir())


def test_what_is_no_transformers_model(tmp_path):
    config = config_of("mtl_lora", target_modules=["0"])
    model = adapt(nn.Sequential(nn.Linear(4, 4)), config)
    with pytest.raises(UnsupportedError, match="Sequential is no transformers model"):
        export_merged(model, "rte", tmp_path / "out")


def test_modules_trained_in_full_inside_the_backbone_are_merged_too(tmp_path):
    config = config_of("mtl_lora", task_type="CAUSAL_LM", target_modules=LLAMA_TARGETS, modules_to_save=["lm_head"])
    model = adapt(tiny_llama(), config)
    with torch.no_grad():
        model.get_base_model().lm_head.modules_to_save["default"].weight.mul_(2.0)
    expected = run(model, "rte")
    assert torch.allclose(run(load("llama", export_merged(model, "rte", tmp_path / "out"))), expected, atol=1e-5)
