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
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from peft import get_peft_model
from safetensors import safe_open
from torch import Tensor, nn

from tasklora.tuner import METHODS, HydraLoraConfig, MoELoraConfig, MTLLoraConfig, MultiLoraConfig, TaskLoraConfig
from tasklora.updates import LowRankUpdate, TaskAssignment

REPOSITORY = Path(__file__).resolve().parents[2]
FOLDER = Path(os.environ.get("TASKLORA_GOLDEN", REPOSITORY.parent / "shared" / "golden"))
TOLERANCE = 1e-10


@dataclass(frozen=True)
class Reference:
    """How the golden files of a method map onto its update.

    Attributes:
        config_cls: the method's config.
        options: meta of a file → the config's options.
        parameters: parameter → its name in the file and what makes the file's layout ours.
    """

    config_cls: type[TaskLoraConfig]
    options: Callable[[dict[str, Any]], dict[str, Any]]
    parameters: dict[str, tuple[str, Callable[[Tensor], Tensor]]]


def same(tensor: Tensor) -> Tensor:
    return tensor


def out_first(tensor: Tensor) -> Tensor:
    return tensor.transpose(0, 1)  # (n, out, r) → (out, n, r)


def stacked(tensor: Tensor) -> Tensor:
    return tensor.flatten(0, 1)  # (n, r, in) → (n·r, in)


def side_by_side(tensor: Tensor) -> Tensor:
    return tensor.transpose(0, 1).flatten(1)  # (n, out, r) → (out, n·r)


def without_the_last_row(tensor: Tensor) -> Tensor:
    return tensor[:-1]  # the published MoELoRA keeps a row for "no task"


REFERENCES = {
    "mtl_lora_": Reference(
        MTLLoraConfig,
        lambda meta: {
            "up_projections": meta["n"],
            "temperature": meta["tau"],
            "task_matrix": "diagonal" if meta["diag"] else "full",
        },
        {
            "A": ("A", lambda a: a.reshape(a.shape[-2:])),
            "B": ("B", out_first),
            "Lambda": ("Lambda", same),
            "w": ("w", same),
        },
    ),
    "moe_lora": Reference(
        MoELoraConfig,
        lambda meta: {"experts": meta["n"], "task_embedding": meta["te"]},
        {
            "A": ("A", stacked),
            "B": ("B", side_by_side),
            "e": ("task_embedding", without_the_last_row),
            "G": ("gate", same),
        },
    ),
    "multi_lora": Reference(
        MultiLoraConfig,
        lambda meta: {"parallel_modules": meta["n"]},
        {"A": ("A", stacked), "B": ("B", out_first), "s": ("s", same)},
    ),
    "hydra_lora": Reference(
        HydraLoraConfig,
        lambda meta: {"up_projections": meta["n"]},
        {"A": ("A", same), "B": ("B", out_first), "R": ("route", same)},
    ),
}
"""File name prefix → reference. A new method adds an entry."""

ELSEWHERE = ("dense_metrics", "mtlora_linear_", "mtlora_swin_")
"""Prefixes of files with a test of their own beside this one."""


def check_linear(reference: Reference, meta: dict[str, Any], golden: dict[str, Tensor]) -> None:
    """Compare the bare update on top of a linear layer, and the layer that the tuner puts into a model."""
    method = next(method for method in METHODS.values() if method.config_cls is reference.config_cls)
    num_tasks = meta.get("T", 1)
    config = reference.config_cls(
        tasks=[f"task_{task}" for task in range(num_tasks)],
        r=meta["r"],
        lora_alpha=meta["alpha"],
        target_modules=["0"],
        **reference.options(meta),
    )

    update = method.update_cls(meta["i"], meta["o"], num_tasks, config).double()
    fill(update, reference, golden)
    ids = golden.get("task_ids")
    assignment = None if ids is None else TaskAssignment(ids=ids)
    compare(
        lambda x: F.linear(x, golden["W"], golden.get("b")) + update(x, assignment), update, reference, golden, "update"
    )

    model = nn.Sequential(nn.Linear(meta["i"], meta["o"], bias="b" in golden)).double()
    with torch.no_grad():
        model[0].weight.copy_(golden["W"])
        if "b" in golden:
            model[0].bias.copy_(golden["b"])
    peft_model = get_peft_model(model, config, autocast_adapter_dtype=False)
    tuned = peft_model.base_model.model[0].task_updates["default"]
    fill(tuned, reference, golden)
    compare(lambda x: peft_model(x, task_ids=ids), tuned, reference, golden, "layer")


def fill(update: LowRankUpdate, reference: Reference, golden: dict[str, Tensor]) -> None:
    assert {name for name, _ in update.named_parameters()} == set(reference.parameters)
    with torch.no_grad():
        for name, (theirs, layout) in reference.parameters.items():
            update.get_parameter(name).copy_(layout(golden[theirs]))


def compare(
    forward: Callable[[Tensor], Tensor],
    update: LowRankUpdate,
    reference: Reference,
    golden: dict[str, Tensor],
    by: str,
) -> None:
    x = golden["x"].clone().requires_grad_()
    y = forward(x)
    (y * golden["probe"]).sum().backward()
    pairs = {"y": (y.detach(), golden["y"]), "x": (x.grad, golden["grad_x"])}
    for name, (theirs, layout) in reference.parameters.items():
        pairs[name] = (update.get_parameter(name).grad, layout(golden[f"grad_{theirs}"]))
    seen = {"grad_x", *(f"grad_{theirs}" for theirs, _ in reference.parameters.values())}
    assert seen == {name for name in golden if name.startswith("grad_")}
    for name, (ours, published) in pairs.items():
        assert ours.dtype == published.dtype == torch.float64
        assert ours.shape == published.shape
        error = relative_error(ours, published)
        assert error <= TOLERANCE, f"{name} by the {by}: relative error {error:.1e}"


def relative_error(ours: Tensor, reference: Tensor) -> float:
    difference, scale = (ours - reference).abs().max(), reference.abs().max()
    return float(difference if scale == 0 else difference / scale)


def golden_files() -> list[Any]:
    files = sorted(FOLDER.glob("*.safetensors")) if FOLDER.is_dir() else []
    files = [file for file in files if not file.stem.startswith(ELSEWHERE)]
    if not files:
        reason = f"no golden files in {FOLDER} (set TASKLORA_GOLDEN to their folder)"
        return [pytest.param(None, marks=pytest.mark.skip(reason=reason), id="no-folder")]
    return [pytest.param(file, id=file.stem) for file in files]


@pytest.mark.parametrize("file", golden_files())
def test_golden(file: Path):
    reference = next((each for prefix, each in REFERENCES.items() if file.stem.startswith(prefix)), None)
    assert reference is not None, f"golden '{file.stem}' has no method"
    with safe_open(file, framework="pt") as handle:
        golden = {name: handle.get_tensor(name) for name in handle.keys()}  # noqa: SIM118
        check_linear(reference, json.loads(handle.metadata()["meta"]), golden)


def test_relative_error_can_fail():
    """The measure sees a difference of the size that the tolerance forbids."""
    reference = torch.linspace(-3, 2, 50, dtype=torch.float64)
    assert relative_error(reference, reference) == 0
    assert relative_error(reference + 1e-9, reference) > TOLERANCE
