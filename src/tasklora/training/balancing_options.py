"""The options of the balancing methods."""

from __future__ import annotations

from typing import Literal

import pydantic

from tasklora.tasks import Strict


class NoOptions(Strict):
    """A method without options."""


class LearnedOptions(Strict):
    """Options of a method that learns a number per task.

    Attributes:
        lr: its peak learning rate; null for training.learning_rate.
    """

    lr: float | None = pydantic.Field(None, gt=0)


class DWAOptions(Strict):
    """Options of DWA.

    Attributes:
        temperature: the larger, the more equal the weights.
        period: steps over which losses are averaged; null for an epoch, as published.
    """

    temperature: float = pydantic.Field(2.0, gt=0)
    period: pydantic.PositiveInt | None = None


class FAMOOptions(Strict):
    """Options of FAMO.

    Attributes:
        lr: learning rate of its own Adam.
        weight_decay: weight decay of its own Adam.
    """

    lr: float = pydantic.Field(0.025, ge=0)
    weight_decay: float = pydantic.Field(1e-3, ge=0)


class STCHOptions(Strict):
    """Options of smooth Tchebycheff scalarisation.

    Attributes:
        mu: the smaller, the closer to the largest loss alone.
    """

    mu: float = pydantic.Field(gt=0)


class AlignedMTLOptions(Strict):
    """Options of Aligned-MTL.

    Attributes:
        scale_mode: which eigenvalue the others are scaled to.
    """

    scale_mode: Literal["min", "median", "rmse"] = "min"


class CAGradOptions(Strict):
    """Options of CAGrad.

    Attributes:
        c: how far from the mean gradient, relative to its norm.
    """

    c: float = pydantic.Field(ge=0)


class FairGradOptions(Strict):
    """Options of FairGrad.

    Attributes:
        alpha: of the α-fairness: 1 is proportional, larger ones favour the worst-off task.
        max_iters: iterations of the solver at most; null for 100 per task.
    """

    alpha: float = pydantic.Field(ge=0)
    max_iters: pydantic.PositiveInt | None = None


class GradVacOptions(Strict):
    """Options of GradVac.

    Attributes:
        beta: decay of the moving averages of the cosines.
    """

    beta: float = pydantic.Field(0.5, ge=0, le=1)


class MGDAOptions(Strict):
    """Options of MGDA.

    Attributes:
        epsilon: step of the search below which it ends.
        max_iters: iterations of the search at most.
    """

    epsilon: float = pydantic.Field(0.001, gt=0)
    max_iters: pydantic.PositiveInt = 100


class NashMTLOptions(Strict):
    """Options of Nash-MTL.

    Attributes:
        max_norm: norm of the combined gradient at most; 0 for any.
        update_weights_every: steps that use the same weights.
        optim_niter: iterations of the search at most.
    """

    max_norm: float = pydantic.Field(1.0, ge=0)
    update_weights_every: pydantic.PositiveInt = 1
    optim_niter: pydantic.PositiveInt = 20
