"""The section ``training.mixing`` of a recipe: how often each task is drawn, and how that changes over a run."""

from __future__ import annotations

from collections.abc import Collection
from typing import Annotated, Literal, TypeAlias

import pydantic

from tasklora.errors import ConfigError, did_you_mean, listing
from tasklora.tasks import Strict
from tasklora.training.sections import Positive

Strategy: TypeAlias = Literal["proportional", "equal", "temperature", "capped", "weights"]
Weight: TypeAlias = Annotated[float, pydantic.Field(gt=0, allow_inf_nan=False)]


class MixSection(Strict):
    """Shares p_t of the tasks; see :class:`MixingSection` and :func:`tasklora.training.mixing.task_shares`."""

    strategy: Strategy = "proportional"
    temperature: float = pydantic.Field(2.0, gt=0)
    cap: Positive | None = None
    weights: dict[str, Weight] | None = None

    @pydantic.model_validator(mode="after")
    def _check(self) -> MixSection:
        """Refuse a strategy without what it needs, and what another strategy would need."""
        if self.strategy == "capped" and self.cap is None:
            raise ValueError("mixing strategy 'capped' needs `cap`, the number of rows a task counts at most")
        if self.strategy == "weights" and not self.weights:
            raise ValueError("mixing strategy 'weights' needs `weights`, a positive number for every task")
        for key in ("cap", "weights"):
            wanted = {"cap": "capped", "weights": "weights"}[key]
            if getattr(self, key) is not None and self.strategy != wanted:
                raise ValueError(f"`{key}` is of strategy '{wanted}', but the strategy is '{self.strategy}'")
        return self

    @property
    def needs_sizes(self) -> bool:
        """Whether the shares go by how many rows the tasks have."""
        return self.strategy not in ("equal", "weights")

    def check_tasks(self, tasks: Collection[str], where: str = "training.mixing") -> None:
        """Check that weights name the recipe's tasks, all of them and no others.

        Args:
            tasks: the recipe's tasks.
            where: the section's place in the recipe.

        Raises:
            ConfigError: naming the first unknown task with the nearest known one, or the tasks without a weight.
        """
        if self.weights is None:
            return
        for name in self.weights:
            if name not in tasks:
                raise ConfigError(
                    f"{where}.weights names '{name}', which is no task of this recipe.{did_you_mean(name, tasks)}"
                )
        missing = [name for name in tasks if name not in self.weights]
        if missing:
            raise ConfigError(
                f"{where}.weights has none for {listing(missing)}: give every task a positive number, or leave the "
                "task out with tasks.include."
            )


class ScheduleSection(MixSection):
    """The shares that a run moves to: u goes from 0 to 1, and with it p from the section's own shares to these.

    Attributes:
        shape: "annealed": p ∝ start^(1−u) · end^u, which between two temperatures moves the exponent 1/temperature
            linearly (annealed sampling of Stickland and Murray 2019); "linear": p = (1−u) · start + u · end; "step":
            the start before u = `at`, the end from there on.
        every: when u moves: at each "epoch", u = e/(E−1) for epoch e = 0 … E−1, or at each "step", evenly over the run.
        at: of "step".
        strategy: of the end; it and the keys it needs are those of ``training.mixing``.
        temperature: of "temperature".
        cap: of "capped".
        weights: of "weights".
    """

    shape: Literal["annealed", "linear", "step"] = "annealed"
    every: Literal["epoch", "step"] = "epoch"
    at: float | None = pydantic.Field(None, gt=0, le=1)
    strategy: Strategy

    @pydantic.model_validator(mode="after")
    def _check_at(self) -> ScheduleSection:
        if (self.at is not None) != (self.shape == "step"):
            raise ValueError(
                "`at`, the share of the run after which the shares change, is for schedules of shape 'step' and needed "
                f"there; the shape is '{self.shape}'"
            )
        return self


class MixingSection(MixSection):
    """How often each task is drawn; see :class:`tasklora.training.mixing.TaskMixingSampler`.

    Attributes:
        strategy: "proportional", "equal", "temperature", "capped" or "weights": the shares p_t of the tasks, which have
            n_t training rows.
        temperature: of "temperature": p_t ∝ n_t^(1/temperature).
        cap: of "capped": p_t ∝ min(n_t, cap).
        weights: of "weights": p_t ∝ weight, a positive number for every task.
        epoch_rows: rows of an epoch over all tasks; Σ n_t by default (of "capped", Σ min(n_t, cap)).
        replacement: draw each row of an epoch anew from all rows of its task. Otherwise no row comes again before all
            others of its task have come.
        schedule: shares that the run moves to; null keeps them as they are.
    """

    epoch_rows: Positive | None = None
    replacement: bool = False
    schedule: ScheduleSection | None = None

    def check_tasks(self, tasks: Collection[str], where: str = "training.mixing") -> None:
        """Check the weights of both ends; see :meth:`MixSection.check_tasks`."""
        super().check_tasks(tasks, where)
        if self.schedule is not None:
            self.schedule.check_tasks(tasks, f"{where}.schedule")

    def check_sizes(self, unknown: Collection[str], streams: Collection[str]) -> None:
        """Check that no number of rows is needed that is unknown.

        Args:
            unknown: tasks whose number of rows is unknown.
            streams: tasks whose rows are streamed.

        Raises:
            ConfigError: saying what to give.
        """
        if self.replacement and streams:
            raise ConfigError(
                f"training.mixing.replacement draws from all rows of a task, but those of {listing(streams)} are "
                "streamed. Leave it out."
            )
        ends = [self, *([self.schedule] if self.schedule is not None else [])]
        needing = [f"strategy '{end.strategy}' goes by it" for end in ends if end.needs_sizes]
        if self.epoch_rows is None:
            needing.append("so does the length of an epoch, without epoch_rows")
        if unknown and needing:
            raise ConfigError(
                f"the number of training rows of {listing(unknown)} is unknown, but in training.mixing "
                f"{' and '.join(needing)}. Give it as streaming.rows, roughly is enough, or take for example "
                "`mixing: {strategy: equal, epoch_rows: 100000}`."
            )
