"""What each kind of task is as text: its default template, its options, and what an answer in text means.

A kind without a form here has no answer of a few words: it needs a head.
"""

from __future__ import annotations

import math
import string
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from tasklora.errors import ConfigError, listing
from tasklora.tasks.kinds import WrongValueError
from tasklora.tasks.kinds.base import checked_text
from tasklora.tasks.ragged import Array
from tasklora.tasks.templates import (
    Evaluation,
    Template,
    check_options,
    fields_of,
    filled,
    is_field,
    literal,
    need_columns,
    row_options,
)

if TYPE_CHECKING:
    from tasklora.tasks.spec import TaskSpec

NUMBERS = 26
MOST_DIGITS = 11


class TextForm(ABC):
    """One kind of task as text. A row is ``{"texts": […], "label": …, "columns": {…}}``, see :class:`TaskRows`."""

    has_options: ClassVar[bool] = True
    made: ClassVar[tuple[str, ...]] = ("options",)
    """Fields of a prompt that stand for no column."""
    evaluations: ClassVar[tuple[Evaluation, ...]] = ("likelihood", "likelihood_per_character", "greedy")

    def default(self, spec: TaskSpec) -> Template:
        """Return the template of a task that has none of its own.

        Raises:
            ValueError: if an input column's name cannot stand in it.
        """
        for column in spec.inputs:
            if column in self.made or not is_field(column):
                why = "stands for something else in a prompt" if column in self.made else "cannot stand in braces"
                raise ValueError(f"its input column '{column}' {why}: rename the column")
        lines = [literal(spec.description)] if spec.description else []
        lines += [f"{literal(column)}: {{{column}}}" for column in spec.inputs]
        return Template(prompt="\n".join([*lines, *self._closing(spec)]), response=" {answer}")

    def _closing(self, spec: TaskSpec) -> list[str]:
        return ["Options: {options}", "Answer:"]

    def check(self, spec: TaskSpec, template: Template) -> None:
        """Raise ValueError if a template does not fit a task."""
        if "options" in fields_of(template.prompt) and not self.has_options and "options" not in spec.inputs:
            raise ValueError(f"a {spec.kind} task has no options to put into a prompt")

    def own_fields(self, spec: TaskSpec) -> set[str]:
        """Return the fields of a prompt that are no columns to be kept."""
        return {*spec.inputs, *self.made}

    def columns(self, spec: TaskSpec, template: Template) -> list[str]:
        """Return the columns that a template reads besides those that the kind does."""
        names = [name for name in fields_of(template.prompt) if name not in self.own_fields(spec)]
        return list(dict.fromkeys([*names, *([template.options] if isinstance(template.options, str) else [])]))

    def prompt(self, spec: TaskSpec, template: Template, task: str, row: Mapping[str, Any]) -> str:
        """Return a row's prompt.

        Raises:
            ConfigError: if the row lacks a column that the template reads.
            WrongValueError: if a column holds no text.
        """
        columns = row.get("columns", {})
        need_columns(columns, self.columns(spec, template), task)
        values = self._made_fields(spec, row) | dict(zip(spec.inputs, row["texts"], strict=False))
        names = [name for name in fields_of(template.prompt) if name not in self.own_fields(spec)]
        values |= {name: checked_text(name, columns[name]) for name in names}
        if "options" in fields_of(template.prompt) and "options" not in spec.inputs:
            values["options"] = "/".join(self.options(spec, template, task, row))
        return filled(template.prompt, values)

    def _made_fields(self, spec: TaskSpec, row: Mapping[str, Any]) -> dict[str, str]:
        return {}

    def options(self, spec: TaskSpec, template: Template, task: str, row: Mapping[str, Any]) -> list[str]:
        """Return the names of a row's options, in the order of its labels; empty for a kind without.

        Raises:
            WrongValueError: if the row has none that fit it.
        """
        if isinstance(template.options, str):
            columns = row.get("columns", {})
            need_columns(columns, self.columns(spec, template), task)
            names = row_options(columns[template.options], template.options)
        else:
            names = template.options or self._names(spec, row)
        if len(names) != self._count(spec, row, names):
            raise WrongValueError(f"{listing(names)} are not as many names as the row has options.")
        return names

    @abstractmethod
    def _names(self, spec: TaskSpec, row: Mapping[str, Any]) -> list[str]:
        """Return what options are called where the template does not say."""

    def _count(self, spec: TaskSpec, row: Mapping[str, Any], names: list[str]) -> int:
        """Return how many options there must be."""
        return spec.num_outputs

    def answer(self, spec: TaskSpec, options: list[str], label: Any) -> str:
        """Return what the answer to a row is called."""
        return options[int(label)]

    def of_scores(self, spec: TaskSpec, options: list[str], scores: Array) -> tuple[float, list[float] | None]:
        """Return (prediction, probability of each option) of the options' scores, (K,)."""
        return float(scores.argmax()), _softmax(scores).tolist()

    def of_text(self, spec: TaskSpec, template: Template, options: list[str], text: str) -> float | str:
        """Return the prediction that a generated text is; NaN if it names no option."""
        place = template.extracted(text, options)
        return np.nan if place is None else float(place)


class ClassName(TextForm):
    """The name of a class."""

    def check(self, spec: TaskSpec, template: Template) -> None:
        """Raise ValueError if the names are not those of the classes, or begin with each other."""
        if isinstance(template.options, list) and len(template.options) != spec.num_outputs:
            raise ValueError(f"options must be {spec.num_outputs} names, one of each class, got {template.options}")
        if template.options is None:
            check_options(spec.labels or [])

    def _names(self, spec: TaskSpec, row: Mapping[str, Any]) -> list[str]:
        return list(spec.labels or [])


class ChoiceName(TextForm):
    """The letter of a choice."""

    made: ClassVar[tuple[str, ...]] = ("options", "choices")

    def _closing(self, spec: TaskSpec) -> list[str]:
        return ["{choices}", "Answer:"]

    def check(self, spec: TaskSpec, template: Template) -> None:
        """Raise ValueError if options are the same for every row where choices are not, or are not one for each."""
        if not isinstance(template.options, list):
            return
        if not isinstance(spec.choices, list):
            raise ValueError("choices differ from row to row: name a column with their names, or leave `options` out")
        if len(template.options) != len(spec.choices):
            raise ValueError(
                f"options must be {len(spec.choices)} names, one of each column of choices, got {template.options}"
            )

    def _made_fields(self, spec: TaskSpec, row: Mapping[str, Any]) -> dict[str, str]:
        choices = row["texts"][1:]
        return {
            "choices": "\n".join(
                f"{letter}. {choice}" for letter, choice in zip(_letters(choices), choices, strict=True)
            )
        }

    def _names(self, spec: TaskSpec, row: Mapping[str, Any]) -> list[str]:
        return _letters(row["texts"][1:])

    def options(self, spec: TaskSpec, template: Template, task: str, row: Mapping[str, Any]) -> list[str]:
        """Return the names of the choices that the row has: the first ones of a list for all rows."""
        if isinstance(template.options, list):
            return template.options[: self._count(spec, row, [])]
        return super().options(spec, template, task, row)

    def _count(self, spec: TaskSpec, row: Mapping[str, Any], names: list[str]) -> int:
        return len(row["texts"]) - 1


class NumberName(TextForm):
    """A number: one of 26 between the lowest and the highest, by the likelihood of all of them.

    The prediction is their mean, weighted by their probabilities. T5 (Raffel et al., 2020) has steps of 0.2 for
    STS-B's range 0 … 5, which are the same ones.
    """

    evaluations: ClassVar[tuple[Evaluation, ...]] = ("likelihood",)

    def _closing(self, spec: TaskSpec) -> list[str]:
        low, high = spec.range or (0.0, 1.0)
        return [f"Answer with a number from {low:g} to {high:g}:"]

    def check(self, spec: TaskSpec, template: Template) -> None:
        """Raise ValueError if options are no numbers."""
        if isinstance(template.options, str):
            raise ValueError("the numbers to choose from are the same for every row: list them, or leave them out")
        if "options" in fields_of(template.prompt) and template.options is None:
            raise ValueError("a prompt that lists the numbers needs a list of them: options")
        low, high = spec.range or (0.0, 1.0)
        if template.options is None:
            self._names(spec, {})  # says if there are none
        for name in template.options or []:
            try:
                value = float(name)
            except ValueError:
                value = math.nan
            if not math.isfinite(value):
                raise ValueError(f"the option {name!r} of a regression is no number")
            if not low <= value <= high:
                raise ValueError(f"the option {name!r} is outside the task's range, {low:g} to {high:g}")

    def _names(self, spec: TaskSpec, row: Mapping[str, Any]) -> list[str]:
        low, high = spec.range or (0.0, 1.0)
        values = np.linspace(low, high, NUMBERS)
        for digits in range(1, MOST_DIGITS + 1):
            names = [f"{value:.{digits}f}" for value in values]
            if len(set(names)) == NUMBERS:
                return names
        raise ValueError(
            f"{NUMBERS} numbers from {low:.15g} to {high:.15g} do not differ in {MOST_DIGITS} digits after the point: "
            "scale the labels"
        )

    def _count(self, spec: TaskSpec, row: Mapping[str, Any], names: list[str]) -> int:
        return len(names)

    def answer(self, spec: TaskSpec, options: list[str], label: Any) -> str:
        """Return the nearest number."""
        return min(options, key=lambda name: abs(float(name) - float(label)))

    def of_scores(self, spec: TaskSpec, options: list[str], scores: Array) -> tuple[float, list[float] | None]:
        """Return Σ p_i v_i."""
        return float(_softmax(scores) @ np.array([float(name) for name in options])), None


class AnyText(TextForm):
    """The label itself, compared with what is generated."""

    has_options: ClassVar[bool] = False
    made: ClassVar[tuple[str, ...]] = ()

    def _closing(self, spec: TaskSpec) -> list[str]:
        return ["Answer:"]

    def check(self, spec: TaskSpec, template: Template) -> None:
        """Raise ValueError if there are options."""
        super().check(spec, template)
        if template.options is not None or template.extract is not None:
            raise ValueError("a generation task has neither options nor anything to extract: its answer is the text")

    def _names(self, spec: TaskSpec, row: Mapping[str, Any]) -> list[str]:
        return []

    def _count(self, spec: TaskSpec, row: Mapping[str, Any], names: list[str]) -> int:
        return 0

    def answer(self, spec: TaskSpec, options: list[str], label: Any) -> str:
        """Return the label."""
        return str(label)

    def of_text(self, spec: TaskSpec, template: Template, options: list[str], text: str) -> float | str:
        """Return the text, without blanks around it."""
        return text.strip()


TEXT_FORMS: dict[str, TextForm] = {
    "classification": ClassName(),
    "multiple_choice": ChoiceName(),
    "regression": NumberName(),
    "generation": AnyText(),
}


def check_text_task(name: str, spec: TaskSpec, template: Template | None, evaluation: Evaluation) -> None:
    """Raise ConfigError if a task cannot be answered in text, or not with this template, or not evaluated like this."""
    form = TEXT_FORMS.get(spec.kind)
    if form is None:
        raise ConfigError(
            f"task '{name}' is {spec.kind}, which has no answer of a few words: model.view: text_to_text takes "
            f"{listing(TEXT_FORMS)}. Leave the task out, or train heads on an encoder."
        )
    if evaluation not in form.evaluations:
        raise ConfigError(
            f"task '{name}' is {spec.kind}: a generated text need not be a number, so it is evaluated by likelihood, "
            f"not by model.evaluation: {evaluation}. Take likelihood, or leave the task out."
        )
    try:
        form.check(spec, template or form.default(spec))
    except ValueError as error:
        raise ConfigError(
            f"task '{name}', its template: {error}. A recipe can give it another one: tasks.options.{name}.template."
        ) from None


def template_columns(specs: Mapping[str, TaskSpec], templates: Mapping[str, Template]) -> dict[str, list[str]]:
    """Return task → the columns that its template reads besides those that its kind does."""
    return {name: TEXT_FORMS[spec.kind].columns(spec, templates[name]) for name, spec in specs.items()}


def _letters(choices: list[str]) -> list[str]:
    if len(choices) > len(string.ascii_uppercase):
        raise WrongValueError(
            f"{len(choices)} choices are more than there are letters: name a column with their names."
        )
    return list(string.ascii_uppercase[: len(choices)])


def _softmax(scores: Array) -> Array:
    shares = np.exp(scores - scores.max())
    probabilities: Array = shares / shares.sum()
    return probabilities
