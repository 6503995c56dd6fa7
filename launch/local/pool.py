"""Run a plan on this machine: at most N trainings at a time, by submitit's local executor.

Cores are divided among them, GPUs handed out in turn. A request to stop (Ctrl-C, SIGTERM, SIGHUP)
goes to every training, which saves and ends; the same sweep goes on from there later.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any, Literal

import psutil
import submitit

from diffuse import ROOT
from diffuse.runtime.errors import UserError
from launch.grids.ledger import Ledger
from launch.grids.plan import Planned
from launch.jobs import worker as jobs
from launch.jobs.gpus import share
from launch.jobs.logs import end_by_signal, last_error
from launch.slurm import commands

if TYPE_CHECKING:
    from launch.local.display import SweepDisplay

State = Literal["queued", "training", "evaluating", "done", "interrupted", "failed", "left"]
STOP_WAIT_S = 60.0  # for a step's end and its checkpoint, after the first Ctrl-C
POLL_S = 0.25
YEAR_MIN = 365 * 24 * 60  # submitit's local jobs have a time limit; ours have none


@dataclass
class Outcome:
    """The state of one planned run in this sweep."""

    planned: Planned
    state: State = "queued"
    code: int | None = None
    reason: str = ""
    log: Path | None = None
    started: float = 0.0


@contextlib.contextmanager
def stop_requests() -> Iterator[list[signal.Signals]]:
    """SIGINT, SIGTERM and SIGHUP, as they arrive while the block runs; they do nothing else."""
    requests: list[signal.Signals] = []

    def note(number: int, frame: FrameType | None) -> None:
        requests.append(signal.Signals(number))

    with _handled(note, signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        yield requests


class Pool:
    """At most `parallel` trainings at a time; one that fails does not stop the others.

    Args:
        gpus: handed out in turn; where there is none the child's view is left as it is.
        variables: more of them, for each training.
    """

    def __init__(
        self,
        ledger: Ledger,
        data_dir: Path,
        gpus: Sequence[str],
        parallel: int,
        evaluate: bool = True,
        variables: Mapping[str, str] | None = None,
    ) -> None:
        self.grid, self.data_dir, self.gpus, self.parallel = ledger.grid, data_dir, gpus, parallel
        self.evaluate, self.variables = evaluate, variables or {}
        self.threads = threads_of(parallel)
        self.folder = ledger.path / f"jobs-{time.strftime('%Y%m%dT%H%M%S')}-{os.getpid()}"
        self.executor = submitit.LocalExecutor(self.folder)
        self.executor.update_parameters(timeout_min=YEAR_MIN)
        self.active: dict[int, tuple[Outcome, submitit.Job[Any]]] = {}  # by slot
        # Jobs import launch.jobs.worker wherever this was started from.
        root = str(ROOT)
        path = os.environ.get("PYTHONPATH")
        os.environ["PYTHONPATH"] = f"{root}{os.pathsep}{path}" if path else root

    def run(
        self, todo: Sequence[Planned], stops: Sequence[signal.Signals], watch: SweepDisplay
    ) -> list[Outcome]:
        """Train all of `todo`, or as much as gets done before the first request to stop.

        Args:
            stops: the requests so far, which grow meanwhile.
        """
        outcomes = [Outcome(planned) for planned in todo]
        queue = deque(outcomes)
        deadline: float | None = None
        try:
            while self.active or (queue and not stops):
                if not stops:
                    for slot in set(range(self.parallel)) - set(self.active):
                        if queue:
                            self._start(slot, queue.popleft())
                elif deadline is None:
                    watch.say("stopping: every training saves first; Ctrl-C again stops at once")
                    deadline = time.monotonic() + STOP_WAIT_S
                    self._ask_to_stop()
                elif len(stops) > 1 or time.monotonic() > deadline:
                    self._kill()
                for slot, (outcome, job) in list(self.active.items()):
                    _notice_evaluation(outcome)
                    if job.done():
                        _conclude(outcome, job, stopping=bool(stops))
                        del self.active[slot]
                watch.update(outcomes)
                time.sleep(POLL_S if self.active else 0)
        except BaseException:  # no space for the next job, say: leave nothing running behind
            self._ask_to_stop()
            raise
        for outcome in queue:
            outcome.state = "left"
        if not any(o.log and o.log.is_relative_to(self.folder) for o in outcomes):
            shutil.rmtree(self.folder, ignore_errors=True)
        return outcomes

    def _start(self, slot: int, outcome: Outcome) -> None:
        run = outcome.planned
        config = run.run.config.model_dump(mode="json")
        threads = config["system"]["threads"] = config["system"]["threads"] or self.threads
        environment: dict[str, str | None] = {
            # submitit hides all GPUs from a job that did not ask it for some
            "CUDA_VISIBLE_DEVICES": os.environ.get("CUDA_VISIBLE_DEVICES"),
            **self.variables,
            **share(self.gpus, slot, self.parallel, threads),
            "DIFFUSE_GRID": self.grid,
        }
        # A terminal sends these to all its processes: those that start here ignore them. One that
        # arrives meanwhile is remembered by nobody; it lasts a millisecond or two.
        ignored = _handled(signal.SIG_IGN, signal.SIGINT, signal.SIGHUP)
        with ignored, commands.outside_any_job():
            job = self.executor.submit(
                jobs.train_then_evaluate,
                str(run.dir.path),
                config if run.is_todo else None,
                run.unevaluated if self.evaluate else (),
                [*run.run.evaluation(run.unevaluated), f"--device={config['system']['device']}"],
                str(self.data_dir),
                environment,
            )
        outcome.state = "training" if run.is_todo else "evaluating"
        outcome.started = time.time()
        self.active[slot] = (outcome, job)

    def _ask_to_stop(self) -> None:
        """Signal submitit's controllers (theirs is the job's id), which hand it on to the jobs."""
        for _, job in self.active.values():
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(job.job_id), signal.SIGTERM)

    def _kill(self) -> None:
        """End controllers, jobs and trainings at once."""
        for _, job in self.active.values():
            with contextlib.suppress(psutil.Error):
                controller = psutil.Process(int(job.job_id))
                for process in [*controller.children(recursive=True), controller]:
                    with contextlib.suppress(psutil.Error):
                        process.kill()


def threads_of(parallel: int) -> int:
    """The threads of each of so many trainings side by side."""
    from joblib import cpu_count  # knows affinity and quotas; it takes a while to import

    return max(1, int(cpu_count()) // parallel)


def require_data(data_dir: Path) -> None:
    """UserError where the data set is not staged: said once, and not by every job."""
    if not (data_dir / "mnist.h5").is_file():
        raise UserError(
            f"{data_dir / 'mnist.h5'}: not found; stage it with `python -m diffuse.prepare"
            f" --data-dir {data_dir}`, or name another folder by --data-dir"
        )


@contextlib.contextmanager
def _handled(
    handler: signal.Handlers | Callable[[int, FrameType | None], None], *numbers: signal.Signals
) -> Iterator[None]:
    """While the block runs these signals have another handler."""
    before = {number: signal.signal(number, handler) for number in numbers}
    try:
        yield
    finally:
        for number, earlier in before.items():
            signal.signal(number, earlier)


def _notice_evaluation(outcome: Outcome) -> None:
    logs = outcome.planned.dir.logs.glob("evaluate-*.log")
    if outcome.state == "training" and any(p.stat().st_mtime >= outcome.started for p in logs):
        outcome.state = "evaluating"


def _conclude(outcome: Outcome, job: submitit.Job[Any], stopping: bool) -> None:
    """Record how a job ended."""
    try:
        result = job.result() if job.paths.result_pickle.exists() else {}
    except submitit.core.utils.UncompletedJobError as error:
        lines = str(error).strip().splitlines()
        result, outcome.reason = {}, lines[-1] if lines else ""
    outcome.code = result.get("code")
    outcome.log = Path(result["log"]) if result.get("log") else None
    if outcome.code == 0:
        outcome.state = "done"
    elif outcome.code in (75, 130) or (stopping and outcome.code is None):
        outcome.state = "interrupted"
    else:
        outcome.state = "failed"
        if outcome.log is not None:
            outcome.reason = last_error(outcome.log)
        else:
            outcome.log = job.paths.stderr
            outcome.reason = outcome.reason or "the job was killed"
        if outcome.code is not None and outcome.code < 0:
            outcome.reason = end_by_signal(outcome.code)
