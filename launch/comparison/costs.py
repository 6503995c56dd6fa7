"""The cost beside the figures: of each run's training so far, and of a figure up to its epoch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from launch.comparison.results import Cell, Result
from launch.comparison.wording import score

NOTE = (
    "Hours are those for which the attempts of a training held their GPUs or cores, with what they"
    " drew, saved and evaluated; steps that were made twice count twice. Images a second are of"
    " training steps alone, as are the hours where an older version of this project trained."
)


COLUMNS = ("device", "gpu_hours", "core_hours", "images_seen", "images_per_s", "network_calls")


def table(results: Sequence[Result], names: Mapping[str, str]) -> list[list[str]]:
    """The head and a row for each run that trained: name, device, hours, images, images a second.

    Hours are of GPUs, of cores, or both, as there are.
    """
    trained = [(names[r.name], r.cost) for r in results if r.cost and r.cost.total.images]
    units = [u for u in ("GPU hours", "core hours") if any(u in c.total.hours for _, c in trained)]
    rows = [["run", "device", *units, "images seen", "images/s"]] if trained else []
    for name, cost in trained:
        hours = [score(cost.total.hours.get(unit)) for unit in units]
        rows.append(
            [name, cost.device, *hours, f"{cost.total.images:,}", f"{cost.images_per_s:,.0f}"]
        )
    return rows


def columns(result: Result, cell: Cell) -> dict[str, Any]:
    """A figure's cost for programs: of training up to its epoch, and of its sampler."""
    cost, spent = result.cost, cell.spent
    hours = (spent.gpu_hours, spent.core_hours, spent.images) if spent else (None, None, None)
    whole = (cost.device, cost.images_per_s) if cost else (None, None)
    values = (whole[0], *hours, whole[1], cell.network_calls)
    return dict(zip(COLUMNS, values, strict=True))
