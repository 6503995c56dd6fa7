"""Which cells of a grid are done and which jobs are left, read from the run directories."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from diffuse.config import ranges
from diffuse.rundir import evaluations
from diffuse.rundir.directory import RunDir
from diffuse.runtime.errors import UserError
from launch.grids.grid import Grid, GridRun

State = Literal["done", "running", "new", "resume", "extend"]


@dataclass(frozen=True)
class Planned:
    """One run of the grid beside the content of its directory."""

    run: GridRun
    dir: RunDir
    state: State
    detail: str
    have: frozenset[int]  # the cells whose checkpoint is there
    evaluated: frozenset[int]  # the cells whose evaluation is there

    @property
    def name(self) -> str:
        return self.run.name

    def lacks(self, evaluate: bool) -> bool:
        """True where a training job is needed, or, with `evaluate`, an evaluation."""
        return self.is_todo or (evaluate and bool(self.unevaluated))

    @property
    def is_todo(self) -> bool:
        """Whether a training job is needed."""
        return self.state in ("new", "resume", "extend")

    @property
    def missing(self) -> tuple[int, ...]:
        """The cells whose checkpoint is still to be made."""
        return tuple(epoch for epoch in self.run.epochs if epoch not in self.have)

    @property
    def steps_left(self) -> int:
        """The steps of its training job, from the checkpoint that it will start from."""
        if not (self.is_todo and self.missing):
            return 0
        per_epoch = self.run.schedule.steps_per_epoch
        saved = [file.at(per_epoch) for file in self.dir.checkpoint_files()]
        start = max((step for step in saved if step <= self.missing[0] * per_epoch), default=0)
        return self.run.schedule.final_step - start

    @property
    def unevaluated(self) -> tuple[int, ...]:
        """The cells that are still to be evaluated, once they are trained."""
        return tuple(epoch for epoch in self.run.epochs if epoch not in self.evaluated)


def plan(grid: Grid, runs_dir: Path) -> list[Planned]:
    """The state of every run of the grid under `runs_dir`. Opens no checkpoint, writes nothing."""
    return [look_at(run, RunDir(runs_dir / run.name)) for run in grid.runs]


def look_at(run: GridRun, directory: RunDir) -> Planned:
    """The state of one run, and the work of a sweep on it."""
    if not directory.path.is_dir():
        return Planned(run, directory, "new", "new", frozenset(), frozenset())
    kept = frozenset(directory.trained_epochs())
    have = frozenset(run.epochs) & kept
    judged = have.intersection(directory.evaluated_epochs())
    evaluated = frozenset(epoch for epoch in judged if _is_evaluated(run, directory, epoch))
    missing = [epoch for epoch in run.epochs if epoch not in kept]
    status = directory.status()
    state, reached = status.get("state"), int(status.get("epoch") or 0)
    wanted = run.epochs[-1]

    def planned(state: State, detail: str) -> Planned:
        return Planned(run, directory, state, detail, have, evaluated)

    if pid := directory.running_process():
        return planned("running", f"running (process {pid})")
    # A run interrupted on its way to more epochs than these is done as far as they go.
    if not missing and (state == "done" or int(status.get("epochs") or 0) > wanted):
        return planned("done", "done")
    if state == "done":
        if reached < wanted:
            return planned("extend", f"extend {reached} -> {wanted}")
        return planned("extend", f"make epoch {ranges.shown(missing)} again (not kept)")
    if not status and not kept:
        return planned("new", "new")
    # Only a run that was asked to stop has saved where it was; a killed one has its checkpoints.
    at = reached if state == "interrupted" else max((e for e in kept if e <= wanted), default=0)
    failed = f" (failed: {status.get('reason', 'unknown')})" if state == "failed" else ""
    return planned("resume", f"resume at epoch {at}{failed}")


def summary(planned: Iterable[Planned]) -> str:
    """`24 cells in 6 runs, 8 done; 4 training jobs: 1 resume, 3 new; 20 cells to evaluate`."""
    runs = list(planned)
    cells = sum(len(p.run.epochs) for p in runs)
    done = sum(len(p.have) for p in runs)
    counts = Counter(p.state for p in runs if p.is_todo)
    jobs = sum(counts.values())
    text = f"{cells} cell{'s' * (cells != 1)} in {len(runs)} run{'s' * (len(runs) != 1)}"
    text += f", {done} done; {jobs or 'no'} training job{'s' * (jobs != 1)}"
    text += ": " + ", ".join(f"{n} {state}" for state, n in counts.items()) if jobs else ""
    left = sum(len(p.unevaluated) for p in runs)
    return text + (f"; {left} cell{'s' * (left != 1)} to evaluate" if left else "")


def as_plain(planned: Iterable[Planned]) -> dict[str, list[dict[str, Any]]]:
    """The plan for programs: its runs (at most one training job each) and its cells."""
    runs, cells = [], []
    for p in planned:
        common = {
            "preset": p.run.config.preset,
            "orientation": p.run.orientation,
            "seed": p.run.config.seed,
            "axes": dict(p.run.axes),
        }
        runs.append(
            {
                "name": p.name,
                **common,
                "epochs": list(p.run.epochs),
                "state": p.state,
                "detail": p.detail,
                "job": "train" if p.is_todo else None,
                "path": str(p.dir.path),
            }
        )
        for epoch in p.run.epochs:
            done = epoch in p.have
            cells.append(
                {
                    "run": p.name,
                    **common,
                    "epoch": epoch,
                    "state": "done" if done else p.state,
                    "evaluated": epoch in p.evaluated,
                    "checkpoint": str(p.dir.checkpoint_path(epoch)) if done else None,
                }
            )
    return {"runs": runs, "cells": cells}


def _is_evaluated(run: GridRun, directory: RunDir, epoch: int) -> bool:
    try:
        evaluation = evaluations.read(directory.evaluation_path(epoch))
    except UserError:
        return False  # damaged: the evaluation says so
    return evaluation is not None and run.is_evaluated(epoch, evaluation.figures)
