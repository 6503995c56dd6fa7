"""The functions that jobs run: each starts one program as a child, its output in the run's logs.

submitit imports this module by name wherever the job runs, so it takes paths and plain values only
and loads no torch: the child does. Signals are handed on to the child, which saves and ends; its
exit code is the job's (75: interrupted, can be resumed).
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from diffuse.config import ranges
from diffuse.rundir.directory import RunDir
from diffuse.runtime import files
from launch.jobs.program import Program, end_job, job_name, rank


class NoProgress(SystemExit):
    """A run's program was requeued again and again and made nothing new; ends a job of one run."""


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
    return _run(training(run_dir, config, data_dir, environment, max_requeues))


def training(
    run_dir: str,
    config: dict[str, Any],
    data_dir: str,
    environment: dict[str, str | None],
    max_requeues: int,
) -> Program:
    """The program by which `train` trains; raises NoProgress."""
    run = RunDir(Path(run_dir))
    record = _require_progress(run, "train", "new checkpoint", max_requeues)
    config_path = run.logs / f"{job_name('train')}.yaml"
    files.write_text(config_path, yaml.safe_dump(config, sort_keys=False))
    arguments = ["--config", str(config_path), "--runs-dir", str(run.path.parent)]
    arguments += ["--data-dir", data_dir]
    return Program("diffuse.train", run.logs, arguments, environment, record)


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
    return _run(evaluation(run_dir, epochs, options, data_dir, environment, max_requeues))


def evaluation(
    run_dir: str,
    epochs: Sequence[int],
    options: Sequence[str],
    data_dir: str,
    environment: dict[str, str | None],
    max_requeues: int,
) -> Program:
    """The program by which `evaluate` evaluates; raises NoProgress."""
    run = RunDir(Path(run_dir))
    record = _require_progress(run, "evaluate", "new image", max_requeues)
    arguments = [run_dir, *options, "--data-dir", data_dir, "--epoch", ranges.shown(epochs)]
    return Program("diffuse.evaluate", run.logs, arguments, environment, record)


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
    arguments = [*arguments, "--runs-dir", runs_dir]
    return _run(Program("launch.compare", Path(logs), arguments, {}))


def probe(answer: str, data_dir: str, options: Sequence[str]) -> dict[str, Any]:
    """Check the node, for `launch/doctor.py --job`; returns as `train` does."""
    arguments = [answer, "--data-dir", data_dir, *options]
    return _run(Program("diffuse.node_check", Path(answer).parent, arguments, {}))


def _run(program: Program) -> dict[str, Any]:
    """Run a program to its end. Returns as `train` does."""
    program.start()
    code = program.conclude()
    end_job(code)
    return {"code": code, "log": str(program.log_path)}


def _require_progress(run: RunDir, program: str, product: str, most: int) -> dict[str, Any]:
    """The progress so far, for this start's record; ends the job where requeues bring none.

    Args:
        product: a file of `program` that shows progress.
        most: requeues in a row without that.
    """
    progress = _newest(run, program)
    if rank() == 0 and _starts_without_progress(run, program, progress) > most:
        name = job_name(program)
        message = (
            f"error: {run.name}: {most} requeue{'s' * (most != 1)} in a row without a {product};"
            " the time limit, or the notice before it, is too short (cluster: time, max_requeues)"
        )
        at = files.now()
        record = {"program": program, "progress": progress, "started": at, "ended": at, "code": 1}
        files.write_json(run.logs / f"{name}.json", record)
        files.write_text(run.logs / f"{name}.log", f"{message}\n")
        raise NoProgress(message)
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
