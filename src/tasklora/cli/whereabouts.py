"""The last line of ``tasklora train``."""

from __future__ import annotations

from pathlib import Path

from tasklora.evaluation import RunResults
from tasklora.report import method_records
from tasklora.training import DenseRecipe, Recipe
from tasklora.training.contenders import METHODS_OF


def everything_in(directory: Path, recipe: Recipe | DenseRecipe, results: RunResults) -> str:
    """Return one line that says where everything of a finished run is, and what to do with it."""
    encoder = METHODS_OF[recipe.shape][recipe.method.name].encoder
    if isinstance(recipe, Recipe) and recipe.model.view == "text_to_text":
        kept = "adapter" if encoder == "adapter" else "model"
    else:
        heads = "decoders" if recipe.shape == "dense" else "heads"
        kept = {"adapter": f"adapter and {heads}", "frozen": heads}.get(encoder, f"encoder and {heads}")
    parts = [f"best/ ({kept})"]
    if results.per_task is not None:
        parts.append("best_per_task/ (each task's own)")
    parts += ["results.json", "report.html", "log.jsonl", "predictions.jsonl"]
    if "tensorboard" in recipe.training.report_to:
        parts.append("tensorboard/")
    if recipe.shape == "dense":
        then = f"predict: tasklora predict {directory} IMAGE --out DIR"
    elif recipe.method.name in _without_export():
        then = f"predict: tasklora predict {directory} TEXT --task {results.tasks[0]}"
    else:
        merged = "" if encoder == "adapter" else " --merged"
        then = f"export: tasklora export {directory} --task {results.tasks[0]}{merged} --to DIR"
    return f"everything is in {directory}: {', '.join(parts)}; {then}"


def _without_export() -> list[str]:
    """Return the methods that have neither a plain LoRA per task nor merged weights."""
    return [record["name"] for record in method_records() if not record["plain LoRA per task"]]
