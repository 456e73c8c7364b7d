"""Keeps the results of a finished run or comparison: ``python benchmarks/keep.py DIRECTORY NAME``.

They become benchmarks/results/NAME.json, and ``make docs`` writes the docs' tables and figures from there. A result is
kept only if it can be repeated: made at known commits without local changes, by a command that names no place of one
machine.
"""

import sys
from pathlib import Path

from tasklora.errors import TaskLoraError
from tasklora.evaluation import ComparisonResults, RunResults

RESULTS = Path(__file__).resolve().parent / "results"


def main(directory: str, name: str) -> None:
    """Check and copy the results."""
    path = Path(directory)
    results: RunResults | ComparisonResults
    try:
        if (path / "comparison.json").is_file():
            results = ComparisonResults.read(path / "results.json")
            runs = [trial.run for method in results.methods for trial in method.trials if not trial.failed]
            runs += [run for method in results.methods for run in method.runs]
            commits = {RunResults.read(path / run / "results.json").commit for run in runs}
        else:
            results = RunResults.read(path / "results.json")
            commits = {results.commit}
    except TaskLoraError as error:
        sys.exit(f"error: {error}")
    if None in commits or any(str(commit).endswith("+changes") for commit in commits):
        sys.exit(f"error: made at commit(s) {commits}: commit your changes and make it again.")
    absolute = [part for part in results.command.split() if Path(part.rpartition("=")[2]).is_absolute()]
    if absolute:
        sys.exit(f"error: the command names {absolute}: run it with relative paths.")
    target = RESULTS / f"{name}.json"
    RESULTS.mkdir(exist_ok=True)
    results.write(target)
    print(f"kept as {target.relative_to(RESULTS.parents[1])}; now run `make docs`")


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    main(*sys.argv[1:])
