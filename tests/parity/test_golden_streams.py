"""Parity of MTLoRA's layer with the published implementation: outputs, and every gradient of Σ y · probe."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors import safe_open
from torch import Tensor

from tasklora.updates.streams import StreamUpdate

REPOSITORY = Path(__file__).resolve().parents[2]
FOLDER = Path(os.environ.get("TASKLORA_GOLDEN", REPOSITORY.parent / "shared" / "golden"))
FILES = sorted(FOLDER.glob("mtlora_linear_*.safetensors"))
TOLERANCE = 1e-10

pytestmark = pytest.mark.skipif(
    not FILES, reason=f"no golden files mtlora_linear_* in {FOLDER}: set TASKLORA_GOLDEN to the folder that has them"
)


def read(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    with safe_open(path, "pt") as file:
        return {key: file.get_tensor(key) for key in file.keys()}, json.loads(file.metadata()["meta"])  # noqa: SIM118


def relative(ours: Tensor, reference: Tensor) -> float:
    return float((ours.detach() - reference).abs().max() / reference.abs().max().clamp(min=1e-300))


def update_of(tensors: dict[str, Tensor], meta: dict[str, Any]) -> StreamUpdate:
    """Return the file's layer with its factors, in float64."""
    tasks = meta["tasks"]
    out_features, in_features = tensors["param.linear.weight"].shape
    update = StreamUpdate(
        in_features,
        out_features,
        meta["ranks"]["shared"],
        meta["shared_scale"],
        [meta["ranks"][task] for task in tasks],
        [meta["task_scale"][task] for task in tasks],
        mode=meta["mode"],
    ).double()
    assert update.tasks is not None
    with torch.no_grad():
        update.tasks.A.copy_(torch.cat([tensors[f"param.lora_tasks_A.{task}"] for task in tasks]))
        update.tasks.B.copy_(torch.cat([tensors[f"param.lora_tasks_B.{task}"].mT for task in tasks]))
        if update.shared is not None:
            update.shared.A.copy_(tensors["param.lora_shared_A"])
            update.shared.B.copy_(tensors["param.lora_shared_B"])
        if update.norm is not None:
            update.norm.weight.copy_(tensors["param.lora_norm.weight"])
            update.norm.bias.copy_(tensors["param.lora_norm.bias"])
    return update


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_outputs_and_gradients_equal_the_reference(path: Path) -> None:
    tensors, meta = read(path)
    tasks = meta["tasks"]
    update = update_of(tensors, meta)
    weight = tensors["param.linear.weight"].clone().requires_grad_()
    bias = tensors["param.linear.bias"].clone().requires_grad_()
    x = tensors["x"].clone().requires_grad_()
    has_streams = f"x.{tasks[0]}" in tensors
    assert has_streams == path.stem.endswith("_streams")
    task_x = torch.stack([tensors[f"x.{task}"] for task in tasks]).requires_grad_() if has_streams else None

    shared, streams = update(F.linear(x, weight, bias), x, task_x)
    assert streams is not None
    assert relative(shared, tensors["y"]) <= TOLERANCE
    for task, stream in zip(tasks, streams, strict=True):
        assert relative(stream, tensors[f"y.{task}"]) <= TOLERANCE

    probes = torch.stack([tensors[f"probe.{task}"] for task in tasks])
    ((shared * tensors["probe"]).sum() + (streams * probes).sum()).backward()
    ours: dict[str, Tensor | None] = {
        "grad_x": x.grad,
        "grad.linear.weight": weight.grad,
        "grad.linear.bias": bias.grad,
    }
    assert update.tasks is not None
    assert update.tasks.A.grad is not None
    assert update.tasks.B.grad is not None
    for task, a, b in zip(
        tasks, update.tasks.A.grad.split(update.tasks.ranks), update.tasks.B.grad.split(update.tasks.ranks), strict=True
    ):
        ours[f"grad.lora_tasks_A.{task}"], ours[f"grad.lora_tasks_B.{task}"] = a, b.mT
    if task_x is not None:
        assert task_x.grad is not None
        ours |= {f"grad_x.{task}": grad for task, grad in zip(tasks, task_x.grad, strict=True)}
    if update.shared is not None:
        ours |= {"grad.lora_shared_A": update.shared.A.grad, "grad.lora_shared_B": update.shared.B.grad}
    if update.norm is not None:
        ours |= {"grad.lora_norm.weight": update.norm.weight.grad, "grad.lora_norm.bias": update.norm.bias.grad}
    assert set(ours) == {key for key in tensors if key.startswith("grad")}
    for name, grad in ours.items():
        assert grad is not None
        assert relative(grad, tensors[name]) <= TOLERANCE, name
