"""Parity with the published reference implementations: one test per golden file.

Facts: the output y and every gradient of sum(y * probe) equal the reference's numbers, computed once by the bare
update and once through the layer that the tuner puts into a model. Sizes and hyperparameters come from each file.

Relative error of a tensor is the largest absolute difference divided by the largest absolute reference value:

    max |ours - reference| / max |reference|        (the difference itself where the reference is all zero)

The golden folder is named by TASKLORA_GOLDEN, by default ``../shared/golden`` beside the repository.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from peft import get_peft_model
from safetensors import safe_open
from torch import Tensor, nn

from tasklora.tuner import MTLLoraConfig
from tasklora.updates import MTLLora, MTLLoraOptions, TaskAssignment

REPOSITORY = Path(__file__).resolve().parents[2]
FOLDER = Path(os.environ.get("TASKLORA_GOLDEN", REPOSITORY.parent / "shared" / "golden"))
TOLERANCE = 1e-10


def check_mtl_lora(meta: dict[str, Any], golden: dict[str, Tensor]) -> None:
    options = {
        "r": meta["r"],
        "lora_alpha": meta["alpha"],
        "up_projections": meta["n"],
        "temperature": meta["tau"],
        "task_matrix": "diagonal" if meta["diag"] else "full",
    }

    # The bare update on top of a linear layer.
    update = MTLLora(meta["i"], meta["o"], meta["T"], MTLLoraOptions(**options)).double()
    copy_mtl_lora(update, golden)
    assignment = TaskAssignment(ids=golden["task_ids"])
    compare_mtl_lora(
        lambda x: F.linear(x, golden["W"], golden.get("b")) + update(x, assignment), update, golden, "update"
    )

    # The same through the tuner.
    model = nn.Sequential(nn.Linear(meta["i"], meta["o"], bias=meta["bias"])).double()
    with torch.no_grad():
        model[0].weight.copy_(golden["W"])
        if meta["bias"]:
            model[0].bias.copy_(golden["b"])
    config = MTLLoraConfig(tasks=[f"task_{t}" for t in range(meta["T"])], target_modules=["0"], **options)
    peft_model = get_peft_model(model, config, autocast_adapter_dtype=False)
    tuned = peft_model.base_model.model[0].task_updates["default"]
    copy_mtl_lora(tuned, golden)
    compare_mtl_lora(lambda x: peft_model(x, task_ids=golden["task_ids"]), tuned, golden, "layer")


def copy_mtl_lora(update: MTLLora, golden: dict[str, Tensor]) -> None:
    with torch.no_grad():
        update.A.copy_(golden["A"].reshape(update.A.shape))
        update.B.copy_(golden["B"].transpose(0, 1))  # (n, out, r) → (out, n, r)
        update.Lambda.copy_(golden["Lambda"])
        update.w.copy_(golden["w"])


def compare_mtl_lora(forward: Callable[[Tensor], Tensor], update: MTLLora, golden: dict[str, Tensor], by: str) -> None:
    x = golden["x"].clone().requires_grad_()
    y = forward(x)
    (y * golden["probe"]).sum().backward()
    gradients = {
        "grad_x": x.grad,
        "grad_A": update.A.grad.reshape(golden["grad_A"].shape),
        "grad_B": update.B.grad.transpose(0, 1),  # (out, n, r) → (n, out, r)
        "grad_Lambda": update.Lambda.grad,
        "grad_w": update.w.grad,
    }
    assert set(gradients) == {name for name in golden if name.startswith("grad_")}
    for name, ours in {"y": y.detach(), **gradients}.items():
        assert ours.dtype == golden[name].dtype == torch.float64
        assert ours.shape == golden[name].shape
        error = relative_error(ours, golden[name])
        assert error <= TOLERANCE, f"{name} by the {by}: relative error {error:.1e}"


def relative_error(ours: Tensor, reference: Tensor) -> float:
    difference, scale = (ours - reference).abs().max(), reference.abs().max()
    return float(difference if scale == 0 else difference / scale)


CHECKS: dict[str, Callable[[dict[str, Any], dict[str, Tensor]], None]] = {"mtl_lora_": check_mtl_lora}
"""File name prefix → check. A new method adds a line."""


def golden_files() -> list[Any]:
    files = sorted(FOLDER.glob("*.safetensors")) if FOLDER.is_dir() else []
    if not files:
        reason = f"no golden files in {FOLDER} (set TASKLORA_GOLDEN to their folder)"
        return [pytest.param(None, marks=pytest.mark.skip(reason=reason), id="no-folder")]
    return [pytest.param(file, id=file.stem) for file in files]


@pytest.mark.parametrize("file", golden_files())
def test_golden(file: Path):
    check = next((check for prefix, check in CHECKS.items() if file.stem.startswith(prefix)), None)
    if check is None:
        pytest.skip(f"golden '{file.stem}': its method does not exist yet")
    with safe_open(file, framework="pt") as handle:
        check(json.loads(handle.metadata()["meta"]), {name: handle.get_tensor(name) for name in handle.keys()})  # noqa: SIM118


def test_relative_error_can_fail():
    """The measure sees a difference of the size that the tolerance forbids."""
    reference = torch.linspace(-3, 2, 50, dtype=torch.float64)
    assert relative_error(reference, reference) == 0
    assert relative_error(reference + 1e-9, reference) > TOLERANCE
