"""Start of the command line; loading, saving and exporting adapters of 8 and of 1,000 tasks.

$ python benchmarks/start_and_files.py --size short
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

from harness import Report, Spread, main, peak_bytes
from models import base_model, contender, task_names

FEW, MANY = 8, 1000
_COMMAND_LINE = "from tasklora.cli import main; main()"  # what the console script does
STARTS = {
    "python -c pass": ["-c", "pass"],
    "import torch": ["-c", "import torch"],
    "import tasklora": ["-c", "import tasklora"],
    "import tasklora, a config": ["-c", "import tasklora; tasklora.MTLLoraConfig"],
    "tasklora --help": ["-c", _COMMAND_LINE, "--help"],
    "tasklora methods": ["-c", _COMMAND_LINE, "methods"],
}
# Size → (method → model, how many of the 1,000 tasks are exported, rounds).
SIZES = {
    "tiny": ({"mtl_lora": "llama-64"}, 3, 2),
    "short": ({"mtl_lora": "llama-256", "per_task_lora": "llama-64"}, 50, 3),
    "full": ({"mtl_lora": "llama-256", "per_task_lora": "llama-64"}, MANY, 5),
    "gpu": ({"mtl_lora": "minilm", "per_task_lora": "llama-64"}, MANY, 11),
}


def measure(report: Report) -> None:
    """Measure starts, then files."""
    models, exports, rounds = SIZES[report.size]
    measure_starts(report, rounds)
    for method, model in models.items():
        with tempfile.TemporaryDirectory() as directory:
            measure_files(report, method, model, rounds, Path(directory))
            measure_exports(report, method, model, exports, rounds, Path(directory))


def measure_starts(report: Report, rounds: int) -> None:
    """Measure how long processes take that only start."""
    variants = {
        name: partial(subprocess.run, [sys.executable, *arguments], stdout=subprocess.DEVNULL, check=True)
        for name, arguments in STARTS.items()
    }
    times = report.time("start", variants, rounds, warmup=1)
    for name in STARTS:
        report.number("start", name, Spread.of(times[name]), "s")
    report.ratio("start", "start", "tasklora methods", "import torch")


def measure_files(report: Report, method: str, model: str, rounds: int, directory: Path) -> None:
    """Measure saving and loading, beside writing and reading the same tensors with safetensors alone."""
    from peft import PeftModel
    from safetensors.torch import load_file, save_file

    where = f"{method}, {model}"
    made = {tasks: contender(method, model, "fp32", report.device, tasks, training=False) for tasks in (FEW, MANY)}
    variants: dict[str, Callable[[], object]] = {}
    size = {}
    for tasks, each in made.items():
        place, copy = directory / f"{tasks}", directory / f"{tasks}.safetensors"
        each.model.save_pretrained(place)
        file = place / "adapter_model.safetensors"
        size[tasks] = file.stat().st_size
        base = base_model(model, "fp32", report.device)
        variants[f"save, {tasks:,} tasks"] = partial(each.model.save_pretrained, place)
        variants[f"write, {tasks:,} tasks"] = partial(save_file, load_file(file), copy)
        variants[f"load, {tasks:,} tasks"] = partial(_load, PeftModel, base, place)
        variants[f"read, {tasks:,} tasks"] = partial(load_file, file)
    times = report.time(where, variants, rounds, warmup=1)
    for tasks in made:
        report.number(where, f"file, {tasks:,} tasks", size[tasks], "bytes")
    for what in ("load", "save", "read", "write"):
        few, many = (times[f"{what}, {tasks:,} tasks"] for tasks in (FEW, MANY))
        report.number(where, f"{what}, {FEW} tasks", Spread.of(few), "s")
        report.number(where, f"{what}, {MANY:,} tasks", Spread.of(many), "s")
        per_byte = Spread.of_ratios([t / size[MANY] for t in many], [t / size[FEW] for t in few])
        report.number(where, f"seconds per byte, {what}: {MANY:,} tasks / {FEW} tasks", per_byte)


def _load(peft_model: type, base: object, place: Path) -> None:
    """Load an adapter onto the base, and take it off again so that the base can serve the next round."""
    peft_model.from_pretrained(base, place).unload()


def measure_exports(report: Report, method: str, model: str, exports: int, rounds: int, directory: Path) -> None:
    """Measure exporting one task after the other: time and memory must be those of one task."""
    import tasklora

    where = f"{method}, {model}"
    made = {tasks: contender(method, model, "fp32", report.device, tasks, training=False) for tasks in (FEW, MANY)}

    def export(tasks: int, names: list[str]) -> None:
        for name in names:
            tasklora.export_lora(made[tasks].model, name, directory / "export", overwrite=True)

    variants = {f"export one of {tasks:,} tasks": partial(export, tasks, ["task5"]) for tasks in made}
    times = report.time(where, variants, rounds)
    for name in variants:
        report.number(where, name, Spread.of(times[name]), "s")
    report.ratio(where, "export", *reversed(list(variants)))
    one = peak_bytes(lambda: export(MANY, ["task5"]), report.device).peak
    all_of_them = peak_bytes(lambda: export(MANY, task_names(MANY)[:exports]), report.device).peak
    report.number(where, "peak bytes, export: all tasks / one task", all_of_them / one)
    report.number(where, f"peak bytes, export of {exports:,} tasks", all_of_them, "bytes")
    report.number(where, "file of one", (directory / "export" / "adapter_model.safetensors").stat().st_size, "bytes")
    shutil.rmtree(directory / "export")


if __name__ == "__main__":
    main("start_and_files", measure, __doc__)
