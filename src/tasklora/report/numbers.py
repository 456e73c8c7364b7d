"""Numbers as text, the same in every table and figure."""

from tasklora.evaluation import Estimate

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


def interval(value: Estimate | None) -> str:
    """Return the interval of a score."""
    return "–" if value is None or value.low is None else f"{number(value.low)} to {number(value.high)}"


def difference(value: Estimate | None) -> str:
    """Return a difference with its interval."""
    if value is None:
        return "–"
    if value.low is None or value.high is None:
        return signed(value.mean)
    return f"{signed(value.mean)} ({signed(value.low)} to {signed(value.high)})"


def percent(value: Estimate | None) -> str:
    """Return a Δm."""
    return "–" if value is None else signed(value.mean, 1)


def sortable(value: Estimate | None) -> float | str:
    """Return what a column is sorted by; an empty text goes last."""
    return "" if value is None else value.mean
