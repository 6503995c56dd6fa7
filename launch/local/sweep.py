"""A sweep on this machine: train and evaluate the missing cells, then one page of all runs."""

from __future__ import annotations

import json
import math
import signal
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from diffuse import ROOT
from launch.grids import probe
from launch.grids.cluster import Cluster
from launch.grids.estimate import Queue, Task, estimate
from launch.grids.grid import Grid
from launch.grids.ledger import Ledger
from launch.grids.plan import Planned, as_plain, plan, summary
from launch.grids.speeds import Place
from launch.jobs import mps
from launch.jobs.gpus import visible_gpus
from launch.jobs.snapshot import require_importable
from launch.local import display, pool


def run(
    grid: Grid,
    settings: Cluster,
    runs_dir: Path,
    data_dir: Path,
    device: str,
    as_json: bool,
    evaluate: bool,
    out: Console,
    again: str,
) -> int:
    """Work through the grid; the exit code.

    Args:
        as_json: print runs and cells, as they are at the end, on standard output; `out` is stderr.
        again: the command that resumes, in words: `the same command`.
    """
    title = f"grid {grid.name} in {runs_dir}"
    ledger = Ledger(runs_dir.absolute(), grid.name)
    if any(p.is_todo or p.unevaluated for p in plan(grid, runs_dir)):
        require_importable(ROOT)
        pool.require_data(data_dir)  # before anything is written
    with ledger.locked(), pool.stop_requests() as stops:
        planned = plan(grid, ledger.runs_dir)
        out.print(f"{title}: {summary(planned)}", soft_wrap=True)
        ledger.note_runs(grid.runs)
        outcomes = []
        if todo := [p for p in planned if p.lacks(evaluate)]:
            gpus, parallel = slots(settings, device)
            costs = estimate(queues(todo, evaluate, gpus, parallel), probe.speeds(ledger.runs_dir))
            ledger.note_costs(costs.of_whole_runs())
            with (
                display.SweepDisplay(out, title).shown() as watch,
                mps.served(gpus, settings.mps, watch.say) as (names, variables),
            ):
                jobs = pool.Pool(ledger, data_dir, names, parallel, evaluate, variables)
                outcomes = jobs.run(todo, stops, watch)
    ended = plan(grid, runs_dir)
    if as_json:
        plain = as_plain(ended)
        by_name = {o.planned.name: o for o in outcomes}
        for run in plain["runs"]:
            if outcome := by_name.get(run["name"]):
                log = str(outcome.log) if outcome.log else None
                run.update(outcome=outcome.state, reason=outcome.reason or None, log=log)
        print(json.dumps(plain, indent=2))
    display.show_end(out, title, ended, outcomes, again)
    if evaluate and not stops and any(p.evaluated for p in ended):
        from launch.comparison import page  # draws by matplotlib: not before it is due
        from launch.results import results

        found = results.read_all(runs_dir / run.name for run in grid.runs)
        path = runs_dir / "report.html"
        page.write(path, found, runs_dir, f"diffuse: {grid.name}")
        out.print(f"report: {path}", markup=False, soft_wrap=True)
    if any(o.state == "failed" for o in outcomes):
        return 1
    if stops:
        return 130 if stops[0] == signal.SIGINT else 75
    return 0 if all(p.state == "done" for p in ended) else 75


def slots(settings: Cluster, device: str) -> tuple[list[str], int]:
    """The GPUs for trainings here, and how many are trained at a time."""
    gpus = visible_gpus(device)
    return gpus, settings.array_parallelism or max(1, len(gpus)) * settings.runs_per_gpu


def queues(
    planned: Sequence[Planned], evaluate: bool, gpus: Sequence[str], parallel: int
) -> list[Queue]:
    """The chains of training and evaluation of a sweep here, for an estimate of their cost."""
    shares = math.ceil(parallel / len(gpus)) if gpus else 1
    tasks = []
    for p in planned:
        system = p.run.config.system
        threads = system.threads or pool.threads_of(parallel)
        place = Place(bool(gpus) and system.device != "cpu", 1, threads, shares)
        if p.lacks(evaluate):
            tasks.append(Task(((p, place),), 1 / shares if gpus else threads))
    queue = Queue("", tuple(tasks), parallel, bool(gpus), trains=True, evaluates=evaluate)
    return [queue] if tasks else []
