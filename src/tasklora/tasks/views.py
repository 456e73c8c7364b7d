"""How a model sees tasks: with a head for each on an encoder, or as text in and text out.

A suite holds data only, so both views read the same one. A view is a name of :data:`VIEWS`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

from torch import nn

from tasklora.errors import ConfigError, listing
from tasklora.tasks.collate import MultiTaskCollator
from tasklora.tasks.data import TaskRows
from tasklora.tasks.heads import HEADS
from tasklora.tasks.model import MultiTaskModel
from tasklora.tasks.spec import TaskSpec
from tasklora.tasks.templates import Evaluation, Template
from tasklora.tasks.text_collate import TextToTextCollator
from tasklora.tasks.text_forms import check_text_task
from tasklora.tasks.text_to_text import TextToTextModel

if TYPE_CHECKING:
    from tasklora.tasks.saved_model import SavedModel

TaskModel: TypeAlias = MultiTaskModel | TextToTextModel
"""A model of either view."""

Collator: TypeAlias = MultiTaskCollator | TextToTextCollator
"""What makes its batches."""


@dataclass(frozen=True)
class View:
    """One way to see tasks.

    Attributes:
        architecture: the class of transformers that loads the base.
        task_type: PEFT's word for the base, which stands in an adapter's config; None for a bare encoder.
        trains_heads: whether there is something to train where the base is frozen.
        packs: whether several rows can go through the base in one sequence.
        model: (what a model is, its base with what is trained of it) → the model, with fresh heads if it has some.
        collator: (what a model is, the base's tokenizer) → what makes its batches.
        check_task: raises ConfigError if a task cannot be seen like this, or not with its template and evaluation.
        check_rows: raises DataError if rows cannot be written as the collator is to write them.
    """

    architecture: str
    task_type: str | None
    trains_heads: bool
    packs: bool
    model: Callable[[SavedModel, nn.Module], TaskModel]
    collator: Callable[[SavedModel, Any], Collator]
    check_task: Callable[[str, TaskSpec, Template | None, Evaluation], None]
    check_rows: Callable[[Any, TaskRows], None]

    def check_packing(self) -> None:
        """Raise ConfigError if rows cannot be packed."""
        if not self.packs:
            raise ConfigError(
                "training.packing is for model.view: text_to_text: a causal language model keeps the rows of a "
                "sequence apart by their position ids. Leave it out; training.group_by_length spares padding here."
            )


def _with_heads(about: SavedModel, encoder: nn.Module) -> MultiTaskModel:
    return MultiTaskModel(
        encoder, about.tasks, about.pair_encodings, about.hidden_size, about.pooling, about.head_dropout
    )


def _heads_collator(about: SavedModel, tokenizer: Any) -> MultiTaskCollator:
    return MultiTaskCollator(tokenizer, about.tasks, about.pair_encodings, about.max_length)


def _check_head(name: str, spec: TaskSpec, template: Template | None, evaluation: Evaluation) -> None:
    if spec.kind not in HEADS:
        raise ConfigError(
            f"task '{name}' is {spec.kind}, which has no head: heads are for {listing(HEADS)}. Take a causal language "
            "model, with model.view: text_to_text."
        )
    if template is not None:
        raise ConfigError(f"tasks.options.{name}.template is for model.view: text_to_text; a head reads no template.")


def _in_text(about: SavedModel, encoder: nn.Module) -> TextToTextModel:
    config: Any = getattr(encoder, "config", None)
    most = getattr(config, "max_position_embeddings", None)
    wanted = about.max_length + about.text().max_new_tokens
    if isinstance(most, int) and wanted > most:
        raise ConfigError(
            f"model.max_length {about.max_length} and model.max_new_tokens {about.text().max_new_tokens} are more than "
            f"the {most} positions that '{about.base}' has. Lower one of them."
        )
    return TextToTextModel(encoder, about.tasks)


def _text_collator(about: SavedModel, tokenizer: Any) -> TextToTextCollator:
    return TextToTextCollator(tokenizer, about.tasks, about.text(), about.max_length)


def _check_responses(collator: TextToTextCollator, rows: TaskRows) -> None:
    collator.check_responses(rows.name, rows)


VIEWS: dict[str, View] = {
    "heads": View(
        "AutoModel", None, True, False, _with_heads, _heads_collator, _check_head, lambda collator, rows: None
    ),
    "text_to_text": View(
        "AutoModelForCausalLM", "CAUSAL_LM", False, True, _in_text, _text_collator, check_text_task, _check_responses
    ),
}
