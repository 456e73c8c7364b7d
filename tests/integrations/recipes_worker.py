"""Trains the tiny recipes in several ways, as each of the processes of a group.

``recipes_worker.py PROJECT OUTPUT BATCH``, with the tasks in text under PROJECT/text: what every process is left with
is written to OUTPUT/WAY-RANK.json.
"""

import json
import os
import signal
import sys
from pathlib import Path

import datasets
import torch

from helpers_runs import SUITE, AtStep, Project, use_method
from tasklora.training import InterruptedRun, train_recipe

RANK = int(os.environ.get("RANK", "0"))
WAYS = {
    "accumulated": [
        use_method("per_task_lora"),
        "training.gradient_accumulation_steps=2",
        "training.gradient_checkpointing=true",
    ],
    "selected": ["training.selection=per_task", "training.evaluate_every=5", "training.early_stopping_patience=3"],
    "interrupted": ["training.logging_steps=4"],
    "streamed": ["tasks=STREAMED", "training.group_by_length=false", "training.epochs=3"],
    "uneven": ["training.mixing={epoch_rows: 34}", "training.epochs=3"],  # an epoch ends with a row for each
}
IN_TEXT = {
    "text": [],
    "packed": ["training.packing=true", "training.gradient_accumulation_steps=2"],
}


def streamed_tasks(tiny: Project) -> str:
    """Return the section of a recipe with one task that is streamed and one that is not."""
    define = {task: {**SUITE["tasks"][task], "files": str(tiny.data / task)} for task in ("mood", "heat")}
    define["mood"]["streaming"] = {"rows": 40, "buffer": 15}
    return json.dumps({"define": define})


def main(project: str, output: str, batch: str) -> None:
    """Train in each way."""
    torch.set_num_threads(1)
    datasets.disable_progress_bars()
    tiny, text = (
        Project(root, root / "base", root / "data", root / "suite.yaml", root / "recipe.yaml")
        for root in (Path(project), Path(project) / "text")
    )
    datasets.config.HF_DATASETS_CACHE = tiny.root / "cache"
    for way, given in {**WAYS, **IN_TEXT}.items():
        overrides = [override.replace("STREAMED", streamed_tasks(tiny)) for override in given]
        made = text if way in IN_TEXT else tiny
        recipe, run = made.load(f"training.batch_size={batch}", *overrides), Path(output) / way
        resume = False
        if way == "interrupted" and "WORLD_SIZE" in os.environ:
            stop = [AtStep(3, lambda **_: os.kill(os.getpid(), signal.SIGINT))]
            try:  # one process alone gets the signal
                train_recipe(recipe, run, command="test", callbacks=stop if RANK == 1 else [])
            except InterruptedRun as error:
                (Path(output) / f"said-{RANK}").write_text(str(error))
            resume = True
        results, prepared = train_recipe(recipe, run, command="test", resume=resume)
        sums = {name: float(p.double().sum()) for name, p in prepared.model.named_parameters() if p.requires_grad}
        said = {"scores": results.scores["validation"].model_dump(), "sums": sums}
        (Path(output) / f"{way}-{RANK}.json").write_text(json.dumps(said))


if __name__ == "__main__":
    main(*sys.argv[1:])
