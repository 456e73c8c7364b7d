"""The model card of a saved adapter: its tasks, what to install, how to load it, and the scores of its tasks."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import ModelCard

from tasklora.errors import UnknownTaskError, did_you_mean, listing
from tasklora.tuner.configs import TaskLoraConfig

CARD_FILE = "README.md"
LOADING = "## Loading this adapter"
SCORES = "## Scores"


@dataclass(frozen=True)
class CardScores:
    """Scores for a card.

    Attributes:
        split: what was scored, e.g. "validation".
        tasks: task → metric → value, None where it is undefined.
    """

    split: str
    tasks: Mapping[str, Mapping[str, float | None]]

    def check(self, tasks: Sequence[str]) -> None:
        """Raise UnknownTaskError if a score is of a task that is not among `tasks`."""
        for task in self.tasks:
            if task not in tasks:
                raise UnknownTaskError(
                    f"a score of task '{task}', which the adapter does not have.{did_you_mean(task, tasks)} "
                    f"It has: {listing(tasks)}."
                )

    def section(self) -> str:
        """Return the scores as a table."""
        rows = [
            f"| `{task}` | {metric} | {'undefined' if value is None else f'{value:.4f}'} |"
            for task, metrics in self.tasks.items()
            for metric, value in metrics.items()
        ]
        return "\n".join(
            [f"On the {self.split} rows of each task:", "", "| task | metric | value |", "| --- | --- | --- |", *rows]
        )


def read_tags(directory: str | Path) -> list[str]:
    """Return the tags of the card in `directory`, an empty list if there is none."""
    path = Path(directory) / CARD_FILE
    return list(ModelCard.load(path).data.tags or []) if path.is_file() else []


def update_card(
    directory: str | Path, config: TaskLoraConfig, tags: Sequence[str] = (), scores: CardScores | None = None
) -> None:
    """Put tags and the sections of an adapter into the card that PEFT wrote; what else the card says is kept.

    Args:
        directory: where the card is.
        config: the adapter's.
        tags: further tags to keep, e.g. those that were there before.
        scores: replace what the card says of scores; None leaves it.
    """
    path = Path(directory) / CARD_FILE
    card = ModelCard.load(path)
    own = ["tasklora", "multi-task", config.peft_type.value.lower()]
    known = {*(card.data.tags or []), *tags, *own} - {"base_model:adapter:"}  # PEFT's tag of a base without a name
    card.data.tags = sorted(known)
    card.data.base_model = card.data.base_model or config.base_model_name_or_path or None
    card.text = with_section(card.text, LOADING, _loading(config))
    if scores is not None:
        card.text = with_section(card.text, SCORES, scores.section())
    card.save(path)


def write_scores(directory: str | Path, scores: CardScores) -> None:
    """Put scores into the card of a saved adapter of any method; nothing happens where there is no card."""
    path = Path(directory) / CARD_FILE
    if path.is_file():
        card = ModelCard.load(path)
        card.text = with_section(card.text, SCORES, scores.section())
        card.save(path)


def with_section(text: str, heading: str, body: str) -> str:
    """Return a Markdown text whose section `heading` is `body`; it is appended if there is none."""
    section = f"{heading}\n\n{body.strip()}\n"
    pattern = re.compile(rf"^{re.escape(heading)}$.*?(?=^## |\Z)", re.MULTILINE | re.DOTALL)
    if pattern.search(text):
        return pattern.sub(lambda found: section + ("\n" if found.end() < len(text) else ""), text, count=1)
    return f"{text.rstrip()}\n\n{section}"


def _loading(config: TaskLoraConfig) -> str:
    base, tasks = config.base_model_name_or_path or "BASE", config.task_names
    call = f"model(**batch, task_ids={tasks[:2]!r})    # one task for each row" if tasks else "model(**batch)"
    return f"""
A {config.peft_type.value} adapter of tasklora, a PEFT extension for multi-task low-rank adaptation, on the base model
`{base}`, for the tasks {", ".join(f"`{name}`" for name in tasks) or "(none)"}.

PEFT knows the method once tasklora is installed (`pip install tasklora`) and imported; without that import, PEFT ends
with `KeyError: '{config.peft_type.value}'`.

```python
import tasklora
from peft import PeftModel

model = PeftModel.from_pretrained(base_model, "THIS_DIRECTORY")    # base_model: {base}
output = {call}
```
"""
