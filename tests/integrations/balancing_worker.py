"""Trains the tiny project with each way of balancing: ``balancing_worker.py PROJECT OUTPUT BATCH``."""

import os
import sys
from pathlib import Path

import torch

from helpers_runs import Project, randomise

WAYS = {
    "pcgrad": "{method: pcgrad}",
    "nash_mtl": "{method: nash_mtl}",
    "uw": "{method: uw}",
    "famo": "{method: famo}",
    "geometric_mean": "{method: geometric_mean}",
}


def main(project: str, output: str, batch: str) -> None:
    """Train and save what each way ends with."""
    torch.set_num_threads(1)
    root = Path(project)
    tiny = Project(root, root / "base", root / "data", root / "suite.yaml", root / "recipe.yaml")
    for way, balancing in WAYS.items():
        overrides = [f"training.balancing={balancing}", f"training.batch_size={batch}", "training.max_steps=4"]
        # Without groups of length a step has the same rows however many processes share it.
        overrides += ["training.evaluate_every=99", "training.group_by_length=false"]
        trainer = tiny.trainer(Path(output) / f"{way}-checkpoints", *overrides)
        randomise(trainer.model)
        trainer.train()
        state = {name: p.detach() for name, p in trainer.model.named_parameters() if p.requires_grad}
        logs = [record["loss"] for record in trainer.state.log_history if "loss" in record]
        rank = int(os.environ.get("RANK", "0"))
        torch.save({"state": state, "losses": logs}, Path(output) / f"{way}-{rank}.pt")


if __name__ == "__main__":
    main(*sys.argv[1:])
