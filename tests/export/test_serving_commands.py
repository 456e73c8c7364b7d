"""Ready commands for servers: for causal language models only, with the rank vLLM takes, and marked as not run."""

import shlex

import pytest
import torch

import tasklora
from helpers_models import (
    BERT_TARGETS,
    LLAMA_TARGETS,
    T5_TARGETS,
    TASKS,
    adapt,
    config_of,
    tiny_bert,
    tiny_llama,
    tiny_t5,
)
from tasklora.errors import CheckpointError, OutputError
from tasklora.export import export_all, read_manifest, serving_commands, vllm_rank

VLLM_RANKS = [1, 8, 16, 32, 64, 128, 256, 320, 512]


def llama(**options):
    config = config_of("mtl_lora", task_type="CAUSAL_LM", target_modules=LLAMA_TARGETS, **options)
    model = adapt(tiny_llama(), config)
    model.peft_config["default"].base_model_name_or_path = "some/base"
    return model


def option(command, name):
    words = shlex.split(command)
    return words[words.index(name) + 1]


def test_the_rank_is_one_that_vllm_takes():
    for rank in range(1, 513):
        assert vllm_rank(rank) == min(value for value in VLLM_RANKS if value >= rank)
    assert vllm_rank(513) is None


def test_one_task(tmp_path):
    out = tasklora.export_lora(llama(), "rte", tmp_path / "out dir")
    manifest = read_manifest(out)
    (vllm,), (sglang,) = manifest["commands"]["vllm"], manifest["commands"]["sglang"]
    assert shlex.split(vllm)[:3] == ["vllm", "serve", "some/base"]
    assert option(vllm, "--lora-modules") == option(sglang, "--lora-paths") == f"rte={out}"
    assert (option(vllm, "--max-lora-rank"), option(vllm, "--max-loras")) == ("8", "1")
    assert option(sglang, "--model-path") == "some/base"
    convert, run = manifest["commands"]["llama_cpp"]
    assert shlex.split(convert)[:3] == ["python", "convert_lora_to_gguf.py", str(out)]
    assert option(convert, "--base-model-id") == "some/base"
    assert option(convert, "--outfile") == option(run, "--lora") == f"{out}.gguf"
    assert "not run by tasklora" in manifest["commands_note"]


def test_every_task_together(tmp_path):
    exports = export_all(llama(rank_pattern={"q_proj": 9}), tmp_path / "all")
    assert list(exports) == TASKS
    page = (tmp_path / "all" / "README.md").read_text()
    (command,) = [line for line in page.splitlines() if line.startswith("vllm")]
    assert shlex.split(command)[-3:] == [f"{task}={tmp_path / 'all' / task}" for task in TASKS]
    assert (option(command, "--max-lora-rank"), option(command, "--max-loras")) == ("16", "3")
    assert "not run by tasklora" in page
    with pytest.raises(OutputError, match="is not empty"):
        export_all(llama(), tmp_path / "all")
    export_all(llama(), tmp_path / "all", overwrite=True)
    assert "--max-lora-rank 8" in (tmp_path / "all" / "README.md").read_text()


def test_a_local_base_and_a_rank_too_large_for_vllm(tmp_path):
    commands = serving_commands(str(tmp_path), {"rte": "out"}, 600)
    assert "vllm" not in commands
    assert option(commands["llama_cpp"][0], "--base") == str(tmp_path)
    assert "serve BASE " in serving_commands(None, {"rte": "out"}, 4)["vllm"][0]


@pytest.mark.parametrize(
    ("base", "task_type", "targets"), [(tiny_bert, "SEQ_CLS", BERT_TARGETS), (tiny_t5, "SEQ_2_SEQ_LM", T5_TARGETS)]
)
def test_no_commands_for_other_models(tmp_path, base, task_type, targets):
    model = adapt(base(), config_of("mtl_lora", task_type=task_type, target_modules=targets))
    exports = export_all(model, tmp_path / "all")
    manifest = read_manifest(exports["rte"])
    assert (manifest["commands"], manifest["commands_note"]) == ({}, "None: the base is no causal language model.")
    assert sorted(path.name for path in (tmp_path / "all").iterdir()) == TASKS


def test_no_commands_where_a_served_lora_would_lack_the_trained_head(tmp_path):
    model = llama(modules_to_save=["lm_head"])
    manifest = read_manifest(tasklora.export_lora(model, "rte", tmp_path / "out"))
    assert manifest["commands"] == {}
    assert "serve the merged model" in manifest["commands_note"]
    assert manifest["head"] == {"file": "head.safetensors", "tensors": ["lm_head.weight"]}
    assert torch.equal(
        tasklora.export.importing.read_lora(tmp_path / "out").factors["model.layers.0.self_attn.q_proj"][0],
        model.base_model.model.model.layers[0].self_attn.q_proj.task_updates["default"].A,
    )


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (None, "Is .* an export of tasklora"),
        ("{", "cannot read"),
        ("[]", "no manifest of an export"),
        ('{"format": "tasklora/model"}', "no manifest of an export"),
        ('{"format": "tasklora/export", "version": 2}', "has version 2, this tasklora reads 1"),
    ],
)
def test_manifests_that_are_none(tmp_path, content, says):
    if content is not None:
        (tmp_path / "manifest.json").write_text(content)
    with pytest.raises(CheckpointError, match=says):
        read_manifest(tmp_path)
