"""Results along one setting: a table and, where its values are numbers, a chart.

An axis is a setting in which runs of one preset and orientation differ. Settings that always change
together are one axis. All other settings of two results on one line are the same, but for the seed.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from launch.results.certainty import Sample, sentence
from launch.results.grouping import Column
from launch.results.labels import Settings, pairs, settings, titles
from launch.results.results import Cell, Result

MOST_SENTENCES = 8  # of one axis


@dataclass(frozen=True)
class Axis:
    """FID at one epoch, by the value of one setting."""

    key: str  # train.lr, or several keys: `train.lr, train.global_batch`
    epoch: int
    values: tuple[str, ...]  # in order
    lines: Mapping[str, Mapping[str, Sample]]  # all other settings: value: FID of each seed

    @property
    def numbers(self) -> dict[str, float] | None:
        """The values as numbers, where all of them are."""
        try:
            found = {value: float(value) for value in self.values}
        except ValueError:
            return None
        return found if all(map(math.isfinite, found.values())) else None

    @property
    def best(self) -> float:
        return min(sample.mean for line in self.lines.values() for sample in line.values())

    def sentences(self) -> Iterator[str]:
        """For each line, how sure its best value is better than the next."""
        for name, line in list(self.lines.items())[:MOST_SENTENCES]:
            yield f"{name}: {sentence(list(line.values()))}"


def axes(column: Column, results: Sequence[Result]) -> list[Axis]:
    """The axes along which two or more results of one protocol can be compared."""
    cells: dict[str, list[Cell]] = {}
    for cell in column.cells:
        cells.setdefault(cell.run, []).append(cell)
    shown = [r for r in results if r.name in cells and r.config and not r.is_file]
    found: dict[str, list[tuple[str, str, Result]]] = {}  # key: line, value and run
    for title in dict.fromkeys(r.title for r in shown):
        alike = [r for r in shown if r.title == title]
        of_run = {r.name: settings(r.config) for r in alike}
        varied = _varied(list(of_run.values()))
        for keys in varied:
            others = [key for several in varied if several != keys for key in several]
            for run in alike:
                line = " ".join([title, *pairs(of_run[run.name], others)])
                value = ", ".join(of_run[run.name].get(key, "none") for key in keys)
                found.setdefault(", ".join(keys), []).append((line, value, run))
    return [axis for key, points in found.items() if (axis := _axis(key, points, cells))]


def overall(column: Column, results: Sequence[Result]) -> str:
    """How sure the best of all runs, seeds together, is better than the next; "" of one alone."""
    title_of = titles(results)
    epoch = _epoch(column.cells)
    samples: dict[str, list[float]] = {}
    for cell in column.cells:
        if cell.epoch == epoch and (fid := cell.value("fid")) is not None:
            samples.setdefault(title_of[cell.run], []).append(fid)
    if len(samples) < 2:
        return ""
    verdict = sentence([Sample(name, tuple(values)) for name, values in samples.items()])
    return f"FID at epoch {epoch}: {verdict}"


def _axis(
    key: str, points: Sequence[tuple[str, str, Result]], cells: Mapping[str, Sequence[Cell]]
) -> Axis | None:
    epoch = _epoch([cell for _, _, run in points for cell in cells[run.name]])
    lines: dict[str, dict[str, list[float]]] = {}
    for line, value, run in points:
        for cell in cells[run.name]:
            if cell.epoch == epoch and (fid := cell.value("fid")) is not None:
                lines.setdefault(line, {}).setdefault(value, []).append(fid)
    lines = {line: by_value for line, by_value in lines.items() if len(by_value) > 1}
    if not lines:
        return None
    values = {value for by_value in lines.values() for value in by_value}
    samples = {
        line: {value: Sample(value, tuple(fids)) for value, fids in by_value.items()}
        for line, by_value in lines.items()
    }
    return Axis(key, epoch, tuple(sorted(values, key=_order)), samples)


def _varied(runs: Sequence[Settings]) -> list[tuple[str, ...]]:
    """The keys in which runs differ; those together that always differ together."""
    groups: dict[tuple[int, ...], list[str]] = {}
    for key in dict.fromkeys(key for run in runs for key in run):
        values = [run.get(key) for run in runs]
        groups.setdefault(tuple(values.index(value) for value in values), []).append(key)
    return [tuple(keys) for places, keys in groups.items() if len(set(places)) > 1]


def _epoch(cells: Sequence[Cell]) -> int:
    """The epoch that most runs have, the last of such."""
    count = Counter(epoch for _, epoch in {(cell.run, cell.epoch) for cell in cells})
    return max(count, key=lambda epoch: (count[epoch], epoch), default=0)


def _order(value: str) -> tuple[float, str]:
    try:
        return float(value), value
    except ValueError:
        return math.inf, value
