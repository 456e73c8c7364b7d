"""The benchmark's literal network is MTLoRA: golden features, outputs and gradients; transformers' Swin at B = 0.

Gradients: the golden files' decoders have some 10⁷ ReLU units, and rounding of relative 2e-5 in the features puts some
near zero onto the other side, each of which moves gradients by about 1e-3, in float64 too. So the decoders read the
golden features, through which gradients pass on; what is left differs by 1e-7 and moves single units.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from swin_loop import LoopMTLoRA
from torch import Tensor
from transformers import SwinConfig, SwinModel

GOLDEN = Path(os.environ.get("TASKLORA_GOLDEN", Path(__file__).resolve().parents[3] / "shared" / "golden"))
TOLERANCE = 2e-4


def golden_files() -> list[object]:
    files = sorted(GOLDEN.glob("mtlora_swin_*.safetensors")) if GOLDEN.is_dir() else []
    if not files:
        reason = f"no Swin golden files in {GOLDEN} (set TASKLORA_GOLDEN to their folder)"
        return [pytest.param(None, marks=pytest.mark.skip(reason=reason), id="no-folder")]
    return [pytest.param(file, id=file.stem) for file in files]


def our_name(name: str) -> str:
    """Return the loop's name of a parameter of the reference."""
    for theirs, ours in {
        "backbone.patch_embed.proj": "embeddings.patch_embeddings.projection",
        "backbone.patch_embed.norm": "embeddings.norm",
        "backbone.": "encoder.",
        ".linear.": ".",
        ".norm1.": ".layernorm_before.",
        ".norm2.": ".layernorm_after.",
        "attn.relative": "attention.relative_position_bias.relative",
        "attn.proj": "attention.o_proj",
        "attn.qkv": "attention",
        "lora_shared_": "",
        "lora_tasks_": "tasks_",
        "decoders.decoders.": "decoders.",
        "last_layer.0": "fuse",
        "last_layer.1": "norm",
        "last_layer.3": "predict",
    }.items():
        name = name.replace(theirs, ours)
    if name.startswith("downsampler."):
        _, task, stage, leaf = name.split(".")
        name = f"decoders.{task}.reduce.{stage.removeprefix('downsample_')}.{leaf}"
    return name


def our_state(golden: dict[str, Tensor]) -> dict[str, Tensor]:
    state: dict[str, Tensor] = {}
    for name, tensor in golden.items():
        if name.startswith("state."):
            ours = our_name(name.removeprefix("state."))
            if ours.endswith(("attention.weight", "attention.bias")):  # the fused layer's
                path, _, leaf = ours.rpartition(".")
                state |= {f"{path}.{part}_proj.{leaf}": each for part, each in zip("qkv", tensor.chunk(3), strict=True)}
            else:
                state[ours] = tensor
    return state


def error(ours: Tensor, reference: Tensor) -> float:
    return float(((ours - reference).abs().max() / reference.abs().max()).detach())


@pytest.mark.parametrize("file", golden_files())
def test_golden(file: Path):
    with safe_open(file, framework="pt") as handle:
        meta = json.loads(handle.metadata()["meta"])
        golden = {name: handle.get_tensor(name) for name in handle.keys()}  # noqa: SIM118
    swin = SwinModel(
        SwinConfig(
            image_size=meta["image_size"],
            embed_dim=meta["embed_dim"],
            depths=meta["depths"],
            num_heads=meta["num_heads"],
            window_size=meta["window_size"],
        )
    )
    model = LoopMTLoRA(
        swin,
        {task: meta["num_outputs"][task] for task in meta["tasks"]},
        meta["ranks"]["shared"],
        meta["ranks"]["task"],
        meta["scale"],
        plus=meta["plus"],
    ).eval()
    model.load_state_dict(our_state(golden))
    trainable = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert sum(parameter.numel() for parameter in trainable.values()) == meta["trainable"]
    assert set(trainable) == {our_name(name) for name in meta["trainable_names"]}

    maps: list[dict[str, Tensor]] = []
    for stage, (shared, streams, height, width) in enumerate(model.features(golden["pixel_values"])):
        for name, stream in {"shared": shared, **streams}.items():
            assert error(stream, golden[f"stage{stage}.{name}"]) <= TOLERANCE
        exact = {task: x + (golden[f"stage{stage}.{task}"] - x).detach() for task, x in streams.items()}
        maps.append({task: x.transpose(1, 2).unflatten(2, (height, width)) for task, x in exact.items()})
    with torch.no_grad():
        for task, y in model(golden["pixel_values"]).items():
            assert error(y[..., ::8, ::8], golden[f"out.{task}"]) <= TOLERANCE

    loss = torch.zeros(())
    for task, decoder in model.decoders.items():
        y = decoder([streams[task] for streams in maps], (meta["image_size"], meta["image_size"]))[..., ::8, ::8]
        assert error(y, golden[f"out.{task}"]) <= 1e-5
        loss = loss + (y * golden[f"probe.{task}"]).sum()
    loss.backward()
    errors = []
    for name, expected in golden.items():
        if name.startswith("grad."):
            gradient = trainable[our_name(name.removeprefix("grad."))].grad
            if gradient is None:  # the shared fc2 of the last block, which nothing reads
                assert expected.abs().max() == 0, name
            else:
                errors.append(error(gradient, expected))
    assert len(errors) > 150
    assert sorted(errors)[int(0.8 * len(errors))] <= TOLERANCE
    assert max(errors) <= 1e-2


def small(**options: object) -> tuple[SwinModel, LoopMTLoRA]:
    config = SwinConfig(embed_dim=8, depths=[2, 2, 2, 2], num_heads=[1, 2, 2, 4], window_size=4, image_size=128)
    config.update({"drop_path_rate": 0.0} | options)
    swin = SwinModel(config, add_pooling_layer=False)
    for parameter in swin.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    return swin, LoopMTLoRA(swin, {"depth": 1, "parts": 3}, r=2, task_r=1)


@pytest.mark.parametrize("size", [(128, 128), (134, 161)])
def test_without_factors_it_is_the_frozen_swin(size):
    swin, model = small()
    images = torch.randn(2, 3, *size)
    with torch.no_grad():
        stages = model.eval().features(images)
        assert {task: y.shape for task, y in model(images).items()} == {
            "depth": (2, 1, *size),
            "parts": (2, 3, *size),
        }
        hidden = swin.eval()(images, output_hidden_states=True).hidden_states
    for (shared, streams, _, _), expected in zip(stages, hidden[1:], strict=True):
        for stream in (shared, *streams.values()):
            torch.testing.assert_close(stream, expected, rtol=1e-3, atol=1e-4)


def test_small_images_take_the_middle_of_the_tables():
    """A window that is larger than the map shrinks; offsets keep their entries, and no state changes."""
    _, model = small()
    attention = model.encoder.layers[0].blocks[0].attention
    table = attention.relative_position_bias.relative_position_bias_table  # (7·7, heads)
    bias = attention.position_bias(2)[0]
    assert torch.equal(bias[0, 0], table[24, 0])  # no offset
    assert torch.equal(bias[0, 3], table[24 - 8, 0])  # one row and one column before
    before = model.eval()(torch.ones(1, 3, 128, 128))["depth"]
    model(torch.ones(1, 3, 32, 40))
    assert torch.equal(model(torch.ones(1, 3, 128, 128))["depth"], before)


def test_drop_path_and_dropout_are_drawn_in_training_only():
    swin, model = small(drop_path_rate=0.5)
    assert swin.encoder.layers[3].blocks[1].drop_path.drop_prob == 0.5
    images = torch.randn(2, 3, 128, 128)
    model.eval()
    assert torch.equal(model(images)["parts"], model(images)["parts"])
    model.train()
    _, streams, _, _ = model.features(images)[3]
    assert not torch.equal(streams["parts"], streams["depth"])  # B is zero: only the draws differ


def test_factors_are_copied_by_path():
    _, model = small()
    path = "encoder.layers.0.blocks.1"
    generator = torch.Generator().manual_seed(3)

    def pair(r: int, inputs: int, outputs: int) -> tuple[Tensor, Tensor]:
        return torch.randn(r, inputs, generator=generator), torch.randn(outputs, r, generator=generator)

    images = torch.randn(1, 3, 64, 64)
    before = model.eval()(images)
    model.load_factors(
        {f"{path}.attention": pair(2, 8, 24), f"{path}.mlp.fc1": pair(2, 8, 32)},
        {f"{path}.mlp.fc2": {"parts": pair(1, 32, 8)}},
    )
    assert model.encoder.layers[0].blocks[1].attention.B.abs().min() > 0
    assert not torch.equal(model(images)["parts"], before["parts"])
