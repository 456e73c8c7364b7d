"""The decoders are their formulas: a literal module of the published form gives the same numbers and gradients.

The literal module upsamples every stage to the largest, concatenates, and convolves; so do the golden files' authors.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors import safe_open
from torch import Tensor, nn

from tasklora.errors import ConfigError
from tasklora.vision import pyramid_head
from tasklora.vision.decoders import DECODERS, MTLoRADecoders, SegformerDecoders

GOLDEN = Path(os.environ.get("TASKLORA_GOLDEN", Path(__file__).resolve().parents[3] / "shared" / "golden"))
PASCAL = {"semseg": 21, "human_parts": 7, "sal": 1, "normals": 3}
CHANNELS = (8, 12, 16, 16)
TASKS = {"parts": 3, "depth": 1}
SIZES = [
    ([(8, 8), (4, 4), (2, 2), (2, 2)], (16, 16)),
    ([(9, 5), (5, 3), (3, 2), (3, 2)], (70, 37)),  # nothing divides anything
    ([(6, 10), (3, 5), (2, 3), (1, 2)], (21, 40)),  # four sizes
    ([(3, 3), (3, 3), (3, 3), (3, 3)], (3, 3)),  # one size, the image's too
]


def features(
    streams: int, sizes: list[tuple[int, int]], images: int = 3, dtype: torch.dtype = torch.float64
) -> list[Tensor]:
    return [
        torch.randn(streams, images, h, w, c, dtype=dtype).permute(0, 1, 4, 2, 3).requires_grad_()
        for c, (h, w) in zip(CHANNELS, sizes, strict=True)
    ]


def literal(decoders: MTLoRADecoders, maps: list[Tensor], size: tuple[int, int]) -> dict[str, Tensor]:
    """Return the published form, with the modules that hold the parameters."""
    outputs = {}
    for task, (name, head) in enumerate(decoders.heads.items()):
        own = [x[task if len(x) > 1 else 0] for x in maps]
        reduced = [reduce(x) for reduce, x in zip(head.reduce, own, strict=True)]
        largest = reduced[0].shape[-2:]
        u = torch.cat([F.interpolate(x, size=largest, mode="bilinear", align_corners=False) for x in reduced], dim=1)
        y = head.predict(F.relu(head.norm(head.fuse(u))))
        outputs[name] = F.interpolate(y, size=size, mode="bilinear", align_corners=False)
    return outputs


def made(training: bool = True, dtype: torch.dtype = torch.float64) -> MTLoRADecoders:
    """Return decoders with random norms: as they begin, scale, shift and running statistics would be trivial."""
    decoders = MTLoRADecoders(CHANNELS, TASKS).to(dtype).train(training)
    for head in decoders.heads.values():
        for tensor in (head.norm.weight, head.norm.bias, head.norm.running_mean):
            nn.init.normal_(tensor)
        nn.init.uniform_(head.norm.running_var, 0.5, 2)
    return decoders


def gradients(decoders: MTLoRADecoders, maps: list[Tensor], outputs: dict[str, Tensor]) -> dict[str, Tensor]:
    named = dict(decoders.named_parameters()) | {f"x{i}": x for i, x in enumerate(maps)}
    generator = torch.Generator().manual_seed(1)
    loss = sum((y * torch.randn(y.shape, generator=generator, dtype=y.dtype)).sum() for y in outputs.values())
    return dict(zip(named, torch.autograd.grad(loss, named.values()), strict=True))


def assert_same(ours: dict[str, Tensor], theirs: dict[str, Tensor], tolerance: float = 1e-10) -> None:
    assert ours.keys() == theirs.keys()
    for name, expected in theirs.items():
        assert ours[name].shape == expected.shape
        scale = max(float(expected.detach().abs().max()), 1e-2)
        assert float((ours[name] - expected).detach().abs().max()) <= tolerance * scale, name


@pytest.mark.parametrize("chunk_bytes", [1, 2**22])
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("streams", [1, 2])
@pytest.mark.parametrize(("sizes", "size"), SIZES)
def test_the_published_form(monkeypatch, sizes, size, streams, training, chunk_bytes):
    """Maps, every gradient, and the running statistics; image by image and all images at once."""
    monkeypatch.setattr(pyramid_head, "CHUNK_BYTES", chunk_bytes)
    decoders, maps = made(training), features(streams, sizes)
    before = {name: tensor.clone() for name, tensor in decoders.named_buffers()}
    expected = literal(decoders, maps, size)
    expected_gradients = gradients(decoders, maps, expected)
    expected_buffers = {name: tensor.clone() for name, tensor in decoders.named_buffers()}
    with torch.no_grad():
        for name, tensor in decoders.named_buffers():
            tensor.copy_(before[name])
    outputs = decoders(maps, size)
    assert list(outputs) == list(TASKS)
    assert all(y.shape == (3, n, *size) for y, n in zip(outputs.values(), TASKS.values(), strict=True))
    assert_same(outputs, expected)
    assert_same(gradients(decoders, maps, outputs), expected_gradients)
    assert_same(
        {name: tensor.double() for name, tensor in decoders.named_buffers()},
        {name: tensor.double() for name, tensor in expected_buffers.items()},
    )
    changed = any(not torch.equal(before[name], tensor) for name, tensor in decoders.named_buffers())
    assert changed == training


def test_one_image():
    decoders, maps = made(), features(2, SIZES[1][0], images=1)
    expected = literal(decoders, maps, (20, 20))
    assert_same(decoders(maps, (20, 20)), expected)


def test_no_training_on_one_value_per_channel():
    decoders = made()
    with pytest.raises(ConfigError, match="one value per channel"):
        decoders(features(2, [(1, 1)] * 4, images=1), (4, 4))
    assert int(decoders.heads["depth"].norm.num_batches_tracked) == 0
    assert decoders.eval()(features(2, [(1, 1)] * 4, images=1), (4, 4))["depth"].shape == (1, 1, 4, 4)


def test_cumulative_statistics():
    """`momentum=None` of a BatchNorm averages all batches alike."""
    decoders, (sizes, size) = made(), SIZES[1]
    for head in decoders.heads.values():
        head.norm.momentum = None
        head.norm.reset_running_stats()
    theirs = made()
    theirs.load_state_dict(decoders.state_dict())
    for head in theirs.heads.values():
        head.norm.momentum = None
    for _ in range(3):
        maps = features(2, sizes)
        decoders(maps, size)
        literal(theirs, maps, size)
    assert_same(
        {name: tensor.double() for name, tensor in decoders.named_buffers()},
        {name: tensor.double() for name, tensor in theirs.named_buffers()},
    )


@pytest.mark.parametrize("training", [True, False])
def test_other_norms_compute_the_same(training):
    """A subclass of BatchNorm2d, which stands for any norm that the fused form does not know, is itself called."""

    class Counting(nn.BatchNorm2d):
        calls = 0

        def forward(self, x: Tensor) -> Tensor:
            Counting.calls += 1
            return super().forward(x)

    decoders, (sizes, size) = made(training), SIZES[1]
    maps = features(2, sizes)
    fused = decoders(maps, size)
    fused_gradients = gradients(decoders, maps, fused)
    for head in decoders.heads.values():
        norm = Counting(head.norm.num_features).double().train(training)
        norm.load_state_dict(head.norm.state_dict())
        head.norm = norm
    if not training:
        assert Counting.calls == 0
    plain = decoders(maps, size)
    assert Counting.calls == len(TASKS)
    assert_same(plain, literal(decoders, maps, size))
    if training:  # running statistics moved in between, which only evaluation reads
        assert_same(fused, plain)
        assert_same(fused_gradients, gradients(decoders, maps, plain))


def test_batched_gradients():
    """Gradients of several directions at once, as methods that compare the tasks' gradients ask for them."""
    decoders, (sizes, size) = made(), SIZES[2]
    maps = features(2, sizes)
    y = decoders(maps, size)["parts"]
    directions = torch.randn(2, *y.shape, dtype=y.dtype)
    head = decoders.heads["parts"]
    inputs = [*maps, head.fuse.weight, head.norm.weight, head.norm.bias, head.predict.weight, head.predict.bias]
    batched = torch.autograd.grad(y, inputs, directions, is_grads_batched=True, retain_graph=True)
    for i, direction in enumerate(directions):
        one = torch.autograd.grad(y, inputs, direction, retain_graph=True)
        for ours, expected in zip(batched, one, strict=True):
            torch.testing.assert_close(ours[i], expected, rtol=1e-9, atol=1e-9)


def test_frozen_parts():
    """Features without gradients, and frozen parameters, get none; the others get theirs."""
    decoders, (sizes, size) = made(), SIZES[1]
    maps = [x.detach() for x in features(1, sizes)]
    decoders.heads["parts"].norm.requires_grad_(False)
    sum(y.sum() for y in decoders(maps, size).values()).backward()
    assert decoders.heads["parts"].norm.weight.grad is None
    assert decoders.heads["parts"].fuse.weight.grad is not None
    decoders.requires_grad_(False)
    assert not decoders(maps, size)["parts"].requires_grad


@pytest.mark.parametrize("name", DECODERS)
def test_autocast_gives_float32(name):
    decoders, (sizes, size) = DECODERS[name](CHANNELS, TASKS), SIZES[3]
    with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
        outputs = decoders(features(1, sizes, images=1, dtype=torch.float32), size)
    assert {y.dtype for y in outputs.values()} == {torch.float32}


def test_autocast():
    decoders, (sizes, size) = made(dtype=torch.float32), SIZES[3]
    maps = features(2, sizes, dtype=torch.float32)
    expected = literal(decoders, maps, size)
    with torch.autocast("cpu", torch.bfloat16):
        outputs = decoders(maps, size)
    for name, y in outputs.items():
        assert y.dtype == torch.float32
        error = float(((y - expected[name]).abs().max() / expected[name].abs().max()).detach())
        assert 1e-6 < error < 0.05  # bfloat16 was used, and does no more harm than it must
    sum(y.sum() for y in outputs.values()).backward()
    assert all(torch.isfinite(parameter.grad).all() for parameter in decoders.parameters())


def test_half_precision_weights():
    decoders, (sizes, size) = made(dtype=torch.bfloat16), SIZES[3]
    maps = features(2, sizes, dtype=torch.bfloat16)
    outputs, expected = decoders(maps, size), literal(decoders, maps, size)
    assert {y.dtype for y in outputs.values()} == {torch.bfloat16}
    assert_same(outputs, expected, tolerance=0.1)


def test_permuting_tasks_permutes_maps():
    decoders, (sizes, size) = made(), SIZES[0]
    maps = features(2, sizes)
    swapped = MTLoRADecoders(CHANNELS, dict(reversed(TASKS.items()))).double()
    swapped.load_state_dict(decoders.state_dict())
    ours = swapped([x.flip(0) for x in maps], size)
    for name, y in decoders(maps, size).items():
        assert torch.equal(ours[name], y)


def test_a_task_sees_its_own_stream_only():
    decoders, (sizes, size) = made(), SIZES[0]
    maps = features(2, sizes)
    y = decoders(maps, size)["parts"]
    for gradient in torch.autograd.grad(y.sum() + y.pow(2).sum(), maps):
        assert gradient[0].abs().max() > 0
        assert gradient[1].abs().max() == 0


@pytest.mark.parametrize("name", DECODERS)
def test_every_decoder_learns_and_saves(name):
    decoders, (sizes, size) = DECODERS[name](CHANNELS, TASKS), SIZES[1]
    maps = [x.detach() for x in features(2, sizes, dtype=torch.float32)]
    target = {task: torch.randn(3, n, *size) for task, n in TASKS.items()}
    optimiser = torch.optim.AdamW(decoders.parameters(), lr=1e-3)
    losses = []
    for _ in range(4):
        loss = sum(F.mse_loss(y, target[task]) for task, y in decoders(maps, size).items())
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    again = DECODERS[name](CHANNELS, TASKS)
    again.load_state_dict(decoders.state_dict())
    outputs, reloaded = decoders.eval()(maps, size), again.eval()(maps, size)
    assert all(torch.equal(outputs[task], reloaded[task]) for task in TASKS)
    shared = decoders([x[:1] for x in maps], size)
    assert all(torch.isfinite(y).all() for y in shared.values())


def count(decoders: nn.Module) -> int:
    return sum(parameter.numel() for parameter in decoders.parameters())


def test_published_count():
    decoders = MTLoRADecoders((192, 384, 768, 768), PASCAL)
    assert count(decoders) == 1_946_624
    reductions = 18 * 192 + 36 * 384 + 72 * 768 + 144 * 768
    assert count(decoders) == 4 * (reductions + 294_840) + 1081 * 32  # as the class says


def test_lighter_count():
    assert count(SegformerDecoders((192, 384, 768, 768), PASCAL)) == 609_824


@pytest.mark.parametrize("name", DECODERS)
@pytest.mark.parametrize(
    ("channels", "tasks", "message"),
    [
        (CHANNELS, {}, "at least one task"),
        ((), TASKS, "channels of each stage"),
        ((8, 0, 8, 8), TASKS, "all above 0"),
        (CHANNELS, {"a.b": 1}, "rename"),
        (CHANNELS, {"keys": 1}, "rename"),
        (CHANNELS, {"": 1}, "rename"),
        (CHANNELS, {"depth": 0}, "1 output channel or more, got 0"),
    ],
)
def test_refused(name, channels, tasks, message):
    with pytest.raises(ConfigError, match=message):
        DECODERS[name](channels, tasks)


def test_four_stages_only():
    with pytest.raises(ConfigError, match="4 stages, got 3; 'segformer' takes any number"):
        MTLoRADecoders(CHANNELS[:3], TASKS)
    maps = features(1, SIZES[0][0], dtype=torch.float32)[:3]
    assert SegformerDecoders(CHANNELS[:3], TASKS)(maps, (8, 8))["depth"].shape == (3, 1, 8, 8)


@pytest.mark.parametrize("name", DECODERS)
def test_features_that_do_not_fit(name):
    decoders = DECODERS[name](CHANNELS, TASKS)
    maps = features(2, SIZES[0][0], dtype=torch.float32)
    three = [torch.cat([x, x[:1]]) for x in maps]
    other_batch = [maps[0][:, :2], *maps[1:]]
    for wrong in (maps[:3], [x[0] for x in maps], maps[::-1], three, other_batch, []):
        with pytest.raises(ConfigError, match="a stream for each of: parts, depth"):
            decoders(wrong, (16, 16))


def golden_files() -> list[object]:
    files = sorted(GOLDEN.glob("mtlora_swin_*.safetensors")) if GOLDEN.is_dir() else []
    if not files:
        reason = f"no Swin golden files in {GOLDEN} (set TASKLORA_GOLDEN to their folder)"
        return [pytest.param(None, marks=pytest.mark.skip(reason=reason), id="no-folder")]
    return [pytest.param(file, id=file.stem) for file in files]


@pytest.mark.parametrize("file", golden_files())
def test_golden(file: Path):
    """The published decoder's outputs from its own stage features; made with running statistics (evaluation)."""
    with safe_open(file, framework="pt") as handle:
        meta = json.loads(handle.metadata()["meta"])
        golden = {name: handle.get_tensor(name) for name in handle.keys()}  # noqa: SIM118
    maps = []
    for stage in range(4):
        tokens = torch.stack([golden[f"stage{stage}.{task}"] for task in meta["tasks"]])  # (T, N, H·W, C)
        side = round(tokens.shape[2] ** 0.5)
        maps.append(tokens.unflatten(2, (side, side)).permute(0, 1, 4, 2, 3))
    decoders = MTLoRADecoders([x.shape[2] for x in maps], {task: meta["num_outputs"][task] for task in meta["tasks"]})
    names = {"fuse": "last_layer.0", "norm": "last_layer.1", "predict": "last_layer.3"}
    state = {}
    for name in decoders.state_dict():
        _, task, module, rest = name.split(".", 3)
        if module == "reduce":
            stage, leaf = rest.split(".")
            state[name] = golden[f"state.downsampler.{task}.downsample_{stage}.{leaf}"]
        else:
            state[name] = golden[f"state.decoders.decoders.{task}.{names[module]}.{rest}"]
    decoders.load_state_dict(state)
    assert len(state) == sum(name.startswith(("state.downsampler", "state.decoders")) for name in golden)
    outputs = decoders.eval().requires_grad_(False)(maps, (meta["image_size"], meta["image_size"]))
    for task, y in outputs.items():
        expected = golden[f"out.{task}"]
        assert float((y[..., ::8, ::8] - expected).abs().max() / expected.abs().max()) <= 2e-4
    trained = decoders.train()(maps, (meta["image_size"], meta["image_size"]))["semseg"][..., ::8, ::8]
    assert float((trained - golden["out.semseg"]).abs().max() / golden["out.semseg"].abs().max()) > 0.01
