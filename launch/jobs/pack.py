"""A Slurm job of several runs: their programs side by side, each as if it had a job of its own.

Each has its log, its record and its end. One that fails leaves the others alone; where one ends,
the next begins in its place. A job that is asked to stop hands that on to all; requeued, it starts
those again that had not ended. A run that is cancelled alone saves, too, and is not started again.
Like worker.py it takes paths and plain values only.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from diffuse.rundir.directory import RunDir
from launch.jobs import mps, worker
from launch.jobs.gpus import share, visible_gpus
from launch.jobs.logs import cancellation, final_code, newest_record
from launch.jobs.program import (
    INTERRUPTED,
    Program,
    asked_to_stop,
    end_job,
    job_name,
    take_over_signals,
)

POLL_S = 0.25
CANCELLED_S = 5.0  # between looks for cancelled runs, on a disk that many share
CTRL_C = 130

Call = tuple[Any, ...]  # the arguments of worker.training, or of worker.evaluation


def train(calls: Sequence[Call], at_once: int, threads: int, with_mps: bool) -> dict[str, Any]:
    """Train the runs of `calls`, at most `at_once` at a time.

    Args:
        calls: of worker.training, one for each run.
        threads: of a run.
        with_mps: whether NVIDIA's MPS serves the GPUs, where it is installed.

    Returns the exit code of each run. In a Slurm job that was interrupted, or in which no run came
    through, it does not return, as `worker.train` does not. Where one did the job counts as well
    ended: the evaluation of its runs waits for that.
    """
    return _side_by_side("train", worker.training, calls, at_once, threads, with_mps)


def evaluate(calls: Sequence[Call], at_once: int, threads: int, with_mps: bool) -> dict[str, Any]:
    """Evaluate the runs of `calls` whose epochs are trained; otherwise as `train`.

    Args:
        calls: of worker.evaluation, one for each run.
    """
    trained = [call for call in calls if _is_trained(_directory(call), call[1])]
    return _side_by_side("evaluate", worker.evaluation, trained, at_once, threads, with_mps)


def _side_by_side(
    name: str,
    prepare: Callable[..., Program],
    calls: Sequence[Call],
    at_once: int,
    threads: int,
    with_mps: bool,
) -> dict[str, Any]:
    take_over_signals()
    job = job_name(name).removeprefix(f"{name}-").rpartition("-r")[0]
    runs = {Path(call[0]).name: call for call in calls}
    codes: dict[str, int] = {}  # of runs that have ended
    for run, call in runs.items():
        code = final_code(newest_record(_directory(call), name, job))
        if code is not None:  # in this job, before it was requeued
            codes[run] = code
    queue = deque(run for run in runs if run not in codes)
    active: dict[int, tuple[str, Program]] = {}  # by slot
    cancelled: set[str] = set()
    look_at = 0.0
    with mps.served(visible_gpus("auto"), with_mps, _say) as (gpus, variables):
        while active or (queue and not asked_to_stop):
            if time.monotonic() >= look_at:
                look_at = time.monotonic() + CANCELLED_S
                marked = {run for run in runs if cancellation(_directory(runs[run]), job).exists()}
                for run, running in active.values():
                    if run in marked - cancelled:
                        running.terminate()
                cancelled |= marked
                queue = deque(run for run in queue if run not in cancelled)
            for slot in range(at_once):
                if slot not in active and queue and not asked_to_stop:
                    run = queue.popleft()
                    environment = {**variables, **share(gpus, slot, at_once, threads)}
                    program = _started(run, prepare, runs[run], environment)
                    if program is None:
                        codes[run] = 1
                    else:
                        active[slot] = (run, program)
            for slot, (run, program) in list(active.items()):
                if program.has_ended:
                    code = _concluded(run, program)
                    if code == 0 or run not in cancelled:
                        codes[run] = code
                    del active[slot]
            time.sleep(POLL_S if active else 0)
    if queue:
        _say(f"stopped before it began: {', '.join(queue)}")
    if cancelled:
        _say(f"cancelled: {', '.join(sorted(cancelled))}")
    end_job(_job_code(codes, is_cut_short=bool(queue)))
    return {"codes": codes}


def _directory(call: Call) -> RunDir:
    return RunDir(Path(call[0]))


def _started(
    run: str, prepare: Callable[..., Program], call: Call, variables: Mapping[str, str | None]
) -> Program | None:
    """The program of a run, under way; None where it cannot be started, which leaves the others."""
    *arguments, environment, max_requeues = call
    try:
        program = prepare(*arguments, {**environment, **variables}, max_requeues)
        program.start()
    except worker.NoProgress as error:
        _say(str(error))
        return None
    except OSError as error:
        _say(f"error: {run}: {error}")
        return None
    _say(f"{run}: begun: {program.log_path}")
    return program


def _concluded(run: str, program: Program) -> int:
    try:
        code = program.conclude()
    except OSError as error:  # its record cannot be written
        _say(f"error: {run}: {error}")
        return 1
    _say(f"{run}: {'interrupted' if code == INTERRUPTED else f'ended with {code}'}")
    return code


def _job_code(codes: Mapping[str, int], is_cut_short: bool) -> int:
    """The exit code of the job, by those of its runs.

    Args:
        is_cut_short: whether runs wait that were not begun.
    """
    found = list(codes.values())
    if CTRL_C in found:  # nobody wants it requeued
        return CTRL_C
    if is_cut_short or INTERRUPTED in found:
        return INTERRUPTED
    return 0 if 0 in found or not found else found[0]


def _is_trained(run: RunDir, epochs: Sequence[int]) -> bool:
    """Whether the run's training, in a job before, has made these epochs; none: nothing to do."""
    return bool(epochs) and set(epochs) <= set(run.trained_epochs())


def _say(line: str) -> None:
    print(line, flush=True)
