"""Trains recipes in several ways, as each of the processes of a group, which may shard the model.

``sharded_worker.py ROOT OUTPUT BATCH``: ROOT holds the tiny projects of :func:`save_projects`; every way's run is
OUTPUT/WAY, and what a process is left with is written to OUTPUT/WAY-RANK.json.
"""

import json
import os
import signal
import sys
from pathlib import Path

import datasets
import torch

from helpers_runs import AtStep, _project, use_method
from helpers_text import _text_project, save_decoder
from tasklora.training import InterruptedRun, load_recipe, train_recipe
from tasklora.tuner.sharding import is_shard, is_sharded, reshard

RANK = int(os.environ.get("RANK", "0"))
SHARDED = os.environ.get("ACCELERATE_USE_FSDP") == "true"
FEW = ["training.max_steps=8", "training.evaluate_every=4"]
FEW_TEXTS = [*FEW, "tasks.limits={train: 16, tune: 4, validation: 6}"]
# way → project, its settings
WAYS = {
    "decayed": ("tiny", [use_method("mtl_lora"), "training.weight_decay=0.5", "training.max_steps=20"]),
    "accumulated": (
        "tiny",
        [
            use_method("per_task_lora"),
            "training.gradient_accumulation_steps=2",
            "training.gradient_checkpointing=true",
        ],
    ),
    "selected": ("tiny", [*FEW, "training.selection=per_task", "training.early_stopping_patience=3"]),
    "interrupted": ("tiny", [use_method("hydra_lora"), "training.logging_steps=4"]),
    "plain_lora": ("tiny", [*FEW, use_method("lora")]),
    "full": ("tiny", [*FEW, use_method("full_fine_tuning"), "training.learning_rate=0.001"]),
    "half_base": ("tiny", [*FEW, "model.dtype=bfloat16"]),
    "autocast": ("tiny", [*FEW, "training.precision=bfloat16"]),
    "extended": ("tiny", []),
    "likelihood": ("text", FEW_TEXTS),
    "tied": ("text", FEW_TEXTS),
}
COARSE = {"half_base", "autocast"}  # rounded to bfloat16 in other places


def save_projects(root: Path) -> None:
    """Write the projects that the ways train."""
    for name, make in (("tiny", _project), ("text", _text_project)):
        (root / name).mkdir(parents=True)
        make(root / name)
    save_decoder(root / "tied", tie_word_embeddings=True)


def settings(way: str, root: Path, output: Path, batch: int) -> list[str]:
    """Return the settings of a way, those that depend on where and by how many it is run too."""
    own = {
        "decayed": [f"training.batch_size={batch // 4}"],  # so few rows that steps lack tasks
        "tied": [f"model.name={root / 'tied'}"],
        "extended": [f"extends={output / 'parent'}", "tasks.include=[heat]"],
    }
    return [f"training.batch_size={batch}", *own.get(way, []), *WAYS[way][1]]


def train(way: str, root: Path, output: Path, batch: int) -> None:
    """Train in a way, and write what this process is left with."""
    recipe = load_recipe(root / WAYS[way][0] / "recipe.yaml", settings(way, root, output, batch))
    run, resume = output / way, False
    if way == "extended":
        train_recipe(
            load_recipe(
                root / "tiny/recipe.yaml", [f"training.batch_size={batch}", *FEW, "tasks.include=[mood, answer]"]
            ),
            output / "parent",
            command="test",
        )
    if way == "interrupted" and "WORLD_SIZE" in os.environ:
        stop = [AtStep(3, lambda **_: os.kill(os.getpid(), signal.SIGINT))]
        try:  # one process alone gets the signal
            train_recipe(recipe, run, command="test", callbacks=stop if RANK == 1 else [])
        except InterruptedRun as error:
            (output / f"said-{RANK}").write_text(str(error))
        resume = True
    results, prepared = train_recipe(recipe, run, command="test", resume=resume)
    reshard(prepared.model)
    shards = {name: is_shard(parameter) for name, parameter in prepared.model.named_parameters()}
    assert all(shards.values()) if SHARDED else not any(shards.values())
    layers = [m for m in prepared.model.modules() if type(m).__name__.endswith(("BertLayer", "LlamaDecoderLayer"))]
    assert len(layers) == 2
    said = {"scores": results.scores["validation"].model_dump(), "sharded_layers": sum(map(is_sharded, layers))}
    (output / f"{way}-{RANK}.json").write_text(json.dumps(said))


def main(root: str, output: str, batch: str, ways: str) -> None:
    """Train in each way."""
    torch.set_num_threads(1)
    datasets.disable_progress_bars()
    datasets.config.HF_DATASETS_CACHE = Path(root) / "cache"
    for way in ways.split(","):
        train(way, Path(root), Path(output), int(batch))


if __name__ == "__main__":
    main(*sys.argv[1:])
