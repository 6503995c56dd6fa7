"""The functions that jobs run: each starts one program as a child, its output in the run's logs.

submitit imports this module by name wherever the job runs, so it takes paths and plain values only
and loads no torch: the child does. Signals are handed on to the child, which saves and ends; its
exit code is the job's (75: interrupted, can be resumed).
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from types import FrameType
from typing import Any

from diffuse.config import ranges
from diffuse.rundir.directory import RunDir
from diffuse.runtime import files

INTERRUPTED = 75
FORWARDED = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR2)
asked_to_stop: list[int] = []  # the signals that this job received


def train(
    run_dir: str,
    config: dict[str, Any],
    data_dir: str,
    environment: dict[str, str | None],
    max_requeues: int = 0,
) -> dict[str, Any]:
    """Train the run that `config` describes, in `run_dir`, or go on with it.

    Args:
        config: a resolved config as plain values.
        environment: variables for the child; None takes one away.
        max_requeues: of a Slurm job, in a row, without a newer checkpoint; then it ends for good.

    Returns the exit code, negative for a signal, and the path of the log. In a Slurm job it does
    not return: the process ends with that code, by which the batch script decides on a requeue.
    """
    run = RunDir(Path(run_dir))
    record = _require_progress(run, "train", "new checkpoint", max_requeues)
    config_path = run.logs / f"{job_name('train')}.yaml"
    files.write_text(config_path, _as_yaml(config))
    arguments = ["--config", str(config_path), "--runs-dir", str(run.path.parent)]
    return _run(
        "diffuse.train", run.logs, [*arguments, "--data-dir", data_dir], environment, record
    )


def evaluate(
    run_dir: str,
    epochs: Sequence[int],
    options: Sequence[str],
    data_dir: str,
    environment: dict[str, str | None],
    max_requeues: int = 0,
) -> dict[str, Any]:
    """Evaluate these epochs of a run; returns as `train` does.

    Args:
        options: of diffuse.evaluate: how many images, by which samplers and extractor.
        max_requeues: in a row, without a new image.
    """
    if not epochs:
        return {"code": 0, "log": None}
    run = RunDir(Path(run_dir))
    record = _require_progress(run, "evaluate", "new image", max_requeues)
    arguments = [run_dir, *options, "--data-dir", data_dir, "--epoch", ranges.shown(epochs)]
    return _run("diffuse.evaluate", run.logs, arguments, environment, record)


def train_then_evaluate(
    run_dir: str,
    config: dict[str, Any] | None,
    epochs: Sequence[int],
    options: Sequence[str],
    data_dir: str,
    environment: dict[str, str | None],
) -> dict[str, Any]:
    """The chain of one run on this machine: training (where there is a config), evaluation."""
    result: dict[str, Any] = {"code": 0, "log": None}
    if config is not None:
        result = train(run_dir, config, data_dir, environment)
    if result["code"] == 0 and epochs:
        result = evaluate(run_dir, epochs, options, data_dir, environment)
    return result


def report(runs_dir: str, arguments: Sequence[str], logs: str) -> dict[str, Any]:
    """Compare the runs of a grid; returns as `train` does."""
    return _run("launch.compare", Path(logs), [*arguments, "--runs-dir", runs_dir], {})


def probe(answer: str, data_dir: str, options: Sequence[str]) -> dict[str, Any]:
    """Check the node, for `launch/doctor.py --job`; returns as `train` does."""
    arguments = [answer, "--data-dir", data_dir, *options]
    return _run("diffuse.node_check", Path(answer).parent, arguments, {})


def job_name(program: str) -> str:
    """`train-20260730T101112` locally, `train-123_4-r01` as a Slurm job that was requeued once."""
    env = os.environ
    if not _in_batch_job():
        return f"{program}-{time.strftime('%Y%m%dT%H%M%S', time.gmtime())}"
    job = env["SLURM_JOB_ID"]
    if "SLURM_ARRAY_JOB_ID" in env:
        job = f"{env['SLURM_ARRAY_JOB_ID']}_{env['SLURM_ARRAY_TASK_ID']}"
    return f"{program}-{job}-r{int(env.get('SLURM_RESTART_COUNT', 0)):02d}"


def _run(
    module: str,
    logs: Path,
    arguments: Sequence[str],
    environment: dict[str, str | None],
    record: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """Run `python -m module`, its output in `logs`, and beside that a record of how it ended."""
    name = job_name(module.rpartition(".")[2])
    facts = {"program": module, "started": files.now(), **(record or {})}
    log_path = logs / f"{name}{f'-rank{_rank()}' if _rank() else ''}.log"
    logs.mkdir(parents=True, exist_ok=True)
    if _rank() == 0:
        files.write_json(logs / f"{name}.json", facts)
    code = _child(module, arguments, environment, log_path)
    if _rank() == 0:
        files.write_json(logs / f"{name}.json", {**facts, "ended": files.now(), "code": code})
    if code and _in_batch_job():
        if code == INTERRUPTED and _rank() == 0:
            Path(os.environ["DIFFUSE_INTERRUPTED"]).touch()
        sys.exit(code if code > 0 else 128 - code)
    return {"code": code, "log": str(log_path)}


def _child(
    module: str, arguments: Sequence[str], environment: dict[str, str | None], log_path: Path
) -> int:
    """The exit code of `python -m module`; a signal that ended it counts as negative."""
    command = [sys.executable, "-m", module, *arguments]
    child: subprocess.Popen[bytes] | None = None

    def hand_on(number: int, frame: FrameType | None) -> None:
        asked_to_stop.append(number)
        if child is not None:
            child.send_signal(signal.SIGTERM if number == signal.SIGHUP else number)

    for number in FORWARDED:
        signal.signal(number, hand_on)
    if asked_to_stop:  # between two programs of a chain
        return INTERRUPTED
    with log_path.open("ab", buffering=0) as log:
        log.write(os.fsencode(f"$ {' '.join(command)}\n"))
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
    # A child that died of the signal was still starting up: nothing is lost.
    return INTERRUPTED if asked_to_stop and code < 0 else code


def _rank() -> int:
    return int(os.environ.get("SLURM_PROCID", 0)) if _in_batch_job() else 0


def _in_batch_job() -> bool:
    """Whether our own batch script started this: a local sweep may run in a user's allocation."""
    return "DIFFUSE_INTERRUPTED" in os.environ


def _require_progress(run: RunDir, program: str, product: str, most: int) -> dict[str, Any]:
    """The progress so far, for this start's record; ends the job where requeues bring none.

    Args:
        product: a file of `program` that shows progress.
        most: requeues in a row without that.
    """
    progress = _newest(run, program)
    if _rank() == 0 and _starts_without_progress(run, program, progress) > most:
        name = job_name(program)
        message = (
            f"error: {run.name}: {most} requeue{'s' * (most != 1)} in a row without a {product};"
            " the time limit, or the notice before it, is too short (cluster: time, max_requeues)"
        )
        at = files.now()
        record = {"program": program, "progress": progress, "started": at, "ended": at, "code": 1}
        files.write_json(run.logs / f"{name}.json", record)
        files.write_text(run.logs / f"{name}.log", f"{message}\n")
        sys.exit(message)
    return {"progress": progress}


def _newest(run: RunDir, program: str) -> str | None:
    """The newest file that `program` has made, and when."""
    if program == "train":
        paths = [file.path for file in run.checkpoint_files()]
    else:  # parts of a set of images, whole sets, figures
        paths = [*run.samples.rglob("*.npz"), *run.samples.glob("[!.]*.h5")]
        paths += map(run.evaluation_path, run.evaluated_epochs())
    newest = max(paths, key=lambda path: path.stat().st_mtime_ns, default=None)
    return None if newest is None else f"{newest.relative_to(run.path)} {newest.stat().st_mtime_ns}"


def _starts_without_progress(run: RunDir, program: str, progress: str | None) -> int:
    """The starts in a row of this Slurm job from the point where it would start now."""
    attempt = int(os.environ.get("SLURM_RESTART_COUNT", 0))
    stem = job_name(program).rpartition("-r")[0]
    count = 0
    while attempt > count:
        earlier = files.read_json(run.logs / f"{stem}-r{attempt - count - 1:02d}.json")
        if not earlier or earlier.get("progress") != progress:
            break
        count += 1
    return count


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
