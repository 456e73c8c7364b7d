"""Writes the frozen adapters of the current format version: ``python tests/format/make_version.py``.

Run once per format version and method; afterwards the files only change together with the version.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import torch
from peft import get_peft_model
from safetensors.torch import save_file
from torch import nn

import tasklora
from tasklora.tuner import FORMAT_VERSION

HERE = Path(__file__).resolve().parent
TASKS = ["cola", "rte", "sst2"]


class TwoLayers(nn.Module):
    """A base small enough to be kept in a file."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(8, 6)
        self.second = nn.Linear(6, 4, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.second(torch.tanh(self.first(x)))


CONFIGS = {
    "mtl_lora_full": tasklora.MTLLoraConfig(tasks=TASKS, r=2, target_modules=["first", "second"]),
    "mtl_lora_diagonal": tasklora.MTLLoraConfig(
        tasks=TASKS, r=3, up_projections=2, task_matrix="diagonal", temperature=0.1, target_modules=["second"]
    ),
    "mtl_lora_more_tasks": tasklora.MTLLoraConfig(
        tasks=TASKS, r=2, up_projections=2, target_modules=["first", "second"]
    ),
    "ta_lora": tasklora.TALoraConfig(tasks=TASKS, r=2, r_shared=1, task_embedding=3, target_modules=["first"]),
    "multi_lora": tasklora.MultiLoraConfig(tasks=TASKS, r=2, parallel_modules=2, target_modules=["first", "second"]),
    "moe_lora": tasklora.MoELoraConfig(tasks=TASKS, r=4, experts=2, task_embedding=3, target_modules=["second"]),
    "hydra_lora": tasklora.HydraLoraConfig(r=2, up_projections=2, target_modules=["first", "second"]),
    "per_task_lora": tasklora.PerTaskLoraConfig(tasks=TASKS, r=2, lora_alpha=4, target_modules=["first", "second"]),
}


def vary(model: nn.Module) -> None:
    """Add random numbers to what is trained."""
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.3 * torch.randn_like(parameter))


def main() -> None:
    folder = HERE / f"v{FORMAT_VERSION}"
    if folder.exists():
        sys.exit(f"{folder.name} is frozen; raise FORMAT_VERSION for a new format.")
    for name, config in CONFIGS.items():
        torch.manual_seed(0)
        base = TwoLayers()
        target = folder / name
        target.mkdir(parents=True)
        save_file(base.state_dict(), target / "base.safetensors")
        model = get_peft_model(base, config)
        vary(model)
        if name.endswith("more_tasks"):
            tasklora.remove_tasks(model, ["cola"])
            tasklora.add_tasks(model, ["wnli", "qnli"])
            vary(model)
        x, ids = (
            torch.randn(6, 8),
            torch.tensor([3, 1, 2, 2, 1, 4] if name.endswith("more_tasks") else [0, 1, 2, 2, 1, 0]),
        )
        model.save_pretrained(target)
        (target / "README.md").unlink()
        save_file({"x": x, "task_ids": ids, "y": model(x, task_ids=ids).detach()}, target / "expected.safetensors")
    shutil.rmtree(folder / "__pycache__", ignore_errors=True)


if __name__ == "__main__":
    main()
