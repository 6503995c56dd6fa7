"""A program of the package as a child of a job: its output, and its record, in a run's logs.

Signals that reach the job are handed on to every child, which saves and ends.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import FrameType
from typing import IO, Any

from diffuse.runtime import files

INTERRUPTED = 75
FORWARDED = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR2)
asked_to_stop: list[int] = []  # the signals that this job received
_children: set[subprocess.Popen[bytes]] = set()


class Program:
    """`python -m module`, from its first record to its last.

    Args:
        logs: for its output and, beside that, a record of how it began and ended.
        environment: variables for the child; None takes one away.
        record: more facts for that record.
    """

    def __init__(
        self,
        module: str,
        logs: Path,
        arguments: Sequence[str],
        environment: Mapping[str, str | None],
        record: Mapping[str, Any] | None = None,
    ) -> None:
        self.module, self.arguments, self.environment = module, arguments, environment
        self.facts = dict(record or {})
        name = job_name(module.rpartition(".")[2])
        self.record_path = logs / f"{name}.json"
        self.log_path = logs / f"{name}{f'-rank{rank()}' if rank() else ''}.log"
        self._child: subprocess.Popen[bytes] | None = None
        self._log: IO[bytes] | None = None

    def start(self) -> None:
        """Start the child, unless this job was asked to stop before."""
        self.facts = {"program": self.module, "started": files.now(), **self.facts}
        self.record_path.parent.mkdir(parents=True, exist_ok=True)
        self._write_record(self.facts)
        take_over_signals()
        if asked_to_stop:  # between two programs of a chain
            return
        command = [sys.executable, "-m", self.module, *self.arguments]
        self._log = self.log_path.open("ab", buffering=0)
        self._log.write(os.fsencode(f"$ {' '.join(command)}\n"))
        env = {**os.environ, "PYTHONUNBUFFERED": "1", **self.environment}
        # A session of its own: a terminal's Ctrl-C reaches the launcher alone, which decides.
        self._child = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=self._log,
            stderr=subprocess.STDOUT,
            env={k: value for k, value in env.items() if value is not None},
            start_new_session=True,
        )
        _children.add(self._child)
        if asked_to_stop:
            self._child.terminate()

    @property
    def has_ended(self) -> bool:
        """Whether the child has ended, or was never started."""
        return self._child is None or self._child.poll() is not None

    def terminate(self) -> None:
        """Ask the child to save and end."""
        if self._child is not None:
            self._child.terminate()

    def conclude(self) -> int:
        """Wait for the child's end and write it down; its exit code, a signal as negative."""
        code = INTERRUPTED
        if self._child is not None and self._log is not None:
            code = self._child.wait()
            _children.discard(self._child)
            self._log.close()
            if asked_to_stop and code < 0:
                # A child that died of the signal was still starting up: nothing is lost.
                code = INTERRUPTED
        self._write_record({**self.facts, "ended": files.now(), "code": code})
        return code

    def _write_record(self, facts: dict[str, Any]) -> None:
        if rank() == 0:
            files.write_json(self.record_path, facts)


def take_over_signals() -> None:
    """From now on signals are handed on to the children that run."""
    for number in FORWARDED:
        signal.signal(number, _hand_on)


def job_name(program: str) -> str:
    """`train-20260730T101112` locally, `train-123_4-r01` as a Slurm job that was requeued once."""
    if not in_batch_job():
        return f"{program}-{time.strftime('%Y%m%dT%H%M%S', time.gmtime())}"
    env = os.environ
    job = env["SLURM_JOB_ID"]
    if "SLURM_ARRAY_JOB_ID" in env:
        job = f"{env['SLURM_ARRAY_JOB_ID']}_{env['SLURM_ARRAY_TASK_ID']}"
    return f"{program}-{job}-r{int(env.get('SLURM_RESTART_COUNT', 0)):02d}"


def rank() -> int:
    """The rank of this process in a Slurm job of ours, else 0."""
    return int(os.environ.get("SLURM_PROCID", 0)) if in_batch_job() else 0


def in_batch_job() -> bool:
    """Whether our own batch script started this: a local sweep may run in a user's allocation."""
    return "DIFFUSE_INTERRUPTED" in os.environ


def end_job(code: int) -> None:
    """End this process of a Slurm job as its work did; the batch script requeues the interrupted.

    Args:
        code: of a child, negative for a signal; 0, or outside a Slurm job any: nothing happens.
    """
    if code and in_batch_job():
        if code == INTERRUPTED and rank() == 0:
            Path(os.environ["DIFFUSE_INTERRUPTED"]).touch()
        sys.exit(code if code > 0 else 128 - code)


def _hand_on(number: int, frame: FrameType | None) -> None:
    asked_to_stop.append(number)
    for child in tuple(_children):
        child.send_signal(signal.SIGTERM if number == signal.SIGHUP else number)
