"""What balancing costs per training step: MTL-LoRA, whose shared parameters are few, beside full fine-tuning.

$ python benchmarks/balancing.py --size short                              # the demo's embedded tasks
$ python benchmarks/balancing.py --data-root data/glue --output benchmarks/results

Real batches of eight GLUE tasks on MiniLM. Timed are forward, backward and balancing of a step, without the update of
the optimiser, which is the same for all; ratios are to the plain sum of the same method on the same batch.
"""

from __future__ import annotations

import itertools
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from importlib import resources
from pathlib import Path
from typing import Any

import torch
from goals import print_table
from harness import Report, arguments, peak_bytes

ROOT = Path(__file__).resolve().parents[1]
PLAIN = "plain"
SPLIT_NOT = "pcgrad, one forward, a backward per task"
METHODS: dict[str, dict[str, Any] | None] = {
    PLAIN: None,
    "uw": {"method": "uw"},
    "famo": {"method": "famo"},
    "pcgrad": {"method": "pcgrad"},
    "mgda": {"method": "mgda"},
    "imtl_g": {"method": "imtl_g"},
    "cagrad": {"method": "cagrad", "c": 0.4},
    "upgrad": {"method": "upgrad"},
    "nash_mtl": {"method": "nash_mtl"},
    SPLIT_NOT: {"method": "pcgrad"},
}
TUNED = ("mtl_lora", "full_fine_tuning")


@dataclass(frozen=True)
class Size:
    """A recipe, how much of it, and how often it is timed."""

    glue: bool
    batch: int
    rounds: int
    methods: tuple[str, ...] = tuple(METHODS)


SIZES = {
    "tiny": Size(False, 4, 2, (PLAIN, "uw", "pcgrad", SPLIT_NOT)),
    "short": Size(False, 32, 5),
    "full": Size(True, 32, 15),
    "gpu": Size(True, 32, 30),
}


def recipe_of(size: Size, data_root: Path | None) -> Any:
    """Return the recipe: GLUE's, or the demo's, whose rows and model come with the packages."""
    from tasklora.training import load_recipe

    common = [f"training.batch_size={size.batch}", "model.head_dropout=0.0"]
    if size.glue:
        root = data_root or ROOT / "data" / "glue"
        limits = "tasks.limits={train: 300, tune: 10, validation: 10}"
        return load_recipe(ROOT / "recipes" / "glue.yaml", [f"tasks.data_root={root}", limits, *common])
    demo = resources.files("tasklora.demo")
    return load_recipe(Path(str(demo / "recipe.yaml")), [f"tasks.data_root={demo / 'data'}", *common])


class Steps:
    """One variant: a model shared with the other variants of its method, and a trainer of its own."""

    def __init__(self, work: Any, recipe: Any, name: str, directory: Path) -> None:
        from tasklora.training import RunDirectory
        from tasklora.training.recipes import changed
        from tasklora.training.run import training_arguments

        work.recipe = changed(recipe, {"training.balancing": METHODS[name]})
        self.trainer = work.trainer(training_arguments(work.recipe, RunDirectory(directory)), [])
        if name == SPLIT_NOT:
            self.trainer.split_by_task = lambda inputs: [inputs]
        self.batches = itertools.cycle(list(itertools.islice(self.trainer.get_train_dataloader(), 16)))

    def __call__(self) -> None:
        """Make the gradients of one step and drop them."""
        trainer = self.trainer
        trainer.accelerator.gradient_state._set_sync_gradients(True)
        (batch,), counts = trainer.get_batch_samples(iter([next(self.batches)]), 1, trainer.args.device)
        trainer.training_step(trainer.model, batch, counts)
        if trainer.balancer is not None:
            trainer.balancer.after_update()
        trainer.model.zero_grad()


def measure(report: Report, data_root: Path | None = None) -> None:
    """Time the variants of each method."""
    from tasklora.evaluation import count_parameters
    from tasklora.training import workload_of
    from tasklora.training.balancer import shared_parameters
    from tasklora.training.contenders import contender

    size = SIZES[report.size]
    recipe = recipe_of(size, data_root)
    for method in TUNED:
        of_method = contender(recipe, method)
        work = workload_of(of_method)
        work.load_data(["train", "tune"])
        work.prepare()
        setting = f"{method}, {of_method.suite().name} on MiniLM, {len(work.specs)} tasks, batch {size.batch}"
        with tempfile.TemporaryDirectory() as directory:
            variants = {name: Steps(work, of_method, name, Path(directory)) for name in size.methods}
            report.time(setting, variants, size.rounds)
            for name in size.methods[1:]:
                report.ratio(setting, "step", name, PLAIN)
            report.number(setting, "trained parameters", count_parameters(work.prepared.model).trainable, "")
            shared = sum(parameter.numel() for parameter in shared_parameters(work.prepared.model).values())
            report.number(setting, "… of them shared: columns of the Jacobian", shared, "")
            for name in (PLAIN, "pcgrad"):
                _count(report, setting, name, variants[name])


def _count(report: Report, setting: str, name: str, step: Callable[[], None]) -> None:
    counted = peak_bytes(partial(step), report.device)
    report.number(setting, f"peak bytes: {name}", counted.peak, "bytes")


def _main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--data-root", type=Path, help="folder with GLUE's TASK/train.jsonl; default data/glue")
    options = parser.parse_args()
    torch.manual_seed(0)
    report = Report("balancing", options.size, options.device)
    measure(report, options.data_root)
    print_table([report])
    if options.output:
        print(f"written: {report.write(options.output)}")


if __name__ == "__main__":
    _main()
