"""What ``tasklora demo vision`` does: several dense tasks on each image, three ways, and pictures of what came out."""

from __future__ import annotations

import sys
import time
from pathlib import Path

from rich.console import Console

from tasklora.demo.comparing import DEMO, compare_for_demo
from tasklora.training import load_recipe

COMMAND = "tasklora demo vision"
METHODS = ["decoders_only", "lora", "mtlora"]


def run_vision_demo(
    console: Console, output: Path, overwrite: bool = False, overrides: list[str] | None = None
) -> None:
    """Run the demo on images.

    Args:
        console: where to print.
        output: the comparison's directory.
        overwrite: replace any run or comparison that is there; a finished demo is replaced without it, an interrupted
            one is gone on with.
        overrides: changes to the demo's recipe.
    """
    started = time.perf_counter()
    recipe = load_recipe(DEMO / "vision.yaml", overrides)
    tasks = list(recipe.task_specs())
    console.rule(f"[bold]{COMMAND}", align="left")
    console.print(
        f"One frozen backbone ({recipe.model.name}: a Swin of 3.1 M weights that was pretrained to say what is in a "
        f"picture, never where), {len(tasks)} tasks on every image: {', '.join(tasks)}. Three ways to train it on the "
        "same rendered scenes: decoders alone, one LoRA that all tasks share, and MTLoRA, whose last block of each "
        "stage forks into a stream for each task.",
        highlight=False,
    )
    results, report = compare_for_demo(
        console,
        recipe,
        output,
        METHODS,
        baseline=METHODS[0],
        overwrite=overwrite,
        command=COMMAND,
        rows="images",
    )
    run = output / results.method(results.main).runs[0]
    program = sys.argv[0] if Path(sys.argv[0]).name == "tasklora" else "tasklora"
    console.print(
        f"Look at what each of them sees: [bold]{report}[/bold] (section 'Pictures')\n"
        f"Try: [bold]{program} predict {run} YOUR.jpg --out maps[/bold]  (it has seen rendered solids only)\n"
        f"[dim]{time.perf_counter() - started:.0f} s in all.[/dim]",
        highlight=False,
        soft_wrap=True,
    )
