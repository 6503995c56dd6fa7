"""Short trainings that measure speeds which no run has shown yet.

They are runs like any other, in a runs folder of their own, which no program takes for the user's.
"""

from __future__ import annotations

import functools
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

from diffuse.config.schema import TRAIN_IMAGES, Config
from diffuse.config.validation import Layer
from diffuse.runtime.errors import UserError
from launch.grids.cluster import Cluster
from launch.grids.estimate import Estimate
from launch.grids.grid import Grid, GridRun
from launch.grids.speeds import Speeds

EPOCHS, STEPS = 5, 20  # of a probe, and of its epochs, each of which ends with a measurement
TIME_MIN = 30  # the limit of its job


def folder(runs_dir: Path) -> Path:
    """The runs folder of the probes."""
    return runs_dir / ".launch" / "probe"


@functools.cache  # they are in many files, and --budget asks before the sweep does
def speeds(runs_dir: Path) -> Speeds:
    """The speeds of the runs in `runs_dir`, of its probes, and of the runs that a rerun repeats."""
    is_rerun = re.fullmatch(r"rerun-\d+", runs_dir.name)
    known = [runs_dir, runs_dir.parent] if is_rerun else [runs_dir]
    return Speeds(*known, *map(folder, known))


def time_limit(settings: Cluster) -> Layer:
    """The cluster's settings of a probe: a short job starts soon."""
    return Layer("--probe", {"time": min(settings.time or TIME_MIN, TIME_MIN)})


def probes(grid: Grid, estimate: Estimate) -> Grid:
    """A probe for each kind of run whose speed is not known.

    Where a job trains several runs at a time it is as many, of several seeds: they share the GPU as
    the runs will. Raises UserError where there is none.
    """
    unknown = {row.planned.name for row in estimate.rows if row.speed is None}
    found: dict[Any, list[GridRun]] = {}
    for task in (task for queue in estimate.queues for task in queue.tasks):
        for planned, place in task.runs:
            config = planned.run.config
            key = (place.kind(config), place.gpu_type, config.train.amp)
            if planned.name in unknown and key not in found:
                found[key] = [_probe(planned.run, seed) for seed in range(task.at_once)]
    if not found:
        raise UserError(f"grid {grid.name}: nothing to measure: --estimate knows all its speeds")
    return replace(grid, runs=tuple(run for runs in found.values() for run in runs))


def _probe(run: GridRun, seed: int) -> GridRun:
    plain = run.config.model_dump(mode="json")
    batch, images = plain["train"]["global_batch"], plain["data"]["limit"] or TRAIN_IMAGES
    plain["data"]["limit"] = batch * min(STEPS, images // batch)
    plain["train"]["epochs"] = plain["checkpoint"]["every_epochs"] = EPOCHS
    plain["eval"] |= {"at_epochs": [], "in_training": 0}
    plain["samples"]["at_epochs"] = []
    plain["tracking"]["mode"] = "disabled"
    return replace(run, config=Config.model_validate({**plain, "seed": seed}), axes={})
