"""Who may write into a run directory: attempts are fenced.

Each start of a run claims the next number by creating its file exclusively; whoever no longer has
the highest publishes nothing more.
"""

from __future__ import annotations

import json
import os
import socket
import threading
import time
from typing import Any, Literal

import psutil

from diffuse.rundir.directory import RunDir
from diffuse.runtime import files
from diffuse.runtime.errors import EnvironmentFailed, Superseded, UserError

State = Literal["running", "interrupted", "failed", "done"]


class Attempt:
    """One start of a run: the right to publish into its directory until a newer attempt begins."""

    publishes = True

    def __init__(self, run: RunDir, number: int) -> None:
        self.run = run
        self.number = number
        self.began = time.monotonic()
        self.appending = threading.Lock()  # a checkpoint's thread appends, too

    @property
    def seconds(self) -> float:
        """Its age: the time for which it has held its devices."""
        return round(time.monotonic() - self.began, 3)

    @classmethod
    def claim(cls, run: RunDir) -> Attempt:
        """Take the next attempt number.

        Raises UserError where an attempt on this host is still alive, EnvironmentFailed where the
        folder cannot be written.
        """
        try:
            run.attempts.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise EnvironmentFailed(f"{run.path}: cannot be written: {error.strerror}") from None
        current = run.attempt_number()
        if pid := run.running_process():
            raise UserError(
                f"{run.name} is being trained by process {pid} on this machine; stop it first"
            )
        me = psutil.Process()
        record = {
            "host": socket.gethostname(),
            "pid": me.pid,
            "created": me.create_time(),
            "started": files.now(),
            "job_id": os.environ.get("SLURM_JOB_ID"),
            "array_job_id": os.environ.get("SLURM_ARRAY_JOB_ID"),
            "array_task_id": os.environ.get("SLURM_ARRAY_TASK_ID"),
            "node": os.environ.get("SLURMD_NODENAME"),
        }
        while True:
            current += 1
            path = run.attempt_path(current)
            try:
                with path.open("x", encoding="utf-8") as file:
                    json.dump(files.sealed(record), file)
                return cls(run, current)
            except FileExistsError:
                continue

    def remove_leftovers(self) -> None:
        """Remove temporary files of earlier attempts, and of other programs, that were killed."""
        for folder in (self.run.path, self.run.checkpoints):
            files.remove_leftovers(folder, others_write=False)
        for folder in (self.run.samples, self.run.evaluations, self.run.plots, self.run.logs):
            files.remove_leftovers(folder, others_write=True)

    @property
    def is_current(self) -> bool:
        """True until a newer attempt begins."""
        return self.run.attempt_number() == self.number

    def check(self) -> None:
        """Raise Superseded where a newer attempt has begun: call before publishing anything."""
        if not self.is_current:
            newer = self.run.attempt_number()
            why = f"attempt {newer} took over" if newer else f"{self.run.path} was removed"
            raise Superseded(
                f"{self.run.name}: {why}; attempt {self.number} stops and publishes nothing more"
            )

    def publish_status(self, state: State, **facts: Any) -> None:
        """Replace status.json."""
        self.check()
        status = {"state": state, "attempt": self.number, "heartbeat": time.time(), **facts}
        files.write_json(self.run.status_path, status)

    def append_metrics(self, events: list[dict[str, Any]]) -> None:
        """Append events to metrics.jsonl, each marked with this attempt."""
        if not events:
            return
        self.check()
        marked = [{"event": e["event"], "attempt": self.number, **e} for e in events]
        lines = [json.dumps(files.sealed(e)) for e in marked]
        with self.appending:
            files.append_lines(self.run.metrics_path, lines)


class Bystander(Attempt):
    """The attempt as ranks other than 0 hold it: they take part in all, and publish nothing."""

    publishes = False

    def __init__(self, run: RunDir) -> None:
        super().__init__(run, number=0)

    def remove_leftovers(self) -> None:
        pass

    @property
    def is_current(self) -> bool:
        return True  # rank 0 finds out

    def check(self) -> None:
        pass

    def publish_status(self, state: State, **facts: Any) -> None:
        pass

    def append_metrics(self, events: list[dict[str, Any]]) -> None:
        pass
