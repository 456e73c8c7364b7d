"""What a task is: columns, kind, labels, metrics, and where its rows come from."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Literal, TypeVar

import pydantic

from tasklora.errors import ConfigError, did_you_mean, listing
from tasklora.tasks.formats import FORMATS
from tasklora.tasks.kinds import KINDS
from tasklora.tasks.metrics import METRICS
from tasklora.tasks.strict import Strict, parse, read_yaml

Split = Literal["train", "tune", "validation", "test"]
SPLITS: tuple[Split, ...] = ("train", "tune", "validation", "test")


class HubSource(Strict):
    """Public name of a data set on the Hugging Face hub.

    Attributes:
        path: e.g. ``nyu-mll/glue``.
        config: the data set's configuration, if it has several.
        revision: commit or tag.
        splits: our split → the data set's split, where the names differ.
    """

    path: str
    config: str | None = None
    revision: str | None = None
    splits: dict[Split, str] = {}


class Part(Strict):
    """A split that is a part of another one, where a data set lacks it.

    Parts are taken in the order of the file, which is not shuffled: neighbours are often made of one text. A row whose
    texts stand earlier in the file belongs to the part where they stood first, so that no input is in two parts.

    Attributes:
        of: the split that has the rows.
        part: where the part begins and ends, as shares of these rows.
    """

    of: Split
    part: tuple[float, float]

    @pydantic.model_validator(mode="after")
    def _check(self) -> Part:
        if not 0 <= self.part[0] < self.part[1] <= 1:
            raise ValueError(f"a part begins and ends between 0 and 1, e.g. [0, 0.8], got {list(self.part)}")
        return self


class TaskSpec(Strict):
    """One task, independent of how a model sees it.

    Attributes:
        kind: what is predicted; a name of :data:`tasklora.tasks.kinds.KINDS`.
        inputs: columns that hold the input: one text, or a pair of texts.
        input_kind: what the input columns hold (``text``; images come with the vision tasks).
        label: column that holds the label.
        labels: class names in the order of their ids (classification, multi_label, token_classification).
        label_separator: what joins the labels of a row, where they are one text (multi_label).
        range: smallest and largest label (regression).
        choices: a column with a list of texts, or columns with one text each (multiple_choice).
        group: column whose value the documents of one query share; the query's text by default (ranking).
        max_candidates: most documents of a query that are trained on: the most relevant ones, then the first (ranking).
        metrics: names from :data:`tasklora.tasks.metrics.METRICS`.
        primary: the metric that stands for the task in averages.
        class_weights: ``none`` or ``balanced`` (n / (C · n_c) from the training rows; of multi_label, rows with the
            class weigh (n − n_c) / n_c).
        format: how rows are written, where they are not columns yet; a name of :data:`tasklora.tasks.formats.FORMATS`.
        splits: split → the part of another one that it is.
        hub: where the rows are on the hub; None when they are local only.
        description: one line for people.
    """

    kind: str
    inputs: list[str] = pydantic.Field(min_length=1, max_length=2)
    input_kind: Literal["text"] = "text"
    label: str = "label"
    labels: list[str] | None = None
    label_separator: str | None = None
    range: tuple[float, float] | None = None
    choices: str | list[str] | None = None
    group: str | None = None
    max_candidates: int | None = pydantic.Field(None, ge=2)
    metrics: list[str] = pydantic.Field(min_length=1)
    primary: str
    class_weights: Literal["none", "balanced"] = "none"
    format: str | None = None
    splits: dict[Split, Part] = {}
    hub: HubSource | None = None
    description: str = ""

    @pydantic.field_validator("kind")
    @classmethod
    def _check_kind(cls, kind: str) -> str:
        if kind not in KINDS:
            raise ValueError(f"unknown kind '{kind}'.{did_you_mean(kind, KINDS)} Kinds: {', '.join(KINDS)}")
        return kind

    @pydantic.field_validator("format")
    @classmethod
    def _check_format(cls, name: str | None) -> str | None:
        if name is not None and name not in FORMATS:
            raise ValueError(f"unknown format '{name}'.{did_you_mean(name, FORMATS)} Formats: {', '.join(FORMATS)}")
        return name

    @pydantic.model_validator(mode="after")
    def _check(self) -> TaskSpec:
        kind = KINDS[self.kind]
        for key in sorted(set().union(*(other.settings for other in KINDS.values())) - kind.settings):
            if getattr(self, key) is not None:
                its_kinds = [name for name, other in KINDS.items() if key in other.settings]
                raise ValueError(f"`{key}` is for {listing(its_kinds)}, the task is {self.kind}")
        kind.check(self)
        if self.labels and len(set(self.labels)) != len(self.labels):
            raise ValueError(f"labels must differ from each other, got {self.labels}")
        if self.class_weights != "none" and not kind.takes_class_weights:
            weighted = [name for name, other in KINDS.items() if other.takes_class_weights]
            raise ValueError(f"class_weights apply to {listing(weighted)} only")
        for name in self.metrics:
            if name not in METRICS:
                raise ValueError(f"unknown metric '{name}'.{did_you_mean(name, METRICS)}")
            if self.kind not in METRICS[name].kinds:
                raise ValueError(f"metric '{name}' is for {listing(METRICS[name].kinds)}, the task is {self.kind}")
            if METRICS[name].two_classes and self.num_outputs != 2:
                raise ValueError(f"metric '{name}' is for two classes, the task has {self.num_outputs}")
        if self.primary not in self.metrics:
            raise ValueError(f"primary metric '{self.primary}' is not among metrics {self.metrics}")
        self._check_parts()
        return self

    def _check_parts(self) -> None:
        """Raise ValueError if a row could be in two splits."""
        for source in {part.of for part in self.splits.values()}:
            taken = sorted((part.part, split) for split, part in self.splits.items() if part.of == source)
            if source not in self.splits:
                raise ValueError(
                    f"split '{taken[0][1]}' is a part of '{source}', which would keep these rows: name the part that "
                    f"'{source}' itself is"
                )
            for (one, split), (other, next_split) in itertools.pairwise(taken):
                if other[0] < one[1]:
                    raise ValueError(f"splits '{split}' and '{next_split}' overlap: both have rows of '{source}'")
        for split, part in self.splits.items():
            if part.of != split and part.of in self.splits and self.splits[part.of].of != part.of:
                raise ValueError(f"split '{split}' is a part of '{part.of}', which is itself a part of another one")

    @property
    def num_outputs(self) -> int:
        """Width of the head: the number of classes, or 1."""
        return KINDS[self.kind].num_outputs(self)

    @property
    def is_pair(self) -> bool:
        """Whether what the head scores is a pair of texts."""
        return KINDS[self.kind].is_pair(self)


AnyTask = TypeVar("AnyTask")


def selected(tasks: Mapping[str, AnyTask], include: list[str] | None, suite: str) -> dict[str, AnyTask]:
    """Return the tasks of a suite that are named in `include`, in that order; all for None.

    Raises:
        ConfigError: on an unknown or repeated task, or if there is none.
    """
    if include is None:
        return dict(tasks)
    if not include:
        raise ConfigError(f"tasks.include names no task. Suite {suite} has: {listing(tasks)}.")
    for name in include:
        if name not in tasks:
            raise ConfigError(
                f"suite {suite} has no task '{name}'.{did_you_mean(name, tasks)} It has: {listing(tasks)}."
            )
        if include.count(name) > 1:
            raise ConfigError(f"task '{name}' is listed twice in tasks.include.")
    return {name: tasks[name] for name in include}


class Suite(Strict):
    """A named, versioned collection of tasks: data only, no model.

    Attributes:
        name: e.g. ``glue``.
        version: raised whenever rows, labels or metrics of a task change.
        tasks: name → task, in the order of the file.
        source: where the data are described and licensed.
    """

    name: str
    version: int
    description: str = ""
    source: str = ""
    tasks: dict[str, TaskSpec]

    @property
    def reference(self) -> str:
        """``name@version``."""
        return f"{self.name}@{self.version}"

    def select(self, include: list[str] | None) -> dict[str, TaskSpec]:
        """Return the tasks named in `include`, in that order; all for None.

        Raises:
            ConfigError: on an unknown or repeated task, or if there is none.
        """
        return selected(self.tasks, include, self.reference)


def shipped_suites() -> dict[str, Path]:
    """Return the suites that come with the package: name → file."""
    folder = Path(str(resources.files("tasklora.tasks"))) / "suites"
    return {path.stem: path for path in sorted(folder.glob("*.yaml"))}


def load_suite(reference: str) -> Suite:
    """Load a suite by ``name``, ``name@version`` or the path of a YAML file.

    Raises:
        ConfigError: if there is no such suite, or not in that version.
    """
    if reference.endswith((".yaml", ".yml")):
        path = Path(reference)
        return parse(Suite, read_yaml(path), str(path))
    name, _, version = reference.partition("@")
    suites = shipped_suites()
    if name not in suites:
        raise ConfigError(
            f"unknown suite '{name}'.{did_you_mean(name, suites)} Suites: {', '.join(suites)}; "
            "or give the path of a suite's YAML file."
        )
    suite = parse(Suite, read_yaml(suites[name]), f"suite {name}")
    if version and version != str(suite.version):
        raise ConfigError(f"suite {name} is at version {suite.version}, but '{reference}' was asked for.")
    return suite
