"""The training step, forward and backward of one mixed batch of 8 tasks, beside its peers: seconds and peak bytes.

$ python benchmarks/training_step.py --size short
$ python benchmarks/training_step.py --size short --contender adapters   # only the peer of .venv-adapters

The package adapters needs an older transformers, so it runs in an environment of its own, .venv-adapters, beside
PEFT's LoRA; this process measures ours beside PEFT's LoRA on the same layers, and the two ratios are divided.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import torch
from harness import Report, Spread, arguments, peak_bytes
from models import ADAPTERS_TARGETS, Setting, contender

TASKS = 8
PEERS = ("limit", "peft_lora", "peft_poly", "per_sample_bmm", "mtl_lora", "per_task_lora")
RATIOS = (
    ("mtl_lora", "peft_lora"),
    ("mtl_lora", "limit"),
    ("peft_lora", "limit"),
    ("peft_poly", "mtl_lora"),
    ("per_sample_bmm", "mtl_lora"),
    ("per_task_lora", "peft_lora"),
)
# Size → settings and rounds. A CPU without bf16 instructions multiplies bf16 matrices a hundred times slower than
# fp32 ones, so those batches are small; a GPU wants larger ones.
SIZES = {
    "tiny": [(Setting("llama-64", "fp32", 8, 4), 3), (Setting("llama-64", "bf16", 8, 4), 3)],
    "short": [
        (Setting("minilm", "fp32", 16, 32), 9),
        (Setting("llama-256", "fp32", 8, 64), 9),
        (Setting("llama-1024", "fp32", 8, 16), 9),
        (Setting("llama-256", "bf16", 8, 16), 5),
    ],
    "full": [
        (Setting("minilm", "fp32", 32, 64), 9),
        (Setting("minilm", "fp32", 16, 32), 11),
        (Setting("llama-256", "fp32", 16, 128), 11),
        (Setting("llama-1024", "fp32", 8, 128), 7),
        (Setting("llama-2048", "fp32", 8, 64), 7),
        (Setting("llama-256", "bf16", 8, 16), 7),
        (Setting("llama-1024", "bf16", 8, 2), 3),
    ],
    "gpu": [
        (Setting(model, dtype, rows, length), 50)
        for model, rows, length in (
            ("minilm", 64, 128),
            ("llama-256", 32, 256),
            ("llama-1024", 32, 256),
            ("llama-2048", 32, 256),
        )
        for dtype in ("fp32", "bf16")
    ],
}
# The package adapters is measured on the larger batches only: its own environment takes long to start.
ADAPTERS_TOKENS = {"tiny": 0, "short": 0, "full": 1024, "gpu": 0}
PEER_PYTHON = Path(__file__).resolve().parents[1] / ".venv-adapters" / "bin" / "python"


def steps_of(setting: Setting, names: Sequence[str], targets: str, device: str) -> dict[str, Callable[[], None]]:
    """Return name → the training step of each contender, all on the same batch of mixed rows."""
    input_ids = setting.input_ids(device)
    task_ids = torch.arange(setting.rows, device=device) % TASKS
    contenders = {name: contender(name, setting.model, setting.dtype, device, TASKS, targets) for name in names}
    return {name: partial(made.step, input_ids, task_ids) for name, made in contenders.items()}


def measure(report: Report) -> None:
    """Measure all contenders in all settings, and the package adapters where its environment is there."""
    for setting, rounds in SIZES[report.size]:
        steps = steps_of(setting, PEERS, "all-linear", report.device)
        report.time(str(setting), steps, rounds)
        peaks = {name: peak_bytes(step, report.device).peak for name, step in steps.items()}
        for above, below in RATIOS:
            report.ratio(str(setting), "step", above, below)
        for above, below in RATIOS:
            report.number(str(setting), f"peak bytes: {above} / {below}", peaks[above] / peaks[below])
        report.number(str(setting), "peak bytes: mtl_lora", peaks["mtl_lora"], "bytes")
    if PEER_PYTHON.is_file():
        measure_adapters(report)
    else:
        print("training_step: the peer adapters is left out; it needs .venv-adapters", file=sys.stderr)


def measure_adapters(report: Report) -> None:
    """Compare with the package adapters, by way of PEFT's LoRA on the same layers in both processes.

    Its Λ_t is a diagonal (its full matrix does not construct in version 1.3.0), so ours is too; it adapts no attention
    output and no gate, so neither do we.
    """
    for setting, rounds in SIZES[report.size]:
        if setting.dtype != "fp32" or setting.rows * setting.length < ADAPTERS_TOKENS[report.size]:
            continue
        name = f"{setting}, diagonal Λ, the layers of adapters"
        steps = steps_of(setting, ("peft_lora", "mtl_lora_diagonal"), ADAPTERS_TARGETS, report.device)
        times = report.time(name, steps, rounds)
        peaks = {peer: peak_bytes(step, report.device).peak for peer, step in steps.items()}
        ours = Spread.of_ratios(times["mtl_lora_diagonal"], times["peft_lora"])
        peer = run_peer(setting, rounds, report.device)
        theirs = Spread.of_ratios(peer["times"]["adapters"], peer["times"]["peft_lora"])
        report.times[f"{name}, in .venv-adapters"] = peer["times"]
        report.number(name, "step: mtl_lora / peft_lora", ours)
        report.number(name, "step: adapters / peft_lora", theirs)
        report.number(name, "step: adapters / mtl_lora", theirs.over(ours))
        our_bytes = peaks["mtl_lora_diagonal"] / peaks["peft_lora"]
        their_bytes = peer["peak_bytes"]["adapters"] / peer["peak_bytes"]["peft_lora"]
        report.number(name, "peak bytes: adapters / peft_lora", their_bytes)
        report.number(name, "peak bytes: mtl_lora / adapters", our_bytes / their_bytes)


def run_peer(setting: Setting, rounds: int, device: str) -> dict:
    """Run adapters_peer.py in its own environment with as many threads as here, and return what it printed."""
    shape = [setting.model, setting.dtype, setting.rows, setting.length]
    options = [TASKS, rounds, torch.get_num_threads(), device]
    command = [PEER_PYTHON, Path(__file__).with_name("adapters_peer.py"), *shape, *options]
    done = subprocess.run([str(part) for part in command], stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def _main() -> None:
    from goals import print_table

    parser = arguments(__doc__)
    parser.add_argument("--contender", choices=("all", "adapters"), default="all", help="whom to measure against")
    options = parser.parse_args()
    report = Report("training_step", options.size, options.device)
    if options.contender == "adapters" and not PEER_PYTHON.is_file():
        sys.exit(f"error: {PEER_PYTHON} is missing.")
    (measure_adapters if options.contender == "adapters" else measure)(report)
    print_table([report])
    if options.output:
        print(f"written: {report.write(options.output)}")


if __name__ == "__main__":
    _main()
