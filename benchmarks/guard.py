"""Guards the speed in CI: ratios beside the kept ones, with bounds so generous that only a real loss crosses them.

$ python benchmarks/guard.py           # measures, prints, and fails where a ratio is far above the kept one
$ python benchmarks/guard.py --keep    # what benchmarks/results/speed-guard.json was made with

Times of a shared machine jump, so a ratio may be half as large again as the kept one, and one that is above is
measured once more; bytes are counted exactly and may be two percent larger.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import torch
from harness import Measurement, Report, Spread, peak_bytes
from inference import MIXED_TASKS, peft_adapters, without_gradients
from models import Setting, contender
from training_step import steps_of

KEPT = Path(__file__).resolve().parent / "results" / "speed-guard.json"
STEP, MIXED = Setting("minilm", "fp32", 16, 32), Setting("minilm", "fp32", 16, 16)
TIME_BOUND, BYTES_BOUND = 1.5, 1.02
ROUNDS = 9


def measure() -> Report:
    """Measure every guarded ratio; smaller is better in all of them."""
    report = Report("guard", "short")
    steps = steps_of(STEP, ("limit", "peft_lora", "mtl_lora", "per_task_lora"), "all-linear", "cpu")
    report.time(str(STEP), steps, ROUNDS)
    peaks = {name: peak_bytes(step).peak for name, step in steps.items()}
    for name in ("mtl_lora", "per_task_lora"):
        report.ratio(str(STEP), "step", name, "peft_lora")
        report.ratio(str(STEP), "step", name, "limit")
        report.number(str(STEP), f"peak bytes: {name} / peft_lora", peaks[name] / peaks["peft_lora"])
    ids = torch.arange(MIXED.rows)
    ours = contender("mtl_lora", MIXED.model, MIXED.dtype, "cpu", MIXED_TASKS, training=False)
    peft, input_ids = peft_adapters(MIXED, "cpu"), MIXED.input_ids("cpu")
    names = [f"task{index}" for index in ids.tolist()]
    where = f"{MIXED}, {MIXED.rows} tasks"
    variants = {
        "mtl_lora": without_gradients(lambda: ours.call(input_ids, ids)),
        "peft_mixed": without_gradients(lambda: peft(input_ids=input_ids, adapter_names=names)),
    }
    report.time(where, variants, ROUNDS)
    report.ratio(where, "forward", "mtl_lora", "peft_mixed")
    return report


def bound_of(measurement: Measurement, kept: float) -> float:
    """Return how large a ratio may be."""
    return kept * (BYTES_BOUND if "bytes" in measurement.quantity else TIME_BOUND)


def too_large(report: Report, kept: dict[tuple[str, str], Spread]) -> list[str]:
    """Print every ratio beside the kept one, and return those that are too large."""
    wrong = []
    for line in report.measurements:
        before = kept[line.setting, line.quantity].median
        bound = bound_of(line, before)
        said = f"{line.setting}: {line.quantity}: {line.value.median:.3f}, kept {before:.3f}, at most {bound:.3f}"
        print(said)
        if line.value.median > bound:
            wrong.append(said)
    return wrong


def main() -> None:
    """Compare with what is kept, or keep."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--keep", action="store_true", help="write the ratios instead of comparing them")
    options = parser.parse_args()
    report = measure()
    if options.keep:
        print(f"written: {report.write(KEPT.parent)}")
        return
    data = json.loads(KEPT.read_text(encoding="utf-8"))
    kept = {(line["setting"], line["quantity"]): Spread(**line["value"]) for line in data["measurements"]}
    if too_large(report, kept):
        print("measured once more:")
        if too_large(measure(), kept):
            sys.exit("error: slower, or larger, than what is kept by far. If that is meant, keep the new ratios.")


if __name__ == "__main__":
    main()
