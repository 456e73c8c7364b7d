"""MTLoRA through PEFT: make, save, load, disable, switch, and everything that must be refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftConfig, PeftModel, get_peft_model
from safetensors.torch import load_file
from torch import Tensor, nn

import tasklora
from helpers_swin import TASKS, fill, pixels, tiny_mtlora, tiny_swin
from tasklora.errors import CheckpointError, ConfigError, UnsupportedError
from tasklora.vision import SwinMTLoRAConfig, stage_features


def streams(model: nn.Module, x: Tensor) -> list[Tensor]:
    with torch.no_grad():
        return [part for stage in stage_features(model, x) for part in (stage.shared, stage.tasks) if part is not None]


def same(first: list[Tensor], second: list[Tensor]) -> bool:
    return len(first) == len(second) and all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def trained(model: PeftModel) -> PeftModel:
    """Return the model with every trainable parameter moved a little, those trained in full among them."""
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter) * 0.02)
    return model


def test_what_is_trained_is_what_the_paper_trains() -> None:
    model = tiny_mtlora()
    names = {name.removeprefix("base_model.model.") for name, p in model.named_parameters() if p.requires_grad}
    owners = {name.rpartition(".modules_to_save")[0].rpartition("layers.")[2].lstrip("0123456789.") for name in names}
    assert {owner.removeprefix("base_layer.").lstrip("blocks0123456789.") for owner in owners if owner} == {
        "embeddings.patch_embeddings.projection",
        "embeddings.norm",
        "attention.relative_position_bias",
        "ayernorm_after",
        "ayernorm_before",
        "downsample.norm",
        "downsample.reduction",
    }
    assert not any(name.endswith("bias") and ("mlp" in name or "attention.o_proj" in name) for name in names)
    plus = {name for name, p in tiny_mtlora(plus=True).named_parameters() if p.requires_grad}
    assert not any("downsample.reduction.modules_to_save" in name for name in plus)
    assert sum("reduction.shared" in name for name in plus) == 4  # A and B of two stages


@pytest.mark.parametrize("options", [{}, {"mode": "addition"}, {"plus": True, "all_blocks": True}], ids=str)
def test_a_saved_adapter_gives_the_same_streams(tmp_path: Path, options: dict[str, Any]) -> None:
    model, x = trained(tiny_mtlora(**options)), pixels()
    model.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(tiny_swin(), tmp_path)
    assert same(streams(model, x), streams(loaded.eval(), x))
    config = PeftConfig.from_pretrained(str(tmp_path))
    assert isinstance(config, SwinMTLoRAConfig)
    assert config.tasks == TASKS
    assert not any(p.requires_grad for p in loaded.parameters())


def test_the_file_holds_what_is_trained_and_nothing_else(tmp_path: Path) -> None:
    model = tiny_mtlora()
    model.save_pretrained(tmp_path)
    saved = load_file(tmp_path / "adapter_model.safetensors")
    trainable = sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert sum(tensor.numel() for tensor in saved.values()) == trainable


def test_disabling_gives_the_frozen_backbone_and_enabling_the_streams_again() -> None:
    x, frozen = pixels(), streams(tiny_swin(), pixels())
    model = trained(tiny_mtlora())
    adapted = streams(model, x)
    with model.disable_adapter():
        assert same(streams(model, x), frozen)
    assert same(streams(model, x), adapted)


def test_adapters_are_switched_and_deleted() -> None:
    model, x = trained(tiny_mtlora()), pixels()
    first = streams(model, x)
    model.add_adapter("second", SwinMTLoRAConfig(tasks=["edges", "depth"], r=2, task_r=1, plus=True))
    assert same(streams(model, x), first)
    model.set_adapter("second")
    fill(model, seed=5)
    second = streams(model, x)
    assert second[1].shape[0] == 2
    model.set_adapter("default")
    # `fill` changed the first adapter's factors too; what counts is that each adapter has its own streams.
    assert streams(model, x)[1].shape[0] == 3
    model.delete_adapter("default")
    model.set_adapter("second")
    assert same(streams(model, x), second)


def test_unloading_gives_the_backbone_back() -> None:
    x, frozen = pixels(), streams(tiny_swin(), pixels())
    assert same(streams(trained(tiny_mtlora()).unload(), x), frozen)


def test_training_leaves_the_frozen_weights_as_they_are() -> None:
    model = tiny_mtlora().train()
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    sum(stage.tasks.square().sum() for stage in stage_features(model, pixels())).backward()  # type: ignore[union-attr, misc]
    optimizer.step()
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            assert torch.equal(parameter, before[name]), name


def test_streams_cannot_be_merged() -> None:
    model = tiny_mtlora()
    for merge in (model.merge_adapter, model.merge_and_unload):
        with pytest.raises(UnsupportedError, match="cannot be merged"):
            merge()


def test_several_active_adapters_are_refused() -> None:
    model = tiny_mtlora()
    model.add_adapter("second", SwinMTLoRAConfig(tasks=TASKS, modules_to_save=[]))
    model.base_model.set_adapter(["default", "second"])
    with pytest.raises(UnsupportedError, match="default, second are active at once"):
        streams(model, pixels())


def test_another_base_is_pointed_to_mtl_lora() -> None:
    with pytest.raises(ConfigError, match=r"adapts Swin transformers.*Sequential.*MTLLoraConfig"):
        get_peft_model(nn.Sequential(nn.Linear(4, 4)), SwinMTLoRAConfig(tasks=TASKS))  # type: ignore[arg-type]


@pytest.mark.parametrize("config", [tasklora.MTLLoraConfig, tasklora.PerTaskLoraConfig])
def test_mtl_loras_config_on_a_stream_model_is_refused(config: Any) -> None:
    model = tiny_mtlora()
    with pytest.raises(UnsupportedError, match=r"adapted by MTLoRA \(SwinMTLoRAConfig\)"):
        get_peft_model(model.base_model.model, config(tasks=TASKS, target_modules=["q_proj"]))
    with pytest.raises(ValueError, match=r"SwinMTLoRAConfig|different"):
        model.add_adapter("other", config(tasks=TASKS, target_modules=["q_proj"]))


def test_mtlora_on_a_model_with_task_ids_is_refused() -> None:
    model = get_peft_model(tiny_swin(), tasklora.MTLLoraConfig(tasks=TASKS, target_modules=["q_proj"]))
    with pytest.raises(UnsupportedError, match=r"adapted by a method with task ids \(MTLLoraConfig"):
        get_peft_model(model.base_model.model, SwinMTLoRAConfig(tasks=TASKS))


def test_a_backbone_with_dropout_in_its_residual_stream_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"hidden_dropout_prob is 0\.1"):
        tiny_mtlora(swin=tiny_swin(hidden_dropout_prob=0.1))


def test_swin_backbone_features_are_refused() -> None:
    stage = tiny_mtlora().base_model.model.encoder.layers[0]
    with pytest.raises(UnsupportedError, match="stage_features on a SwinModel"):
        stage(torch.zeros(1, 256, 8), (16, 16), always_partition=True)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rank": 4}, r"no option 'rank'"),
        ({"task_rank": 4}, r"no option 'task_rank'.*'task_r'"),
        ({"tasks": []}, r"needs tasks"),
        ({"tasks": ["a", "a"]}, r"duplicate task names"),
        ({"mode": "matrices"}, r"unknown mode 'matrices'.*'matrix'"),
        ({"r": 0}, r"r must be a positive integer, got 0"),
        ({"r": [1, 2]}, None),
        ({"task_r": {"semseg": 2}}, r"missing: normals, depth"),
        ({"task_r": {"semseg": 2, "normal": 1, "depth": 1}}, r"unknown: normal, missing: normals\..*'normals'"),
        ({"task_r": -1}, r"task_r must be a positive integer, got -1"),
        ({"scale": 0}, r"scale must be positive, got 0"),
        ({"task_scale": "four"}, r"task_scale must be positive, got 'four'"),
        ({"lora_dropout": 1.0}, r"lora_dropout must lie in \[0, 1\), got 1\.0"),
        ({"target_modules": "all-linear"}, r"target_modules cannot be chosen"),
        ({"mode": "addition", "task_r": 0}, r"give them a rank"),
        ({"version": 99}, r"format version 99"),
    ],
    ids=str,
)
def test_unusable_options_are_named(options: dict[str, Any], message: str | None) -> None:
    if message is None:  # only the model knows how many stages there are
        with pytest.raises(ConfigError, match=r"r lists 2 values, \[1, 2\], for 3 stages"):
            tiny_mtlora(**options)
        return
    with pytest.raises((ConfigError, CheckpointError), match=message):
        SwinMTLoRAConfig(**{"tasks": TASKS, **options})


def test_ranks_of_each_stage_and_task_reach_their_layers(tmp_path: Path) -> None:
    ranks = {"semseg": [1, 2, 3], "normals": 4, "depth": [3, 2, 1]}
    model = tiny_mtlora(r=[2, 3, 4], task_r=ranks, scale=[1.0, 2.0, 3.0], task_scale=dict.fromkeys(TASKS, 0.5))
    for stage, layer in enumerate(model.base_model.model.encoder.layers):
        update = layer.task_updates["default"].blocks[1].fc1
        assert update.tasks.ranks == [stage + 1, 4, 3 - stage]
        assert update.tasks.scales == [0.5] * 3
        assert update.shared.A.shape[0] == stage + 2
        assert update.shared.scaling == stage + 1
    model.save_pretrained(tmp_path)
    assert same(streams(model, pixels()), streams(PeftModel.from_pretrained(tiny_swin(), tmp_path).eval(), pixels()))


def test_an_adapter_of_other_tasks_or_another_base_does_not_load(tmp_path: Path) -> None:
    tiny_mtlora().save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match=r"of another shape"):
        PeftModel.from_pretrained(tiny_swin(embed_dim=16), tmp_path)
    shutil.copytree(tmp_path, tmp_path / "changed")
    file = tmp_path / "changed" / "adapter_config.json"
    config = json.loads(file.read_text())
    file.write_text(json.dumps({**config, "tasks": TASKS[:2]}))
    with pytest.raises(CheckpointError, match=r"of another shape.*tasks \[semseg, normals\]"):
        PeftModel.from_pretrained(tiny_swin(), tmp_path / "changed")


@pytest.mark.parametrize("missing", ["layernorm_before", "reduction"])
def test_a_file_that_lacks_what_was_trained_in_full_does_not_load(tmp_path: Path, missing: str) -> None:
    from safetensors.torch import save_file

    tiny_mtlora().save_pretrained(tmp_path)
    file = tmp_path / "adapter_model.safetensors"
    save_file({k: v for k, v in load_file(file).items() if missing not in k}, file, {"format": "pt"})
    with pytest.raises(KeyError, match=missing):  # PEFT's own word; `load_dense_model` says it as a CheckpointError
        PeftModel.from_pretrained(tiny_swin(), tmp_path)
