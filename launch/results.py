"""What the runs of a grid came to, read from their directories alone.

Damage in one run is named and costs that run only.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from diffuse.errors import DiffuseError, UserError
from diffuse.rundir import RunDir

SCORES = ("fid", "kid", "is")
LOWER_IS_BETTER = {"fid": True, "kid": True, "is": False, "mse": True, "psnr": False, "ssim": False}
Figure = dict[str, Any]


@dataclass(frozen=True)
class Cell:
    """A figure of one run at one epoch."""

    run: str
    epoch: int
    figure: Figure

    @property
    def sampler(self) -> str:
        return str(self.figure["protocol"]["sampler"])

    def value(self, key: str) -> float | None:
        """fid, kid, is, or a reconstruction's mse, psnr, ssim."""
        found = self.figure.get(key, (self.figure.get("reconstruction") or {}).get(key))
        return None if found is None else float(found)


@dataclass
class Result:
    """One run: what it is, how it stands, what it came to."""

    name: str
    dir: RunDir
    config: dict[str, Any]
    status: dict[str, Any]
    manifest: dict[str, Any]
    losses: list[tuple[float, float]]  # epoch (a fraction), mean loss around it
    cells: list[Cell] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    weights: dict[int, str] = field(default_factory=dict)  # epoch: hash of the weights

    @property
    def title(self) -> str:
        """`cold/default_28 row`, with the seed where it is not the usual one."""
        orientation = self.config.get("process", {}).get("orientation")
        return " ".join(filter(None, [str(self.config.get("preset", self.name)), orientation]))

    @property
    def seed(self) -> int | None:
        return self.config.get("seed")

    @property
    def is_cold(self) -> bool:
        return bool(self.config.get("process", {}).get("kind") == "averaging")

    @property
    def pictures(self) -> list[tuple[int, Path]]:
        """The sample grids by epoch."""
        found = [(int(p.stem[6:]), p) for p in self.dir.samples.glob("epoch_????.png")]
        return sorted(found)


@dataclass(frozen=True)
class Group:
    """Cells of one protocol but for the sampler: the only ones that may be compared."""

    protocol: dict[str, Any]
    floor: Figure
    cells: tuple[Cell, ...]

    @property
    def labels(self) -> list[str]:
        return sorted({label for cell in self.cells for label in cell.figure["labels"]})

    def last(self) -> list[Cell]:
        """Of each run and sampler the latest epoch's cell."""
        latest: dict[tuple[str, str], Cell] = {}
        for cell in sorted(self.cells, key=lambda c: c.epoch):
            latest[(cell.run, cell.sampler)] = cell
        return list(latest.values())

    def best(self, key: str, cells: Iterable[Cell]) -> float | None:
        """The best value of a column."""
        values = [v for c in cells if (v := c.value(key)) is not None]
        if not values:
            return None
        return min(values) if LOWER_IS_BETTER[key] else max(values)


def read(path: Path) -> Result:
    """The result of the run directory `path`."""
    run = RunDir(path)
    problems: list[str] = []
    config: dict[str, Any] = {}
    try:
        config = run.config().model_dump(mode="json")
    except DiffuseError as error:
        problems.append(str(error))
    status = run.status()
    result = Result(path.name, run, config, status, _json(path / "manifest.json"), [])
    events = run.metrics()
    result.losses = _curve(events)
    result.weights = {e["epoch"]: e["weights"] for e in events if e.get("event") == "checkpoint"}
    result.problems = problems
    for file in sorted(run.evaluations.glob("epoch_*.json")):
        content = _json(file)
        try:
            epoch, figures = int(content["epoch"]), content["figures"]
            cells = [Cell(path.name, epoch, figure) for figure in figures]
            for cell in cells:
                [float(cell.figure[key]) + float(cell.figure["floor"][key]) for key in SCORES]
                assert cell.sampler
        except (KeyError, TypeError, ValueError, AssertionError):
            problems.append(f"{file}: damaged; delete it and evaluate again")
            continue
        result.cells += cells
    state = status.get("state")
    if state in ("failed", "interrupted"):
        problems.append(f"{state}: {status.get('reason', 'unknown')}")
    elif not config and not status:
        problems.append("nothing here yet")
    elif not result.cells:
        problems.append("not evaluated" if state == "done" else f"{state or 'not begun'} as yet")
    return result


def groups(results: Sequence[Result]) -> list[Group]:
    """The cells by protocol, the one with most cells first."""
    found: dict[str, list[Cell]] = {}
    for result in results:
        for cell in result.cells:
            found.setdefault(_without_sampler(cell.figure["protocol"]), []).append(cell)
    made = [
        Group(json.loads(key), cells[0].figure["floor"], tuple(cells))
        for key, cells in found.items()
    ]
    return sorted(made, key=lambda group: -len(group.cells))


@dataclass(frozen=True)
class SeedMean:
    """Runs that differ by their seed only, at one epoch and sampler: mean and deviation."""

    title: str
    sampler: str
    epoch: int
    seeds: tuple[int, ...]
    scores: Mapping[str, tuple[float, float]]


def over_seeds(group: Group, results: Sequence[Result]) -> list[SeedMean]:
    """What only a seed tells apart, put together."""
    by_name = {result.name: result for result in results}
    alike: dict[str, list[Cell]] = {}
    for cell in group.last():
        config = {k: v for k, v in by_name[cell.run].config.items() if k != "seed"}
        key = json.dumps([config, cell.sampler, cell.epoch], sort_keys=True)
        alike.setdefault(key, []).append(cell)
    made = []
    for cells in alike.values():
        if len(cells) < 2:
            continue
        scores = {}
        for key in SCORES:
            values = [v for c in cells if (v := c.value(key)) is not None]
            scores[key] = (statistics.mean(values), statistics.stdev(values))
        seeds = tuple(sorted(int(by_name[c.run].seed or 0) for c in cells))
        first = cells[0]
        title = by_name[first.run].title
        made.append(SeedMean(title, first.sampler, first.epoch, seeds, scores))
    return made


def differences(results: Sequence[Result]) -> dict[str, dict[str, str]]:
    """Settings that are not the same in all runs: key -> run -> value."""
    flat = {r.name: dict(_flatten(r.config)) for r in results if r.config}
    keys = sorted({key for values in flat.values() for key in values})
    found = {}
    for key in keys:
        if key.startswith(("system.", "tracking.", "preset")):
            continue
        column = {name: json.dumps(values.get(key)) for name, values in flat.items()}
        if len(set(column.values())) > 1:
            found[key] = column
    return found


@dataclass(frozen=True)
class Pair:
    """A run and its rerun."""

    run: str
    rerun: str
    weights: str  # equal, different, or why that cannot be said
    figures: str  # equal, within 5 %, different, or none in common


def reruns(results: Sequence[Result], runs_dir: Path) -> list[Pair]:
    """Each run beside what `sweep --rerun` made of it."""
    pairs = []
    for result in results:
        for path in sorted(runs_dir.glob(f"rerun-*/{result.name}")):
            again = read(path)
            common = result.weights.keys() & again.weights.keys()
            weights = "no epoch in common"
            if common:
                same = all(result.weights[e] == again.weights[e] for e in common)
                weights = "equal" if same else "different"
            pairs.append(
                Pair(result.name, str(path.relative_to(runs_dir)), weights, _agree(result, again))
            )
    return pairs


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
    return "equal" if worst == 0 else "within 5 %" if worst <= 0.05 else f"different ({worst:.0%})"


def _key(cell: Cell) -> str:
    return json.dumps([cell.epoch, cell.figure["protocol"]], sort_keys=True)


def find(runs_dir: Path, names: Sequence[str]) -> list[Path]:
    """The run directories to compare: those named (name or path), else all under `runs_dir`.

    Raises UserError where one is no run directory, or there is none at all.
    """
    if names:
        paths = [p if (p := Path(name)).is_dir() else runs_dir / name for name in names]
        for path in paths:
            if not (path / "config.yaml").exists():
                raise UserError(f"{path}: no run directory (it has no config.yaml)")
        return paths
    if not runs_dir.is_dir():
        raise UserError(f"{runs_dir}: no such folder; name it by --runs-dir")
    paths = sorted(path.parent for path in runs_dir.glob("*/config.yaml"))
    if not paths:
        raise UserError(f"{runs_dir}: no runs here yet; train some: python launch/sweep.py")
    return paths


def _curve(events: Sequence[Mapping[str, Any]], points: int = 200) -> list[tuple[float, float]]:
    """Losses of single steps, averaged to at most `points` values over the epochs."""
    steps = [e for e in events if e.get("event") == "step"]
    if not steps:
        return []
    per_epoch = max(1.0, steps[-1]["step"] / max(1, steps[-1]["epoch"]))
    width = max(1, -(-len(steps) // points))
    chunks = [steps[k : k + width] for k in range(0, len(steps), width)]
    return [
        (statistics.mean(e["step"] for e in c) / per_epoch, statistics.mean(e["loss"] for e in c))
        for c in chunks
    ]


def _without_sampler(protocol: Mapping[str, Any]) -> str:
    kept = {k: v for k, v in protocol.items() if k not in ("sampler", "source")}
    return json.dumps(kept, sort_keys=True)


def _flatten(values: Mapping[str, Any], prefix: str = "") -> Iterable[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from _flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}
