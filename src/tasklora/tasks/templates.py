"""How a task becomes text: a prompt, a response, and the responses that are its options.

With the row's fields x and the answer a,

    prompt = template.prompt(x)      response = template.response(a)

A text-to-text model learns response and end of sequence after the prompt; see :mod:`tasklora.tasks.text_collate`.
"""

from __future__ import annotations

import itertools
import re
import string
from collections.abc import Iterable, Mapping
from importlib import resources
from pathlib import Path
from typing import Literal

import pydantic

from tasklora.errors import ConfigError, listing
from tasklora.tasks.kinds.base import WrongValueError
from tasklora.tasks.strict import Strict, parse, read_yaml

Evaluation = Literal["likelihood", "likelihood_per_character", "greedy"]
"""How a task with options is answered.

``likelihood``: the option whose response has the largest Σ log p(token | prompt, tokens before), without the end of
sequence; ``likelihood_per_character``: the same divided by the response's length in characters; ``greedy``: what stands
in the text that is generated with the likeliest token at every step.
"""

ANSWER = "answer"


def pieces(text: str) -> list[tuple[str, str | None]]:
    """Return a template's text as (literal, name of the field that follows it or None).

    Raises:
        ValueError: on a lone brace, or anything but a name in braces.
    """
    parts = []
    for literal, name, form, conversion in string.Formatter().parse(text):
        if name is not None and (not name or form or conversion):
            raise ValueError(f"write a name in braces, {{sentence}}, and {{{{ for a brace itself; got {text!r}")
        parts.append((literal, name))
    return parts


def fields_of(text: str) -> list[str]:
    """Return the names in braces, each once."""
    return list(dict.fromkeys(name for _, name in pieces(text) if name is not None))


def is_field(name: str) -> bool:
    """Whether a name in braces is a field, which one with a colon, an exclamation mark or a brace is not."""
    try:
        return fields_of(f"{{{name}}}") == [name]
    except ValueError:
        return False


def filled(text: str, values: Mapping[str, str]) -> str:
    """Return a template's text with values for its fields."""
    return "".join(literal + ("" if name is None else values[name]) for literal, name in pieces(text))


def literal(text: str) -> str:
    """Return a text as it must stand in a template."""
    return text.replace("{", "{{").replace("}", "}}")


def check_options(options: Iterable[str]) -> None:
    """Raise ValueError unless options can be told apart by the likelihood of their texts.

    A text that another one goes on from is at least as likely whatever the model thinks of the two.
    """
    for one, other in itertools.permutations(options, 2):
        if other.startswith(one):
            raise ValueError(
                f"the option {one!r} is how the option {other!r} begins, so it would always be at least as likely. "
                "Word the options so that none begins another one"
            )


class Template(Strict):
    """How the rows of a task are written.

    Attributes:
        prompt: text with ``{field}``s: the task's input columns, ``{choices}`` (lettered, one on each line),
            ``{options}`` (joined by slashes), or any other column that the rows have.
        response: text with ``{answer}``: the name of the right option, or the label itself.
        options: names of the options in the order of the labels' ids, or the column that has a row's list of them. By
            default the class names; letters for the choices of a multiple choice; 26 numbers for a regression.
        extract: regular expressions, tried in their order: the first match in a generated text is the answer. It names
            the option that it is, or the only one that it is a part of. By default, the first option whose name stands
            there as a word.
    """

    prompt: str
    response: str = "{answer}"
    options: list[str] | str | None = None
    extract: list[str] | None = pydantic.Field(None, min_length=1)

    @pydantic.model_validator(mode="after")
    def _check(self) -> Template:
        if not self.prompt.strip() or self.prompt[-1] in " \t":
            raise ValueError(
                "a prompt is some text that does not end with a space: tokenizers join a space to the word after it, "
                "so let the response begin with it: ' {answer}'"
            )
        fields_of(self.prompt)
        if fields_of(self.response) != [ANSWER]:
            raise ValueError(f"a response has the field {{{ANSWER}}} and no other, got {self.response!r}")
        if isinstance(self.options, list):
            if len(self.options) < 2 or not all(self.options):
                raise ValueError(f"options are two names or more, got {self.options}")
            check_options(self.options)
        for pattern in self.extract or []:
            try:
                re.compile(pattern)
            except re.error as error:
                raise ValueError(f"extract: {pattern!r} is no regular expression ({error})") from None
        return self

    def respond(self, answer: str) -> str:
        """Return the response that says an answer."""
        return filled(self.response, {ANSWER: answer})

    def extracted(self, text: str, options: list[str]) -> int | None:
        """Return the place of the option that a generated text names; None if it names none."""
        if self.extract is None:
            longest_first = sorted(options, key=len, reverse=True)
            found = re.search(rf"(?<!\w)(?:{'|'.join(map(re.escape, longest_first))})(?!\w)", text)
            return options.index(found[0]) if found else None
        for pattern in self.extract:
            match = re.search(pattern, text)
            if match is None:
                continue
            if match[0] in options:
                return options.index(match[0])
            within = [place for place, option in enumerate(options) if match[0] and match[0] in option]
            return within[0] if len(within) == 1 else None
        return None


class TextToText(Strict):
    """What a saved model says of how it reads and answers in text.

    Attributes:
        templates: task → its template.
        evaluation: how tasks with options are answered.
        max_new_tokens: tokens generated at most.
    """

    templates: dict[str, Template]
    evaluation: Evaluation
    max_new_tokens: int


def shipped_templates(suite: str) -> dict[str, Template]:
    """Return the templates that come with a suite of the package, by task; empty where kinds' own ones are good."""
    path = Path(str(resources.files("tasklora.tasks"))) / "suites" / "templates" / f"{suite}.yaml"
    if not path.is_file():
        return {}
    return {name: parse(Template, given, f"{path}, task {name}") for name, given in read_yaml(path).items()}


def row_options(value: object, column: str) -> list[str]:
    """Return a row's options of a column.

    Raises:
        WrongValueError: if they are none, or cannot be told apart.
    """
    if not isinstance(value, (list, tuple)) or len(value) < 2 or not all(isinstance(x, str) and x for x in value):
        raise WrongValueError(f"column '{column}' holds {value!r}, not a list of names of options.")
    try:
        check_options(value)
    except ValueError as error:
        raise WrongValueError(f"column '{column}': {error}.") from None
    return list(value)


def need_columns(given: Mapping[str, object], wanted: Iterable[str], task: str) -> None:
    """Raise ConfigError if a row lacks what its template reads."""
    missing = [name for name in wanted if name not in given]
    if missing:
        raise ConfigError(
            f"task '{task}': its template reads {listing(missing)}, which the row has not. Give a file with these "
            "columns."
        )
