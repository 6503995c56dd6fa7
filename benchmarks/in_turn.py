"""Two things timed in turn, so that the machine's drift meets both."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any


def in_turn(
    ours: Callable[[], Any], other: Callable[[], Any], rounds: int, repeats: tuple[int, int]
) -> tuple[float, float]:
    """Median seconds of both."""
    a, b = zip(*pairs(ours, other, rounds, repeats), strict=True)
    return statistics.median(a), statistics.median(b)


def pairs(
    ours: Callable[[], Any], other: Callable[[], Any], rounds: int, repeats: tuple[int, int]
) -> list[tuple[float, float]]:
    """Seconds of `ours` and of `other` in each round; which of them goes first alternates."""
    found = []
    for k in range(rounds):
        if k % 2:
            b = seconds(other, repeats[1])
            a = seconds(ours, repeats[0])
        else:
            a = seconds(ours, repeats[0])
            b = seconds(other, repeats[1])
        found.append((a, b))
    return found


def seconds(function: Callable[[], Any], n: int = 1) -> float:
    """Mean seconds of n calls."""
    start = time.perf_counter()
    for _ in range(n):
        function()
    return (time.perf_counter() - start) / n
