"""Checkpoints of MTLoRA's published code become dense models and checkpoints again, bit by bit.

By the golden file of the published implementation where it is at hand, and by small networks of every make.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import pytest
import torch
from peft import PeftConfig
from safetensors import safe_open
from safetensors.torch import save_file

from helpers_mtlora import (
    FOUR,
    THEIRS,
    same,
    save_base,
    save_checkpoint,
    save_model,
    settings,
    some_slow,
)
from helpers_swin import pixels
from tasklora.export import convert_mtlora, write_mtlora
from tasklora.vision import load_dense_model
from tasklora.vision.base_model import load_dense_base

REPOSITORY = Path(__file__).resolve().parents[2]
GOLDEN = Path(os.environ.get("TASKLORA_GOLDEN", REPOSITORY.parent / "shared" / "golden"))
FILES = sorted(GOLDEN.glob("mtlora_swin_*.safetensors"))
SUITE = "pascal_context@1"
GIVEN = {"scale": 4.0, "mode": "matrix", "image_size": 64}

MAKES = {
    "matrix": {},
    "matrixv2": {"mode": "matrixv2"},
    "addition": {"mode": "addition"},
    "plus": {"plus": True},
    "ranks of stages": {"r": [2, 3, 4, 5], "task_r": [1, 2, 1, 3], "scale": [4.0, 3.0, 2.0, 1.0]},
    "ranks of tasks": {"task_r": {"semseg": 4, "parts": [1, 2, 1, 2], "saliency": 2, "normals": 3}},
    "no task modules": {"task_r": 0},
}


def files_in(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


# --- both ways


@pytest.mark.skipif(not FILES, reason=f"no golden files mtlora_swin_* in {GOLDEN}: set TASKLORA_GOLDEN to the folder")
@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_the_published_network_and_back(path, tmp_path):
    with safe_open(path, "pt") as file:
        meta = json.loads(file.metadata()["meta"])
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    state = {key.removeprefix("state."): value for key, value in tensors.items() if key.startswith("state.")}
    config = settings(SHARED_SCALE=[meta["scale"]], SHARED_MODE=meta["mode"])
    config |= {"TASKS": meta["tasks"], "DATA": {"IMG_SIZE": meta["image_size"]}}
    checkpoint = save_checkpoint(tmp_path / "c.pth", state, config)
    done = convert_mtlora(checkpoint, tmp_path / "out", suite=SUITE, base_from_checkpoint=tmp_path / "swin")
    assert (done.config.r, done.config.task_r) == (meta["ranks"]["shared"], meta["ranks"]["task"])
    assert done.config.plus is meta["plus"]
    assert list(done.tasks) == meta["tasks"]
    assert list(done.tasks.values()) == ["semseg", "normals", "saliency", "parts"]
    model, about, _ = load_dense_model(tmp_path / "out")
    assert sum(p.numel() for p in model.decoders.parameters()) > 0
    with torch.no_grad():
        outputs = model(tensors["pixel_values"])
    for theirs, ours in done.tasks.items():
        reference = tensors[f"out.{theirs}"]
        assert (outputs[ours][..., ::8, ::8] - reference).abs().max() <= 2e-4 * reference.abs().max(), theirs
    assert about.image_size == (meta["image_size"], meta["image_size"])
    write_mtlora(tmp_path / "out", tmp_path / "back.pth")
    back = torch.load(tmp_path / "back.pth", weights_only=True)
    assert list(back) == ["model"]
    assert same(back["model"], state)


@pytest.mark.parametrize("make", some_slow(MAKES, ("matrix", "addition", "ranks of tasks")))
def test_a_model_of_every_make_there_and_back(make, tmp_path):
    save_base(tmp_path / "base")
    model = save_model(tmp_path / "made", tmp_path / "base", **MAKES[make])
    config = write_mtlora(tmp_path / "made", tmp_path / "c.pth")
    state = torch.load(tmp_path / "c.pth", weights_only=True)["model"]
    recorded = settings(SHARED_MODE=config.mode, SHARED_SCALE=config.scale)
    if isinstance(config.scale, list):
        recorded["MODEL"]["MTLORA"]["SCALE_PER_TASK"] = {task: [4.0] for task in THEIRS}
    checkpoint = save_checkpoint(tmp_path / "c.pth", state, recorded)
    done = convert_mtlora(checkpoint, tmp_path / "out", suite=SUITE, base=str(tmp_path / "base"))
    for name in ("r", "scale", "mode", "plus"):
        assert getattr(done.config, name) == getattr(config, name), name
    before, after = (load_dense_model(tmp_path / name)[0] for name in ("made", "out"))
    assert after.task_names == FOUR
    with torch.no_grad():
        x = pixels()
        expected, outputs = model(x), after(x)
        assert all(torch.equal(outputs[task], expected[task]) for task in FOUR)
        assert all(torch.equal(before(x)[task], expected[task]) for task in FOUR)
    write_mtlora(tmp_path / "out", tmp_path / "back.pth")
    assert same(torch.load(tmp_path / "back.pth", weights_only=True)["model"], state)


def test_names_are_the_published_ones(state):
    assert {key.split(".")[2] for key in state if key.startswith("decoders.")} == set(THEIRS)
    last = "backbone.layers.0.blocks.1"
    assert state[f"{last}.attn.qkv.lora_shared_B"].shape == (24, 3)
    assert state[f"{last}.mlp.fc1.lora_tasks_A.human_parts"].shape == (2, 8)
    assert state[f"{last}.mlp.fc1.lora_tasks_B.human_parts"].shape == (32, 2)
    assert f"{last}.mlp.fc1.linear.weight" in state
    assert "backbone.layers.0.downsample.reduction.weight" in state
    assert not any("norm." in key and key.startswith("backbone.norm") for key in state)


def test_the_models_own_base_is_loaded_and_compared(state, base, tmp_path):
    checkpoint = save_checkpoint(tmp_path / "c.pth", state, settings())
    done = convert_mtlora(checkpoint, tmp_path / "out", suite=SUITE, base=base)
    assert (done.base, done.config.lora_dropout) == (base, 0.05)
    model, about, loaded = load_dense_model(tmp_path / "out")
    assert about.drop_path == 0.2
    assert about.fingerprint == loaded.fingerprint == load_dense_base(base).fingerprint
    written = PeftConfig.from_pretrained(tmp_path / "out")
    assert written.tasks == FOUR
    assert written.base_model_name_or_path == base
    assert "patch_embeddings.projection" in written.modules_to_save
    assert files_in(tmp_path / "out") == [
        "README.md",
        "adapter_config.json",
        "adapter_model.safetensors",
        "decoders.safetensors",
        "tasklora.json",
    ]
    # without the adapter it is the pretrained Swin again, whatever was trained in full
    with torch.no_grad(), model.encoder.disable_adapter():
        plain = model.features(pixels())
        expected = load_dense_base(base).model
        own = model.encoder.get_base_model().embeddings(pixels())[0]
        assert torch.equal(own, expected.embeddings(pixels())[0])
    assert len(plain) == 4


def test_without_settings_they_are_given(state, base, tmp_path):
    save_file(state, tmp_path / "c.safetensors")
    given = {**GIVEN, "image_size": (64, 96)}
    done = convert_mtlora(tmp_path / "c.safetensors", tmp_path / "out", suite=SUITE, base=base, tasks=THEIRS, **given)
    assert (done.config.scale, done.config.task_scale, done.config.lora_dropout) == (4.0, 4.0, 0.0)
    assert load_dense_model(tmp_path / "out")[1].image_size == (64, 96)


@pytest.mark.parametrize(
    "names", [["normals", "sal", "semseg", "human_parts"], ["normals", "saliency", "semseg", "parts"]]
)
def test_the_order_of_tasks_can_be_chosen(state, base, tmp_path, names):
    checkpoint = save_checkpoint(tmp_path / "c.pth", state, settings())
    convert_mtlora(checkpoint, tmp_path / "one", suite=SUITE, base=base)
    done = convert_mtlora(checkpoint, tmp_path / "other", suite=SUITE, base=base, tasks=names)
    assert list(done.tasks.values()) == ["normals", "saliency", "semseg", "parts"]
    one, other = (load_dense_model(tmp_path / name)[0](pixels()) for name in ("one", "other"))
    for task in FOUR:
        torch.testing.assert_close(one[task], other[task], rtol=1e-4, atol=1e-5)


def test_buffers_that_follow_from_the_sizes_are_left_out(state, base, tmp_path):
    derived = {
        "backbone.layers.0.blocks.0.attn.relative_position_index": torch.zeros(16, 16, dtype=torch.int64),
        "backbone.layers.0.blocks.1.attn_mask": torch.full((4, 16, 16), -100.0),
    }
    checkpoint = save_checkpoint(tmp_path / "c.pth", state | derived, settings())
    convert_mtlora(checkpoint, tmp_path / "out", suite=SUITE, base=base)
    write_mtlora(tmp_path / "out", tmp_path / "back.pth")
    assert same(torch.load(tmp_path / "back.pth", weights_only=True)["model"], state)


@pytest.mark.parametrize(
    ("changes", "scale", "task_scale"),
    [
        ({"SHARED_SCALE": [2.0]}, 2.0, 2.0),
        ({"SHARED_SCALE": 2}, 2.0, 2.0),
        ({"SHARED_SCALE": [1.0, 2.0, 3.0, 4.0]}, [1.0, 2.0, 3.0, 4.0], [1.0, 2.0, 3.0, 4.0]),
        (
            {"SCALE_PER_TASK": {"semseg": [1.0], "sal": 2.0, "normals": [3.0] * 4, "human_parts": [4.0]}},
            4.0,
            {"semseg": 1.0, "parts": 4.0, "saliency": 2.0, "normals": 3.0},
        ),
    ],
)
def test_scales_are_read_from_the_settings(state, base, tmp_path, changes, scale, task_scale):
    """TASK_SCALE, which the published code never reads, is 99 there."""
    checkpoint = save_checkpoint(tmp_path / "c.pth", state, settings(**changes))
    done = convert_mtlora(checkpoint, tmp_path / "out", suite=SUITE, base=base)
    assert (done.config.scale, done.config.task_scale) == (scale, task_scale)


# --- files that are not to be trusted


def test_settings_are_read_without_yacs_and_whatever_they_say_of_themselves(state, base, tmp_path):
    attributes = {"get": 1, "keys": 3, "update": "no"}
    checkpoint = save_checkpoint(tmp_path / "c.pth", state, settings(), **attributes)
    assert "yacs" not in sys.modules
    convert_mtlora(checkpoint, tmp_path / "out", suite=SUITE, base=base)
    assert "yacs" not in sys.modules
