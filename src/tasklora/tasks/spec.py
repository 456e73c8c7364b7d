"""What a task is: columns, kind, labels, metrics, and where its rows come from."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Literal, TypeVar

import pydantic

from tasklora.errors import ConfigError, did_you_mean, listing
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


class TaskSpec(Strict):
    """One task, independent of how a model sees it.

    Attributes:
        kind: what is predicted: a class or a number.
        inputs: columns that hold the input: one text, or a pair of texts.
        input_kind: what the input columns hold (``text``; images come with the vision tasks).
        label: column that holds the label.
        labels: class names in the order of their ids (classification).
        range: smallest and largest label (regression).
        metrics: names from :data:`tasklora.tasks.metrics.METRICS`.
        primary: the metric that stands for the task in averages.
        class_weights: ``none`` or ``balanced`` (n / (C · n_c), from the training rows).
        hub: where the rows are on the hub; None when they are local only.
        description: one line for people.
    """

    kind: Literal["classification", "regression"]
    inputs: list[str] = pydantic.Field(min_length=1, max_length=2)
    input_kind: Literal["text"] = "text"
    label: str = "label"
    labels: list[str] | None = None
    range: tuple[float, float] | None = None
    metrics: list[str] = pydantic.Field(min_length=1)
    primary: str
    class_weights: Literal["none", "balanced"] = "none"
    hub: HubSource | None = None
    description: str = ""

    @pydantic.model_validator(mode="after")
    def _check(self) -> TaskSpec:
        if self.kind == "classification" and (not self.labels or len(self.labels) < 2):
            raise ValueError("a classification task needs `labels`: at least two class names")
        if self.labels and len(set(self.labels)) != len(self.labels):
            raise ValueError(f"labels must differ from each other, got {self.labels}")
        if self.kind == "regression" and (self.range is None or self.range[0] >= self.range[1]):
            raise ValueError("a regression task needs `range: [lowest, highest]`")
        if self.kind == "regression" and self.class_weights != "none":
            raise ValueError("class_weights apply to classification only")
        for name in self.metrics:
            if name not in METRICS:
                raise ValueError(f"unknown metric '{name}'.{did_you_mean(name, METRICS)}")
            if METRICS[name].kind != self.kind:
                raise ValueError(f"metric '{name}' is for {METRICS[name].kind}, the task is {self.kind}")
            if METRICS[name].two_classes and self.num_outputs != 2:
                raise ValueError(f"metric '{name}' is for two classes, the task has {self.num_outputs}")
        if self.primary not in self.metrics:
            raise ValueError(f"primary metric '{self.primary}' is not among metrics {self.metrics}")
        return self

    @property
    def num_outputs(self) -> int:
        """Width of the head: the number of classes, or 1."""
        return len(self.labels) if self.labels is not None and self.kind == "classification" else 1

    @property
    def is_pair(self) -> bool:
        """Whether the input is a pair of texts."""
        return len(self.inputs) == 2


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
