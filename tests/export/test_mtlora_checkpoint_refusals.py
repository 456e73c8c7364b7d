"""What is refused of MTLoRA's published checkpoints, with what is said; nothing is left half-written."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from helpers_mtlora import (
    FOUR,
    THEIRS,
    published_state,
    same,
    save_base,
    save_checkpoint,
    save_model,
    settings,
    some_slow,
    yacs,
)
from tasklora.errors import BrokenAdapterError, CheckpointError, ConfigError, OutputError, UnsupportedError
from tasklora.export import convert_mtlora, convert_reference, write_mtlora
from tasklora.vision import load_dense_model

SUITE = "pascal_context@1"
GIVEN = {"scale": 4.0, "mode": "matrix", "image_size": 64}


def files_in(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


class Foreign:
    """Makes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("place", ["beside", "in the settings", "in the state"])
def test_a_foreign_object_is_named_and_not_run(state, base, tmp_path, place):
    trap = Foreign(tmp_path / "ran")
    with yacs() as node:
        content = {"model": dict(state), "config": node(settings())}
        target = {"beside": content, "in the settings": content["config"], "in the state": content["model"]}[place]
        target["trap"] = trap
        torch.save(content, tmp_path / "c.pth")
    with pytest.raises(CheckpointError, match=r"pickled Python objects.*yacs\.config\.CfgNode.*mkdir"):
        convert_mtlora(tmp_path / "c.pth", tmp_path / "out", suite=SUITE, base=base)
    assert not (tmp_path / "ran").exists()
    assert not (tmp_path / "out").exists()


def test_the_trap_works(tmp_path):
    """The test above can fail: a reader that trusts the file runs it."""
    torch.save({"trap": Foreign(tmp_path / "ran")}, tmp_path / "c.pth")
    torch.load(tmp_path / "c.pth", weights_only=False)
    assert (tmp_path / "ran").is_dir()


# --- bad input


def without(state, part):
    return {key: value for key, value in state.items() if part not in key}


BAD_STATES = {
    "no factors of a task": (lambda s: without(s, "fc1.lora_tasks_A.sal"), "asked for"),
    "no decoder of a task": (lambda s: without(s, "decoders.decoders.sal."), "heads.saliency.fuse"),
    "no factors in a stage": (lambda s: without(s, "layers.1.blocks.0.mlp.fc2.lora_shared"), "blocks.0.fc2.shared.A"),
    "a layer without a shared update": (lambda s: without(s, "layers.2.blocks.0.attn.qkv.lora"), "blocks.0.qkv"),
    "no frozen weight": (lambda s: without(s, "layers.0.blocks.0.mlp.fc1.linear.weight"), "another architecture"),
    "ranks that differ": (
        lambda s: s | {"backbone.layers.0.blocks.0.attn.qkv.lora_shared_A": torch.ones(5, 8)},
        "the shared factors have several ranks in stage 0: blocks.0.attn.qkv: 5",
    ),
    "task ranks that differ": (
        lambda s: s | {"backbone.layers.0.blocks.1.mlp.fc1.lora_tasks_A.sal": torch.ones(5, 8)},
        "task 'sal' have several ranks in stage 0",
    ),
    "a B of another rank": (
        lambda s: s | {"backbone.layers.0.blocks.0.attn.qkv.lora_shared_B": torch.ones(24, 5)},
        "stage 0 blocks.0.qkv.shared.B",
    ),
    "a scalar": (
        lambda s: s | {"backbone.layers.0.blocks.0.attn.qkv.lora_shared_A": torch.tensor(1.0)},
        "has shape (), not (rank, inputs)",
    ),
    "parts that do not stack": (
        lambda s: s | {"backbone.layers.0.blocks.1.mlp.fc1.lora_tasks_A.sal": torch.ones(2, 9)},
        "no whole network of MTLoRA",
    ),
    "an unknown tensor": (lambda s: s | {"backbone.layers.0.gate": torch.ones(1)}, "have no place in MTLoRA's Swin"),
    "split qkv": (
        lambda s: s | {"backbone.layers.0.blocks.0.attn.q.lora_shared_A": torch.ones(3, 8)},
        "have no place in MTLoRA's Swin",
    ),
    "half precision": (lambda s: {key: value.half() for key, value in s.items()}, "not float32"),
    "no backbone": (lambda s: {key: value for key, value in s.items() if "lora" in key}, "no tensors of the backbone"),
}


@pytest.mark.parametrize(
    "case", some_slow(BAD_STATES, ("no factors of a task", "task ranks that differ", "no frozen weight", "no backbone"))
)
def test_states_that_are_no_network_of_mtlora(state, base, tmp_path, case):
    change, says = BAD_STATES[case]
    checkpoint = save_checkpoint(tmp_path / "c.pth", change(dict(state)), settings())
    before = files_in(tmp_path)
    with pytest.raises(CheckpointError) as refused:
        convert_mtlora(checkpoint, tmp_path / "out", suite=SUITE, base=base)
    assert says in str(refused.value)
    if "frozen" in case or "backbone" in case:
        with pytest.raises(CheckpointError, match="no whole"):
            convert_mtlora(checkpoint, tmp_path / "out", suite=SUITE, base_from_checkpoint=tmp_path / "swin")
    assert files_in(tmp_path) == before


def test_nan(state, tmp_path):
    state["backbone.patch_embed.norm.weight"][0] = float("nan")
    with pytest.raises(BrokenAdapterError, match=r"NaN or infinity in backbone\.patch_embed\.norm\.weight"):
        convert_mtlora(
            save_checkpoint(tmp_path / "c.pth", state, settings()), tmp_path / "out", suite=SUITE, base="nowhere"
        )


def test_other_weights_than_the_bases(state, base, tmp_path):
    save_base(tmp_path / "other", seed=1)
    checkpoint = save_checkpoint(tmp_path / "c.pth", state, settings())
    with pytest.raises(
        CheckpointError, match=r"other weights.*frozen tensors differ, e\.g\. encoder\.layers\.0\.blocks"
    ):
        convert_mtlora(checkpoint, tmp_path / "out", suite=SUITE, base=str(tmp_path / "other"))
    # one number of one frozen tensor is enough
    state["backbone.layers.3.blocks.1.mlp.fc2.linear.bias"][0] += 1e-3
    checkpoint = save_checkpoint(tmp_path / "c.pth", state, settings())
    with pytest.raises(CheckpointError, match=r"1 of \d+ frozen tensors differ.*layers\.3\.blocks\.1\.mlp\.fc2\.bias"):
        convert_mtlora(checkpoint, tmp_path / "out", suite=SUITE, base=base)
    done = convert_mtlora(checkpoint, tmp_path / "out", suite=SUITE, base_from_checkpoint=tmp_path / "swin")
    assert done.base == str(tmp_path / "swin")
    write_mtlora(tmp_path / "out", tmp_path / "back.pth")
    assert same(torch.load(tmp_path / "back.pth", weights_only=True)["model"], state)


def test_task_modules_before_the_last_block(tmp_path):
    save_base(tmp_path / "base")
    save_model(tmp_path / "made", tmp_path / "base", all_blocks=True)
    with pytest.raises(UnsupportedError, match="task modules in all blocks"):
        write_mtlora(tmp_path / "made", tmp_path / "c.pth")
    assert not (tmp_path / "c.pth").exists()
    state = published_state(tmp_path / "again")
    block = "backbone.layers.0.blocks"
    early = {k.replace(f"{block}.1.", f"{block}.0."): v for k, v in state.items() if k.startswith(f"{block}.1.")}
    checkpoint = save_checkpoint(
        tmp_path / "c.pth", early | {k: v for k, v in state.items() if k not in early} | early, settings()
    )
    with pytest.raises(UnsupportedError, match=r"before the last block of a stage \(stage 0 blocks\.0\.attn\.proj"):
        convert_mtlora(checkpoint, tmp_path / "out", suite=SUITE, base=str(tmp_path / "again" / "base"))


@pytest.mark.parametrize(
    ("config", "options", "says"),
    [
        (None, {}, "no settings to read scale from: give --scale"),
        (None, {"scale": 4.0}, "no settings to read mode from: give --mode"),
        (None, {"scale": 4.0, "mode": "matrix"}, "no settings to read image_size from: give --image-size"),
        (None, GIVEN | {"mode": "lora_only"}, "unknown mode 'lora_only'"),
        (None, GIVEN | {"mode": "addition"}, "does not fit MTLoRA (addition)"),
        (None, GIVEN | {"scale": 0.0}, "scale must be positive"),
        (settings(), {"scale": 3.0}, "settings have scale [4.0, 4.0, 4.0, 4.0], --scale says [3.0, 3.0, 3.0, 3.0]"),
        (settings(), {"mode": "matrixv2"}, "settings have mode matrix, --mode says matrixv2"),
        (settings(), {"image_size": 224}, "settings have image_size (64, 64)"),
        (settings(SHARED_SCALE=[1.0, 2.0]), {}, "not a number for each of 4 stages"),
        (settings(SHARED_SCALE="many"), {}, "not a number for each of 4 stages"),
        (settings(SHARED_MODE=3), {}, "not a name"),
        (settings() | {"DATA": {"IMG_SIZE": -1}}, {}, "DATA.IMG_SIZE = -1"),
        (settings() | {"TASKS": "semseg"}, {}, "not a list of names"),
        (settings() | {"TASKS": THEIRS[:3]}, {}, "missing: normals"),
        (settings(), {"tasks": FOUR[:2]}, "missing: sal, normals"),
        (settings(), {"tasks": [*FOUR, "edges"]}, "Unknown: edges"),
        (settings(), {"tasks": ["semsg", *FOUR[1:]]}, "Did you mean 'semseg'?"),
        (settings(), {"tasks": [*FOUR, "sal"]}, "each once"),
        (settings(), {"suite": "nyud@1"}, "has no 'parts'"),
        (settings(), {"suite": "nowhere"}, "nowhere"),
        (settings(), {"base": None}, "say which backbone"),
        (settings(), {"base_from_checkpoint": "swin"}, "say which backbone"),
        (settings(), {"base": None, "base_from_checkpoint": "out"}, "cannot both go to out"),
        (settings(), {"base": None, "base_from_checkpoint": "swin", "revision": "x"}, "revision is the base's"),
    ],
)
def test_options_that_do_not_fit(state, base, tmp_path, monkeypatch, config, options, says):
    monkeypatch.chdir(tmp_path)
    checkpoint = save_checkpoint(tmp_path / "c.pth", state, config)
    before = files_in(tmp_path)
    with pytest.raises((ConfigError, CheckpointError)) as refused:
        convert_mtlora(checkpoint, "out", **{"suite": SUITE, "base": base, **options})
    assert says in str(refused.value)
    assert files_in(tmp_path) == before


def test_a_base_that_cannot_be_had(state, tmp_path):
    checkpoint = save_checkpoint(tmp_path / "c.pth", state, settings())
    with pytest.raises(CheckpointError, match="--base-from-checkpoint"):
        convert_mtlora(checkpoint, tmp_path / "out", suite=SUITE, base=str(tmp_path / "nowhere"))


def test_nothing_is_overwritten(state, tmp_path):
    checkpoint = save_checkpoint(tmp_path / "c.pth", state, settings())
    for name in ("out", "swin"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "mine").write_text("mine")
        others = {"out": tmp_path / "new", "swin": tmp_path / "swin"} if name == "swin" else {}
        with pytest.raises(OutputError, match="is not empty"):
            convert_mtlora(
                checkpoint, others.get("out", tmp_path / "out"), suite=SUITE, base_from_checkpoint=tmp_path / "swin"
            )
    assert files_in(tmp_path / "out") == files_in(tmp_path / "swin") == ["mine"]
    assert not (tmp_path / "new").exists()
    convert_mtlora(checkpoint, tmp_path / "out", suite=SUITE, base_from_checkpoint=tmp_path / "swin", overwrite=True)
    load_dense_model(tmp_path / "out")
    assert (tmp_path / "out" / "mine").read_text() == "mine"
    before = checkpoint.read_bytes()
    with pytest.raises(OutputError, match="exists already"):
        write_mtlora(tmp_path / "out", checkpoint)
    assert checkpoint.read_bytes() == before
    with pytest.raises(OutputError, match="no folder"):
        write_mtlora(tmp_path / "out", tmp_path / "nowhere" / "c.pth")
    write_mtlora(tmp_path / "out", checkpoint, overwrite=True)
    assert list(torch.load(checkpoint, weights_only=True)) == ["model"]


def test_what_the_published_code_cannot_hold(tmp_path):
    save_base(tmp_path / "base")
    save_model(tmp_path / "light", tmp_path / "base", decoder="segformer")
    with pytest.raises(UnsupportedError, match="'segformer' decoders"):
        write_mtlora(tmp_path / "light", tmp_path / "c.pth")
    (tmp_path / "none").mkdir()
    with pytest.raises(CheckpointError, match="no saved tasklora model"):
        write_mtlora(tmp_path / "none", tmp_path / "c.pth")
    assert not (tmp_path / "c.pth").exists()


def test_each_kind_of_checkpoint_has_its_own_function(state, tmp_path):
    checkpoint = save_checkpoint(tmp_path / "c.pth", state, settings())
    with pytest.raises(CheckpointError, match=r"a checkpoint of MTLoRA, the vision method.*convert_mtlora"):
        convert_reference(checkpoint, tmp_path / "out", tasks=["a"], lora_alpha=1, temperature=1, base="b")
    text = {f"q.lora_{name}": torch.ones(1, 1, 1) for name in ("A", "B", "lambdas", "B_w")}
    torch.save(text, tmp_path / "text.pt")
    with pytest.raises(CheckpointError, match="a checkpoint of MTL-LoRA, the method for text"):
        convert_mtlora(tmp_path / "text.pt", tmp_path / "out", suite=SUITE, base="b")
