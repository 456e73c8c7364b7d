"""The balancing methods that a recipe can name, all of them TorchJD's, and the section that names one.

See :mod:`tasklora.training.balancer` for what is balanced. TorchJD is an extra, ``pip install 'tasklora[balancing]'``.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import pydantic

from tasklora.errors import ConfigError, did_you_mean
from tasklora.tasks import Strict, parse
from tasklora.training.balancer import Balancer, Rule, check_can_balance
from tasklora.training.balancing_options import (
    AlignedMTLOptions,
    CAGradOptions,
    DWAOptions,
    FairGradOptions,
    FAMOOptions,
    GradVacOptions,
    LearnedOptions,
    MGDAOptions,
    NashMTLOptions,
    NoOptions,
    STCHOptions,
)
from tasklora.training.gradient_balancing import (
    GradientBalancer,
    GradientRule,
    GradVacRule,
    MatrixRule,
    NashMTLRule,
    ScaleFreeRule,
)
from tasklora.training.loss_balancing import DWARule, FAMORule, LearnedRule, LossBalancer, LossRule, ValueRule

if TYPE_CHECKING:
    from tasklora.training.base_trainer import TasksTrainer

# Where rules keep what TorchJD remembers they reach into it, which a minor version may change.
TORCHJD = "0.18"
INSTALL = "pip install 'tasklora[balancing]'"


@dataclass(frozen=True)
class BalancingMethod:
    """A balancing method.

    Attributes:
        name: as in recipes.
        title: as in papers.
        balancer: what runs it: it balances losses or gradients.
        torchjd: its class there, below ``torchjd.``.
        about: what it does, in a line.
        source: the paper.
        rule: how its weights and what it remembers are handled.
        options: its options.
        packages: what it imports besides TorchJD.
    """

    name: str
    title: str
    balancer: type[LossBalancer] | type[GradientBalancer]
    torchjd: str
    about: str
    source: str
    rule: type[Rule]
    options: type[Strict] = NoOptions
    packages: tuple[str, ...] = ()

    def check_installed(self) -> None:
        """Raise ConfigError unless what it needs is installed."""
        missing = [package for package in ("torchjd", *self.packages) if find_spec(package) is None]
        if missing:
            raise ConfigError(
                f"training.balancing: {self.name} needs {', '.join(missing)}, not installed here. Install: {INSTALL}"
            )
        try:
            found = version("torchjd")
        except PackageNotFoundError:
            found = "unknown"
        if found.rpartition(".")[0] != TORCHJD:
            raise ConfigError(f"training.balancing needs TorchJD {TORCHJD}, found {found}. Install: {INSTALL}")

    def make_rule(self, options: dict[str, Any], num_tasks: int) -> Rule:
        """Return the rule with its object of TorchJD.

        Args:
            options: the method's options, complete.
            num_tasks: T.
        """
        module, _, name = self.torchjd.rpartition(".")
        maker = getattr(importlib.import_module(f"torchjd.{module}"), name)
        return self.rule(maker, dict(options), num_tasks)


def _losses(
    name: str,
    title: str,
    maker: str,
    about: str,
    source: str,
    rule: type[LossRule] = LossRule,
    options: Any = NoOptions,
) -> BalancingMethod:
    return BalancingMethod(name, title, LossBalancer, f"scalarization.{maker}", about, source, rule, options)


def _gradients(
    name: str,
    title: str,
    maker: str,
    about: str,
    source: str,
    rule: type[GradientRule] = GradientRule,
    options: Any = NoOptions,
    packages: tuple[str, ...] = (),
) -> BalancingMethod:
    return BalancingMethod(
        name, title, GradientBalancer, f"aggregation.{maker}", about, source, rule, options, packages
    )


_QUADPROG = ("qpsolvers", "quadprog")

BALANCING_METHODS: dict[str, BalancingMethod] = {
    method.name: method
    for method in (
        _losses("sum", "sum", "Sum", "Σ v_t", "–"),
        _losses("mean", "mean", "Mean", "the mean of v_t over the step's tasks", "–"),
        _losses("random", "RLW", "Random", "weights drawn anew each step, adding up to 1", "Lin et al., TMLR 2022"),
        _losses("geometric_mean", "GLS", "GeometricMean", "(Π v_t)^(1/T)", "Chennupati et al., CVPRW 2019", ValueRule),
        _losses(
            "uw",
            "uncertainty weighting",
            "UW",
            "½ Σ (e^(−s_t) v_t + s_t), s_t learned",
            "Kendall, Gal and Cipolla, CVPR 2018",
            LearnedRule,
            LearnedOptions,
        ),
        _losses(
            "imtl_l",
            "IMTL-L",
            "IMTLL",
            "Σ (e^(s_t) v_t − s_t), s_t learned",
            "Liu et al., ICLR 2021",
            LearnedRule,
            LearnedOptions,
        ),
        _losses(
            "dwa",
            "DWA",
            "DWA",
            "a softmax of how slowly each v_t fell over the last two periods",
            "Liu, Johns and Davison, CVPR 2019",
            DWARule,
            DWAOptions,
        ),
        _losses(
            "famo",
            "FAMO",
            "FAMO",
            "learned weights of log v_t that let all losses fall at one rate; one more forward a step",
            "Liu et al., NeurIPS 2023",
            FAMORule,
            FAMOOptions,
        ),
        _losses(
            "stch",
            "STCH",
            "STCH",
            "a smooth maximum: μ log Σ exp(v_t / (μ T))",
            "Lin et al., ICML 2024",
            ValueRule,
            STCHOptions,
        ),
        _gradients(
            "aligned_mtl",
            "Aligned-MTL",
            "AlignedMTL",
            "aligns the principal components of J",
            "Senushkin et al., CVPR 2023",
            options=AlignedMTLOptions,
        ),
        _gradients(
            "cagrad",
            "CAGrad",
            "CAGrad",
            "best for the worst-off task, near the mean gradient",
            "Liu et al., NeurIPS 2021",
            ScaleFreeRule,
            CAGradOptions,
            ("cvxpy", "clarabel"),
        ),
        _gradients(
            "config",
            "ConFIG",
            "ConFIG",
            "equal cosines with all gradients",
            "Liu, Chu and Thuerey, ICLR 2025",
            MatrixRule,
        ),
        _gradients(
            "dualproj",
            "DualProj",
            "DualProj",
            "the mean gradient, projected to conflict with no task",
            "Lopez-Paz and Ranzato, NeurIPS 2017",
            ScaleFreeRule,
            packages=_QUADPROG,
        ),
        _gradients(
            "fairgrad",
            "FairGrad",
            "FairGrad",
            "α-fair progress of all tasks",
            "Ban and Ji, ICML 2024",
            options=FairGradOptions,
            packages=("scipy",),
        ),
        _gradients(
            "graddrop",
            "GradDrop",
            "GradDrop",
            "each coordinate keeps the gradients of one sign, drawn",
            "Chen et al., NeurIPS 2020",
            MatrixRule,
        ),
        _gradients(
            "gradvac",
            "GradVac",
            "GradVac",
            "raises cosines to their moving averages",
            "Wang et al., ICLR 2021",
            GradVacRule,
            GradVacOptions,
        ),
        _gradients("imtl_g", "IMTL-G", "IMTLG", "equal projections on all gradients", "Liu et al., ICLR 2021"),
        _gradients(
            "mgda",
            "MGDA",
            "MGDA",
            "the shortest convex combination",
            "Désidéri, 2012; Sener and Koltun, NeurIPS 2018",
            options=MGDAOptions,
        ),
        _gradients(
            "nash_mtl",
            "Nash-MTL",
            "NashMTL",
            "the bargaining solution",
            "Navon et al., ICML 2022",
            NashMTLRule,
            NashMTLOptions,
            ("cvxpy", "ecos"),
        ),
        _gradients(
            "pcgrad",
            "PCGrad",
            "PCGrad",
            "each gradient without what conflicts with another, in drawn order",
            "Yu et al., NeurIPS 2020",
        ),
        _gradients(
            "upgrad",
            "UPGrad",
            "UPGrad",
            "the mean of all gradients, each projected to conflict with no task",
            "Quinton and Rey, 2024",
            ScaleFreeRule,
            packages=_QUADPROG,
        ),
    )
}

NOT_OFFERED = {
    "scalarization.Constant": "tasks.options.TASK.loss_weight does that",
    "scalarization.COSMOS": "for models that take a preference vector, drawn anew each step, as input",
    "scalarization.PBI": "for a preference vector that is drawn anew each step",
    "aggregation.Constant": "tasks.options.TASK.loss_weight does that",
    "aggregation.Mean": "the loss balancing `mean` has the same gradient, with one backward",
    "aggregation.Sum": "the loss balancing `sum` has the same gradient, with one backward",
    "aggregation.Random": "the loss balancing `random` has the same gradient, with one backward",
    "aggregation.Krum": "against adversarial workers, not for tasks",
    "aggregation.TrimmedMean": "against adversarial workers, not for tasks",
    "aggregation.PCD": "needs a main task, which recipes do not have",
    "aggregation.ExcessMTL": "measures all tasks by their gradients in the first step, in which some may be absent",
}
"""Class of TorchJD → why no recipe can name it."""


def balancing_method(name: str) -> BalancingMethod:
    """Return a method by name.

    Raises:
        ConfigError: if there is none; the nearest one is named.
    """
    if name not in BALANCING_METHODS:
        raise ConfigError(
            f"unknown balancing method '{name}'.{did_you_mean(name, BALANCING_METHODS)} Methods: "
            f"{', '.join(BALANCING_METHODS)}."
        )
    return BALANCING_METHODS[name]


class BalancingSection(pydantic.BaseModel):
    """The balancing method's name and its options: see docs/balancing.md.

    Attributes:
        method: its name.
    """

    model_config = pydantic.ConfigDict(extra="allow")
    method: str

    @pydantic.model_validator(mode="after")
    def _check(self) -> BalancingSection:
        """Check the options and write out their defaults."""
        options = parse(balancing_method(self.method).options, dict(self.model_extra or {}), f"method '{self.method}'")
        self.__pydantic_extra__ = options.model_dump()
        return self

    @property
    def options(self) -> dict[str, Any]:
        """The options, without the name."""
        return dict(self.model_extra or {})

    def check(self, model: Any, tasks: list[str]) -> None:
        """Raise ConfigError if it cannot balance these tasks of this model, or something is not installed."""
        balancing_method(self.method).check_installed()
        check_can_balance(self.method, model, tasks)

    def balancer(self, trainer: TasksTrainer) -> Balancer:
        """Return what takes the place of the loss's gradient in a trainer's steps.

        Raises:
            ConfigError: as :meth:`check`.
        """
        model: Any = trainer.model
        self.check(model, trainer.about_tasks)
        method = balancing_method(self.method)
        return method.balancer(trainer, method.make_rule(self.options, len(trainer.about_tasks)))
