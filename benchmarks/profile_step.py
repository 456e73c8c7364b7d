"""Where the time of a training step goes: self time by operation, of the frozen base alone and of an adapter on it.

$ python benchmarks/profile_step.py                                    # prints
$ python benchmarks/profile_step.py --output benchmarks/results        # what speed-profile.json was made with

A profiler slows small operations down more than large ones, so shares are what counts, not seconds.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

from harness import Report
from models import Setting
from torch.profiler import ProfilerActivity, profile
from training_step import steps_of

SETTINGS = (
    Setting("minilm", "fp32", 32, 64),
    Setting("llama-1024", "fp32", 8, 128),
    Setting("llama-256", "bf16", 8, 16),
)
NAMES = ("limit", "peft_lora", "mtl_lora")
STEPS, TOP = 3, 12


def shares(step: Callable[[], None]) -> list[tuple[str, float]]:
    """Return operation → share of the step's own CPU time in percent, largest first."""
    step()  # warm
    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        for _ in range(STEPS):
            step()
    events = profiler.key_averages()
    total = sum(event.self_cpu_time_total for event in events)
    by_share = sorted(((event.key, 100 * event.self_cpu_time_total / total) for event in events), key=lambda e: -e[1])
    return by_share[:TOP]


def measure(report: Report) -> None:
    """Profile each contender in each setting."""
    for setting in SETTINGS:
        for name, step in steps_of(setting, NAMES, "all-linear", report.device).items():
            for operation, share in shares(step):
                report.number(f"{setting}, {name}", operation, share, "%")


def main() -> None:
    """Print the shares, and keep them if asked to."""
    from goals import print_table

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, help="write speed-profile.json into this directory")
    options = parser.parse_args()
    report = Report("profile", "full")
    measure(report)
    print_table([report])
    if options.output:
        print(f"written: {report.write(options.output)}")


if __name__ == "__main__":
    main()
