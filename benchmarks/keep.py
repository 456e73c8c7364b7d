"""Keeps the results of a finished run: ``python benchmarks/keep.py RUN NAME`` → benchmarks/results/NAME.json.

A result is kept only if it can be repeated: made at a known commit without local changes, by a command that names no
place of one machine.
"""

import sys
from pathlib import Path

from tasklora.errors import TaskLoraError
from tasklora.evaluation import RunResults

RESULTS = Path(__file__).resolve().parent / "results"


def main(run: str, name: str) -> None:
    """Check and copy the results of a run."""
    try:
        results = RunResults.read(Path(run) / "results.json")
    except TaskLoraError as error:
        sys.exit(f"error: {error}")
    if not results.commit or results.commit.endswith("+changes"):
        sys.exit(f"error: the run was made at commit {results.commit}: commit your changes and run it again.")
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
