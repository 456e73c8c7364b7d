"""Plain LoRA of any PEFT model: encoders, decoders, encoder-decoders; every method; loaded by stock PEFT.

The file holds the keys and the config the fields of a plain LoRA that every engine reads, and nothing else.
"""

import json
import subprocess
import sys
import textwrap

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import BertForSequenceClassification

import tasklora
from helpers_exports import EXACT_CASES, KINDS, ROUTED_CASES, adapted, cases, exact_rank, in_stock_peft, one_of_each
from helpers_models import (
    LLAMA_TARGETS,
    TASKS,
    adapt,
    config_of,
    fill,
    inputs_of,
    run,
    tiny_bert,
    tiny_llama,
)
from tasklora.errors import UnsupportedError
from tasklora.export import export_all, read_manifest
from tasklora.tasks import sha256_of

CONFIG_FIELDS = {
    "peft_type",
    "task_type",
    "base_model_name_or_path",
    "revision",
    "r",
    "lora_alpha",
    "lora_dropout",
    "target_modules",
    "bias",
    "fan_in_fan_out",
    "init_lora_weights",
    "inference_mode",
    "modules_to_save",
    "use_dora",
    "use_rslora",
    "rank_pattern",
    "alpha_pattern",
}


def expected_output(model, case, task):
    return run(model, task) if case.uses_task_ids else run(model)


@pytest.mark.parametrize(
    ("kind", "case"),
    [
        pytest.param(kind, case, id=f"{kind}-{case.id}")
        for kind in KINDS
        for case in (EXACT_CASES if kind == "llama" else one_of_each(EXACT_CASES))
    ],
)
def test_stock_peft_gives_the_same_logits(tmp_path, kind, case):
    make, task_type, targets = KINDS[kind]
    model = adapted(kind, case, rank_pattern={targets[0]: case.options.r * 2})
    expected = expected_output(model, case, "rte")
    with torch.no_grad():
        if kind == "bert":  # the classifier is trained with the adapter, and stands beside the LoRA
            for parameter in model.get_base_model().classifier.modules_to_save["default"].parameters():
                parameter.add_(1.0)
            expected = expected_output(model, case, "rte")
    out = tasklora.export_lora(model, "rte", tmp_path / "out")
    rank = exact_rank(model)

    config = json.loads((out / "adapter_config.json").read_text())
    assert set(config) == CONFIG_FIELDS
    assert (config["r"], config["lora_alpha"]) == (rank, rank)
    assert config["target_modules"] == sorted(targets)
    assert config["fan_in_fan_out"] is (kind == "gpt2")
    assert config["task_type"] == (None if kind == "bert" else task_type)
    tensors = load_file(out / "adapter_model.safetensors")
    fresh = make()
    places = [name for name, _ in fresh.named_modules() if name.rpartition(".")[2] in targets]
    names = {f"base_model.model.{place}.lora_{which}.weight" for place in places for which in "AB"}
    assert set(tensors) == names
    assert {t.shape[0] if "lora_A" in name else t.shape[1] for name, t in tensors.items()} == {rank}

    if kind == "bert":
        head = load_file(out / "head.safetensors")
        fresh.load_state_dict(head, strict=False)
        assert set(head) == {"classifier.weight", "classifier.bias"}
    stock = in_stock_peft(fresh, out)
    with torch.no_grad():
        actual = stock(**inputs_of(stock))[0]
    torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-5)
    assert (run(make()) - expected).abs().max() > 1e-2


@cases(ROUTED_CASES)
def test_a_routed_method_is_refused_before_anything_is_written(tmp_path, case):
    model = adapted("llama", case)
    expected = run(model)
    for attempt in (
        lambda: tasklora.export_lora(model, "rte", tmp_path / "out"),
        lambda: tasklora.export_lora(model, directory=tmp_path / "out", task_weights=torch.ones(3)),
        lambda: export_all(model, tmp_path / "out"),
        lambda: tasklora.export_merged(model, "rte", tmp_path / "out"),
    ):
        with pytest.raises(UnsupportedError, match=rf"\({case.method}\) has no plain LoRA"):
            attempt()
    assert not list(tmp_path.iterdir())
    assert torch.equal(run(model), expected)


@cases(EXACT_CASES)
def test_a_mixture_is_exported_with_its_weights(tmp_path, case):
    model = adapted("llama", case)
    weights = torch.tensor([0.25, 0.0, 0.5])
    expected = run(model, task_weights=weights) if case.uses_task_ids else None
    out = tasklora.export_lora(model, directory=tmp_path / "out", task_weights=weights)
    manifest = read_manifest(out)
    assert (manifest["task"], manifest["task_weights"]) == (None, {"cola": 0.25, "rte": 0.0, "sst2": 0.5})
    if expected is not None:
        stock = in_stock_peft(tiny_llama(), out)
        torch.testing.assert_close(run(stock), expected, rtol=1e-5, atol=1e-5)


def test_the_manifest_of_any_model(tmp_path):
    model = adapted("llama")
    out = tasklora.export_lora(model, "rte", tmp_path / "out", dtype=torch.bfloat16)
    manifest = read_manifest(out)
    files = ["adapter_config.json", "adapter_model.safetensors"]
    assert sorted(path.name for path in out.iterdir()) == sorted([*files, "manifest.json"])
    assert manifest["files"] == {name: sha256_of(out / name) for name in files}
    assert {
        key: manifest[key] for key in ("format", "version", "kind", "method", "task", "tasks", "dtype", "rank")
    } == {
        "format": "tasklora/export",
        "version": 1,
        "kind": "lora",
        "method": "mtl_lora",
        "task": "rte",
        "tasks": TASKS,
        "dtype": "bfloat16",
        "rank": 3,
    }
    assert manifest["reduction"] is None
    assert manifest["base"]["fingerprint"] == tasklora.tasks.base_model.fingerprint(tiny_llama())


def test_the_fingerprint_is_that_of_the_base_whatever_was_trained(tmp_path):
    model = adapted("bert")
    with torch.no_grad():
        model.get_base_model().classifier.modules_to_save["default"].weight.add_(1.0)
    out = tasklora.export_lora(model, "rte", tmp_path / "out")
    assert read_manifest(out)["base"]["fingerprint"] == tasklora.tasks.base_model.fingerprint(tiny_bert())


@pytest.mark.slow
def test_a_process_without_tasklora_gives_the_same_logits(tmp_path):
    model = adapted("llama")
    tasklora.export_lora(model, "sst2", tmp_path / "out")
    tiny_llama().save_pretrained(tmp_path / "base")
    save_file({**inputs_of(model), "logits": run(model, "sst2")}, tmp_path / "expected.safetensors")
    script = textwrap.dedent("""
        import sys, torch, transformers, peft
        from safetensors.torch import load_file
        expected = load_file("expected.safetensors")
        base = transformers.AutoModelForCausalLM.from_pretrained("base")
        model = peft.PeftModel.from_pretrained(base, "out").eval()
        with torch.no_grad():
            logits = model(input_ids=expected["input_ids"]).logits
        assert "tasklora" not in sys.modules
        torch.testing.assert_close(logits, expected["logits"], rtol=1e-5, atol=1e-5)
    """)
    done = subprocess.run(
        [sys.executable, "-I", "-c", script], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_three_adapters_are_exported_one_by_one(tmp_path):
    model = adapted("llama")
    for index, (name, targets) in enumerate([("second", ["q_proj"]), ("third", LLAMA_TARGETS)]):
        options = {"r": 4 + index, "tasks": ["new", *TASKS], "target_modules": targets}
        model.add_adapter(name, config_of("mtl_lora", task_type="CAUSAL_LM", **options))
        fill(model, seed=index + 5, adapter=name)
    outputs = {}
    for name in ("third", "default", "second"):
        model.set_adapter(name)
        outputs[name] = run(model, "cola")
        out = tasklora.export_lora(model, "cola", tmp_path / name)
        torch.testing.assert_close(run(in_stock_peft(tiny_llama(), out)), outputs[name], rtol=1e-5, atol=1e-5)
    assert not torch.allclose(outputs["third"], outputs["second"], atol=1e-3)


def test_methods_without_task_ids_need_no_task(tmp_path):
    config = config_of("multi_lora", task_type="CAUSAL_LM", target_modules=LLAMA_TARGETS, tasks=[])
    model = adapt(tiny_llama(), config)
    out = tasklora.export_lora(model, directory=tmp_path / "out")
    torch.testing.assert_close(run(in_stock_peft(tiny_llama(), out)), run(model), rtol=1e-5, atol=1e-5)
    with pytest.raises(tasklora.TaskLoraError, match="no task names, it is the same for every task"):
        tasklora.export_lora(model, "rte", tmp_path / "other")
    with pytest.raises(UnsupportedError, match="one plain LoRA is all it has"):
        export_all(model, tmp_path / "all")
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_module_of_the_backbone_trained_in_full_is_refused(tmp_path):
    model = adapted("llama", modules_to_save=["post_attention_layernorm"])
    with pytest.raises(
        UnsupportedError,
        match=r"'model\.layers\.0\.post_attention_layernorm' was trained in full and has no place in a plain LoRA",
    ):
        tasklora.export_lora(model, "rte", tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_the_base_class_is_kept():
    assert type(adapted("bert").get_base_model()) is BertForSequenceClassification
