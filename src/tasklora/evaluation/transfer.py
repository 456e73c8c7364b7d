"""Transfer: what a task gains or loses by being trained with the others."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

SINGLE = "@single"
"""``METHOD@single`` is the method with a run of its own for each task."""


class HasMean(Protocol):
    """Anything with a mean over seeds."""

    mean: float


def relative_transfer(
    gained: Mapping[str, HasMean], alone: Mapping[str, HasMean], near_zero: float
) -> dict[str, float]:
    """Return 100 (M_t − S_t) / |S_t| of each task, in percent: the terms of Δm.

    Args:
        gained: task → M_t − S_t.
        alone: task → S_t, its score in a run of its own.
        near_zero: scores alone of less than this are left out: a relative change against them says nothing.
    """
    scores = {task: alone[task].mean for task in gained}
    return {task: 100.0 * gained[task].mean / abs(score) for task, score in scores.items() if abs(score) >= near_zero}
