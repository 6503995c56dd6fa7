"""Weights & Biases mirrors the run directory, from a process of its own.

Truth is local: training writes its events to metrics.jsonl, and `diffuse.tracking.uploader` follows
that file and hands each line on. A client that hangs, crashes or finds no network, no key or no
space costs training nothing but the one line that says so. When the trainer dies, by whatever
signal, the pipe that the mirror holds ends, and so does the mirror, within a bounded time.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any, Literal

import psutil

from diffuse import ROOT
from diffuse.config.schema import Config
from diffuse.rundir.directory import RunDir
from diffuse.runtime import console
from diffuse.tracking.connection import give_home

Job = Literal["train", "evaluate"]
INTERRUPTED_END_S = 8.0  # the longest wait where Slurm is about to kill us
_open: dict[Path, Mirror] = {}  # of this process, by run directory


class Mirror:
    """Keeps W&B up to date with a run's events while it is open. Never raises, never waits long.

    Args:
        active: false on all ranks but the first.
    """

    def __init__(self, run: RunDir, config: Config, job: Job = "train", active: bool = True):
        self.run = run
        self.end_s = config.tracking.end_s
        self.process: subprocess.Popen[bytes] | None = None
        self.log_start = 0
        mode = config.tracking.mode
        if not active or mode == "disabled":
            return
        try:
            log_path(run).parent.mkdir(parents=True, exist_ok=True)
            with log_path(run).open("ab") as log:
                self.log_start = log.tell()
                self.process = subprocess.Popen(
                    command(run, job, mode, config.tracking.end_s),
                    stdin=subprocess.PIPE,
                    stdout=log,
                    stderr=log,
                    env=environment(),
                    start_new_session=True,  # a terminal's Ctrl-C is for the trainer
                )
        except OSError as error:
            console.note(f"W&B: not mirrored: {error.strerror}")
            return
        _open[run.path.absolute()] = self

    def close(self) -> None:
        """Let the mirror take the last events, for a bounded time; then end it."""
        if self.process is None:
            return
        _open.pop(self.run.path.absolute(), None)
        assert self.process.stdin is not None
        with contextlib.suppress(OSError):
            self.process.stdin.close()
        interrupted = self.run.status().get("state") == "interrupted"
        try:
            limit = min(self.end_s, INTERRUPTED_END_S) if interrupted else self.end_s
            self.process.wait(limit)
            lines = notes(self.run, self.log_start)
        except subprocess.TimeoutExpired:
            lines = ["W&B did not take the last rows in time; `python launch/sync.py` sends them"]
        end(self.process)
        self.process = None
        for line in lines:
            console.note(line)

    def cpu_seconds(self) -> float:
        """Processor time of the mirror and of the client's own processes so far."""
        used = 0.0
        with contextlib.suppress(psutil.Error):
            assert self.process is not None
            mirror = psutil.Process(self.process.pid)
            for process in (mirror, *mirror.children(recursive=True)):
                used += sum(process.cpu_times()[:2])
        return used

    def __enter__(self) -> Mirror:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


def mirror_once(run: RunDir, config: Config, job: Job) -> None:
    """Mirror the events that were just written. Never raises for W&B's sake.

    Inside `with Mirror(run, config, job):` that mirror takes them, so that one client serves many
    epochs; else one is opened for them.
    """
    if run.path.absolute() not in _open:
        Mirror(run, config, job).close()


def command(run: RunDir, job: Job, mode: str, limit_s: float) -> list[str]:
    """The mirror as a program: it takes its standard input's end as the sign to finish."""
    arguments = [str(run.path.absolute()), job, mode, str(limit_s)]
    return [sys.executable, "-m", "diffuse.tracking.uploader", *arguments]


def environment() -> dict[str, str]:
    """Variables for the mirror: this code on its path, W&B's files in no one's home."""
    env = dict(os.environ)
    root = str(ROOT)
    env["PYTHONPATH"] = os.pathsep.join(filter(None, [root, env.get("PYTHONPATH")]))
    env.pop("WANDB_SERVICE", None)  # of a client around this program
    give_home(env)
    return env | {"WANDB_ERROR_REPORTING": "false", "OMP_NUM_THREADS": "1"}


def log_path(run: RunDir) -> Path:
    """The output of the mirror process."""
    return run.path / "wandb" / "mirror.log"


def notes(run: RunDir, start: int = 0) -> list[str]:
    """The lines of the mirror's log that are for people, from the byte `start` on."""
    try:
        with log_path(run).open("rb") as file:
            file.seek(start)
            lines = file.read().decode(errors="replace").splitlines()
    except OSError:
        return []
    return [line for line in lines if line.startswith("W&B")]


def end(process: subprocess.Popen[Any]) -> None:
    """Leave nothing of the mirror behind: neither it nor the client's own processes."""
    with contextlib.suppress(psutil.Error):
        family = psutil.Process(process.pid).children(recursive=True)
        for child in family:
            with contextlib.suppress(psutil.Error):
                child.kill()
    if process.poll() is None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    process.wait()
