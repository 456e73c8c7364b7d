"""What untrained embeddings know of pairs: ``python benchmarks/cosine_baseline.py RECIPE [section.key=value …]``.

The cosine of the base model's two embeddings of every pair that the recipe reports on, scored as it is (AUC, average
precision), and by F1 at the threshold that is best on these very rows: a bound, as no threshold is chosen elsewhere.
"""

import sys

import torch
from sklearn.metrics import average_precision_score, precision_recall_curve, roc_auc_score

from tasklora.tasks import load_base
from tasklora.training import Recipe, load_recipe, load_recipe_data


@torch.inference_mode()
def cosines(recipe: Recipe, pairs: list[list[str]]) -> torch.Tensor:
    """Return the cosine of the mean-pooled embeddings of both texts of each pair, (N,)."""
    base = load_base(recipe.model.name)
    base.model.eval()
    sides = []
    for texts in zip(*pairs, strict=True):
        embedded = []
        for start in range(0, len(texts), 32):
            batch = base.tokenizer(
                list(texts[start : start + 32]),
                truncation=True,
                max_length=recipe.model.max_length,
                padding=True,
                return_tensors="pt",
            )
            mask = batch["attention_mask"].unsqueeze(-1)
            hidden = base.model(**batch).last_hidden_state
            embedded.append((hidden * mask).sum(dim=1) / mask.sum(dim=1))
        sides.append(torch.cat(embedded))
    return torch.cosine_similarity(*sides)


def main(path: str, overrides: list[str]) -> None:
    """Print a line for each task."""
    recipe = load_recipe(path, overrides)
    split = recipe.tasks.report_on
    for name, rows in load_recipe_data(recipe, recipe.task_specs(), [split]).split(split).items():
        found, labels = cosines(recipe, list(rows.texts())).numpy(), rows.labels
        precision, recall, _ = precision_recall_curve(labels, found)
        best = (2 * precision * recall / (precision + recall).clip(min=1e-12)).max()
        always = 2 * labels.mean() / (1 + labels.mean())
        print(
            f"{name}: AUC {roc_auc_score(labels, found):.3f}, average precision "
            f"{average_precision_score(labels, found):.3f}, best F1 {best:.3f}, F1 of always matching {always:.3f}"
        )


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    main(sys.argv[1], sys.argv[2:])
