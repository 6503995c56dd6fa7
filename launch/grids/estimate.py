"""The cost of a grid before it is spent: steps, hours, disk and time, by the speed of runs like it.

Trainings and evaluations count, and of both only the part that is left.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Iterator, Mapping, Sequence
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
    """Runs of one job, `at_once` of them at a time; on this machine, one run.

    Args:
        units: GPUs, or, without any, cores that it holds from its start to its end.
    """

    runs: tuple[tuple[Planned, Place], ...]
    units: float
    at_once: int = 1


@dataclass(frozen=True)
class Queue:
    """Tasks of which `slots` run at a time, each once those of the same runs before it have ended.

    Args:
        name: of an array of jobs; "" on this machine.
        time: the limit of each job in minutes.
        trains, evaluates: the programs of a task; here both, one after the other.
    """

    name: str
    tasks: tuple[Task, ...]
    slots: int
    has_gpus: bool
    time: int | None = None
    trains: bool = True
    evaluates: bool = False


@dataclass(frozen=True)
class Row:
    """The cost of one run.

    Args:
        steps: that are left.
        speed: None: there is no run like it yet, and all that follows from it is 0.
        seconds, evaluation_s: of its training and of its evaluation, alone.
        training_hours, evaluation_hours: of GPUs or cores, its share of those of its jobs.
        time: minutes that its training's job needs, with a margin; None on this machine.
    """

    planned: Planned
    steps: int
    speed: Speed | None
    has_gpus: bool
    seconds: float = 0.0
    evaluation_s: float = 0.0
    training_hours: float = 0.0
    evaluation_hours: float = 0.0
    time: int | None = None

    def __add__(self, other: Row) -> Row:
        """The cost of two jobs of the run."""
        return replace(
            self,
            steps=self.steps + other.steps,
            seconds=self.seconds + other.seconds,
            evaluation_s=self.evaluation_s + other.evaluation_s,
            training_hours=self.training_hours + other.training_hours,
            evaluation_hours=self.evaluation_hours + other.evaluation_hours,
        )

    @property
    def hours(self) -> float:
        """Of both programs."""
        return self.training_hours + self.evaluation_hours

    @property
    def saved_steps(self) -> int:
        """The steps between two checkpoints at epochs' ends."""
        run = self.planned.run
        return run.config.checkpoint.every_epochs * run.schedule.steps_per_epoch

    @property
    def disk(self) -> int:
        """Bytes of the checkpoints that it will have more, at most."""
        if self.speed is None or not self.steps:
            return 0
        kept = len(self.planned.missing)
        if self.planned.run.config.checkpoint.keep == "all":
            kept += self.steps // self.saved_steps
        return (kept + ROLLING) * self.speed.checkpoint

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
            "evaluation_s": self.evaluation_s if speed else None,
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
    needs: Mapping[str, int]  # of each array: the minutes of its longest job, as far as known

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
            need = self.needs[queue.name]
            is_enough = queue.time is None or queue.time >= need
            if not need or queue.time == need or (is_submitted and is_enough):
                continue
            names = [planned.name for task in queue.tasks for planned, _ in task.runs]
            first_s = max(row.checkpoint_s for name, row in rows.items() if name in names)
            if queue.time is None:
                text = f"no time limit; time={need} would do"
            elif queue.trains and 60 * queue.time < first_s:
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
        """The cost of each training from its beginning to its end, where its speed is known."""
        return {
            row.planned.name: {
                "steps": (steps := row.planned.run.schedule.final_step),
                "seconds": row.seconds * steps / row.steps,
                "hours": row.training_hours * steps / row.steps,
                "unit": unit(row.has_gpus),
            }
            for row in self.rows
            if row.speed and row.steps
        }

    def summary(self) -> str:
        """`20,000 steps, 3.1 GPU hours in 1h02m with 16 jobs at a time, 120 MB of checkpoints`."""
        if not self.rows:
            return "nothing to train or to evaluate"
        steps = f"{sum(row.steps for row in self.rows):,} steps"
        unknown, runs = len(self.unknown), len(self.rows)
        if unknown == runs:
            return f"{steps}; the speed of no run is known yet"
        most = [queue for queue in self.queues if queue.trains] or self.queues
        slots = " + ".join(str(min(queue.slots, len(queue.tasks))) for queue in most)
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
    """The cost of the work in these queues, which go on side by side."""
    rows: dict[str, Row] = {}
    done_s: dict[str, float] = {}  # when the last task of a run so far ends
    needs = {}
    for queue in queues:
        tasks = [_rows(queue, task, speeds) for task in queue.tasks]
        lengths = [_length(some, task) for some, task in zip(tasks, queue.tasks, strict=True)]
        starts = [max(done_s.get(row.planned.name, 0.0) for row in some) for some in tasks]
        for some, end in zip(tasks, ends(lengths, queue.slots, starts), strict=True):
            for row in some:
                name = row.planned.name
                done_s[name] = end
                rows[name] = rows[name] + row if name in rows else row
        needs[queue.name] = limit(max(lengths)) if queue.name and any(lengths) else 0
    return Estimate(tuple(rows.values()), tuple(queues), max(done_s.values(), default=0.0), needs)


def _rows(queue: Queue, task: Task, speeds: Speeds) -> list[Row]:
    """The part of each run's cost that this task is."""
    rows = [_alone(queue, planned, place, speeds) for planned, place in task.runs]
    job_s = _length(rows, task)
    total_s = sum(row.seconds + row.evaluation_s for row in rows)
    # A GPU that idles at the end of a pack is paid for, too.
    price = job_s * task.units / 3600 / total_s if total_s else 0.0
    time = limit(job_s) if queue.name and queue.trains else None
    return [
        replace(
            row,
            training_hours=row.seconds * price,
            evaluation_hours=row.evaluation_s * price,
            time=time,
        )
        for row in rows
    ]


def _alone(queue: Queue, planned: Planned, place: Place, speeds: Speeds) -> Row:
    """The steps and seconds of a run in this queue."""
    speed = speeds.of(planned.run.config, place)
    steps = planned.steps_left if queue.trains else 0
    row = Row(planned, steps, speed, queue.has_gpus)
    if speed is None:
        return row
    evaluation_s = 0.0
    if queue.evaluates:
        run, epochs = planned.run, planned.unevaluated
        evaluation_s += run.network_calls(epochs) / place.ranks * speed.call_s
        evaluation_s += run.judged_images(epochs) * speed.judge_s
    return replace(row, seconds=steps * speed.step_s, evaluation_s=evaluation_s)


def _length(rows: Sequence[Row], task: Task) -> float:
    """Seconds of the task."""
    return wall([row.seconds + row.evaluation_s for row in rows], task.at_once)


def limit(seconds: float) -> int:
    """The time limit in minutes of a job that computes for so long."""
    return ROUND_MIN * math.ceil((START_S + MARGIN * seconds) / 60 / ROUND_MIN)


def wall(seconds: Sequence[float], slots: int) -> float:
    """Seconds until all have ended where `slots` run at a time, the next when one ends."""
    return max(ends(seconds, slots, [0.0] * len(seconds)), default=0.0)


def ends(seconds: Sequence[float], slots: int, starts: Sequence[float]) -> list[float]:
    """The end of each task where `slots` run at a time, each from its earliest start on."""
    free = [0.0] * slots
    found = [0.0] * len(seconds)
    for k in sorted(range(len(seconds)), key=lambda k: starts[k]):
        found[k] = max(free[0], starts[k]) + seconds[k]
        heapq.heapreplace(free, found[k])
    return found


def unit(has_gpus: bool) -> str:
    """Whose hours count."""
    return "GPU" if has_gpus else "core"


def in_short(hours: float) -> str:
    """`0.0041`, `3.1`, `1,250`."""
    return f"{hours:,.0f}" if hours >= 10 else f"{hours:.2g}"


def megabytes(size: int) -> str:
    """`6.8 MB`, `1,240 MB`."""
    return f"{size / 1e6:,.1f} MB" if size < 1e8 else f"{size / 1e6:,.0f} MB"
