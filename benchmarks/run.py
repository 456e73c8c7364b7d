"""Runs the benchmarks of speed and memory and prints one table: goal, measured, met or missed.

$ python benchmarks/run.py --short                               # at most 10 minutes on two cores
$ python benchmarks/run.py --output benchmarks/results           # the full run, kept: speed-NAME.json
$ python benchmarks/run.py --only training_step --size tiny      # only shows that it runs
"""

from __future__ import annotations

import sys
import time

import inference
import packing
import start_and_files
import streams
import task_count
import training_step
from goals import print_table
from harness import Report, arguments

BENCHMARKS = {
    "training_step": training_step.measure,
    "task_count": task_count.measure,
    "inference": inference.measure,
    "start_and_files": start_and_files.measure,
    "streams": streams.measure,
    "packing": packing.measure,
}


def main() -> None:
    """Run the benchmarks that were asked for."""
    parser = arguments(__doc__)
    parser.add_argument("--short", dest="size", action="store_const", const="short", help="the same as --size short")
    parser.add_argument("--only", nargs="+", choices=BENCHMARKS, default=list(BENCHMARKS), help="which; default all")
    options = parser.parse_args()
    begin = time.perf_counter()
    reports = []
    for name in options.only:
        report = Report(name, options.size, options.device)
        BENCHMARKS[name](report)
        if options.output:
            report.write(options.output)  # each as soon as it is there: a later one may fail
        reports.append(report)
    print_table(reports)
    print(f"{time.perf_counter() - begin:.0f} s", file=sys.stderr)
    if options.output:
        print(f"written: {', '.join(f'speed-{name}.json' for name in options.only)} in {options.output}")


if __name__ == "__main__":
    main()
