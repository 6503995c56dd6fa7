"""What a job runs: one program of diffuse as a child process, its output in the run's logs.

submitit imports this module by name wherever the job runs, so it takes paths and plain values only
and loads no torch: the child does. Signals are handed on to the child, which saves and ends; its
exit code is the job's (75: interrupted, can be resumed).
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from types import FrameType
from typing import Any

from diffuse import files
from diffuse.rundir import now

INTERRUPTED = 75
FORWARDED = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR2)


def train(
    run_dir: str, config: dict[str, Any], data_dir: str, environment: dict[str, str | None]
) -> dict[str, Any]:
    """Train the run that `config` describes, in `run_dir`, or go on with it.

    Args:
        config: a resolved config as plain values.
        environment: variables for the child; None takes one away.

    Returns the exit code, negative for a signal, and the path of the log.
    """
    run = Path(run_dir)
    config_path = run / "logs" / f"{job_name('train')}.yaml"
    files.write_text(config_path, _as_yaml(config))
    arguments = ["--config", str(config_path), "--runs-dir", str(run.parent)]
    return _run("train", run, [*arguments, "--data-dir", data_dir], environment)


def job_name(program: str) -> str:
    """`train-20260730T101112` locally, `train-123_4-r01` as a Slurm job that was requeued once."""
    env = os.environ
    if "SLURM_JOB_ID" not in env:
        return f"{program}-{time.strftime('%Y%m%dT%H%M%S', time.gmtime())}"
    job = env["SLURM_JOB_ID"]
    if "SLURM_ARRAY_JOB_ID" in env:
        job = f"{env['SLURM_ARRAY_JOB_ID']}_{env['SLURM_ARRAY_TASK_ID']}"
    return f"{program}-{job}-r{int(env.get('SLURM_RESTART_COUNT', 0)):02d}"


def _run(
    program: str, run: Path, arguments: list[str], environment: dict[str, str | None]
) -> dict[str, Any]:
    log_path = run / "logs" / f"{job_name(program)}.log"
    command = [sys.executable, "-m", f"diffuse.{program}", *arguments]
    child: subprocess.Popen[bytes] | None = None
    asked_to_stop = False

    def hand_on(number: int, frame: FrameType | None) -> None:
        nonlocal asked_to_stop
        asked_to_stop = True
        if child is not None:
            child.send_signal(signal.SIGTERM if number == signal.SIGHUP else number)

    # submitit's own handlers would requeue from in here, where there may be no scontrol.
    for number in FORWARDED:
        signal.signal(number, hand_on)
    started = now()
    with log_path.open("ab", buffering=0) as log:
        log.write(f"$ {' '.join(command)}\n".encode())
        # A session of its own: a terminal's Ctrl-C reaches the launcher alone, which decides.
        child = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            env=_environment(environment),
            start_new_session=True,
        )
        if asked_to_stop:
            child.terminate()
        code = child.wait()
    if asked_to_stop and code < 0:
        code = INTERRUPTED  # it died of the signal while starting up: nothing is lost
    record = {"program": program, "started": started, "ended": now(), "code": code}
    files.write_json(log_path.with_suffix(".json"), {**record, "host": socket.gethostname()})
    return {"code": code, "log": str(log_path)}


def _environment(changes: dict[str, str | None]) -> dict[str, str]:
    env = {**os.environ, "PYTHONUNBUFFERED": "1"}
    for name, value in changes.items():
        if value is None:
            env.pop(name, None)
        else:
            env[name] = value
    return env


def _as_yaml(config: dict[str, Any]) -> str:
    import yaml

    return yaml.safe_dump(config, sort_keys=False)
