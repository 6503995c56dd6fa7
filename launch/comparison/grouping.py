"""Results side by side: only figures of one protocol share a column."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from launch.comparison.results import SCORES, Cell, Result, read

LOWER_IS_BETTER = {"fid": True, "kid": True, "is": False, "mse": True, "psnr": False, "ssim": False}
TOLERANCE = 0.05  # of a figure: a rerun on another machine or world size is as good within it
# Sections that change neither the weights nor the figures of a cell.
INDIFFERENT = ("system", "tracking", "checkpoint", "samples", "eval")


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
        """The scores that any cell has."""
        return [k for k in LOWER_IS_BETTER if any(c.value(k) is not None for c in self.cells)]

    def best(self, key: str) -> float | None:
        """The best value over all runs and epochs; None where there is nothing to choose from."""
        values = [v for c in self.cells if (v := c.value(key)) is not None]
        if len(values) < 2:
            return None
        return min(values) if LOWER_IS_BETTER[key] else max(values)


@dataclass(frozen=True)
class Group:
    """Cells whose protocols differ by the sampler only: they share a part of the page."""

    protocol: dict[str, Any]
    cells: tuple[Cell, ...]

    @property
    def labels(self) -> list[str]:
        return sorted({label for cell in self.cells for label in cell.figure.labels})

    def columns(self) -> list[Column]:
        """The group by whole protocols."""
        by_protocol: dict[str, list[Cell]] = {}
        for cell in self.cells:
            by_protocol.setdefault(cell.figure.protocol.key, []).append(cell)
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
    made = [Group(json.loads(key), tuple(cells)) for key, cells in found.items()]
    return sorted(made, key=lambda group: -len(group.cells))


@dataclass(frozen=True)
class SeedMean:
    """Runs that differ by their seed only, at one epoch and protocol: mean and deviation."""

    title: str
    sampler: str
    source: str
    epoch: int
    seeds: tuple[int, ...]
    scores: Mapping[str, tuple[float, float]]


def over_seeds(group: Group, results: Sequence[Result]) -> list[SeedMean]:
    """Mean and deviation over runs that differ by their seed only, for each epoch."""
    by_name = {result.name: result for result in results}
    alike: dict[str, dict[int, Cell]] = {}
    for cell in sorted(group.cells, key=lambda c: c.epoch):
        result = by_name[cell.run]
        if result.config:
            key = json.dumps([_but_for_seed(result.config), cell.sampler, cell.source, cell.epoch])
            alike.setdefault(key, {})[int(result.config["seed"])] = cell
    made = []
    for by_seed in alike.values():
        if len(by_seed) < 2:
            continue
        scores = {}
        for key in SCORES:
            values = [v for c in by_seed.values() if (v := c.value(key)) is not None]
            if len(values) > 1:
                scores[key] = (statistics.mean(values), statistics.stdev(values))
        first = next(iter(by_seed.values()))
        title = by_name[first.run].title
        made.append(
            SeedMean(
                title, first.sampler, first.source, first.epoch, tuple(sorted(by_seed)), scores
            )
        )
    return made


def _but_for_seed(config: Mapping[str, Any]) -> dict[str, Any]:
    kept = {k: v for k, v in config.items() if k != "seed" and k not in INDIFFERENT}
    kept["train"] = {k: v for k, v in kept["train"].items() if k != "epochs"}
    return kept


def differences(results: Sequence[Result]) -> dict[str, dict[str, str]]:
    """Settings that are not the same in all runs: key -> run -> value, "" where it has none.

    Those only that change a cell: neither INDIFFERENT ones nor the number of epochs.
    """
    flat = {r.name: dict(_flatten(r.config)) for r in results if r.config}
    keys = sorted({key for values in flat.values() for key in values})
    found = {}
    for key in keys:
        if key.partition(".")[0] in (*INDIFFERENT, "preset") or key == "train.epochs":
            continue
        column = {n: json.dumps(v[key]).strip('"') if key in v else "" for n, v in flat.items()}
        if len(set(column.values())) > 1:
            found[key] = column
    return found


def by_value(column: Mapping[str, str]) -> dict[str, list[str]]:
    """The runs of each value that a setting has; those without it are left out."""
    found: dict[str, list[str]] = {}
    for run, value in column.items():
        if value:
            found.setdefault(value, []).append(run)
    return found


def _flatten(values: Mapping[str, Any], prefix: str = "") -> Iterable[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from _flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


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
