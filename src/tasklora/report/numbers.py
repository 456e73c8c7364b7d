"""Numbers as text, the same in every table and figure."""

import statistics
from collections.abc import Mapping

from tasklora.evaluation import Estimate, MethodResults, SplitScores
from tasklora.tasks import METRICS
from tasklora.vision.spec import LOWER_IS_BETTER

MINUS = "\N{MINUS SIGN}"


def number(value: float | None, digits: int = 3) -> str:
    """Return a number, with a real minus sign; a dash where it is undefined."""
    return "–" if value is None else f"{value:.{digits}f}".replace("-", MINUS)


def signed(value: float, digits: int = 3) -> str:
    """Return a difference, always with its sign."""
    return f"{value:+.{digits}f}".replace("-", MINUS)


def estimate(value: Estimate | None) -> str:
    """Return a mean with its standard deviation over seeds, if there are several."""
    if value is None:
        return "–"
    return number(value.mean) + ("" if value.std is None else f" ± {value.std:.3f}")


def interval(value: Estimate | None, digits: int = 3) -> str:
    """Return the interval of a score."""
    return "–" if value is None or value.low is None else f"{number(value.low, digits)} to {number(value.high, digits)}"


def difference(value: Estimate | None) -> str:
    """Return a difference with its interval."""
    if value is None:
        return "–"
    if value.low is None or value.high is None:
        return signed(value.mean)
    return f"{signed(value.mean)} ({signed(value.low)} to {signed(value.high)})"


def percent(value: Estimate | None) -> str:
    """Return a Δm with its standard deviation over seeds, if there are several."""
    if value is None:
        return "–"
    return signed(value.mean, 1) + ("" if value.std is None else f" ± {value.std:.1f}")


STEP_NOTE = (
    "A step is the median time of an optimiser step, of each run and then over the runs. They came one after another, "
    "so whatever else the machine did is in it: a rough guide."
)


def step_milliseconds(method: MethodResults) -> float | None:
    """Return the median over a method's runs of the time of an optimiser step; None where it was not taken."""
    return 1000 * statistics.median(method.step_seconds) if method.step_seconds else None


def milliseconds(value: float | None) -> str:
    """Return a time of a step: whole milliseconds, or three digits of a short one."""
    return "–" if value is None else f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def natural(value: Estimate | None, metric: str) -> Estimate | None:
    """Return a score as the metric's own value: scores are negated where lower is better, metrics are not."""
    if value is None or not lower_is_better(metric):
        return value
    low, high = (None if end is None else -end for end in (value.high, value.low))
    return Estimate(mean=-value.mean, std=value.std, low=low, high=high, seeds=[-seed for seed in value.seeds])


def sortable(value: Estimate | None) -> float | str:
    """Return what a column is sorted by; an empty text goes last."""
    return "" if value is None else value.mean


def lower_is_better(metric: str) -> bool:
    """Return whether a metric, of either shape, is an error."""
    return metric in LOWER_IS_BETTER or (metric in METRICS and not METRICS[metric].higher_is_better)


def score_label(metric: str) -> str:
    """Return what a score is: the metric, with a minus sign where it is negated so that higher is better."""
    return MINUS + metric if lower_is_better(metric) else metric


AVERAGE_OF_UNITS = "in the average an angle counts as 1 − angle/90°, an error as 1/(1 + error)"


def average_note(scores: SplitScores) -> str | None:
    """Return what to say of an average over metrics of several units; None for a plain mean of the scores."""
    plain = [task.score for task in scores.tasks.values() if task.score is not None]
    if scores.average is None or abs(sum(plain) / len(plain) - scores.average) < 1e-9:
        return None
    return AVERAGE_OF_UNITS


def has_units(metrics: Mapping[str, str], is_dense: bool) -> bool:
    """Return whether the primary metrics have several units: those of dense tasks that are not fractions."""
    return is_dense and any(lower_is_better(metric) for metric in metrics.values())
