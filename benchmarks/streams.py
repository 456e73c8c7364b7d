"""MTLoRA's network with task streams computed together, against the same mathematics in a loop over tasks.

$ python benchmarks/streams.py --size short

Both have the same weights and give the same maps; what is timed is a training step of the whole network with decoders,
and the bytes that it holds at its peak.
"""

from __future__ import annotations

from functools import partial

import torch
import torch.nn.functional as F
from harness import Report, main, peak_bytes
from peft import get_peft_model
from swin_loop import LoopMTLoRA
from torch import Tensor, nn
from transformers import SwinConfig, SwinModel

from tasklora.vision import DenseModel, DenseTaskSpec, SwinMTLoRAConfig, stage_features
from tasklora.vision.swin.config import REDUCTION, TRAINED_IN_FULL

SPECS = {
    "semseg": DenseTaskSpec(kind="segmentation", labels=[f"class {i}" for i in range(21)]),
    "human_parts": DenseTaskSpec(kind="segmentation", labels=[f"part {i}" for i in range(7)]),
    "saliency": DenseTaskSpec(kind="saliency"),
    "normals": DenseTaskSpec(kind="normals"),
}
OUTPUTS = {name: spec.num_outputs for name, spec in SPECS.items()}
SWIN_TINY = {"embed_dim": 96, "depths": [2, 2, 6, 2], "num_heads": [3, 6, 12, 24]}
SMALL = {"embed_dim": 12, "depths": [2, 2, 2, 2], "num_heads": [1, 2, 3, 6]}
# Size → (sizes of the Swin, image side, images, shared rank, rounds).
SIZES = {
    "tiny": (SMALL, 64, 1, 4, 2),
    "short": (SWIN_TINY, 224, 4, 16, 5),
    "full": (SWIN_TINY, 224, 4, 16, 11),
    "gpu": (SWIN_TINY, 448, 16, 16, 30),
}
TASK_R, SCALE = 4, 4.0


def networks(sizes: dict[str, object], image: int, r: int, device: str) -> tuple[DenseModel, LoopMTLoRA]:
    """Return the two networks with the same weights, factors as after some training."""
    config = SwinConfig(**sizes, image_size=image, drop_path_rate=0.0)
    swin, copy = (SwinModel(config, add_pooling_layer=False) for _ in range(2))
    copy.load_state_dict(swin.state_dict())
    options = SwinMTLoRAConfig(tasks=list(SPECS), r=r, task_r=TASK_R, scale=SCALE, task_scale=SCALE)
    ours = DenseModel(get_peft_model(swin, options), SPECS)
    loop = LoopMTLoRA(copy, OUTPUTS, r, TASK_R, SCALE)
    loop.decoders.load_state_dict({k.removeprefix("heads."): v for k, v in ours.decoders.state_dict().items()})
    layers, tasks = {}, {}
    inner = {"qkv": "attention", "proj": "attention.o_proj", "fc1": "mlp.fc1", "fc2": "mlp.fc2"}
    for place, stage in enumerate(swin.encoder.layers):
        for number, updates in enumerate(stage.task_updates["default"].blocks):
            for name, path in inner.items():
                update, where = getattr(updates, name), f"encoder.layers.{place}.blocks.{number}.{path}"
                nn.init.normal_(update.shared.B, std=0.01)
                layers[where] = update.shared.A, update.shared.B
                if update.tasks is not None:
                    nn.init.normal_(update.tasks.B, std=0.01)
                    parts = (update.tasks.A.split(TASK_R), update.tasks.B.split(TASK_R))
                    tasks[where] = {task: (a, b.mT) for task, a, b in zip(SPECS, *parts, strict=True)}
    loop.load_factors(layers, tasks)
    return ours.to(device).train(), loop.to(device).train()


def backbone(sizes: dict[str, object], image: int) -> SwinModel:
    """Return the backbone with what MTLoRA trains in full, and without any factors: what every formulation must run."""
    swin = SwinModel(SwinConfig(**sizes, image_size=image, drop_path_rate=0.0), add_pooling_layer=False)
    trained = (*TRAINED_IN_FULL, REDUCTION)
    for name, parameter in swin.named_parameters():
        parameter.requires_grad_(any(f"{part}." in name for part in trained))
    return swin.train()


def labels_of(images: int, side: int, device: str) -> dict[str, Tensor]:
    """Return random labels of the four tasks."""
    shape = (images, side, side)
    return {
        "semseg": torch.randint(21, shape, device=device),
        "human_parts": torch.randint(7, shape, device=device),
        "saliency": torch.rand(shape, device=device).round(),
        "normals": F.normalize(torch.randn(images, 3, side, side, device=device), dim=1),
    }


def loss_of(outputs: dict[str, Tensor], labels: dict[str, Tensor]) -> Tensor:
    """Return a loss of all tasks, plainly written: it is the same for both and no part of what is compared."""
    loss = F.cross_entropy(outputs["semseg"], labels["semseg"])
    loss = loss + F.cross_entropy(outputs["human_parts"], labels["human_parts"])
    loss = loss + F.binary_cross_entropy_with_logits(outputs["saliency"][:, 0], labels["saliency"])
    return loss + (F.normalize(outputs["normals"], dim=1) - labels["normals"]).abs().mean()


def step(network: nn.Module, pixel_values: Tensor, labels: dict[str, Tensor]) -> None:
    """Run forward and backward and drop the gradients."""
    loss_of(network(pixel_values), labels).backward()
    network.zero_grad(set_to_none=True)


def measure(report: Report) -> None:
    """Compare outputs, then time and count."""
    torch.manual_seed(0)
    sizes, side, images, r, rounds = SIZES[report.size]
    made = dict(zip(("streams", "loop"), networks(sizes, side, r, report.device), strict=True))
    x = torch.randn(images, 3, side, side, device=report.device)
    labels = labels_of(images, side, report.device)
    setting = f"swin {sizes['embed_dim']}, {side} px, batch {images}, 4 tasks, r {r}"
    with torch.no_grad():
        ours, theirs = (network.eval()(x) for network in made.values())
    worst = max(float((ours[t] - theirs[t]).abs().max() / theirs[t].abs().max()) for t in SPECS)
    report.number(setting, "largest difference of outputs, relative", worst, "")
    for network in made.values():
        network.train()
    report.time(setting, {name: partial(step, network, x, labels) for name, network in made.items()}, rounds)
    report.ratio(setting, "step", "loop", "streams")
    without_factors = backbone(sizes, side).to(report.device)
    encoder = {
        "backbone": lambda: sum(each.maps().square().mean() for each in stage_features(without_factors, x)).backward(),
        "streams encoder": lambda: sum(each.square().mean() for each in made["streams"].features(x)).backward(),
        "loop encoder": lambda: sum(
            stream.square().mean() for _, streams, _, _ in made["loop"].features(x) for stream in streams.values()
        ).backward(),
    }
    report.time(setting, encoder, rounds)
    report.ratio(setting, "step without decoders", "loop encoder", "streams encoder")
    report.ratio(setting, "step without decoders", "backbone", "streams encoder")
    for network in made.values():
        network.zero_grad(set_to_none=True)
    peaks = {name: peak_bytes(partial(step, network, x, labels), report.device) for name, network in made.items()}
    for name, peak in peaks.items():
        report.number(setting, f"peak bytes: {name}", peak.peak, "bytes")
    report.number(setting, "peak bytes: streams / loop", peaks["streams"].peak / peaks["loop"].peak)


if __name__ == "__main__":
    main("streams", measure, __doc__)
