"""Rows of any tasks → prompts and responses in tokens, padded.

A response is learned with the end of sequence after it. Its tokens are those that follow the prompt's where both are
tokenised together; where the prompt's tokens are then others than alone, those of the response alone: so the model is
trained after exactly the tokens that it is asked with (after fewer of them where a prompt has to be cut: a response
takes its room).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tasklora.errors import ConfigError, DataError
from tasklora.tasks.kinds import WrongValueError
from tasklora.tasks.packing import IGNORED
from tasklora.tasks.spec import TaskSpec
from tasklora.tasks.templates import TextToText
from tasklora.tasks.text_forms import TEXT_FORMS


@dataclass(frozen=True)
class Asked:
    """One row as tokens.

    Attributes:
        prompt: its tokens.
        responses: tokens of what may follow, each with the end of sequence.
    """

    prompt: list[int]
    responses: list[list[int]]


class TextToTextCollator:
    """Writes rows by their tasks' templates, tokenises and pads them.

    A prompt that is too long loses its beginning (after a token that begins the sequence): the question stands at its
    end. A response is never cut.

    Padding is masked and never learned, so it may be any token; where a tokenizer has none for it, as LLaMA's, the end
    of sequence stands there. The end that is learned is a token of its own, told apart from padding by its place.

    Args:
        tokenizer: a tokenizer with an end of sequence.
        specs: task name → task, in the order of the task ids.
        text: the tasks' templates, and how they are evaluated.
        max_length: most tokens of prompt and response together.

    Raises:
        ConfigError: if the tokenizer has no end of sequence.

    Returns (when called with rows ``{"task", "texts", "label", "columns"}``):
        ``input_ids``, ``attention_mask``: (N, L), padded on the right;
        ``targets`` (N, L): the token that follows each one where it is the response's, else −100;
        ``task_ids`` (N,); ``response_tokens`` (N,): how many targets each row has.
    """

    def __init__(self, tokenizer: Any, specs: Mapping[str, TaskSpec], text: TextToText, max_length: int) -> None:
        if tokenizer.eos_token_id is None:
            raise ConfigError(
                "the tokenizer has no end of sequence (eos_token), so a model could not learn where a response ends. "
                "Set one and save it with the model."
            )
        self.tokenizer = tokenizer
        self.specs = dict(specs)
        self.text = text
        self.max_length = max_length
        self._ids = {name: index for index, name in enumerate(self.specs)}

    @property
    def pad_token_id(self) -> int:
        """The token that stands where there is nothing; see the class."""
        pad = self.tokenizer.pad_token_id
        return int(self.tokenizer.eos_token_id if pad is None else pad)

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
        """Return the batch of `rows`; see the class."""
        asked = [self.asked(row) for row in rows]
        ids = [self._ids[row["task"]] for row in rows]
        return self.batch([(one.prompt, one.responses[0], task) for one, task in zip(asked, ids, strict=True)])

    def options(self, row: Mapping[str, Any]) -> list[str]:
        """Return the names of a row's options; see :class:`~tasklora.tasks.text_forms.TextForm`."""
        spec, template = self.specs[row["task"]], self.text.templates[row["task"]]
        options: list[str] = self._of_row(row, TEXT_FORMS[spec.kind].options, spec, template)
        return options

    def asked(self, row: Mapping[str, Any], answers: Sequence[str] | None = None) -> Asked:
        """Return a row's prompt and responses in tokens.

        Args:
            row: the row.
            answers: what is responded; the row's own answer by default. The prompt leaves room for the longest.

        Raises:
            DataError: if a response does not fit in, or has no tokens.
        """
        spec, template = self.specs[row["task"]], self.text.templates[row["task"]]
        if answers is None:
            answers = [TEXT_FORMS[spec.kind].answer(spec, self.options(row), row["label"])]
        text = self._of_row(row, TEXT_FORMS[spec.kind].prompt, spec, template)
        prompt = self._tokens(text)
        responses = [self.response_tokens(text, prompt, template.respond(answer), row["task"]) for answer in answers]
        return Asked(self._cut(prompt, self.max_length - max(map(len, responses))), responses)

    def prompt(self, row: Mapping[str, Any]) -> list[int]:
        """Return a row's prompt in tokens, to generate after."""
        spec, template = self.specs[row["task"]], self.text.templates[row["task"]]
        return self._cut(self._tokens(self._of_row(row, TEXT_FORMS[spec.kind].prompt, spec, template)), self.max_length)

    def response_tokens(self, text: str, prompt: list[int], response: str, task: str) -> list[int]:
        """Return a response's tokens after a prompt, with the end of sequence.

        Args:
            text: the prompt.
            prompt: its tokens.
            response: the response.
            task: its task, for the error.

        Raises:
            DataError: if it has no tokens, or leaves no room for a prompt.
        """
        both = self._tokens(text + response)
        if both[: len(prompt)] == prompt:
            tokens = both[len(prompt) :]
        else:
            tokens = list(self.tokenizer(response, add_special_tokens=False)["input_ids"])
        if not tokens:
            raise DataError(f"task '{task}': the response {response!r} has no tokens.")
        tokens = [*tokens, int(self.tokenizer.eos_token_id)]
        if len(tokens) + 2 > self.max_length:
            raise DataError(
                f"task '{task}': a response of {len(tokens)} tokens leaves no room for its prompt: model.max_length is "
                f"{self.max_length}. Responses are never cut: raise max_length, or leave out the row. It begins "
                f"{response[:60]!r}."
            )
        return tokens

    def check_responses(self, task: str, rows: Any) -> None:
        """Raise DataError if a row cannot be written, or what may be responded is too long; see :meth:`asked`."""
        for row in rows:
            row = {**row, "task": task}
            spec, template = self.specs[task], self.text.templates[task]
            options = self.options(row)  # all of them are scored
            text = self._of_row(row, TEXT_FORMS[spec.kind].prompt, spec, template)
            for answer in options or [TEXT_FORMS[spec.kind].answer(spec, options, row["label"])]:
                response = template.respond(answer)
                if len(response.encode()) + 4 > self.max_length:  # a token has a byte or more
                    self.response_tokens(text, self._tokens(text), response, task)

    def batch(self, sequences: Sequence[tuple[list[int], list[int], int]]) -> dict[str, Tensor]:
        """Return the batch of (prompt, response, task id); see the class."""
        tokens = [[*prompt, *response] for prompt, response, _ in sequences]
        batch = self.padded(tokens)
        targets = torch.full_like(batch["input_ids"], IGNORED)
        for row, (prompt, response, _) in enumerate(sequences):
            targets[row, len(prompt) - 1 : len(prompt) - 1 + len(response)] = torch.tensor(response)
        return {
            **batch,
            "targets": targets,
            "task_ids": torch.tensor([task for _, _, task in sequences]),
            "response_tokens": torch.tensor([len(response) for _, response, _ in sequences]),
        }

    def padded(self, tokens: Sequence[list[int]], left: bool = False) -> dict[str, Tensor]:
        """Return ``input_ids`` and ``attention_mask``, (N, L), padded on the right, or on the left."""
        longest = max(map(len, tokens))
        ids = torch.full((len(tokens), longest), self.pad_token_id)
        mask = torch.zeros_like(ids)
        for row, of_row in enumerate(tokens):
            place = slice(longest - len(of_row), None) if left else slice(len(of_row))
            ids[row, place] = torch.tensor(of_row)
            mask[row, place] = 1
        return {"input_ids": ids, "attention_mask": mask}

    def _of_row(self, row: Mapping[str, Any], make: Any, spec: TaskSpec, template: Any) -> Any:
        try:
            return make(spec, template, row["task"], row)
        except WrongValueError as error:
            raise DataError(f"task '{row['task']}', the row {row['texts'][0][:60]!r}: {error}") from None

    def _tokens(self, text: str) -> list[int]:
        """Return a text's tokens with those that begin a sequence, but without one that some tokenizers end it with."""
        tokens = list(self.tokenizer(text)["input_ids"])
        return tokens[:-1] if tokens and tokens[-1] == self.tokenizer.eos_token_id else tokens

    def _cut(self, prompt: list[int], most: int) -> list[int]:
        """Return a prompt's last tokens, after the one that begins the sequence."""
        begins = int(bool(prompt) and prompt[0] == self.tokenizer.bos_token_id)
        over = max(0, len(prompt) - most)
        return prompt[:begins] + prompt[begins + over :]


def split_texts_by_task(batch: Mapping[str, Tensor]) -> list[dict[str, Tensor]]:
    """Return a batch for each task of a mixed one, in the order of the ids, cut to its own longest sequence."""
    batches = []
    for task_id in torch.unique(batch["task_ids"]).tolist():
        rows = (batch["task_ids"] == task_id).nonzero().flatten()
        longest = int(batch["attention_mask"][rows].sum(dim=1).max())
        batches.append(
            {name: value[rows][:, :longest] if value.dim() > 1 else value[rows] for name, value in batch.items()}
        )
    return batches
