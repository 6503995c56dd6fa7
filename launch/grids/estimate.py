"""The cost of a grid before it is spent: steps, hours, disk and time, by the speed of runs like it.

Only trainings count, and of these what is left. How long the images of an evaluation take is
recorded nowhere.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from diffuse.runtime.console import duration
from diffuse.runtime.errors import UserError
from launch.grids.plan import Planned
from launch.grids.speeds import Place, Speed, Speeds

MARGIN = 1.25  # of a time limit over the estimate
ROUND_MIN = 5  # to which a time limit is rounded up
START_S = 60.0  # of a job before its first step, generously
ROLLING = 2  # checkpoints beside those that are kept


@dataclass(frozen=True)
class Task:
    """Runs that are trained in one job, `at_once` of them at a time; on this machine, one run.

    Args:
        units: GPUs, or, without any, cores that it holds from its start to its end.
    """

    runs: tuple[tuple[Planned, Place], ...]
    units: float
    at_once: int = 1


@dataclass(frozen=True)
class Queue:
    """Tasks of which `slots` run at a time.

    Args:
        name: of an array of jobs; "" on this machine.
        time: the limit of each job in minutes.
    """

    name: str
    tasks: tuple[Task, ...]
    slots: int
    has_gpus: bool
    time: int | None = None


@dataclass(frozen=True)
class Row:
    """The cost of one run.

    Args:
        steps: that are left.
        speed: None: there is no run like it yet, and all that follows from it is 0.
        hours: of GPUs or cores, its share of those of its job.
        time: minutes that its job needs, with a margin; None on this machine.
    """

    planned: Planned
    steps: int
    speed: Speed | None
    has_gpus: bool
    hours: float = 0.0
    time: int | None = None

    @property
    def seconds(self) -> float:
        """Of its training alone."""
        return self.steps * self.speed.step_s if self.speed else 0.0

    @property
    def saved_steps(self) -> int:
        """The steps between two checkpoints at epochs' ends."""
        run = self.planned.run
        return run.config.checkpoint.every_epochs * run.schedule.steps_per_epoch

    @property
    def disk(self) -> int:
        """Bytes of the checkpoints that it will have more, at most."""
        kept = len(self.planned.missing)
        if self.planned.run.config.checkpoint.keep == "all":
            kept += self.steps // self.saved_steps
        return (kept + ROLLING) * self.speed.checkpoint if self.speed else 0

    @property
    def checkpoint_s(self) -> float:
        """Seconds from a job's start to its first checkpoint, unless a signal asks for one."""
        if self.speed is None:
            return START_S
        checkpoint = self.planned.run.config.checkpoint
        epochs_s = self.saved_steps * self.speed.step_s
        epochs_s *= max(1, math.ceil(checkpoint.apart_s / epochs_s))
        return START_S + min(60 * checkpoint.every_minutes, epochs_s, self.seconds)

    def as_plain(self) -> dict[str, Any]:
        """The row for programs; null where the speed is not known."""
        speed = self.speed
        return {
            "name": self.planned.name,
            "steps": self.steps,
            "step_s": speed and speed.step_s,
            "unit": unit(self.has_gpus),
            "hours": self.hours if speed else None,
            "seconds": self.seconds if speed else None,
            "time": self.time if speed else None,
            "disk": self.disk if speed else None,
            "device": speed and speed.device,
        }


@dataclass(frozen=True)
class Estimate:
    """The cost of a sweep; a lower bound where the speed of a run is not known."""

    rows: tuple[Row, ...]
    queues: tuple[Queue, ...]
    wall_s: float  # with all the tasks at a time that the queues allow

    @property
    def unit(self) -> str:
        """`GPU`, or `core` where no job has a GPU."""
        return unit(any(row.has_gpus for row in self.rows))

    @property
    def hours(self) -> float:
        """GPU hours; core hours where no job has a GPU."""
        return sum(row.hours for row in self.rows if unit(row.has_gpus) == self.unit)

    @property
    def unknown(self) -> list[str]:
        """The runs like which there is none yet."""
        return [row.planned.name for row in self.rows if row.speed is None]

    def require_within(self, budget: float, grid: str) -> None:
        """UserError where it is more than `budget` hours, or may be."""
        if not self.hours <= budget:
            raise UserError(
                f"grid {grid}: estimated at {in_short(self.hours)} {self.unit} hours, more than"
                f" --budget {budget:g}; select runs by --only or --where, or allow more"
            )
        if unknown := self.unknown:
            raise UserError(
                f"grid {grid}: whether --budget {budget:g} is enough is not known: there is no run"
                f" like {unknown[0]} yet (of {len(self.rows)} runs {len(unknown)} have no known"
                " speed); use --probe first, which measures it"
            )

    def remarks(self, is_submitted: bool = False) -> Iterator[str]:
        """Differences between the time limit of jobs and the time that they need.

        Args:
            is_submitted: leaves out the limits that are long enough.
        """
        rows = {row.planned.name: row for row in self.rows if row.speed}
        for queue in self.queues:
            names = [planned.name for task in queue.tasks for planned, _ in task.runs]
            known = [rows[name] for name in names if name in rows]
            need = max((row.time or 0 for row in known), default=0)
            is_enough = queue.time is None or queue.time >= need
            if not need or queue.time == need or (is_submitted and is_enough):
                continue
            first_s = max(row.checkpoint_s for row in known)
            if queue.time is None:
                text = f"no time limit; time={need} would do"
            elif 60 * queue.time < first_s:
                text = (
                    f"time={queue.time} minutes end before the first checkpoint, after about"
                    f" {duration(first_s)}: only Slurm's notice before the limit saves anything;"
                    f" set time={need}, or lower checkpoint.every_minutes"
                )
            elif queue.time < need:
                text = f"time={queue.time} minutes, but jobs need up to {need}: they are requeued"
            else:
                text = f"time={queue.time} minutes; time={need} would do, and may start sooner"
            yield f"{queue.name}: {text}"

    def of_whole_runs(self) -> dict[str, dict[str, Any]]:
        """The cost of each run from its beginning to its end, where its speed is known."""
        return {
            row.planned.name: {
                "steps": (steps := row.planned.run.schedule.final_step),
                "seconds": row.seconds * steps / row.steps,
                "hours": row.hours * steps / row.steps,
                "unit": unit(row.has_gpus),
            }
            for row in self.rows
            if row.speed and row.steps
        }

    def summary(self) -> str:
        """`20,000 steps, 3.1 GPU hours in 1h02m with 16 jobs at a time, 120 MB of checkpoints`."""
        if not self.rows:
            return "nothing to train"
        steps = f"{sum(row.steps for row in self.rows):,} steps"
        unknown, runs = len(self.unknown), len(self.rows)
        if unknown == runs:
            return f"{steps}; the speed of no run is known yet"
        slots = " + ".join(str(min(queue.slots, len(queue.tasks))) for queue in self.queues)
        least = "at least " if unknown else ""
        return (
            f"{steps}, {least}{in_short(self.hours)} {self.unit} hours in {duration(self.wall_s)}"
            f" with {slots} job{'s' * (slots != '1')} at a time,"
            f" {megabytes(sum(row.disk for row in self.rows))} of checkpoints"
            + (f" (the speed of {unknown} of {runs} runs is not known)" if unknown else "")
        )

    def as_plain(self) -> dict[str, Any]:
        """The estimate for programs."""
        return {
            "runs": [row.as_plain() for row in self.rows],
            "hours": self.hours,
            "unit": self.unit,
            "wall_s": self.wall_s,
            "is_lower_bound": bool(self.unknown),
            "remarks": list(self.remarks()),
        }


def estimate(queues: Sequence[Queue], speeds: Speeds) -> Estimate:
    """The cost of the trainings in these queues, which work side by side."""
    rows: list[Row] = []
    walls = []
    for queue in queues:
        tasks = [_rows(queue, task, speeds) for task in queue.tasks]
        rows += [row for task in tasks for row in task]
        seconds = [
            wall((row.seconds for row in some), task.at_once)
            for some, task in zip(tasks, queue.tasks, strict=True)
        ]
        walls.append(wall(seconds, queue.slots))
    return Estimate(tuple(rows), tuple(queues), max(walls, default=0.0))


def _rows(queue: Queue, task: Task, speeds: Speeds) -> list[Row]:
    rows = [
        Row(planned, planned.steps_left, speeds.of(planned.run.config, place), queue.has_gpus)
        for planned, place in task.runs
    ]
    job_s = wall((row.seconds for row in rows), task.at_once)
    total_s = sum(row.seconds for row in rows)
    # A GPU that idles at the end of a pack is paid for, too.
    price = job_s * task.units / 3600 / total_s if total_s else 0.0
    need = ROUND_MIN * math.ceil((START_S + MARGIN * job_s) / 60 / ROUND_MIN)
    time = need if queue.name else None
    return [replace(row, hours=row.seconds * price, time=time) for row in rows]


def wall(seconds: Iterable[float], slots: int) -> float:
    """Seconds until all have ended where `slots` run at a time, the next when one ends."""
    ends = [0.0] * slots
    for task_s in seconds:
        heapq.heapreplace(ends, ends[0] + task_s)
    return max(ends)


def unit(has_gpus: bool) -> str:
    """Whose hours count."""
    return "GPU" if has_gpus else "core"


def in_short(hours: float) -> str:
    """`0.0041`, `3.1`, `1,250`."""
    return f"{hours:,.0f}" if hours >= 10 else f"{hours:.2g}"


def megabytes(size: int) -> str:
    """`6.8 MB`, `1,240 MB`."""
    return f"{size / 1e6:,.1f} MB" if size < 1e8 else f"{size / 1e6:,.0f} MB"
