"""The goals of the benchmarks, as data, and the table that sets them beside what was measured."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from harness import Measurement, Report, Spread


@dataclass(frozen=True)
class Goal:
    """A bound on the median of a quantity, in the settings that a regex finds."""

    benchmark: str
    quantity: str
    where: str
    at_most: float | None = None
    at_least: float | None = None

    def __str__(self) -> str:
        return f"≤ {self.at_most:g}" if self.at_most is not None else f"≥ {self.at_least:g}"

    def met(self, value: float) -> bool:
        """Return whether a median is within the bound."""
        if self.at_most is not None:
            return value <= self.at_most
        return self.at_least is not None and value >= self.at_least


GOALS = (
    # 1. The training step, a mixed batch of 8 tasks.
    Goal("training_step", "step: mtl_lora / peft_lora", "fp32", at_most=1.00),
    Goal("training_step", "step: mtl_lora / peft_lora", "bf16", at_most=0.70),
    Goal("training_step", "step: mtl_lora / limit", "llama-(1024|2048)", at_most=1.10),
    Goal("training_step", "step: adapters / mtl_lora", "", at_least=1.7),
    # 2. Its memory.
    Goal("training_step", "peak bytes: mtl_lora / peft_lora", "fp32", at_most=1.02),
    Goal("training_step", "peak bytes: mtl_lora / peft_lora", "bf16", at_most=0.999),
    Goal("training_step", "peak bytes: mtl_lora / adapters", "", at_most=0.7),
    # 3. The number of tasks: forward and what it keeps for backward do not grow with it.
    Goal("task_count", "forward: T / T = 1", "", at_most=1.05),
    Goal("task_count", "bytes kept for backward: T / T = 1", "", at_most=1.05),
    # 4. Mixed-task inference.
    Goal("inference", "forward: peft_mixed / mtl_lora", "16 tasks", at_least=2.0),
    Goal("inference", "forward: peft_mixed / per_task_lora", "16 tasks", at_least=2.0),
    Goal("inference", "forward: mtl_lora / mtl_lora one task", "", at_most=1.10),
    Goal("inference", "forward: per_task_lora / per_task_lora one task", "", at_most=1.10),
    Goal("inference", "forward: merged / base", "", at_most=1.03),  # the same work: only noise may differ
    # 5. Packed rows.
    Goal("inference", "forward: mtl_lora per token / mtl_lora per row", "packed", at_most=1.10),
    Goal("inference", "forward: per_task_lora per token / per_task_lora per row", "packed", at_most=1.10),
    Goal("inference", "step: mtl_lora per token / mtl_lora per row", "packed", at_most=1.10),
    Goal("inference", "step: per_task_lora per token / per_task_lora per row", "packed", at_most=1.10),
    # 6. Generation; seconds for the same tokens, so that within 5 % of the base's speed is at most 1 / 0.95.
    Goal("inference", "generation: mtl_lora / base", "", at_most=1 / 0.95),
    # 7. Start, files, export.
    Goal("start_and_files", "tasklora --help", "", at_most=1.0),
    Goal("start_and_files", "seconds per byte, load: 1,000 tasks / 8 tasks", "", at_most=1.0),
    Goal("start_and_files", "seconds per byte, save: 1,000 tasks / 8 tasks", "", at_most=1.0),
    Goal("start_and_files", "peak bytes, export: all tasks / one task", "", at_most=1.01),
    # 8. Task streams through a vision transformer, with decoders.
    Goal("streams", "step: loop / streams", "", at_least=1.3),
    Goal("streams", "peak bytes: streams / loop", "", at_most=0.8),
    # 9. Rows of different lengths, each kind of model as it is trained.
    Goal("packing", "real tokens a second, times padded's: padded / length-grouped, buckets", "minilm", at_least=1.5),
    Goal("packing", "real tokens a second, times padded's: padded / packed", "llama", at_least=1.5),
)


def goal_of(benchmark: str, measurement: Measurement) -> Goal | None:
    """Return the goal of a measurement, None if it has none."""
    for goal in GOALS:
        same = goal.benchmark == benchmark and goal.quantity == measurement.quantity
        if same and re.search(goal.where, measurement.setting):
            return goal
    return None


def shown(value: Spread, unit: str) -> str:
    """Return a median as in tables, with its quartiles where it has any."""

    def number(x: float) -> str:
        if unit == "bytes":
            return f"{x / 1e6:,.2f} MB" if x >= 1e4 else f"{x:,.0f} B"
        return f"{x:,.0f}" if abs(x) >= 1000 else f"{x:.3g}" if unit != "×" else f"{x:.3f}"

    median = number(value.median) + ("" if unit in ("×", "bytes") else f" {unit}")
    return median if value.low == value.high else f"{median} [{number(value.low)}–{number(value.high)}]"


def print_table(reports: Sequence[Report]) -> None:
    """Print what was measured: the median [quartiles], beside the goal where there is one."""
    from rich.console import Console
    from rich.table import Table

    table = Table(title="medians [25–75 %] of ratios within interleaved rounds", title_justify="left")
    for column in ("benchmark", "setting", "quantity", "goal", "measured", ""):
        table.add_column(column, justify="right" if column in ("goal", "measured") else "left")
    for report in reports:
        for line in report.measurements:
            goal = goal_of(report.benchmark, line)
            verdict = "" if goal is None else "[green]met" if goal.met(line.value.median) else "[red]missed"
            said = shown(line.value, line.unit).replace("[", r"\[")
            table.add_row(report.benchmark, line.setting, line.quantity, str(goal or ""), said, verdict)
    console = Console()
    # A terminal's own width where there is one; a file gets lines that are not cut.
    (console if console.is_terminal else Console(width=190)).print(table)
