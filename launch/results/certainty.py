"""The evidence for an order of two means over seeds: Welch's t-test, in one plain sentence."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

CHANCE = 0.05  # above this probability a difference may well be chance
INTERVALS = 20_000  # of the angle over which the t-distribution is integrated


@dataclass(frozen=True)
class Sample:
    """One score of runs that differ by their seed only."""

    name: str
    values: tuple[float, ...]

    @property
    def mean(self) -> float:
        return statistics.fmean(self.values)

    @property
    def deviation(self) -> float | None:
        """The standard deviation over seeds; None of a single one."""
        return statistics.stdev(self.values) if len(self.values) > 1 else None

    def __str__(self) -> str:
        if self.deviation is None:
            return f"{self.name} ({self.mean:.4g}, 1 seed)"
        return f"{self.name} ({self.mean:.4g} ± {self.deviation:.2g}, {len(self.values)} seeds)"


def welch(a: Sequence[float], b: Sequence[float]) -> float:
    """The two-sided probability of Welch's t-test (1947): that equal means differ as much.

    Each of `a` and `b` has two values or more, of which neither the variances nor the numbers need
    be equal.
    """
    variances = [statistics.variance(x) / len(x) for x in (a, b)]
    difference, total = abs(statistics.fmean(a) - statistics.fmean(b)), sum(variances)
    if total == 0:
        return 0.0 if difference else 1.0
    parts = zip(variances, (a, b), strict=True)
    freedom = total**2 / sum(v**2 / (len(x) - 1) for v, x in parts)
    return t_tails(difference / math.sqrt(total), freedom)


def t_tails(t: float, freedom: float) -> float:
    """P(|T| > t) of Student's distribution with `freedom` degrees, 1 or more.

    With T = sqrt(freedom) tan(angle) the density is proportional to cos(angle)^(freedom - 1).
    """
    start = math.atan(t / math.sqrt(freedom))

    def integral(a: float, b: float) -> float:
        middles = a + (b - a) * (np.arange(INTERVALS) + 0.5) / INTERVALS
        return float(np.mean(np.cos(middles) ** (freedom - 1))) * (b - a)

    return integral(start, math.pi / 2) / integral(0.0, math.pi / 2)


def sentence(samples: Sequence[Sample], lower_is_better: bool = True) -> str:
    """The best of two or more samples, the next, and the evidence for that order."""
    sign = 1 if lower_is_better else -1
    best, second, *_ = sorted(samples, key=lambda sample: sign * sample.mean)
    if best.deviation is None or second.deviation is None:
        return f"{best} is ahead of {second}, perhaps by chance: seeds are missing (seeds: 0-2)."
    p = welch(best.values, second.values)
    chance = f"{100 * p:.2g} %" if p >= 0.001 else "less than 0.1 %"
    why = (
        f"were both equally good, seeds would make such a difference in {chance} of comparisons"
        " (Welch's t-test)."
    )
    if p > CHANCE:
        return f"{best} is ahead of {second}, but that may be chance: {why}"
    return f"{best} is better than {second}: {why}"
