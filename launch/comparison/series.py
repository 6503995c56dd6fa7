"""The lines of charts: losses and scores over epochs, over hours, over network calls.

Runs that differ by their seed only are one line: their mean, with a band of one standard deviation.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Iterator, Mapping, Sequence

from diffuse.config.sampler_spec import SamplerSpec
from launch.comparison.charts import Curve, Points, mean_curve
from launch.results.axes import Axis
from launch.results.grouping import Column
from launch.results.results import Cell, Result

Lines = dict[str, Curve]


def losses(results: Sequence[Result], kind: str, line_of: Mapping[str, str]) -> Lines:
    """The losses of the runs of a kind, DDPM or cold, over epochs."""
    found: dict[str, list[Points]] = {}
    for result in results:
        if result.losses and result.kind == kind:
            found.setdefault(line_of[result.name], []).append(result.losses)
    return {name: mean_curve(seeds, tie=True) for name, seeds in found.items()}


def over_epochs(column: Column, key: str, line_of: Mapping[str, str]) -> Lines:
    """A score over epochs; nothing where there is one epoch only."""
    if len({cell.epoch for cell in column.cells}) < 2:
        return {}
    return _lines((line_of[c.run], c.run, float(c.epoch), c.value(key)) for c in column.cells)


def over_hours(column: Column, line_of: Mapping[str, str]) -> dict[str, Lines]:
    """FID at each epoch over the `GPU hours` up to it, and over `core hours`.

    Of seeds, the mean at an epoch stands at their mean hours. A run on both kinds of device has no
    such sum. Nothing where there is one point only.
    """
    found: dict[str, Lines] = {}
    for unit in ("GPU hours", "core hours"):
        cells = [c for c in column.cells if c.spent and set(c.spent.hours) == {unit}]
        lines = _lines((line_of[c.run], c.run, float(c.epoch), c.value("fid")) for c in cells)
        hours: dict[tuple[str, float], list[float]] = {}
        for c in cells:
            if c.spent:
                hours.setdefault((line_of[c.run], float(c.epoch)), []).append(c.spent.hours[unit])
        at = {place: statistics.fmean(of_seeds) for place, of_seeds in hours.items()}
        if sum(len(curve.points) for curve in lines.values()) > 1:
            found[unit] = {
                name: Curve(
                    [(at[name, epoch], y) for epoch, y in curve.points],
                    [(at[name, epoch], low, high) for epoch, low, high in curve.band],
                )
                for name, curve in lines.items()
            }
    return found


def over_calls(cells: Sequence[Cell], line_of: Mapping[str, str]) -> Lines:
    """FID over the network calls of one image, by samplers that start from the same.

    Each run at the last of its epochs that samplers of different numbers were evaluated at. A line
    joins samplers that differ in their number of steps only.
    """
    at: dict[tuple[int, str], list[tuple[SamplerSpec, Cell]]] = {}
    for cell in cells:
        if cell.spec:
            at.setdefault((cell.epoch, cell.run), []).append((cell.spec, cell))
    shown = {
        run: together
        for (_, run), together in sorted(at.items(), key=lambda item: item[0][0])
        if len({spec.network_calls for spec, _ in together}) > 1
    }
    one_line = len({line_of[run] for run in shown}) == 1
    return _lines(
        (
            spec.family if one_line else f"{line_of[run]}, {spec.family}",
            run,
            float(spec.network_calls),
            cell.value("fid"),
        )
        for run, together in shown.items()
        for spec, cell in together
    )


def calls_by_start(
    columns: Sequence[Column], line_of: Mapping[str, str]
) -> Iterator[tuple[list[Column], Lines]]:
    """FID over network calls for each start of samplers: its columns, and its lines if any."""
    for source in dict.fromkeys(column.source for column in columns):
        alike = [column for column in columns if column.source == source]
        if lines := over_calls([cell for column in alike for cell in column.cells], line_of):
            yield alike, lines


def along(axis: Axis) -> Lines:
    """FID over the values of a setting; nothing where they are no numbers."""
    numbers = axis.numbers or {}
    return {
        name: mean_curve(
            [[(numbers[v], fid)] for v, sample in line.items() for fid in sample.values]
        )
        for name, line in axis.lines.items()
        if numbers
    }


def _lines(points: Iterable[tuple[str, str, float, float | None]]) -> Lines:
    """Curves by name from (name, run, x, y): runs of one name are seeds."""
    found: dict[str, dict[str, list[tuple[float, float]]]] = {}
    for name, run, x, y in points:
        if y is not None:
            found.setdefault(name, {}).setdefault(run, []).append((x, y))
    return {name: mean_curve(list(runs.values())) for name, runs in found.items()}
