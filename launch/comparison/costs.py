"""The cost beside the figures: of each run's training so far, and of a figure up to its epoch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from launch.comparison.wording import score
from launch.grids.ledger import noted_costs
from launch.results.results import Cell, Result

NOTE = (
    "Hours are those for which the attempts of a training held their GPUs or cores, with what they"
    " drew, saved and evaluated; steps that were made twice count twice. Images a second are of"
    " training steps alone, as are the hours where an older version of this project trained."
)


COLUMNS = (
    *("device", "gpu_hours", "core_hours", "energy_kwh"),
    *("images_seen", "images_per_s", "network_calls"),
)


def table(results: Sequence[Result], names: Mapping[str, str]) -> list[list[str]]:
    """The head and a row for each run that trained: name, device, hours, images, images a second.

    Hours are of GPUs, of cores, or both, as there are; beside them those that a sweep had estimated
    for as many steps.
    """
    trained = [(r, r.cost) for r in results if r.cost and r.cost.total.images]
    if not trained:
        return []
    units = [u for u in ("GPU hours", "core hours") if any(u in c.total.hours for _, c in trained)]
    before = estimated(results)
    energy = ["kWh"] if any(cost.total.energy_kwh for _, cost in trained) else []
    head = ["run", "device", *units, *(["estimated"] if before else []), *energy]
    rows = [[*head, "images seen", "images/s"]]
    for result, cost in trained:
        hours = [score(cost.total.hours.get(unit)) for unit in units]
        hours += [score(before.get(result.name))] if before else []
        hours += [score(cost.total.energy_kwh or None)] if energy else []
        counts = [f"{cost.total.images:,}", f"{cost.images_per_s:,.0f}"]
        rows.append([names[result.name], cost.device, *hours, *counts])
    return rows


def estimated(results: Sequence[Result]) -> dict[str, float]:
    """The hours of each run's steps so far on its devices, as a sweep had estimated them before."""
    folders = {result.dir.path.parent for result in results}
    noted = {folder: noted_costs(folder) for folder in folders}
    found = {}
    for result in results:
        before = noted[result.dir.path.parent].get(result.dir.name)
        spent = result.cost.total if result.cost else None
        if before and spent and spent.images and spent.seconds and len(spent.hours) == 1:
            images = before["steps"] * result.config["train"]["global_batch"]
            seconds = before["seconds"] * spent.images / images
            found[result.name] = sum(spent.hours.values()) * seconds / spent.seconds
    return found


def columns(result: Result, cell: Cell) -> dict[str, Any]:
    """A figure's cost for programs: of training up to its epoch, and of its sampler."""
    cost, spent = result.cost, cell.spent
    device, rate = (cost.device, cost.images_per_s) if cost else (None, None)
    up_to = (
        (spent.gpu_hours, spent.core_hours, spent.energy_kwh or None, spent.images)
        if spent
        else (None,) * 4
    )
    values = (device, *up_to, rate, cell.network_calls)
    return dict(zip(COLUMNS, values, strict=True))
