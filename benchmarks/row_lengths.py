"""Counts the tokens of the rows of suites, whose lengths benchmarks/packing.py draws from; keeps quantiles, no rows.

$ python benchmarks/row_lengths.py glue=DIRECTORY commonsense=DIRECTORY    # folders with TASK/SPLIT.jsonl

A row is what the encoder reads as one: a text, a pair with its separator, a question with one of its choices. Tokens
are those of all-MiniLM-L6-v2, at most 512 a row.
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import numpy as np

from tasklora.evaluation.results import write_text_whole
from tasklora.tasks import MINILM, MultiTaskCollator, load_base, load_suite, load_tasks

KEPT = Path(__file__).with_name("row_lengths.json")
ROWS, LONGEST, SEED = 1000, 512, 0


def row_lengths(suite: str, data_root: str) -> dict[str, list[int]]:
    """Return task → the percentiles 0, 1, …, 100 of the tokens of its training rows."""
    specs = load_suite(suite).select(None)
    collator = MultiTaskCollator(load_base(MINILM).tokenizer, specs, dict.fromkeys(specs, "joint"), LONGEST)
    percentiles = {}
    for task, rows in load_tasks(specs, ["train"], data_root, {"train": ROWS}, SEED).split("train").items():
        batch = collator([{"task": task, **row} for row in rows])
        counts = batch["attention_mask"].sum(dim=1).numpy()
        percentiles[task] = np.percentile(counts, range(101), method="inverted_cdf").astype(int).tolist()
        print(f"{suite} {task}: {len(counts)} rows, median {percentiles[task][50]}, longest {percentiles[task][-1]}")
    return percentiles


def main(suites: dict[str, str]) -> None:
    """Write the file."""
    found = {suite: row_lengths(suite, data_root) for suite, data_root in suites.items()}
    about = {"tokenizer": MINILM, "rows": f"{ROWS} of train at most", "longest": LONGEST, "percentiles": found}
    # A line for each task: a change of one is seen as one.
    text = json.dumps(about, indent=1)
    text = re.sub(r"\[[^][]*\]", lambda counts: " ".join(counts[0].split()), text)
    write_text_whole(KEPT, text + "\n")


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    main(dict(argument.split("=", 1) for argument in sys.argv[1:]))
