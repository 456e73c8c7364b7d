"""What both demos begin with: compare methods, show the tables, write the report."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import resources
from pathlib import Path

from rich.console import Console

from tasklora.evaluation import ComparisonResults
from tasklora.report import comparison_tables
from tasklora.report.page import write_report
from tasklora.training import ComparisonDirectory, DenseRecipe, Recipe, compare_methods

DEMO = Path(str(resources.files("tasklora.demo")))


def compare_for_demo(
    console: Console,
    recipe: Recipe | DenseRecipe,
    output: Path,
    methods: Sequence[str],
    *,
    baseline: str | None = None,
    overwrite: bool = False,
    command: str,
    rows: str,
) -> tuple[ComparisonResults, Path]:
    """Compare methods with one seed and without a search, show the tables, write the report.

    Args:
        console: where to print.
        recipe: the demo's recipe.
        output: the comparison's directory.
        methods: what is compared.
        baseline: the method that others are measured against.
        overwrite: replace any run or comparison that is there; a finished demo of the same command is replaced without
            it, an interrupted one is gone on with.
        command: the demo's command line.
        rows: what scores are taken on, to say so.

    Returns:
        The results, and the report's file.
    """
    there = ComparisonDirectory(output)
    is_finished = there.results.is_file() and there.is_comparison and there.plan().command == command
    results = compare_methods(
        recipe,
        output,
        methods,
        [0],
        baseline=baseline,
        overwrite=overwrite or is_finished,
        command=command,
        console=console,
    )
    console.print()
    for table in comparison_tables(results):
        console.print(table)
    console.print(
        f"[dim]Intervals are over the held-out {rows}; this is one seed with one learning rate for all, so small "
        "differences mean nothing. docs/results.md has comparisons with seeds and a search.[/dim]\n",
        highlight=False,
    )
    with console.status("writing the report"):
        return results, write_report([there.path])
