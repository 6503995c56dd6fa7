"""Results side by side: only figures of one protocol share a column."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from launch.results.labels import settings, titles
from launch.results.results import SCORES, Cell, Result, read

LOWER_IS_BETTER = {"fid": True, "kid": True, "is": False, "mse": True, "psnr": False, "ssim": False}
TOLERANCE = 0.05  # of a figure: a rerun on another machine or world size is as good within it


@dataclass(frozen=True)
class Column:
    """All results measured under one protocol."""

    cells: tuple[Cell, ...]  # the run with the best FID first, each run's epochs in order

    @property
    def sampler(self) -> str:
        return self.cells[0].sampler

    @property
    def source(self) -> str:
        return self.cells[0].source

    @property
    def latest(self) -> list[Cell]:
        """The last epoch of each run."""
        return list({cell.run: cell for cell in self.cells}.values())

    @property
    def floor(self) -> dict[str, float]:
        """The scores of real test images."""
        return self.cells[0].figure.floor.values()

    @property
    def floor_images(self) -> str:
        return self.cells[0].figure.protocol.floor or "test images"

    @property
    def keys(self) -> list[str]:
        """The loss and the scores, those that any cell has."""
        every = ("loss", *LOWER_IS_BETTER)
        return [k for k in every if any(c.value(k) is not None for c in self.cells)]

    def best(self, key: str) -> float | None:
        """The best value over all runs and epochs; None where there is nothing to choose from.

        Losses are not compared: those of two processes or weights have no common scale.
        """
        values = [v for c in self.cells if (v := c.value(key)) is not None]
        if len(values) < 2 or key not in LOWER_IS_BETTER:
            return None
        return min(values) if LOWER_IS_BETTER[key] else max(values)


@dataclass(frozen=True)
class Group:
    """Cells whose protocols differ by the sampler only: they share a part of the page."""

    protocol: dict[str, Any]
    cells: tuple[Cell, ...]

    @property
    def judge(self) -> str:
        return self.cells[0].figure.protocol.judge

    @property
    def labels(self) -> list[str]:
        told = {cell.figure.protocol.labels for cell in self.cells} - {None}
        remarks = {f"labels that a network is told are {how}" for how in told}
        return sorted(remarks.union(*(cell.figure.labels for cell in self.cells)))

    def columns(self) -> list[Column]:
        """The group by protocol, whether networks were told labels or not."""
        by_protocol: dict[str, list[Cell]] = {}
        for cell in self.cells:
            by_protocol.setdefault(cell.figure.protocol.of_any_model, []).append(cell)
        columns = [Column(_ranked(cells)) for cells in by_protocol.values()]
        return sorted(columns, key=lambda c: (c.source == "test images", c.source, c.sampler))


def _ranked(cells: Sequence[Cell]) -> tuple[Cell, ...]:
    """Runs by the best FID of any of their epochs, each run's epochs in order."""
    best: dict[str, float] = {}
    for cell in cells:
        fid = cell.value("fid")
        best[cell.run] = min(best.get(cell.run, math.inf), math.inf if fid is None else fid)
    return tuple(sorted(cells, key=lambda c: (best[c.run], c.run, c.epoch)))


def groups(results: Sequence[Result]) -> list[Group]:
    """The cells by protocol, the one with most cells first."""
    found: dict[str, list[Cell]] = {}
    for result in results:
        for cell in result.cells:
            common = json.dumps(cell.figure.protocol.without_sampler(), sort_keys=True)
            found.setdefault(common, []).append(cell)
    every = (Group(json.loads(key), tuple(cells)) for key, cells in found.items())
    return sorted(every, key=lambda group: -len(group.cells))


@dataclass(frozen=True)
class SeedMean:
    """Runs that differ by their seed only, at one epoch and protocol: mean and deviation."""

    title: str  # that of labels.titles
    sampler: str
    source: str
    epoch: int
    seeds: tuple[int, ...]
    scores: Mapping[str, tuple[float, float]]


def over_seeds(group: Group, results: Sequence[Result]) -> list[SeedMean]:
    """Mean and deviation over runs that differ by their seed only, for each epoch."""
    title_of = titles(results)
    seed_of = {r.name: None if r.is_file else r.seed for r in results}
    alike: dict[tuple[str, str, str, int], dict[int, Cell]] = {}
    for cell in sorted(group.cells, key=lambda c: c.epoch):
        if (seed := seed_of[cell.run]) is not None:
            key = (title_of[cell.run], cell.sampler, cell.source, cell.epoch)
            alike.setdefault(key, {})[seed] = cell
    means = []
    for about, by_seed in alike.items():
        if len(by_seed) < 2:
            continue
        scores = {}
        for score in ("loss", *SCORES):
            values = [v for c in by_seed.values() if (v := c.value(score)) is not None]
            if len(values) > 1:
                scores[score] = (statistics.mean(values), statistics.stdev(values))
        means.append(SeedMean(*about, tuple(sorted(by_seed)), scores))
    return means


def of_column(means: Sequence[SeedMean], column: Column) -> list[SeedMean]:
    """Those of the column's protocol, of the means of its group."""
    return [m for m in means if (m.sampler, m.source) == (column.sampler, column.source)]


def differences(results: Sequence[Result]) -> dict[str, dict[str, str]]:
    """Settings that are not the same in all runs of a kind, DDPM or cold: key -> run -> value.

    Those only that change a cell. "" stands for a run without that setting, and for all runs of a
    kind in which they agree.
    """
    found: dict[str, dict[str, str]] = {}
    for kind in dict.fromkeys(r.kind for r in results if r.config and not r.is_file):
        runs = {
            r.name: {"seed": str(r.seed), **settings(r.config)}
            for r in results
            if r.kind == kind and not r.is_file
        }
        for key in sorted({key for values in runs.values() for key in values}):
            column = {name: values.get(key, "") for name, values in runs.items()}
            if len(set(column.values())) > 1:
                found.setdefault(key, dict.fromkeys((r.name for r in results), "")).update(column)
    return dict(sorted(found.items()))


def by_value(column: Mapping[str, str]) -> dict[str, list[str]]:
    """The runs of each value that a setting has; those without it are left out."""
    found: dict[str, list[str]] = {}
    for run, value in column.items():
        if value:
            found.setdefault(value, []).append(run)
    return found


@dataclass(frozen=True)
class Pair:
    """A run and its rerun."""

    run: str
    rerun: str
    weights: str  # equal, different, or why that cannot be said
    figures: str  # equal, within 5 %, different, or none in common


def reruns(results: Sequence[Result], runs_dir: Path) -> list[Pair]:
    """Each run beside its reruns by `sweep --rerun`."""
    pairs = []
    for result in results:
        for path in sorted(runs_dir.glob("rerun-*/*")):
            if path.name == result.dir.name and path != result.dir.path:
                again = read(path)
                rerun = str(path.relative_to(runs_dir))
                pairs.append(
                    Pair(result.name, rerun, _weights(result, again), _agree(result, again))
                )
    return pairs


def _weights(a: Result, b: Result) -> str:
    """By the hashes that training noted in metrics.jsonl: no weight file is opened."""
    common = a.weights.keys() & b.weights.keys()
    if not common:
        return "no epoch in common"
    if all(a.weights[epoch] == b.weights[epoch] for epoch in common):
        return "equal"
    ours, theirs = a.manifest.get("environment"), b.manifest.get("environment")
    if not isinstance(ours, dict) or not isinstance(theirs, dict):
        return "different"
    other = [k for k in ours | theirs if ours.get(k) != theirs.get(k)]
    return "different" + (f" (so are {', '.join(other)})" if other else "")


def _agree(a: Result, b: Result) -> str:
    ours = {_key(cell): cell for cell in a.cells}
    shared = [(ours[_key(cell)], cell) for cell in b.cells if _key(cell) in ours]
    if not shared:
        return "none in common"
    worst = 0.0
    for x, y in shared:
        for key in SCORES:
            p, q = x.value(key) or 0.0, y.value(key) or 0.0
            worst = max(worst, abs(p - q) / max(abs(p), abs(q), 1e-12))
    if worst == 0:
        return "equal"
    return f"within {TOLERANCE:.0%}" if worst <= TOLERANCE else f"different ({worst:.0%})"


def _key(cell: Cell) -> tuple[int, str]:
    return cell.epoch, cell.figure.protocol.key
